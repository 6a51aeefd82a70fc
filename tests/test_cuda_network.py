"""`CudaSwin` and its attention kernel, which Triton interprets if there is no GPU."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from vswin_extract.network.cuda import CudaSwin, reference_window_attention, window_layout
from vswin_extract.network.inference import as_frames
from vswin_extract.network.swin3d import Size3, VideoSwin
from vswin_extract.network.variants import VARIANTS

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
@pytest.mark.parametrize("window", [(8, 7, 7), (16, 7, 7)])
def test_the_network_around_the_kernel_is_the_network(shape: tuple[int, ...], window: Size3) -> None:
    """In float32 with the reference attention, so only rounding may differ: odd sizes, shrunken windows, shifts."""
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = drawn(window)
    expected = network(clips.permute(0, 4, 1, 2, 3), (1, 2, 3, 4))
    found = CudaSwin(network, CPU, torch.float32)(*as_frames(clips), (1, 2, 3, 4))
    for stage in (1, 2, 3, 4):
        assert (found[stage] - expected[stage]).norm() < 1e-5 * expected[stage].norm()


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
from vswin_extract.network.cuda import reference_window_attention, window_layout
from vswin_extract.network.triton_attention import triton_window_attention
device, sizes, window, dtypes = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3]), sys.argv[4].split()
tolerances = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
for size in sizes:
    for shifted in (False, True):
        *layout, _ = window_layout(size, window, shifted, torch.device(device))
        for dtype in dtypes:
            torch.manual_seed(0)
            tokens = layout[0].numel()
            qkv = torch.randn(2, tokens, 3, 2, 32).to(device, getattr(torch, dtype))
            table = torch.randn(2, offsets, device=device)
            found = triton_window_attention(qkv, table, *layout).float()
            expected = reference_window_attention(qkv.float(), table, *layout)
            error = float((found - expected).norm() / expected.norm())
            assert error < tolerances[dtype], (size, shifted, dtype, error)
print("agree")
"""


@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        pytest.param([(4, 7, 5)], (4, 5, 5), id="small"),  # two blocks of a window's tokens, two windows, one padded
        pytest.param([(8, 7, 7), (16, 14, 7), (4, 14, 7)], (8, 7, 7), id="published", marks=pytest.mark.slow),
    ],
)
def test_the_kernel_agrees_with_its_reference(sizes: list[Size3], window: Size3) -> None:
    """In a process of its own, since Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    environment = os.environ if GPU else {**os.environ, "TRITON_INTERPRET": "1"}
    # Triton's interpreter computes bfloat16 wrongly, since NumPy has no such type
    dtypes = "float32 float16 bfloat16" if GPU else "float32 float16"
    arguments = ["cuda" if GPU else "cpu", str(sizes), str(window), dtypes]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "agree\n", done.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vswin_extract.network.triton_attention import BLOCK, attention_kernel
types = dict(qkv="*bf16", table="*fp32", rows="*i32", regions="*i32", codes="*i32", out="*bf16", scale="fp32",
             windows="i32", length="i32", offsets="i32", centre="i32")
fixed = dict(TOKENS=392, HEADS=3, DIM=32, MASKED=True, IEEE=False, SIDE=BLOCK)
for capability in (80, 90):
    made = triton.compile(
        ASTSource(attention_kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed),
        target=GPUTarget("cuda", capability, 32),
    )
    assert made.asm["cubin"] and made.metadata.shared <= 48 * 1024, made.metadata
print("compiled")
"""


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="Triton needs a C compiler")
def test_the_kernel_compiles_for_gpus_that_are_not_here() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.stdout == "compiled\n", done.stderr


def test_every_token_is_in_one_window() -> None:
    for size in SIZES:
        for shifted in (False, True):
            layout = window_layout(size, (8, 7, 7), shifted, CPU)
            padded = torch.nn.functional.pad(torch.zeros(1, *size, 1), layout.padding).numel()
            assert sorted(layout.rows.flatten().tolist()) == list(range(padded))


def test_the_operator_is_well_formed() -> None:
    """Its fake and its real results have one shape, as torch.compile relies on."""
    *layout, _ = window_layout((4, 5, 5), (4, 5, 5), False, CPU)
    arguments = (torch.randn(1, 100, 3, 2, 16), torch.randn(2, 7 * 9 * 9), *layout)
    torch.library.opcheck(torch.ops.vswin_extract.window_attention.default, arguments)
    assert reference_window_attention(*arguments).shape == (1, 100, 32)
