"""Window attention as Triton kernels for CUDA. `cuda` has their reference implementations, and says what the arguments
are.

As in FlashAttention (Dao et al., 2022), scores are never stored: a program takes some queries of one window and head
and goes over the window's keys, keeping running sums. Roll and window partition are in the addresses that it reads and
writes. Scores come in units of log2(e), so that weights are powers of two.

`groups_kernel` is for windows of 5 to 8 frames: it keeps the keys and values of a window, and reads biases and masks
as blocks of 8x8 (`windows.FrameGroups`). `tokens_kernel` is for all other windows: it looks up each bias in its table,
and compares the regions of each two tokens.

`python -m benchmarks gpu-code` compiles both without a GPU, and prints what their machine code needs.
"""

from inspect import signature
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vswin_extract.errors import DeviceError
from vswin_extract.network.windows import GROUP, TILE

PROGRAMS = 256
"""Programs that keep a GPU busy: about two for each of its processors."""

KEEPS_LOOPS = "disable_licm" in signature(tl.range.__init__).parameters
"""True if this version of Triton can be told to leave in a loop what is the same in each turn."""


class LaunchSettings(NamedTuple):
    """How `groups_kernel` is compiled. `registers`: the most of a thread; 0 is no limit. `hoisted`: what is the same
    for all queries is computed once, and takes registers."""

    registers: int
    hoisted: bool


def launch_settings(capability: tuple[int, int]) -> LaunchSettings:
    """Return the settings for a GPU of this compute capability, or of (0, 0) for one of another maker.

    They do not depend on timings, so every run of a GPU computes with the same code. On an H100, shared memory has room
    for four programs on a processor, and registers only if each thread has at most 128. On other GPUs shared memory is
    the limit, or the code needs fewer.
    """
    return LaunchSettings(128, hoisted=not KEEPS_LOOPS) if capability[0] == 9 else LaunchSettings(0, hoisted=True)


@triton.jit(do_not_specialize=["windows", "offsets", "centre"])  # type: ignore[untyped-decorator]
def tokens_kernel(  # type: ignore[no-untyped-def]
    qkv, table, rows, regions, codes, out, windows, length, channels, offsets, centre,
    TOKENS: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr, IEEE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(TOKENS, TILE)
    program, head = tl.program_id(0), tl.program_id(1)
    block = program % blocks
    window = (program // blocks) % windows
    clip = (program // (blocks * windows)).to(tl.int64)
    rows += window * TOKENS
    regions += window * TOKENS
    table += head * offsets
    qkv += clip * length * (3 * channels) + head * DIM
    out += clip * length * channels + head * DIM

    dims = tl.arange(0, DIM)
    queries = block * TILE + tl.arange(0, TILE)
    is_query = queries < TOKENS
    query_row = tl.load(rows + queries, is_query, 0)
    q = tl.load(qkv + query_row[:, None] * (3 * channels) + dims[None, :], is_query[:, None], 0.0)
    query_code = tl.load(codes + queries, is_query, 0) + centre
    query_region = tl.load(regions + queries, is_query, 0)

    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, DIM], tl.float32)
    for start in tl.range(0, TOKENS, TILE, num_stages=1):
        keys = start + tl.arange(0, TILE)
        is_key = keys < TOKENS
        key_pointer = qkv + tl.load(rows + keys, is_key, 0)[:, None] * (3 * channels) + dims[None, :]
        k = tl.load(key_pointer + channels, is_key[:, None], 0.0)
        v = tl.load(key_pointer + 2 * channels, is_key[:, None], 0.0)
        # a place of the table for every pair: codes of missing tokens are 0, so it needs no mask
        bias = tl.load(table + query_code[:, None] - tl.load(codes + keys, is_key, 0)[None, :])
        scores = tl.dot(q, tl.trans(k), bias.to(tl.float32), input_precision="ieee" if IEEE else "tf32")
        if MASKED:
            apart = query_region[:, None] != tl.load(regions + keys, is_key, 0)[None, :]
            scores = tl.where(apart, scores - 144.26950408889634, scores)  # 100 log2(e), as published
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        correction = tl.exp2(highest - new_highest)
        total = total * correction + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * correction[:, None], input_precision="ieee" if IEEE else "tf32")
        highest = new_highest
    y = sums / total[:, None]
    tl.store(out + query_row[:, None] * channels + dims[None, :], y.to(out.dtype.element_ty), is_query[:, None])


@triton.jit
def add_keys(q, k, v, bias, ones, highest, total, sums):  # type: ignore[no-untyped-def]
    """Add a tile of keys to the running sums of 64 queries. `total` (64, 16): the sum of weights, in every column."""
    scores = tl.dot(q, k, bias.to(tl.float32))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - new_highest[:, None])
    correction = tl.exp2(highest - new_highest)[:, None]
    rounded = weights.to(v.dtype)
    if ones is None:
        total = total * correction + tl.sum(weights, 1)[:, None]
    else:  # the matrix unit is idle most of the time, and threads need not exchange their sums
        total = tl.dot(rounded, ones, total * correction)
    return new_highest, total, tl.dot(rounded, v, sums * correction)


@triton.jit  # type: ignore[untyped-decorator]
def block_number(query, key, centre, blocks, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the block of a group of queries and one of keys. Groups of different regions have the last block."""
    if MASKED:
        return tl.where((query ^ key) < 65536, query - key + centre, blocks - 1)
    return (query & 65535) - key + centre


@triton.jit
def keys_and_values(qkv, rows, dims, channels):  # type: ignore[no-untyped-def]
    """Return the keys (d, n) and the values (n, d) of n rows."""
    k = tl.load(qkv + channels + rows[None, :] * (3 * channels) + dims[:, None])
    return k, tl.load(qkv + 2 * channels + rows[:, None] * (3 * channels) + dims[None, :])


@triton.jit
def tile_rows():  # type: ignore[no-untyped-def]
    """Return where the biases of 64 queries and 64 keys are, as 512 rows of a block: the groups of queries and keys,
    (512, 1), and the places inside their block, (512, 8).

    Each thread holds the scores of 2 columns in every 8, and reads 8 biases of a row at once. The keys of a tile are in
    an order in which these are the same pairs of a query and a key, so no value moves to another thread.
    """
    r = tl.arange(0, 512)[:, None]  # 2 halves of keys, 2 halves of a warp's rows, 4 warps, 8 rows, 4 groups of keys
    inside = (r >> 2 & 7) * 8 + tl.arange(0, 8)[None, :]
    return (r >> 5 & 3) * 2 + (r >> 7 & 1), (r >> 8) * 4 + (r & 3), inside


@triton.jit
def tile_of_blocks(rows):  # type: ignore[no-untyped-def]
    """Put the biases of `tile_rows` where the matrix unit has the scores: (64, 64)."""
    rows = tl.reshape(rows, (2, 2, 4, 8, 4, 4, 2))
    return tl.reshape(tl.permute(rows, (2, 1, 3, 0, 5, 4, 6)), (64, 64))


@triton.jit
def last_tile_rows():  # type: ignore[no-untyped-def]
    """The same for 64 queries and 16 keys: 256 rows of half a block."""
    r = tl.arange(0, 256)[:, None]  # 2 halves of a warp's rows, 4 warps, 8 rows, 4 quarters of keys
    inside = (r >> 2 & 7) * 8 + (r & 1) * 4 + tl.arange(0, 4)[None, :]
    return (r >> 5 & 3) * 2 + (r >> 7), (r & 3) >> 1, inside


@triton.jit
def last_tile_of_blocks(rows):  # type: ignore[no-untyped-def]
    """Put the biases of `last_tile_rows` where the matrix unit has the scores: (64, 16)."""
    rows = tl.reshape(rows, (2, 4, 8, 4, 2, 2))
    return tl.reshape(tl.permute(rows, (1, 0, 2, 4, 3, 5)), (64, 16))


@triton.jit  # type: ignore[untyped-decorator]
def attend_queries(  # type: ignore[no-untyped-def]
    block, qkv, table, rows, groups, out, channels, blocks, centre, split, ks, vs, ones, of_tile, of_last,
    PLACES: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Compute a tile of queries. `of_tile`, `of_last`: as `tile_rows` returns, with pointers to the groups of keys."""
    tiles: tl.constexpr = PLACES // 8
    query_group, keys, inside = of_tile
    dims = tl.arange(0, DIM)
    row = tl.load(rows + block * 64 + tl.arange(0, 64))
    q = tl.load(qkv + tl.maximum(row, 0)[:, None] * (3 * channels) + dims[None, :])
    # Triton keeps in registers what is computed, and in shared memory what is only loaded. Queries in shared memory
    # would need a fence before every product, which waits for the biases that are on their way. So something is
    # computed: `split` is always more than 0. (What is computed for empty slots is not stored.)
    q = tl.where(split > 0, q, 0.0)
    group = tl.load(groups + block * 8 + query_group)
    highest = tl.full([64], -1e30, tl.float32)
    total = tl.zeros([64, 16], tl.float32)
    sums = tl.zeros([64, DIM], tl.float32)
    for tile in tl.static_range(tiles):
        number = block_number(group, tl.load(keys + tile * 8), centre, blocks, MASKED)
        bias = tile_of_blocks(tl.load(table + (number * 64 + inside)))
        highest, total, sums = add_keys(q, ks[tile], vs[tile], bias, ones, highest, total, sums)
    if PLACES % 8:  # some of its slots may be empty, so regions are looked at
        last_query_group, last_keys, last_inside = of_last
        group = tl.load(groups + block * 8 + last_query_group)
        number = block_number(group, tl.load(last_keys + tiles * 8), centre, blocks, True)
        bias = last_tile_of_blocks(tl.load(table + (number * 64 + last_inside)))
        highest, total, sums = add_keys(q, ks[tiles], vs[tiles], bias, None, highest, total, sums)
    y = sums / tl.max(total, 1)[:, None]
    tl.store(out + row[:, None] * channels + dims[None, :], y.to(out.dtype.element_ty), row[:, None] >= 0)


@triton.jit(do_not_specialize=["windows", "heads", "blocks", "centre", "split"])  # type: ignore[untyped-decorator]
def groups_kernel(  # type: ignore[no-untyped-def]
    qkv, table, rows, groups, cut, out, windows, length, heads, channels, blocks, centre, split,
    PLACES: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr, HOISTED: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = PLACES // 8
    query_tiles: tl.constexpr = (PLACES + 7) // 8  # tiles of queries
    program, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    window = program % windows
    clip = (program // windows).to(tl.int64)
    rows += window * (query_tiles * 64)
    qkv += clip * length * (3 * channels) + head * DIM
    out += clip * length * channels + head * DIM
    if MASKED:
        groups += window * (query_tiles * 8)
        table += (tl.load(cut + window) * heads + head) * blocks * 64
    else:
        table += head * blocks * 64

    dims = tl.arange(0, DIM)
    slot = tl.arange(0, 64)
    order = (slot & 32) | ((slot >> 1 & 3) << 3) | ((slot >> 3 & 3) << 1) | (slot & 1)  # see `tile_rows`
    ks = ()
    vs = ()
    for tile in tl.static_range(tiles):
        at = tl.maximum(tl.load(rows + tile * 64 + order), 0)
        k, v = keys_and_values(qkv, at, dims, channels)
        ks = ks + (k,)  # type: ignore[assignment]  # noqa: RUF005
        vs = vs + (v,)  # type: ignore[assignment]  # noqa: RUF005
    query_group, key_group, inside = tile_rows()
    of_tile = (query_group, groups + key_group, inside)
    of_last = of_tile
    ones = tl.full([64, 16], 1.0, qkv.dtype.element_ty)
    if PLACES % 8:  # a tile of 16 keys
        slot = tl.arange(0, 16)
        order = (slot >> 1 & 3) * 4 + (slot >> 3) * 2 + (slot & 1)
        at = tl.maximum(tl.load(rows + tiles * 64 + order), 0)
        k, v = keys_and_values(qkv, at, dims, channels)
        ks = ks + (k,)  # type: ignore[assignment]  # noqa: RUF005
        vs = vs + (v,)  # type: ignore[assignment]  # noqa: RUF005
        query_group, key_group, inside = last_tile_rows()
        of_last = (query_group, groups + key_group, inside)

    if HOISTED:
        for turn in tl.range(0, tl.cdiv(query_tiles, split), num_stages=1):
            attend_queries(
                tl.minimum(part + turn * split, query_tiles - 1), qkv, table, rows, groups, out, channels, blocks,
                centre, split, ks, vs, ones, of_tile, of_last, PLACES, DIM, MASKED,
            )  # fmt: skip
    else:  # addresses of keys and values in shared memory would fill 40 registers that the scores need
        for turn in tl.range(0, tl.cdiv(query_tiles, split), num_stages=1, disable_licm=True):
            attend_queries(
                tl.minimum(part + turn * split, query_tiles - 1), qkv, table, rows, groups, out, channels, blocks,
                centre, split, ks, vs, ones, of_tile, of_last, PLACES, DIM, MASKED,
            )  # fmt: skip


def require_short(qkv: Tensor) -> None:
    """Raise DeviceError for clips within which 32 bits do not count."""
    if qkv[0].numel() >= 2**31:
        raise DeviceError(
            f"clips of {qkv.shape[1]} tokens are too long for the attention kernel; use a smaller --clip-len or "
            "--size, or --precision fp32"
        )


def attend_by_tokens(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """Return what `cuda.reference_token_attention` returns, computed by the kernel."""
    require_short(qkv)
    clips, length, _, heads, dim = qkv.shape
    windows, tokens = rows.shape
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    grid = (triton.cdiv(tokens, TILE) * windows * clips, heads)
    with torch.cuda.device_of(qkv):  # type: ignore[no-untyped-call]  # Triton runs on the current device
        tokens_kernel[grid](
            qkv, table, rows, regions, codes, out, windows, length, heads * dim, table.shape[1], centre,
            TOKENS=tokens, DIM=dim, MASKED=masked, IEEE=qkv.dtype is torch.float32, TILE=TILE,
        )  # fmt: skip
    return out


def attend_by_groups(
    qkv: Tensor, table: Tensor, rows: Tensor, groups: Tensor, cut: Tensor, centre: int, places: int, masked: bool,
    settings: LaunchSettings | None = None,
) -> Tensor:  # fmt: skip
    """Return what `cuda.reference_group_attention` returns, computed by the kernel. `settings`: other than those of
    `launch_settings`, to measure them."""
    require_short(qkv)
    clips, length, _, heads, dim = qkv.shape
    windows = len(rows)
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    # with few windows, several programs share one: each has its keys, and some of its queries
    queries = triton.cdiv(places * GROUP, TILE)
    split = min(queries, max(1, PROGRAMS // (windows * clips * heads)))
    if settings is None:
        nvidia = qkv.is_cuda and not torch.version.hip
        settings = launch_settings(torch.cuda.get_device_capability(qkv.device) if nvidia else (0, 0))
    limits = {"maxnreg": settings.registers} if settings.registers else {}  # an option of NVIDIA's compiler
    with torch.cuda.device_of(qkv):  # type: ignore[no-untyped-call]  # Triton runs on the current device
        groups_kernel[(windows * clips, heads, split)](
            qkv, table, rows, groups, cut, out, windows, length, heads, heads * dim, table.shape[2], centre, split,
            PLACES=places, DIM=dim, MASKED=masked, HOISTED=settings.hoisted, **limits,
        )  # fmt: skip
    return out
