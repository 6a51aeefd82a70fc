"""Window attention alone, at the shape of every stage: our kernel against what PyTorch offers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.gpu.parity import random_input
from benchmarks.gpu.proof import Section
from benchmarks.gpu.timing import seconds_of
from vswin_extract.network.cuda import attention_table, reference_token_attention, window_attention
from vswin_extract.network.swin3d import Size3
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.network.windows import LOG2E, WindowLayout, window_layout

CLIPS = 8
WINDOW = (8, 7, 7)
DIM = 32


@dataclass(frozen=True)
class Problem:
    """The attention of one block: its input, and which tokens are in which window."""

    qkv: Tensor
    table: Tensor
    layout: WindowLayout

    def gathered(self) -> list[Tensor]:
        """Return q, k and v by windows: (N, windows * heads, tokens, d) each, copies."""
        q, k, v = self.qkv[:, self.layout.rows].permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        return [q, k, v]

    def scattered(self, y: Tensor) -> Tensor:
        """Put the result of windows, (N, windows * heads, tokens, d), where the tokens are: (N, L, heads * d)."""
        n, length, _, heads, dim = self.qkv.shape
        out = torch.empty(n, length, heads * dim, dtype=y.dtype, device=y.device)
        out[:, self.layout.rows] = y.view(n, -1, heads, *y.shape[2:]).transpose(2, 3).flatten(3)
        return out

    def bias(self) -> Tensor:
        """Return bias and mask of every window and head, (1, windows * heads, tokens, tokens), on 16 bytes."""
        rows, regions, codes, centre, masked = self.layout[:5]
        bias = self.table[:, codes[:, None] - codes[None, :] + centre].to(self.qkv.dtype)  # heads tokens tokens
        bias = bias.expand(len(rows), -1, -1, -1)
        if masked:
            bias = bias - 100.0 * (regions[:, None, :, None] != regions[:, None, None, :]).to(bias.dtype)
        return bias.flatten(0, 1)[None]


Call = Callable[[], Tensor]
Candidate = Callable[[Problem], Call]
"""Prepares what a run would prepare once, and returns the call that is timed; its result is (N, L, heads * d)."""


def ours(problem: Problem) -> Call:
    """The kernel that the network takes for these windows."""
    return attend(problem, problem.layout)


def by_tokens(problem: Problem) -> Call:
    return attend(problem, problem.layout._replace(groups=None))


def attend(problem: Problem, layout: WindowLayout) -> Call:
    return partial(window_attention, *prepared(problem, layout), layout)


def prepared(problem: Problem, layout: WindowLayout) -> tuple[Tensor, Tensor]:
    """Return what a network gives the kernels: queries that are scaled as by `cuda.scaled_queries`, and biases."""
    qkv = problem.qkv.clone()
    qkv[:, :, 0] *= DIM**-0.5 * LOG2E
    return qkv, attention_table(problem.table, WINDOW, layout, qkv.dtype)


def with_settings(registers: int, hoisted: bool, problem: Problem) -> Call:
    """The kernel of groups, compiled in another way. Which one is the best is decided in `launch_settings`."""
    from vswin_extract.network.triton_attention import LaunchSettings, attend_by_groups

    layout = problem.layout
    if layout.groups is None:
        raise ValueError("these windows do not fit groups")
    qkv, table = prepared(problem, layout)
    settings = LaunchSettings(registers, hoisted)
    return partial(attend_by_groups, qkv, table, *layout.groups, layout.masked, settings)


def sdpa(backend: SDPBackend, problem: Problem) -> Call:
    bias = problem.bias()

    def call() -> Tensor:
        with sdpa_kernel(backend):
            q, k, v = problem.gathered()
            return problem.scattered(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1)))

    return call


def sdpa_alone(backend: SDPBackend, problem: Problem) -> Call:
    """Without the copies. The result stays in windows, so it is not compared."""
    (q, k, v), bias = problem.gathered(), problem.bias()
    mask = bias.expand(len(q), -1, -1, -1)

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return call


def flex(problem: Problem) -> Call:
    """FlexAttention, compiled, with the bias looked up in its table."""
    _, regions, codes, centre, masked = problem.layout[:5]
    heads, table = problem.qkv.shape[3], problem.table

    def bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score + table[head % heads, codes[query] - codes[key] + centre]
        if not masked:
            return score
        window = head // heads
        return torch.where(regions[window, query] == regions[window, key], score, score - 100.0)

    def attend() -> Tensor:
        q, k, v = problem.gathered()
        found: Any = compiled(q, k, v, score_mod=bias)
        return problem.scattered(found)

    compiled = torch.compile(flex_attention, dynamic=False)
    return attend


CANDIDATES: dict[str, Candidate] = {
    "ours": ours,
    "ours, by tokens": by_tokens,
    "ours, 128 registers, hoisted": partial(with_settings, 128, True),
    "ours, no limit, hoisted": partial(with_settings, 0, True),
    "SDPA memory-efficient, with copies": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "SDPA memory-efficient, alone": partial(sdpa_alone, SDPBackend.EFFICIENT_ATTENTION),
    "SDPA cuDNN, with copies": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "SDPA cuDNN, alone": partial(sdpa_alone, SDPBackend.CUDNN_ATTENTION),
}
ON_CPU: dict[str, Candidate] = {"ours": ours, "SDPA, with copies": partial(sdpa, SDPBackend.MATH)}


def attention(section: Section) -> None:
    candidates = ON_CPU if section.small else CANDIDATES
    totals: dict[tuple[str, str], list[float]] = {}
    for variant in (VARIANTS["t"],) if section.small else (VARIANTS["t"], VARIANTS["b"]):
        for stage in (1, 2, 3, 4):
            side = 14 // stage if section.small else 56 >> (stage - 1)
            size = (8 if section.small else 16, side, side)
            for shifted in (False, True):
                if section.allows(f"{variant.name.upper()}, stage {stage}, shifted {shifted}", 5):
                    for name, seconds in measure(section, candidates, variant, stage, size, shifted).items():
                        totals.setdefault((variant.name, name), []).append(seconds * variant.depths[stage - 1] / 2)
    for (letter, name), each in totals.items():
        if len(each) == 8:  # half of the blocks of each of the four stages are shifted
            row = {"variant": letter.upper(), "what": name, "ms a clip": 1000 * sum(each)}
            section.add("attention of all blocks", row)
    if section.small:
        section.skip("FlexAttention", "it is compiled for GPUs only")
        return
    for stage in (1, 3):
        if section.allows(f"FlexAttention, stage {stage}", 25):
            side = 56 >> (stage - 1)
            measure(section, {"FlexAttention, with copies": flex}, VARIANTS["t"], stage, (16, side, side), True)


def measure(
    section: Section, candidates: dict[str, Candidate], variant: Variant, stage: int, size: Size3, shifted: bool
) -> dict[str, float]:
    """Add a row for each candidate, and return its seconds a clip. One that does not work here has a row that says
    so."""
    device, clips = section.device, 1 if section.small else CLIPS
    layout = window_layout(size, WINDOW, shifted, device)
    heads = 1 if section.small else variant.heads[stage - 1]
    dtype = torch.float32 if section.small else torch.bfloat16
    tokens = layout.rows.numel()
    problems = [
        Problem(*random_input(clips, tokens, heads, DIM, WINDOW, dtype, device, seed), layout) for seed in (1, 2)
    ]
    first = problems[0]
    scaled = first.qkv[:1].double()
    scaled[:, :, 0] *= DIM**-0.5 * LOG2E
    exact = reference_token_attention(scaled, first.table.double() * LOG2E, *layout[:5])
    # products of queries with keys, and of weights with values
    flop = 4.0 * tokens * layout.rows.shape[1] * DIM * heads
    least = 4.0 * tokens * heads * DIM * first.qkv.element_size()
    found_seconds = {}
    for name, candidate in candidates.items():
        row = {"variant": variant.name.upper(), "stage": stage, "shifted": shifted, "what": name}
        try:
            calls = [candidate(problem) for problem in problems]
            found = calls[0]()
            alone = name.endswith("alone")
            error = math.nan if alone else float((found[:1].double() - exact).norm() / exact.norm())
            seconds = seconds_of(calls, device, 0.2) / clips
        except Exception as error:  # a library may refuse a shape, in a way of its own
            section.add("a block's attention", {**row, "problem": f"{type(error).__name__}: {str(error)[:60]}"})
            if name == "ours":
                raise
            continue
        found_seconds[name] = seconds
        section.add(
            "a block's attention",
            {
                **row,
                "ms a clip": 1000 * seconds,
                "TFLOP/s": flop / seconds / 1e12,
                "GB/s, least traffic": least / seconds / 1e9,
                "relative L2": error,
            },
        )
    return found_seconds
