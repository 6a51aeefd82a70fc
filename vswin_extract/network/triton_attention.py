"""Window attention as one Triton kernel for CUDA. `fused` has its plain PyTorch twin, and says what the arguments are.

As in FlashAttention (Dao et al., 2022), scores are never stored: a program takes some queries of one window and head
and goes through the window's keys, keeping running sums. Roll and window partition are in the addresses that it reads
and writes, the position bias is looked up in its table, and the mask follows from the tokens' regions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Queries of a program, and keys at once."""


@triton.jit  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]
    qkv, table, rows, regions, codes, out,
    scale, windows, length, offsets, centre,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    MASKED: tl.constexpr, IEEE: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(TOKENS, SIDE)
    program, head = tl.program_id(0), tl.program_id(1)
    block = program % blocks
    window = (program // blocks) % windows
    clip = (program // (blocks * windows)).to(tl.int64)
    rows += window * TOKENS
    regions += window * TOKENS
    table += head * offsets
    qkv += clip * length * (3 * HEADS * DIM) + head * DIM
    out += clip * length * (HEADS * DIM) + head * DIM

    dims = tl.arange(0, DIM)
    mine = block * SIDE + tl.arange(0, SIDE)
    real = mine < TOKENS
    row = tl.load(rows + mine, real, 0)
    q = tl.load(qkv + row[:, None] * (3 * HEADS * DIM) + dims[None, :], real[:, None], 0.0)
    code = tl.load(codes + mine, real, 0) + centre
    region = tl.load(regions + mine, real, 0)

    highest = tl.full([SIDE], float("-inf"), tl.float32)
    total = tl.zeros([SIDE], tl.float32)
    sums = tl.zeros([SIDE, DIM], tl.float32)
    for start in range(0, TOKENS, SIDE):
        other = start + tl.arange(0, SIDE)
        there = other < TOKENS
        key = qkv + tl.load(rows + other, there, 0)[:, None] * (3 * HEADS * DIM) + dims[None, :]
        k = tl.load(key + HEADS * DIM, there[:, None], 0.0)
        v = tl.load(key + 2 * HEADS * DIM, there[:, None], 0.0)
        both = real[:, None] & there[None, :]
        bias = tl.load(table + code[:, None] - tl.load(codes + other, there, 0)[None, :], both, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee" if IEEE else "tf32") * scale + bias.to(tl.float32)
        if MASKED:
            apart = region[:, None] != tl.load(regions + other, there, 0)[None, :]
            scores = tl.where(apart, scores - 100.0, scores)
        scores = tl.where(there[None, :], scores, float("-inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - risen[:, None])
        shrunk = tl.exp(highest - risen)
        total = total * shrunk + tl.sum(weights, 1)
        added = tl.dot(weights.to(v.dtype), v, input_precision="ieee" if IEEE else "tf32")
        sums = sums * shrunk[:, None] + added
        highest = risen
    y = sums / total[:, None]
    tl.store(out + row[:, None] * (HEADS * DIM) + dims[None, :], y.to(out.dtype.element_ty), real[:, None])


def window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """What `fused.window_attention` does, by the kernel."""
    clips, length, _, heads, dim = qkv.shape
    windows, tokens = rows.shape
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    grid = (triton.cdiv(tokens, BLOCK) * windows * clips, heads)
    with torch.cuda.device_of(qkv):  # type: ignore[no-untyped-call]  # Triton takes the current one
        attend[grid](
            qkv, table, rows, regions, codes, out,
            dim**-0.5, windows, length, table.shape[1], centre,
            TOKENS=tokens, HEADS=heads, DIM=dim, MASKED=masked, IEEE=qkv.dtype is torch.float32, SIDE=BLOCK,
        )  # fmt: skip
    return out
