"""The network of `swin3d` on a CPU, a few windows at a time, so that what is worked on stays in the cache.

Windows do not see each other within a block. So some windows' tokens are gathered from the map, taken through attention
and MLP, and put back: a block reads and writes the map once, and what is computed in between never leaves the cache.

Nothing is rolled or masked either. The roll brings together parts of both ends of the map in one window, and the mask
keeps them from seeing each other; here each such part is a smaller window, with its part of the bias:

    one axis, window 4             | 0 1 2 3 | 0 1 2 3 | 0 1 2 3 |      digits: a token's place in its window
    the same, shifted by 2         | 2 3 | 0 1 2 3 | 0 1 2 3 | 0 1 |

That is less work, and the published mask of -100 leaves no more than weights of e^-100, which float32 cannot tell.
"""

import math
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product, repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from vswin_extract.network.variants import PATCH

TOKENS = 4704
"""So many tokens are gathered at once: twelve windows of 8x7x7."""


class CpuSwin(nn.Module):
    """What `VideoSwin` computes, for inference on a CPU; matrix products in `dtype`, all else in float32.

    Stage 1 is in float32 throughout: what is rounded there is amplified by all that follows. With the weights of the
    parity fixtures, embeddings of real videos are off by up to 1.0 % in bfloat16 instead of 1.7 %, for 4 % of the time.

    Pixels are normalised by `mean` and `std` of RGB, where these are given. Each clip is computed by itself, so its
    features do not depend on its batch; several are shared out among PyTorch's threads, which wait for each other less
    than where they share a clip.
    """

    def __init__(
        self,
        network: VideoSwin,
        dtype: torch.dtype,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        embed = network.patch_embed
        self.mean, self.std = (torch.tensor(of_rgb).repeat(math.prod(PATCH)) for of_rgb in (mean, std))
        self.embed = pack(embed.matrix(), embed.proj.bias, torch.float32)
        self.embed_norm = embed.norm
        self.stages = [
            CpuStage(stage, dtype if number > 1 else torch.float32)
            for number, stage in enumerate(network.stages, 1)
            if isinstance(stage, Stage)
        ]
        self.norm = network.norm
        self.head = network.head

    def forward(self, clips: Tensor, stages: Collection[int] = (4,)) -> dict[int, Tensor]:
        """As `VideoSwin.forward`, for pixels of any type; the maps are float32."""
        threads = torch.get_num_threads()
        if threads == 1 or len(clips) == 1:
            each = [self.one(clip, stages) for clip in torch.split(clips, 1)]
        else:
            try:
                with ThreadPoolExecutor(
                    min(threads, len(clips)), initializer=torch.set_num_threads, initargs=(1,)
                ) as pool:
                    each = list(pool.map(self.one, torch.split(clips, 1), repeat(stages)))
            finally:
                torch.set_num_threads(threads)  # which is the whole process's
        return {stage: torch.cat([maps[stage] for maps in each]) for stage in each[0]}

    @torch.inference_mode()
    def one(self, clip: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        """The maps of one clip, (1, 3, T, H, W)."""
        pixels = patches(clip.permute(0, 2, 3, 4, 1))[0]  # T' H' W' 2*4*4*3
        x = torch.stack([self.embedded(frame) for frame in pixels])  # T' H' W' C
        out = {}
        for number, stage in enumerate(self.stages, 1):
            if number > max(stages):
                break
            x = stage(x)
            if number in stages:
                out[number] = (self.norm(x) if number == 4 else x)[None]
        return out

    def embedded(self, pixels: Tensor) -> Tensor:
        """Patches (H', W', 2*4*4*3) to tokens (H', W', C)."""
        x = pixels.float().sub_(self.mean).div_(self.std)
        return self.embed_norm(rowwise(self.embed, x))  # type: ignore[no-any-return]


class CpuStage:
    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.merge = stage.merge
        self.reduction = pack(stage.merge.reduction.weight, None, dtype) if stage.merge is not None else None
        self.blocks = [CpuBlock(block, dtype) for block in stage.blocks if isinstance(block, Block)]

    def __call__(self, x: Tensor) -> Tensor:
        """`x`: (T, H, W, C) float32, which is overwritten."""
        if self.merge is not None and self.reduction is not None:
            x = self.merge.norm(neighbours(x[None])[0])  # T H W 4C
            x = rowwise(self.reduction, x.to(self.dtype)).float()  # T H W 2C
        for block in self.blocks:
            block(x)
        return x


class Tile(NamedTuple):
    """Some windows of one shape. `rows`: where their tokens stand in the map, (windows * tokens). `real`: which of
    these are not padding, None where all are. `bias`: (heads, tokens, tokens)."""

    rows: Tensor
    real: Tensor | None
    windows: int
    bias: Tensor


class CpuBlock:
    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.heads = block.attn.heads
        self.window = block.attn.window
        self.shifted = block.shifted
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = pack(block.attn.qkv.weight, block.attn.qkv.bias, dtype)
        self.proj = pack(block.attn.proj.weight, block.attn.proj.bias, dtype)
        self.fc1 = pack(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype, gelu=True)
        self.fc2 = pack(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)
        self.table = block.attn.relative_position_bias_table
        self.size: Size3 | None = None
        self.tiles: list[Tile] = []

    def __call__(self, x: Tensor) -> None:
        """Take the map `x`, (T, H, W, C) float32, through the block, in place."""
        t, h, w, _ = x.shape
        if (t, h, w) != self.size:
            self.size, self.tiles = (t, h, w), list(self.cut((t, h, w)))
        x = x.view(t * h * w, -1)
        for rows, real, windows, bias in self.tiles:
            y = x.index_select(0, rows)  # windows*tokens C
            a = self.norm1(y).to(self.dtype)
            y += self.proj(self.attend(a if real is None else a * real[:, None], windows, bias))
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

    def cut(self, size: Size3) -> Iterator[Tile]:
        """All windows of a map of `size`, those of one shape together, at most about TOKENS tokens a tile."""
        window, shift = fit_window(size, self.window, self.shifted)
        padded = tuple(-(-side // w) * w for side, w in zip(size, window, strict=True))
        numbers = torch.full(padded, -1)
        numbers[: size[0], : size[1], : size[2]] = torch.arange(size[0] * size[1] * size[2]).view(size)
        places = torch.arange(window[0] * window[1] * window[2]).view(window)
        index = relative_position_index(self.window, self.table.device)
        table = self.table.t().contiguous()  # heads offsets
        axes = [list(parts(*axis)) for axis in zip(padded, window, shift, strict=True)]
        for (t, nt, wt, pt), (h, nh, wh, ph), (w, nw, ww, pw) in product(*axes):
            box = numbers[t : t + nt * wt, h : h + nh * wh, w : w + nw * ww].view(nt, wt, nh, wh, nw, ww)
            box = box.permute(0, 2, 4, 1, 3, 5).reshape(nt * nh * nw, wt * wh * ww)  # windows tokens
            place = places[pt : pt + wt, ph : ph + wh, pw : pw + ww].flatten()
            bias = table[:, index[place[:, None], place]].to(self.dtype)
            for some in torch.split(box, max(1, TOKENS // box.shape[1])):
                rows = some.flatten()
                real = rows >= 0
                yield Tile(rows.clamp(min=0), None if bool(real.all()) else real, len(some), bias)


def parts(side: int, window: int, shift: int) -> Iterator[tuple[int, int, int, int]]:
    """The windows along one axis: where they start, how many, how long, and the place of their first token in the
    rolled window."""
    if not shift:
        yield 0, side // window, window, 0
        return
    yield 0, 1, shift, window - shift
    if side > window:
        yield shift, side // window - 1, window, 0
    yield side - window + shift, 1, window - shift, 0


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """A linear layer, with GELU behind it or not, on (rows, channels) of `dtype`.

    Where oneDNN is at hand, its own layer is taken, as torch.compile does: F.linear lays the weights out anew at every
    call, and in float32 goes to MKL, which on processors that are not Intel's runs at half the speed.
    """
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    if onednn(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        layer: Any = torch.ops.mkldnn._linear_pointwise
        return lambda x: layer(x, packed, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def onednn(dtype: torch.dtype) -> bool:
    """Whether this machine and this PyTorch have oneDNN's layers for `dtype`; measured on x86 only."""
    have = platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return have and (dtype is torch.float32 or (dtype is torch.bfloat16 and has_bf16()))


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices by instructions of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def rowwise(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer` on the last axis of `x`."""
    return layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
