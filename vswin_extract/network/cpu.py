"""The network of `swin3d` on a CPU, a few windows at a time, so that the data in use stay in the processor's cache.

Within a block, windows are independent of one another. So a block gathers the tokens of some windows
from the map, computes attention and MLP, and puts the tokens back. It reads and writes the map once, and the values in
between stay in the cache.

Nothing is rolled or masked. In the published network, the roll joins both ends of the map in one window, and a mask
keeps them apart. Here each of these parts is a smaller window, with its part of the bias:

    one axis, window 4             | 0 1 2 3 | 0 1 2 3 | 0 1 2 3 |      digits: a token's place in its window
    the same, shifted by 2         | 2 3 | 0 1 2 3 | 0 1 2 3 | 0 1 |

That is less work, and the published mask of -100 leaves weights of e^-100, which are lost in float32.
"""

import math
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from itertools import product, repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_extract.network.swin3d import (
    Block,
    Size3,
    Stage,
    VideoSwin,
    fit_window,
    neighbours,
    patches,
    relative_position_index,
)
from vswin_extract.network.threads import single_threaded_workers, usable_threads
from vswin_extract.network.variants import PATCH

TOKENS = 4704
"""Tokens that are gathered at once: twelve windows of 8x7x7."""


class CpuSwin:
    """An `InferenceNetwork` for CPUs: matrix products in `dtype`, everything else in float32.

    Stage 1 is in float32 throughout, since all later stages amplify its rounding errors. With the weights of the parity
    fixtures, embeddings of real videos are off by up to 1.0 % in bfloat16 instead of 1.7 %, for 4 % of the time.

    Each clip is computed by itself, so its features do not depend on its batch. Each of PyTorch's
    threads computes whole clips, which needs less waiting than several threads for each clip. Any number of threads may
    call it at once, with clips of any sizes.
    """

    compile_for = None

    def __init__(
        self,
        network: VideoSwin,
        dtype: torch.dtype,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        embed = network.patch_embed
        self.device = torch.device("cpu")
        self.mean, self.std = (torch.tensor(of_rgb).repeat(math.prod(PATCH)) for of_rgb in (mean, std))
        self.embed = packed_linear(embed.matrix(), embed.proj.bias, torch.float32)
        self.embed_norm = embed.norm
        self.stages = [
            CpuStage(stage, dtype if number > 1 else torch.float32)
            for number, stage in enumerate(network.stages, 1)
            if isinstance(stage, Stage)
        ]
        self.norm = network.norm
        self.head = network.head

    def __call__(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        frames, clips = frames.to(self.device), index.to(self.device).unbind()
        workers = min(usable_threads(), len(clips))
        if workers == 1:
            maps = [self.compute(frames, shown, stages) for shown in clips]
        else:
            with single_threaded_workers(workers) as pool:
                maps = list(pool.map(self.compute, repeat(frames), clips, repeat(stages)))
        return {stage: torch.cat([of_clip[stage] for of_clip in maps]) for stage in maps[0]}

    @torch.inference_mode()  # set here, because inference mode is a setting of each thread
    def compute(self, frames: Tensor, shown: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        """Return the maps of one clip: `shown`, (T), says which of the frames (F, H, W, 3) it shows."""
        x = torch.stack([self.embed_pair(pair) for pair in self.normalised_patches(frames, shown)])  # T' H' W' C
        out = {}
        for number, stage in enumerate(self.stages, 1):
            if number > max(stages):
                break
            x = stage(x)
            if number in stages:
                out[number] = (self.norm(x) if number == 4 else x)[None]
        return out

    def normalised_patches(self, frames: Tensor, shown: Tensor) -> Iterator[Tensor]:
        """Yield the patches (H', W', 2*4*4*3) of each pair of frames of a clip."""
        whole = not any(side % patch for side, patch in zip((len(shown), *frames.shape[1:3]), PATCH, strict=True))
        for pair in torch.split(shown, PATCH[0]):  # it stays in the processor's cache
            pixels = frames.index_select(0, pair)[None]  # 1 2 H W 3
            if whole:
                yield (patches(pixels)[0, 0].float() - self.mean).div_(self.std)
            else:  # as published, padding is 0 in normalised pixels, and not black
                yield patches((pixels.float() - self.mean[:3]) / self.std[:3])[0, 0]

    def embed_pair(self, normalised: Tensor) -> Tensor:
        """Turn patches (H', W', 2*4*4*3) into tokens (H', W', C)."""
        return self.embed_norm(on_last_axis(self.embed, normalised))  # type: ignore[no-any-return]


class CpuStage:
    """Patch merging and the blocks of one stage."""

    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.merge = stage.merge
        self.reduction = packed_linear(stage.merge.reduction.weight, None, dtype) if stage.merge is not None else None
        self.blocks = [CpuBlock(block, dtype) for block in stage.blocks if isinstance(block, Block)]

    def __call__(self, x: Tensor) -> Tensor:
        """`x`: (T, H, W, C) float32. In stage 1, `x` is changed in place."""
        if self.merge is not None and self.reduction is not None:
            x = self.merge.norm(neighbours(x[None])[0])  # T H W 4C
            x = on_last_axis(self.reduction, x.to(self.dtype)).float()  # T H W 2C
        for block in self.blocks:
            block(x)
        return x


class WindowPart(NamedTuple):
    """A box of tokens in a window of the given shape: the place of its first token, and its sides."""

    window: Size3
    first: Size3
    sides: Size3

    def places(self) -> Tensor:
        """Return the numbers of its tokens within the window, (tokens)."""
        numbers = torch.arange(math.prod(self.window)).view(self.window)
        t, h, w = (slice(first, first + side) for first, side in zip(self.first, self.sides, strict=True))
        return numbers[t, h, w].flatten()


class Tile(NamedTuple):
    """Some windows of one shape that are computed at once.

    `rows`: the rows of the map in which their tokens are, (windows * tokens). `real`: False for those tokens that are
    padding, or None if there is no padding. `part`: which part of a full window each window is.
    """

    rows: Tensor
    real: Tensor | None
    windows: int
    part: WindowPart


class CpuBlock:
    """One block of a stage. It caches the position biases of its windows."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.heads = block.attn.heads
        self.window = block.attn.window
        self.shifted = block.shifted
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = packed_linear(block.attn.qkv.weight, block.attn.qkv.bias, dtype)
        self.proj = packed_linear(block.attn.proj.weight, block.attn.proj.bias, dtype)
        self.fc1 = packed_linear(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype, gelu=True)
        self.fc2 = packed_linear(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)
        look_up = partial(part_bias, block.attn.relative_position_bias_table, self.window, dtype)
        self.bias = lru_cache(maxsize=64)(look_up)  # windows of a large map have up to 27 parts

    def __call__(self, x: Tensor) -> None:
        """Compute the block on the map `x`, (T, H, W, C) float32, in place."""
        t, h, w, _ = x.shape
        x = x.view(t * h * w, -1)
        for rows, real, windows, part in window_tiles((t, h, w), self.window, self.shifted):
            y = x.index_select(0, rows)  # windows*tokens C
            a = self.norm1(y).to(self.dtype)
            y += self.proj(self.attend(a if real is None else a * real[:, None], windows, self.bias(part)))
            y += self.fc2(self.fc1(self.norm2(y).to(self.dtype)))
            if real is None:
                x.index_copy_(0, rows, y)
            else:
                x.index_copy_(0, rows[real], y[real])

    def attend(self, x: Tensor, windows: int, bias: Tensor) -> Tensor:
        """Attention within each window, without its last projection; `x` and the result: (windows * tokens, C)."""
        qkv = self.qkv(x).view(windows, bias.shape[1], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # windows heads tokens C/heads, each
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return y.transpose(1, 2).reshape(x.shape)


def part_bias(table: Tensor, window: Size3, dtype: torch.dtype, part: WindowPart) -> Tensor:
    """Return the bias of every pair of tokens of a window's part: (heads, tokens, tokens).

    `table`: (offsets, heads), for windows of the whole size `window`.
    """
    places = part.places()
    index = relative_position_index(window, table.device)
    return table.t().contiguous()[:, index[places[:, None], places]].to(dtype)


@lru_cache(maxsize=128)
def window_tiles(size: Size3, window: Size3, shifted: bool) -> tuple[Tile, ...]:
    """Return all windows of a map of `size`: each tile has windows of one shape, and at most about TOKENS tokens."""
    window, shift = fit_window(size, window, shifted)
    t, h, w = (-(-side // of_window) * of_window for side, of_window in zip(size, window, strict=True))
    rows = torch.full((t, h, w), -1)  # of the map; -1 is padding
    rows[: size[0], : size[1], : size[2]] = torch.arange(math.prod(size)).view(size)
    axes = [list(axis_parts(*axis)) for axis in zip((t, h, w), window, shift, strict=True)]
    tiles = []
    for (t, nt, wt, pt), (h, nh, wh, ph), (w, nw, ww, pw) in product(*axes):
        box = rows[t : t + nt * wt, h : h + nh * wh, w : w + nw * ww].view(nt, wt, nh, wh, nw, ww)
        box = box.permute(0, 2, 4, 1, 3, 5).reshape(nt * nh * nw, wt * wh * ww)  # windows tokens
        part = WindowPart(window, (pt, ph, pw), (wt, wh, ww))
        for some in torch.split(box, max(1, TOKENS // box.shape[1])):
            of_tile = some.flatten()
            real = of_tile >= 0
            tiles.append(Tile(of_tile.clamp(min=0), None if bool(real.all()) else real, len(some), part))
    return tuple(tiles)


def axis_parts(side: int, window: int, shift: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the windows along one axis: where they start, how many, how long, and the place of their first token in the
    rolled window."""
    if not shift:
        yield 0, side // window, window, 0
        return
    yield 0, 1, shift, window - shift
    if side > window:
        yield shift, side // window - 1, window, 0
    yield side - window + shift, 1, window - shift, 0


def packed_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return a linear layer, followed by GELU if `gelu`, on (rows, channels) of `dtype`.

    It is oneDNN's layer where there is one, as with torch.compile. F.linear reorders the weights at every call, and in
    float32 it uses MKL, which has half the speed on processors that are not Intel's.
    """
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    if has_onednn(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        layer: Any = torch.ops.mkldnn._linear_pointwise
        return lambda x: layer(x, packed, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def has_onednn(dtype: torch.dtype) -> bool:
    """True if this machine and this PyTorch have oneDNN's layers for `dtype`; measured on x86 only."""
    have = platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return have and (dtype is torch.float32 or (dtype is torch.bfloat16 and has_bf16()))


def has_bf16() -> bool:
    """True if the processor has instructions that multiply bfloat16 matrices."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def on_last_axis(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `layer` to the last axis of `x`."""
    return layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
