"""The network of `swin3d` on CUDA in half precision: attention as one kernel that reads and writes the map where it is.

Nothing is rolled, partitioned or masked in memory: the kernel is told which row of the map each token of each window
is. `torch.compile` fuses norms, GELU and residuals around it (`Backbone.compile_for`).
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_extract.errors import first_line
from vswin_extract.network.swin3d import Block, Size3, Stage, VideoSwin, fit_window, neighbours, patches
from vswin_extract.network.variants import PATCH


@torch.library.custom_op("vswin_extract::window_attention", mutates_args=(), device_types="cuda")
def window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """Self-attention within windows of a map of L tokens, biased by relative position; (N, L, heads * d).

    `qkv`: (N, L, 3, heads, d) contiguous. `table`: (heads, offsets), the biases. `rows`, `regions`, `codes`, `centre`:
    see `Windows`. `masked`: tokens of different regions must not see each other.
    """
    from vswin_extract.network.triton_attention import window_attention as by_kernel

    return by_kernel(qkv, table, rows, regions, codes, centre, masked)


@window_attention.register_kernel("cpu")
def reference_window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """The kernel's twin, for machines without CUDA and for tests."""
    clips, length, _, heads, dim = qkv.shape
    q, k, v = qkv[:, rows].permute(3, 0, 1, 4, 2, 5)  # N windows heads tokens d, each
    bias = table[:, codes[:, None] - codes[None, :] + centre].to(qkv.dtype)  # heads tokens tokens
    if masked:
        apart = regions[:, None, :, None] != regions[:, None, None, :]  # windows 1 tokens tokens
        bias = bias - 100.0 * apart.to(qkv.dtype)  # windows heads tokens tokens
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    out[:, rows] = y.transpose(2, 3).flatten(3)
    return out


@window_attention.register_fake
def _(qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4])


class Windows(NamedTuple):
    """How a map falls into windows, once `F.pad` has padded it by `padding`.

    `rows`: (windows, tokens), where each token stands in the padded map. `regions`: the same, which part of the map it
    comes from; where they are `masked`, those of different regions do not see each other. `codes`: (tokens); the offset
    of two tokens in the bias table is the difference of their codes plus `centre`.
    """

    rows: Tensor
    regions: Tensor
    codes: Tensor
    centre: int
    masked: bool
    padding: tuple[int, ...]


@lru_cache(maxsize=64)
def cut(size: Size3, full: Size3, shifted: bool, device: torch.device) -> Windows:
    """The windows of a map of `size` in tokens, `full` or, where the map is smaller, shrunken to it."""
    window, shift = fit_window(size, full, shifted)
    nt, nh, nw = (-(-side // w) for side, w in zip(size, window, strict=True))
    padded = (nt * window[0], nh * window[1], nw * window[2])
    with torch.inference_mode(False):  # cached, so it must also serve a later call outside
        # along each axis of the rolled map: the place in the map, and which of the ends that the roll joined it is from
        axes = [(torch.arange(side), side, s) for side, s in zip(padded, shift, strict=True)]
        t, h, w = ((rolled + s) % side for rolled, side, s in axes)
        pt, ph, pw = ((rolled >= side - s) * 2**axis for axis, (rolled, side, s) in enumerate(axes))
        rows = (t[:, None, None] * padded[1] + h[:, None]) * padded[2] + w
        regions = pt[:, None, None] + ph[:, None] + pw
        of_windows = (
            grid.view(nt, window[0], nh, window[1], nw, window[2]).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
            for grid in (rows, regions)
        )
        # a shrunken window reads the first rows and columns of the full window's index, as published
        number = torch.arange(window[0] * window[1] * window[2])
        strides = ((2 * full[1] - 1) * (2 * full[2] - 1), 2 * full[2] - 1, 1)
        places = (number // (full[1] * full[2]), number // full[2] % full[1], number % full[2])
        codes = places[0] * strides[0] + places[1] * strides[1] + places[2] * strides[2]
        centre = sum((side - 1) * stride for side, stride in zip(full, strides, strict=True))
        rows, regions, codes = (each.int().to(device) for each in (*of_windows, codes))
    behind = [p - side for p, side in zip(padded, size, strict=True)]
    padding = (0, 0, 0, behind[2], 0, behind[1], 0, behind[0])
    return Windows(rows, regions, codes, centre, any(shift), padding)


def trial(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernel cannot be used on this device, in a line; nothing where it agrees with its twin."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    rows, regions, codes, centre, masked, _ = cut((8, 14, 14), (8, 7, 7), True, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 8 * 14 * 14, 3, 2, 32, generator=generator).to(device, dtype)
    table = torch.randn(2, 15 * 13 * 13, generator=generator).to(device)
    try:
        found = window_attention(qkv, table, rows, regions, codes, centre, masked).float()
    except Exception as error:  # whatever a compiler or a driver raises
        return first_line(error)
    expected = reference_window_attention(qkv.float(), table, rows, regions, codes, centre, masked)
    apart = float((found - expected).norm() / expected.norm())
    return "" if apart < 2e-2 else f"its results are off by {apart:.1e}"


class CudaSwin(nn.Module):
    """What `VideoSwin` computes, for inference; matrix products in `dtype`, norms and residuals in float32."""

    def __init__(self, network: VideoSwin, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.window = network.variant.window
        self.patch_embed = network.patch_embed
        self.stages = nn.ModuleList(CudaStage(stage, dtype) for stage in network.stages if isinstance(stage, Stage))
        self.norm = network.norm
        self.head = network.head
        self.compute: Callable[..., dict[int, Tensor]] = self._compute

    def forward(self, clips: Tensor, stages: Collection[int] = (4,)) -> dict[int, Tensor]:
        """As `VideoSwin.forward`; the maps are float32."""
        side = (-(-clips.shape[2] // PATCH[0]), -(-clips.shape[3] // PATCH[1]), -(-clips.shape[4] // PATCH[2]))
        cuts = []
        for _ in self.stages:
            cuts.append([cut(side, self.window, shifted, clips.device) for shifted in (False, True)])
            side = (side[0], -(-side[1] // 2), -(-side[2] // 2))
        return self.compute(clips, stages, cuts)

    def _compute(self, clips: Tensor, stages: Collection[int], cuts: Sequence[Sequence[Windows]]) -> dict[int, Tensor]:
        """The same, by how the stages' maps fall into windows, shifted and not. This is what can be compiled."""
        embed = self.patch_embed
        x = patches(clips.permute(0, 2, 3, 4, 1)).to(self.dtype)
        x = embed.norm(F.linear(x, embed.matrix().to(self.dtype)).float() + cast(Tensor, embed.proj.bias))
        out = {}
        for number, (stage, windows) in enumerate(zip(self.stages, cuts, strict=True), 1):
            if number > max(stages):
                break
            x = stage(x, windows)
            if number in stages:
                out[number] = self.norm(x) if number == 4 else x
        return out


class CudaStage(nn.Module):
    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.merge = stage.merge
        if self.merge is not None:
            self.merge.reduction.to(dtype)
        self.blocks = nn.ModuleList(CudaBlock(block, dtype) for block in stage.blocks if isinstance(block, Block))

    def forward(self, x: Tensor, cuts: Sequence[Windows]) -> Tensor:
        if self.merge is not None:
            x = self.merge.reduction(self.merge.norm(neighbours(x)).to(self.dtype)).float()
        for number, block in enumerate(self.blocks):
            x = block(x, cuts[number % 2])
        return x


class CudaBlock(nn.Module):
    table: Tensor

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.heads = block.attn.heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj = block.attn.qkv.to(dtype), block.attn.proj.to(dtype)
        self.mlp = block.mlp.to(dtype)
        self.register_buffer("table", block.attn.relative_position_bias_table.t().contiguous(), persistent=False)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """`x`: (N, T, H, W, C) float32."""
        n, t, h, w, c = x.shape
        a = F.pad(self.norm1(x).to(self.dtype), windows.padding)
        size = a.shape[1:4]
        qkv = self.qkv(a).view(n, -1, 3, self.heads, c // self.heads)
        y = window_attention(
            qkv, self.table, windows.rows, windows.regions, windows.codes, windows.centre, windows.masked
        )  # N tokens C
        x = x + self.proj(y).view(n, *size, c)[:, :t, :h, :w]
        return x + self.mlp(self.norm2(x).to(self.dtype))  # type: ignore[no-any-return]
