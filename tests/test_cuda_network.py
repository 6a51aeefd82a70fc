"""`CudaSwin` and its attention kernel, which Triton interprets if there is no GPU."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch import nn

from vswin_extract.network.cuda import (
    CudaSwin,
    attention_table,
    kernel_problem,
    reference_group_attention,
    reference_token_attention,
    window_attention,
)
from vswin_extract.network.inference import as_frames
from vswin_extract.network.swin3d import Size3, VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.network.windows import LOG2E, WindowLayout, window_layout

CPU = torch.device("cpu")
GPU = torch.cuda.is_available()
SIZES = [(8, 7, 7), (16, 14, 14), (4, 14, 7), (16, 7, 21), (5, 19, 23)]


def drawn(window: Size3) -> VideoSwin:
    generator = torch.Generator().manual_seed(0)
    network = VideoSwin(replace(VARIANTS["nano"], window=window)).requires_grad_(False).eval()
    for name, value in network.named_parameters():
        scale = 1.0 if "table" in name else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        nn.init.normal_(value, float("norm" in name and name.endswith("weight")), scale, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(1, 16, 64, 64, 3), (2, 9, 75, 90, 3)])
@pytest.mark.parametrize("window", [(8, 7, 7), (5, 7, 7), (16, 7, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-2)])
def test_the_network_around_the_kernel_is_the_network(
    shape: tuple[int, ...], window: Size3, dtype: torch.dtype, tolerance: float
) -> None:
    """With the reference attention, so only rounding may differ: odd sizes, shrunken windows, shifts. Windows are in
    groups where they fit them, but not in float32."""
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = drawn(window)
    expected = network(clips.permute(0, 4, 1, 2, 3), (1, 2, 3, 4))
    found = CudaSwin(network, CPU, dtype)(*as_frames(clips), (1, 2, 3, 4))
    for stage in (1, 2, 3, 4):
        assert (found[stage] - expected[stage]).norm() < tolerance * expected[stage].norm()


def test_without_the_kernel_of_groups_windows_are_in_tokens() -> None:
    """As on GPUs with too little shared memory, and with old versions of Triton."""
    assert kernel_problem(CPU, torch.float32, groups=False) == kernel_problem(CPU, torch.float32, groups=True) == ""
    network = CudaSwin(drawn((8, 7, 7)), CPU, torch.float16, groups=False)
    clips = torch.randn(1, 16, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    expected = CudaSwin(drawn((8, 7, 7)), CPU, torch.float16)(*as_frames(clips), (4,))[4]
    assert (network(*as_frames(clips), (4,))[4] - expected).norm() < 2e-2 * expected.norm()


def test_compiled_smaller_batches_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is compiled for each size anew. The compiler is simulated."""
    network = CudaSwin(drawn((8, 7, 7)), CPU, torch.float32)
    clips = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = network(*as_frames(clips), (1, 4))
    batches = []

    def compiler(function, dynamic):  # type: ignore[no-untyped-def]
        def compiled(x, *arguments):  # type: ignore[no-untyped-def]
            batches.append(len(x))
            return function(x, *arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    for batch, computed in ((4, 4), (3, 3), (2, 3), (0, None)):
        network.compile_for(batch)
        batches.clear()
        found = network(*as_frames(clips), (1, 4))
        assert batches == ([] if computed is None else [computed])
        for stage in (1, 4):
            assert found[stage].shape == expected[stage].shape
            assert torch.allclose(found[stage], expected[stage], rtol=1e-4, atol=1e-5)


KERNEL = """
import sys, torch
from vswin_extract.network.cuda import attention_table, reference_token_attention
from vswin_extract.network.triton_attention import attend_by_groups, attend_by_tokens
from vswin_extract.network.windows import LOG2E, window_layout
device, sizes, window, dtypes = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3]), sys.argv[4].split()
tolerances = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
for size in sizes:
    for shifted in (False, True):
        layout = window_layout(size, window, shifted, torch.device(device))
        for name in dtypes:
            torch.manual_seed(0)
            dtype = getattr(torch, name)
            qkv = torch.randn(2, layout.rows.numel(), 3, 2, 32).to(device, dtype)
            table = torch.randn(2, offsets, device=device)
            of_blocks = attention_table(table, window, layout, dtype)
            if layout.groups is None:
                found = attend_by_tokens(qkv, of_blocks, *layout[:5])
            else:
                found = attend_by_groups(qkv, of_blocks, *layout.groups, layout.masked)
            expected = reference_token_attention(qkv.float(), table * LOG2E, *layout[:5])
            error = float((found.float() - expected).norm() / expected.norm())
            assert error < tolerances[name], (size, shifted, name, error)
print("agree")
"""


@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        pytest.param([(4, 7, 5)], (4, 5, 5), id="tokens"),  # two tiles of a window's tokens, two windows, one padded
        pytest.param([(6, 4, 2)], (5, 3, 3), id="groups"),  # padded, and cut in time
        pytest.param([(16, 7, 7)], (16, 7, 7), id="16 frames", marks=pytest.mark.slow),
        pytest.param([(8, 7, 7), (16, 14, 7), (6, 14, 7)], (8, 7, 7), id="published", marks=pytest.mark.slow),
    ],
)
def test_the_kernel_agrees_with_its_reference(sizes: list[Size3], window: Size3) -> None:
    """In a process of its own, since Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    environment = os.environ if GPU else {**os.environ, "TRITON_INTERPRET": "1"}
    # Triton's interpreter computes bfloat16 wrongly, since NumPy has no such type
    dtypes = "float16 bfloat16" if GPU else "float32 float16"
    arguments = ["cuda" if GPU else "cpu", str(sizes), str(window), dtypes]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "agree\n", done.stderr


COMPILE = """
from benchmarks.gpu.code import figures
from vswin_extract.network.triton_attention import KEEPS_LOOPS
for name, masked in (("tokens", True), ("groups", False), ("groups", True)):
    for architecture in (80, 90):
        found = figures(name, masked, architecture)
        assert found["shared, kB"] <= 64, found
        if name == "groups":  # no register is spilled, and no bias is gathered
            assert found["stack, B"] == found["local"] == 0 or not KEEPS_LOOPS, found
            assert found["gathers a score"] < 0.2, found
            assert found["programs"] >= (4 if architecture == 90 else 2), found
print("compiled")
"""


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="Triton needs a C compiler")
def test_the_kernels_compile_for_gpus_that_are_not_here() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "compiled\n", done.stderr


def test_every_token_is_in_one_window() -> None:
    for size in SIZES:
        for shifted in (False, True):
            layout = window_layout(size, (8, 7, 7), shifted, CPU)
            padded = torch.nn.functional.pad(torch.zeros(1, *size, 1), layout.padding).numel()
            assert sorted(layout.rows.flatten().tolist()) == list(range(padded))


def problem(size: Size3, window: Size3, shifted: bool) -> tuple[torch.Tensor, torch.Tensor, WindowLayout]:
    """Return queries, keys and values, a table of biases, and the windows of a map."""
    layout = window_layout(size, window, shifted, CPU)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, layout.rows.numel(), 3, 2, 16, generator=generator)
    offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
    return qkv, torch.randn(2, offsets, generator=generator), layout


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [(8, 7, 7), (6, 3, 3), (7, 5, 2)])
@pytest.mark.parametrize("size", [*SIZES, (13, 6, 7)])
def test_groups_attend_as_tokens_do(size: Size3, window: Size3, shifted: bool) -> None:
    """Padded maps, and windows that the shift cuts along each axis."""
    qkv, table, layout = problem(size, window, shifted)
    if layout.groups is None:
        pytest.skip("the windows do not fit groups")
    expected = reference_token_attention(qkv, table * LOG2E, *layout[:5])
    blocks = attention_table(table, window, layout, torch.float32)
    found = window_attention(qkv, blocks, layout)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_which_windows_fit_groups() -> None:
    fit = {(8, 7, 7): True, (5, 7, 7): True, (4, 7, 7): False, (16, 7, 7): False, (8, 7, 5): False, (8, 9, 9): False}
    for window, groups in fit.items():
        assert (window_layout((16, 14, 14), window, False, CPU).groups is not None) == groups, window
    assert window_layout((16, 5, 14), (8, 7, 7), False, CPU).groups is None  # they read another part of the table


def test_the_operators_are_well_formed() -> None:
    """Their fake and their real results have one shape, as torch.compile relies on."""
    qkv, table, layout = problem((4, 5, 5), (4, 5, 5), False)
    arguments = (qkv, table, *layout[:5])
    torch.library.opcheck(torch.ops.vswin_extract.token_attention.default, arguments)
    assert reference_token_attention(*arguments).shape == (1, 100, 32)
    qkv, table, layout = problem((8, 3, 3), (8, 3, 3), False)
    assert layout.groups is not None
    blocks = attention_table(table, (8, 3, 3), layout, torch.float32)
    of_groups = (qkv, blocks, *layout.groups, False)
    torch.library.opcheck(torch.ops.vswin_extract.group_attention.default, of_groups)
    assert reference_group_attention(*of_groups).shape == (1, 72, 32)


@pytest.mark.skipif(not GPU, reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [False, True])
def test_the_kernels_work_on_this_gpu(dtype: torch.dtype, groups: bool) -> None:
    assert kernel_problem(torch.device("cuda"), dtype, groups) == ""
