"""Whether the numbers are right: the network against the published ones, and the attention kernel against float64."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.proof import Section
from vswin_extract.checks.golden import drawn_state
from vswin_extract.network.cuda import CudaSwin, attention_table, reference_token_attention, window_attention
from vswin_extract.network.reference import ReferenceSwin
from vswin_extract.network.swin3d import Size3, VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.network.windows import LOG2E, window_layout
from vswin_extract.weights.fit import build_network
from vswin_extract.weights.load import read_checkpoint

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the fixtures belong to the tests, which read them alike
from parity import computed, errors_of, fixture, write

FIXTURES = ("t_odd_9x75x90", "t_16x112", "inflate_t_w7", "b16_32x64", "b_32x64", "s_8x96", "l_4x64")
COMPILED = ("t_odd_9x75x90", "b16_32x64")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXACT = 4e-5
"""Largest relative error in float32."""
BESIDE_AUTOCAST = 1.2
"""In half precision the limit is this many times the error of PyTorch's autocast at the same fixture and stage, since
the drawn weights amplify rounding errors."""
ALONE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
"""Largest relative error of the attention kernel alone."""


class Case(NamedTuple):
    """A map of `size` tokens in windows of `window`, with heads of `dim` channels."""

    size: Size3
    window: Size3
    dim: int = 32


CASES = (
    Case((8, 7, 7), (8, 7, 7)),
    Case((16, 14, 14), (8, 7, 7)),
    Case((16, 28, 21), (8, 7, 7)),
    Case((5, 19, 23), (8, 7, 7)),  # padded on each axis
    Case((4, 14, 7), (8, 7, 7)),  # shrunken in time
    Case((16, 5, 9), (8, 7, 7)),  # shrunken in space
    Case((1, 14, 14), (8, 7, 7)),  # one frame
    Case((16, 14, 14), (16, 7, 7)),
    Case((32, 14, 7), (16, 7, 7)),
    Case((8, 14, 14), (4, 7, 7), 16),  # nano
    Case((16, 56, 56), (8, 7, 7)),
)
SMALL_CASES = (Case((8, 7, 7), (8, 7, 7), 16), Case((5, 8, 9), (4, 5, 5), 16), Case((1, 5, 5), (4, 5, 5)))


def parity(section: Section) -> None:
    """The numbers in bf16 first, which the tool takes on a GPU."""
    fixtures = FIXTURES[:1] if section.small else FIXTURES
    every_fixture(section, fixtures, "bf16")
    alone(section, section.device, 1 if section.small else 3)
    for name in () if section.small else COMPILED:
        if section.allows(f"{name} compiled", 40):
            with section.guarded(f"{name} compiled"):
                compiled(section, name)
            section.free()
    for precision in ("fp32",) if section.small else ("fp16", "fp32"):
        every_fixture(section, fixtures, precision)


def every_fixture(section: Section, names: Sequence[str], precision: str) -> None:
    for name in names:
        if section.allows(f"{name} {precision}", 12):
            with section.guarded(f"{name} {precision}"):
                published(section, name, precision)
            section.free()


@lru_cache(maxsize=len(FIXTURES))
def drawn(name: str, folder: Path) -> VideoSwin:
    """Return the network of a fixture."""
    facts, _ = fixture(name)
    if "layout" in facts:  # a 2D checkpoint, which is inflated as it is read
        read = read_checkpoint(write(facts["layout"], folder / f"{name}.pth"))
        network = build_network(read.state, read.variant, read.num_classes)
    else:
        variant = replace(VARIANTS[facts["arch"]], window=tuple(facts["window"]))
        state = drawn_state(variant, facts["num_classes"])
        network = build_network(state, variant, facts["num_classes"])
    return network.requires_grad_(False).eval()


def published(section: Section, name: str, precision: str) -> None:
    """Compare the reference and the kernel with a fixture."""
    network, dtype = drawn(name, section.folder), DTYPES[precision]
    reference = computed(ReferenceSwin(network, section.device, dtype), name)
    record(section, name, "reference", precision, reference, reference)
    if dtype is torch.float32 and section.device.type == "cuda":
        return  # the tool computes float32 by the reference there
    found = computed(CudaSwin(network, section.device, dtype), name)
    record(section, name, "kernel", precision, found, reference)


def compiled(section: Section, name: str) -> None:
    """Compare the compiled network with a fixture in bf16."""
    network = drawn(name, section.folder)
    reference = computed(ReferenceSwin(network, section.device, torch.bfloat16), name)
    ours = CudaSwin(network, section.device, torch.bfloat16)
    ours.compile_for(fixture(name)[0]["shape"][0])
    record(section, name, "compiled", "bf16", computed(ours, name), reference)


def record(
    section: Section, name: str, what: str, precision: str, found: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    """Add the row of what a network computed, and a failure if an error is above its limit."""
    errors, beside = errors_of(found, name), errors_of(reference, name)
    limits = {each: EXACT if precision == "fp32" else max(1e-3, BESIDE_AUTOCAST * beside[each]) for each in errors}
    worst = max(errors, key=lambda each: errors[each] / limits[each])
    share = errors[worst] / limits[worst]
    row = {"fixture": name, "network": what, "precision": precision, **{each: errors[each] for each in sorted(errors)}}
    row["cosine"] = cosine(found["embedding"], fixture(name)[1]["embedding"])
    section.add("published numbers", {**row, "of the limit": share, "result": result(share)})
    if not share < 1 and what != "reference":
        problem = f"{worst} is off by {errors[worst]:.1e}, the limit is {limits[worst]:.1e}"
        section.fail(f"{name}, {what} {precision}", problem)


def result(share: float) -> str:
    return "holds" if share < 1 else "falls short"


def cosine(found: Tensor, expected: object) -> float:
    """Return the smallest cosine of two sets of rows."""
    other = torch.from_numpy(np.asarray(expected)).double().view(len(found), -1)
    return float(torch.cosine_similarity(found.double(), other).min())


def alone(section: Section, device: torch.device, heads: int) -> None:
    """Compare the attention kernel with its reference implementation in float64, each time with fresh numbers."""
    for number, case in enumerate(SMALL_CASES if section.small else CASES):
        if not section.allows(f"attention {case}", 6):
            continue
        for shifted in (False, True):
            row = {"map": case.size, "window": case.window, "channels": case.dim, "shifted": shifted}
            worst = 0.0
            for precision, dtype in DTYPES.items():
                with section.guarded(f"attention {case}, shifted {shifted}, {precision}"):
                    error = attention_error(case, shifted, dtype, device, heads, 2 * number + shifted)
                    row[precision] = error
                    worst = max(worst, error / ALONE[precision] if error == error else float("inf"))
            section.add("attention against float64", {**row, "of the limit": worst, "result": result(worst)})
            if not worst < 1 or len(row) < 4 + len(DTYPES):
                section.fail(f"attention {case}, shifted {shifted}", f"off by {worst:.2g} times the limit")


def attention_error(
    case: Case, shifted: bool, dtype: torch.dtype, device: torch.device, heads: int, seed: int
) -> float:
    """Return the relative error of the kernel for two clips of random numbers."""
    layout = window_layout(case.size, case.window, shifted, device)
    if dtype is torch.float32:
        layout = layout._replace(groups=None)
    tokens = layout.rows.numel()
    qkv, table = random_input(2, tokens, heads, case.dim, case.window, dtype, device, seed)
    poison(2 * tokens * heads * case.dim, dtype, device)
    found = window_attention(qkv, attention_table(table, case.window, layout, dtype), layout).double()
    expected = torch.cat(
        [reference_token_attention(one, table.double() * LOG2E, *layout[:5]) for one in torch.split(qkv.double(), 1)]
    )
    return float((found - expected).norm() / expected.norm())


def random_input(
    clips: int, tokens: int, heads: int, dim: int, window: Size3, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """Return queries, keys and values, (clips, tokens, 3, heads, dim), and a bias table."""
    generator = torch.Generator(device).manual_seed(seed)
    offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
    qkv = torch.randn(clips, tokens, 3, heads, dim, generator=generator, device=device).to(dtype)
    return qkv, torch.randn(heads, offsets, generator=generator, device=device)


def poison(numbers: int, dtype: torch.dtype, device: torch.device) -> None:
    """Fill with NaN the memory that an output of this size is likely to get, so that a gap in it shows."""
    nan = torch.full((numbers,), float("nan"), dtype=dtype, device=device)
    del nan
