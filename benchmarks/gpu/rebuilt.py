"""torchvision's `swin3d_*` in plain PyTorch, by its published definition and with its names of parameters, for machines
without torchvision. As there, windows are rolled and partitioned in memory, and attention is two matrix products."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_extract.network.swin3d import fit_window, region_mask, relative_position_index


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: tuple[int, int, int], shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        offsets = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (N, T, H, W, C)."""
        n, t, h, w, c = x.shape
        window, shift = fit_window((t, h, w), self.window, self.shifted)
        behind = [-side % each for side, each in zip((t, h, w), window, strict=True)]
        x = F.pad(x, (0, 0, 0, behind[2], 0, behind[1], 0, behind[0]))
        x = x.roll([-each for each in shift], (1, 2, 3))
        tt, hh, ww = x.shape[1:4]
        grid = (tt // window[0], hh // window[1], ww // window[2])
        x = x.view(n, grid[0], window[0], grid[1], window[1], grid[2], window[2], c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)  # windows tokens C
        tokens = x.shape[1]
        q, k, v = self.qkv(x).view(-1, tokens, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        index = relative_position_index(self.window, x.device)[:tokens, :tokens]
        scores = scores + self.relative_position_bias_table.t()[:, index]
        if any(shift):
            masks = self.masks(grid, window, shift, x.device)
            scores = (scores.view(n, -1, self.heads, tokens, tokens) + masks[:, None]).flatten(0, 1)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x.view(n, *grid, *window, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, tt, hh, ww, c)
        return x.roll(list(shift), (1, 2, 3))[:, :t, :h, :w]

    def masks(
        self, grid: tuple[int, ...], window: tuple[int, int, int], shift: tuple[int, int, int], device: torch.device
    ) -> Tensor:
        """Return the mask of every window, (windows, tokens, tokens)."""
        tokens = math.prod(window)
        masks = []
        for place in torch.cartesian_prod(*(torch.arange(side) for side in grid)).tolist():
            last = [bool(s) and here == side - 1 for here, side, s in zip(place, grid, shift, strict=True)]
            mask = region_mask(window, shift, (last[0], last[1], last[2]), device)
            masks.append(torch.zeros(tokens, tokens, device=device) if mask is None else mask)
        return torch.stack(masks)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: tuple[int, int, int], shifted: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, window, shifted)
        # the places of torchvision's MLP, which has a dropout after each linear layer
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    def __init__(self, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv3d(3, dim, patch, patch), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 4, 1))  # type: ignore[no-any-return]


class SwinTransformer3d(nn.Module):
    """The modules that `usual.embed` calls, and the classifier."""

    def __init__(
        self, patch_size: Any, embed_dim: int, depths: Any, num_heads: Any, window_size: Any, num_classes: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(tuple(patch_size), embed_dim)
        self.pos_drop = nn.Identity()
        layers: list[nn.Module] = []
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**stage
            blocks = [Block(dim, heads, tuple(window_size), number % 2 == 1) for number in range(depth)]
            layers += [nn.Sequential(*blocks), *([PatchMerging(dim)] if stage < 3 else [])]
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(8 * embed_dim)
        self.head = nn.Linear(8 * embed_dim, num_classes)
