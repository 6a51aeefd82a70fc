"""Window attention as one Triton kernel for CUDA. `cuda` has its reference implementation, and says what the arguments
are.

As in FlashAttention (Dao et al., 2022), scores are never stored: a program takes some queries of one window and head
and goes over the window's keys, keeping running sums. Roll and window partition are in the addresses that it reads and
writes, the position bias is looked up in its table, and the mask follows from the tokens' regions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Queries of a program, and keys that it takes at once."""


@triton.jit  # type: ignore[untyped-decorator]
def attention_kernel(  # type: ignore[no-untyped-def]
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
    queries = block * SIDE + tl.arange(0, SIDE)
    is_query = queries < TOKENS
    query_row = tl.load(rows + queries, is_query, 0)
    q = tl.load(qkv + query_row[:, None] * (3 * HEADS * DIM) + dims[None, :], is_query[:, None], 0.0)
    query_code = tl.load(codes + queries, is_query, 0) + centre
    query_region = tl.load(regions + queries, is_query, 0)

    highest = tl.full([SIDE], float("-inf"), tl.float32)
    total = tl.zeros([SIDE], tl.float32)
    sums = tl.zeros([SIDE, DIM], tl.float32)
    for start in range(0, TOKENS, SIDE):
        keys = start + tl.arange(0, SIDE)
        is_key = keys < TOKENS
        key_pointer = qkv + tl.load(rows + keys, is_key, 0)[:, None] * (3 * HEADS * DIM) + dims[None, :]
        k = tl.load(key_pointer + HEADS * DIM, is_key[:, None], 0.0)
        v = tl.load(key_pointer + 2 * HEADS * DIM, is_key[:, None], 0.0)
        is_pair = is_query[:, None] & is_key[None, :]
        bias = tl.load(table + query_code[:, None] - tl.load(codes + keys, is_key, 0)[None, :], is_pair, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee" if IEEE else "tf32") * scale + bias.to(tl.float32)
        if MASKED:
            apart = query_region[:, None] != tl.load(regions + keys, is_key, 0)[None, :]
            scores = tl.where(apart, scores - 100.0, scores)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - new_highest[:, None])
        correction = tl.exp(highest - new_highest)
        total = total * correction + tl.sum(weights, 1)
        added = tl.dot(weights.to(v.dtype), v, input_precision="ieee" if IEEE else "tf32")
        sums = sums * correction[:, None] + added
        highest = new_highest
    y = sums / total[:, None]
    tl.store(out + query_row[:, None] * (HEADS * DIM) + dims[None, :], y.to(out.dtype.element_ty), is_query[:, None])


def triton_window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """Return what `cuda.reference_window_attention` returns, computed by the kernel."""
    clips, length, _, heads, dim = qkv.shape
    windows, tokens = rows.shape
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    grid = (triton.cdiv(tokens, BLOCK) * windows * clips, heads)
    with torch.cuda.device_of(qkv):  # type: ignore[no-untyped-call]  # Triton runs on the current device
        attention_kernel[grid](
            qkv, table, rows, regions, codes, out,
            dim**-0.5, windows, length, table.shape[1], centre,
            TOKENS=tokens, HEADS=heads, DIM=dim, MASKED=masked, IEEE=qkv.dtype is torch.float32, SIDE=BLOCK,
        )  # fmt: skip
    return out
