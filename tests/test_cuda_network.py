"""Attention as one kernel against its plain twin, interpreted where there is no GPU; the network around it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from vswin_extract.network.cuda import CudaSwin, cut, reference_window_attention
from vswin_extract.network.swin3d import Size3, VideoSwin
from vswin_extract.network.variants import VARIANTS

GPU = torch.cuda.is_available()
SIZES = [(8, 7, 7), (16, 14, 14), (4, 14, 7), (16, 7, 21), (5, 19, 23)]


def drawn(variant: str = "nano", window: Size3 = (8, 7, 7)) -> VideoSwin:
    generator = torch.Generator().manual_seed(0)
    network = VideoSwin(replace(VARIANTS[variant], window=window)).requires_grad_(False).eval()
    for name, value in network.named_parameters():
        scale = 1.0 if "table" in name else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        nn.init.normal_(value, float("norm" in name and name.endswith("weight")), scale, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(1, 3, 16, 64, 64), (2, 3, 9, 75, 90), (1, 3, 32, 112, 112)])
@pytest.mark.parametrize("window", [(8, 7, 7), (16, 7, 7)])
def test_the_network_around_the_kernel_is_the_network(shape: tuple[int, ...], window: Size3) -> None:
    """In float32 by the twin, so that only rounding may differ: odd sizes, shrunken windows, shifts, all stages."""
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = drawn(window=window)
    expected = network(clips, (1, 2, 3, 4))
    found = CudaSwin(network, torch.float32)(clips, (1, 2, 3, 4))
    for stage in (1, 2, 3, 4):
        assert (found[stage] - expected[stage]).norm() < 1e-5 * expected[stage].norm()


KERNEL = """
import sys, torch
from vswin_extract.network.cuda import cut, reference_window_attention
from vswin_extract.network.triton_attention import window_attention
device = sys.argv[1]
for size in ((8, 7, 7), (16, 14, 7), (4, 14, 7)):
    for shifted in (False, True):
        *windows, _ = cut(size, (8, 7, 7), shifted, torch.device(device))
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
            if dtype is torch.bfloat16 and device == "cpu":
                continue  # which Triton's interpreter computes wrongly: NumPy has no such numbers
            torch.manual_seed(0)
            qkv = torch.randn(2, size[0] * size[1] * size[2], 3, 2, 32).to(device, dtype)
            table = torch.randn(2, 15 * 13 * 13, device=device)
            found = window_attention(qkv, table, *windows).float()
            expected = reference_window_attention(qkv.float(), table, *windows)
            error = float((found - expected).norm() / expected.norm())
            assert error < tolerance, (size, shifted, dtype, error)
print("agree")
"""


def test_the_kernel_agrees_with_its_twin() -> None:
    """A process of its own, since Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    environment = os.environ if GPU else {**os.environ, "TRITON_INTERPRET": "1"}
    arguments = [sys.executable, "-c", KERNEL, "cuda" if GPU else "cpu"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "agree\n", done.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vswin_extract.network.triton_attention import BLOCK, attend
types = dict(qkv="*bf16", table="*fp32", rows="*i32", regions="*i32", codes="*i32", out="*bf16", scale="fp32",
             windows="i32", length="i32", offsets="i32", centre="i32")
fixed = dict(TOKENS=392, HEADS=3, DIM=32, MASKED=True, IEEE=False, SIDE=BLOCK)
for capability in (80, 90):
    made = triton.compile(
        ASTSource(attend, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed),
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
            windows = cut(size, (8, 7, 7), shifted, torch.device("cpu"))
            padded = torch.nn.functional.pad(torch.zeros(1, *size, 1), windows.padding).numel()
            assert sorted(windows.rows.flatten().tolist()) == list(range(padded))


def test_the_operator_is_well_formed() -> None:
    """Its fake and its real results have one shape, as torch.compile relies on."""
    *windows, _ = cut((8, 7, 7), (8, 7, 7), False, torch.device("cpu"))
    arguments = (torch.randn(1, 392, 3, 2, 16), torch.randn(2, 15 * 13 * 13), *windows)
    torch.library.opcheck(torch.ops.vswin_extract.window_attention.default, arguments)
    assert reference_window_attention(*arguments).shape == (1, 392, 32)
