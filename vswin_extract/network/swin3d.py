"""Video Swin Transformer: the network on one page, from leaf to root.

All maps in it are channels-last, `(N, T, H, W, C)`. Source: Liu et al., "Video Swin Transformer" (CVPR 2022), and
mmaction/models/backbones/swin_transformer.py of the published implementation. It reproduces the published numbers,
including those of padded maps and shrunken windows.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_extract.network.variants import PATCH, Variant

Size3 = tuple[int, int, int]


class PatchEmbed(nn.Module):
    """Video to tokens: each 2x4x4 patch becomes one token by a linear embedding and a norm (section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, dim, PATCH, PATCH)  # kept in the published shape; applied as a matrix product
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(patches(x), self.matrix(), self.proj.bias)  # N T' H' W' C
        return self.norm(x)  # type: ignore[no-any-return]

    def matrix(self) -> Tensor:
        """Return the weights of a patch's pixels in the order of `patches`: (C, 2*4*4*3)."""
        return self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)


class WindowAttention(nn.Module):
    """Multi-head self-attention within 3D windows, with 3D relative position bias (section 3.2)."""

    def __init__(self, dim: int, heads: int, window: Size3) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        t, h, w = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * t - 1) * (2 * h - 1) * (2 * w - 1), heads))

    def bias(self, tokens: int) -> Tensor:
        """Return the bias of every pair of a window's tokens: (heads, tokens, tokens).

        A window shrunken to a small input reads the first rows and columns of the full window's index, as published.
        """
        index = relative_position_index(self.window, self.relative_position_bias_table.device)
        return self.relative_position_bias_table.t()[:, index[:tokens, :tokens]]

    def forward(self, x: Tensor, window: Size3, shift: Size3) -> Tensor:
        """`x`: (N, T, H, W, C), its sides multiples of `window`, rolled by `shift`; the result has the same shape."""
        n, t, h, w, c = x.shape
        wt, wh, ww = window
        grid = (t // wt, h // wh, w // ww)
        x = x.view(n, grid[0], wt, grid[1], wh, grid[2], ww, c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)  # N nT nH nW tokens C
        tokens = x.shape[4]
        qkv = self.qkv(x)  # N nT nH nW tokens 3C
        bias = self.bias(tokens).to(qkv.dtype)  # heads tokens tokens
        out = torch.empty_like(qkv[..., :c])
        for part, mask in window_kinds(grid, window, shift, x.device):
            some = qkv[:, part[0], part[1], part[2]]
            q, k, v = some.unflatten(-1, (3, self.heads, -1)).flatten(0, 3).permute(2, 0, 3, 1, 4)
            scores_bias = bias if mask is None else bias + mask.to(bias.dtype)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores_bias[None])  # windows heads tokens C/heads
            out[:, part[0], part[1], part[2]] = y.transpose(1, 2).reshape(*some.shape[:-1], c)
        out = self.proj(out)
        out = out.view(n, *grid, wt, wh, ww, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return out.reshape(n, t, h, w, c)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """W-MSA, or SW-MSA if `shifted`, then an MLP, each after a norm and added to its input (section 3.2)."""

    def __init__(self, dim: int, heads: int, window: Size3, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        window, shift = fit_window((size[0], size[1], size[2]), self.attn.window, self.shifted)
        x = _pad_to_multiple(x, window)
        if any(shift):
            x = x.roll([-s for s in shift], (1, 2, 3))
        x = self.attn(x, window, shift)
        if any(shift):
            x = x.roll(list(shift), (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


class PatchMerging(nn.Module):
    """Two by two neighbours in space become one token of twice the channels; time is not merged (section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbours(x)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Patch merging (not in stage 1), then blocks at one resolution."""

    def __init__(self, dim: int, depth: int, heads: int, window: Size3, merge: bool) -> None:
        super().__init__()
        self.merge = PatchMerging(dim // 2) if merge else None
        self.blocks = nn.ModuleList(Block(dim, heads, window, shifted=i % 2 == 1) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        if self.merge is not None:
            x = self.merge(x)
        for block in self.blocks:
            x = block(x)
        return x


class VideoSwin(nn.Module):
    """The backbone with its I3D head, which is None for `num_classes=0`.

    Parameters are not initialised: load a checkpoint or call `init_weights`.
    """

    def __init__(self, variant: Variant, num_classes: int = 0) -> None:
        super().__init__()
        self.variant = variant
        self.patch_embed = PatchEmbed(variant.embed_dim)
        self.stages = nn.ModuleList(
            Stage(variant.channels(s), variant.depths[s - 1], variant.heads[s - 1], variant.window, merge=s > 1)
            for s in (1, 2, 3, 4)
        )
        self.norm = nn.LayerNorm(variant.channels(4))
        self.head = nn.Linear(variant.channels(4), num_classes) if num_classes else None

    def forward(self, clips: Tensor, stages: Collection[int] = (4,)) -> dict[int, Tensor]:
        """Return the maps of the given stages, 1 to 4, and compute no later stage.

        `clips`: (N, 3, T, H, W), normalised. The result maps each stage to (N, ceil(T/2), H', W', C): stages 1 to 3
        before patch merging and without norm, stage 4 after the final norm.
        """
        x = self.patch_embed(clips.permute(0, 2, 3, 4, 1))
        out = {}
        for number, stage in enumerate(self.stages, 1):
            if number > max(stages):
                break
            x = stage(x)
            if number in stages:
                out[number] = self.norm(x) if number == 4 else x
        return out

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters as the published training code does: truncated normal weights (0.02), biases of 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)


def patches(x: Tensor) -> Tensor:
    """Put the pixels of each patch side by side: (N, T, H, W, 3) to (N, T', H', W', 2*4*4*3)."""
    x = _pad_to_multiple(x, PATCH)
    n, t, h, w, _ = x.shape
    pt, ph, pw = PATCH
    x = x.view(n, t // pt, pt, h // ph, ph, w // pw, pw, 3)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def gathered_clips(frames: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return clips (N, T, H, W, 3) on a device: `index`, (N, T), says which of the frames (F, H, W, 3) each shows."""
    later = device.type == "cuda"
    frames, index = frames.to(device, non_blocking=later), index.to(device, non_blocking=later)
    return frames.index_select(0, index.flatten()).view(*index.shape, *frames.shape[1:])


def neighbours(x: Tensor) -> Tensor:
    """Put two by two neighbours in space side by side: (N, T, H, W, C) to (N, T, H/2, W/2, 4C)."""
    x = _pad_to_multiple(x, (1, 2, 2))
    n, t, h, w, c = x.shape
    x = x.reshape(n, t, h // 2, 2, w // 2, 2, c)
    return x.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)  # upper left, lower left, upper right, lower right


def fit_window(size: Size3, window: Size3, shifted: bool) -> tuple[Size3, Size3]:
    """Return the window and the shift for a map of `size`.

    Along an axis that one window covers, the window is as long as the map, and there is no shift.
    """
    fits = tuple(min(s, w) for s, w in zip(size, window, strict=True))
    shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
    return (fits[0], fits[1], fits[2]), (shift[0], shift[1], shift[2])


def window_kinds(
    grid: Size3, window: Size3, shift: Size3, device: torch.device
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor | None]]:
    """Yield windows that share one mask, as slices of the grid of windows, and their mask (tokens, tokens) or None.

    After the roll, only the last window along a shifted axis has tokens from both ends of the map, and these must not
    attend to each other. So there are at most 2x2x2 masks for any number of windows:

        | 0 0 0 0 | 0 0 0 0 | 1 1 2 2 |     regions along one axis, window 4, shift 2
    """
    axes = [
        [(slice(0, n - 1), False), (slice(n - 1, n), True)] if s else [(slice(0, n), False)]
        for n, s in zip(grid, shift, strict=True)
    ]
    for (t, last_t), (h, last_h), (w, last_w) in product(*axes):
        if all(part.stop > part.start for part in (t, h, w)):
            yield (t, h, w), region_mask(window, shift, (last_t, last_h, last_w), device)


@lru_cache(maxsize=256)
def region_mask(window: Size3, shift: Size3, last: tuple[bool, bool, bool], device: torch.device) -> Tensor | None:
    """Return (tokens, tokens): -100, as published, for two tokens of different regions, and 0 for others."""
    if not any(last):
        return None
    with torch.inference_mode(False):  # cached, and a later call may train
        regions = torch.zeros(window, dtype=torch.int64, device=device)
        for axis, (w, s, is_last) in enumerate(zip(window, shift, last, strict=True)):
            if is_last:
                regions.narrow(axis, w - s, s).add_(2**axis)
        ids = regions.flatten()
        return (ids[:, None] != ids[None, :]).float() * -100.0


@lru_cache(maxsize=64)
def relative_position_index(window: Size3, device: torch.device) -> Tensor:
    """Return the row of the bias table for every pair of a window's tokens: (tokens, tokens)."""
    with torch.inference_mode(False):  # cached, and a later call may train
        axes = torch.meshgrid(*(torch.arange(w, device=device) for w in window), indexing="ij")
        coords = torch.stack(axes).flatten(1)  # 3 tokens
        offsets = coords[:, :, None] - coords[:, None, :]  # 3 tokens tokens
        index = torch.zeros_like(offsets[0])
        for offset, w in zip(offsets, window, strict=True):
            index = index * (2 * w - 1) + offset + w - 1
        return index


def _pad_to_multiple(x: Tensor, multiple: Size3) -> Tensor:
    """Add zeros after the last frame, row and column of `x` (N, T, H, W, C), up to multiples."""
    t, h, w = (-side % m for side, m in zip(x.shape[1:4], multiple, strict=True))
    return F.pad(x, (0, 0, 0, w, 0, h, 0, t)) if t or h or w else x
