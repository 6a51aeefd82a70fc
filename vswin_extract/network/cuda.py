"""The network of `swin3d` on CUDA in half precision: attention as one kernel that reads and writes the map in place.

Nothing is rolled, partitioned or masked in memory: the kernel is told in which row of the map each token of each window
is. `torch.compile` fuses norms, GELU and residuals around it (`CudaSwin.compile_for`).
"""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_extract.errors import first_line
from vswin_extract.network.swin3d import (
    Block,
    Size3,
    Stage,
    VideoSwin,
    fit_window,
    gathered_clips,
    neighbours,
    patches,
)
from vswin_extract.network.variants import PATCH

Module = TypeVar("Module", bound=nn.Module)


@torch.library.custom_op("vswin_extract::window_attention", mutates_args=(), device_types="cuda")
def window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """Self-attention within windows of a map of L tokens, biased by relative position; (N, L, heads * d).

    `qkv`: (N, L, 3, heads, d) contiguous. `table`: (heads, offsets), the biases. `rows`, `regions`, `codes`, `centre`,
    `masked`: see `WindowLayout`.
    """
    from vswin_extract.network.triton_attention import triton_window_attention

    return triton_window_attention(qkv, table, rows, regions, codes, centre, masked)


@window_attention.register_kernel("cpu")
def reference_window_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """The kernel's reference implementation in PyTorch, for machines without CUDA and for tests."""
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


class WindowLayout(NamedTuple):
    """The windows of a map that `F.pad` has padded by `padding`.

    `rows`: (windows, tokens), the row of the padded map in which each token is. `regions`: (windows, tokens), the part
    of the map that each token comes from; if `masked`, tokens of different regions do not attend to each other.
    `codes`: (tokens); the place of two tokens in the bias table is the difference of their codes plus `centre`.
    """

    rows: Tensor
    regions: Tensor
    codes: Tensor
    centre: int
    masked: bool
    padding: tuple[int, ...]


@lru_cache(maxsize=64)
def window_layout(size: Size3, full: Size3, shifted: bool, device: torch.device) -> WindowLayout:
    """Return the windows of a map of `size` in tokens: of shape `full`, or smaller if the map is smaller."""
    window, shift = fit_window(size, full, shifted)
    nt, nh, nw = (-(-side // w) for side, w in zip(size, window, strict=True))
    padded = (nt * window[0], nh * window[1], nw * window[2])
    with torch.inference_mode(False):  # cached, and a later call may train
        # for each place along an axis of the rolled map: its place in the map, and whether it was rolled to this end
        axes = [(torch.arange(side), side, s) for side, s in zip(padded, shift, strict=True)]
        t, h, w = ((rolled + s) % side for rolled, side, s in axes)
        pt, ph, pw = ((rolled >= side - s) * 2**axis for axis, (rolled, side, s) in enumerate(axes))
        rows = (t[:, None, None] * padded[1] + h[:, None]) * padded[2] + w
        regions = pt[:, None, None] + ph[:, None] + pw
        of_windows = (
            grid.view(nt, window[0], nh, window[1], nw, window[2]).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
            for grid in (rows, regions)
        )
        # a smaller window reads the first rows and columns of the full window's index, as published
        number = torch.arange(window[0] * window[1] * window[2])
        strides = ((2 * full[1] - 1) * (2 * full[2] - 1), 2 * full[2] - 1, 1)
        places = (number // (full[1] * full[2]), number // full[2] % full[1], number % full[2])
        codes = places[0] * strides[0] + places[1] * strides[1] + places[2] * strides[2]
        centre = sum((side - 1) * stride for side, stride in zip(full, strides, strict=True))
        rows, regions, codes = (each.int().to(device) for each in (*of_windows, codes))
    behind = [p - side for p, side in zip(padded, size, strict=True)]
    padding = (0, 0, 0, behind[2], 0, behind[1], 0, behind[0])
    return WindowLayout(rows, regions, codes, centre, any(shift), padding)


def kernel_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Return in one line why the kernel cannot be used on `device`, or "" if it agrees with its reference."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    rows, regions, codes, centre, masked, _ = window_layout((8, 14, 14), (8, 7, 7), True, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 8 * 14 * 14, 3, 2, 32, generator=generator).to(device, dtype)
    table = torch.randn(2, 15 * 13 * 13, generator=generator).to(device)
    try:
        found = window_attention(qkv, table, rows, regions, codes, centre, masked).float()
    except Exception as error:  # compilers and drivers raise many kinds
        return first_line(error)
    expected = reference_window_attention(qkv.float(), table, rows, regions, codes, centre, masked)
    apart = float((found - expected).norm() / expected.norm())
    return "" if apart < 2e-2 else f"its results are off by {apart:.1e}"


class CudaSwin(nn.Module):
    """An `InferenceNetwork` for CUDA: matrix products in `dtype`, norms and residuals in float32."""

    mean: Tensor
    std: Tensor
    patch_matrix: Tensor
    patch_bias: Tensor

    def __init__(
        self,
        network: VideoSwin,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        embed = network.patch_embed
        self.dtype = dtype
        self.window = network.variant.window
        for name, value in (
            ("mean", torch.tensor(mean, device=device)),
            ("std", torch.tensor(std, device=device)),
            ("patch_matrix", embed.matrix().detach().to(device, dtype)),
            ("patch_bias", embed.proj.bias.detach().to(device)),  # type: ignore[union-attr]
        ):
            self.register_buffer(name, value)
        self.embed_norm = copied(embed.norm, device)
        self.stages = nn.ModuleList(
            CudaStage(stage, device, dtype) for stage in network.stages if isinstance(stage, Stage)
        )
        self.norm = copied(network.norm, device)
        self.head = None if network.head is None else copied(network.head, device)
        self.compiled_for = 0
        self._run: Callable[..., dict[int, Tensor]] = self._compute

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def compile_for(self, batch: int) -> None:
        """Compile for batches of `batch` clips, at the next call, or not at all for 0.

        Smaller batches are filled up to this size, since the network is compiled for each size anew.
        """
        self.compiled_for = batch
        self._run = torch.compile(self._compute, dynamic=False) if batch else self._compute

    @torch.inference_mode()
    def forward(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        clips = gathered_clips(frames, index, self.device)
        count = len(clips)
        if count < self.compiled_for:
            clips = torch.cat((clips, clips[:1].expand(self.compiled_for - count, -1, -1, -1, -1)))
        t, h, w = (-(-side // patch) for side, patch in zip(clips.shape[1:4], PATCH, strict=True))
        layouts = []
        for _ in self.stages:
            layouts.append([window_layout((t, h, w), self.window, shifted, self.device) for shifted in (False, True)])
            h, w = -(-h // 2), -(-w // 2)
        maps = self._run((clips.float() - self.mean) / self.std, stages, layouts)
        return {stage: x[:count] for stage, x in maps.items()}

    def _compute(
        self, clips: Tensor, stages: Collection[int], layouts: Sequence[Sequence[WindowLayout]]
    ) -> dict[int, Tensor]:
        """Compute the maps of normalised `clips`, (N, T, H, W, 3): the part that can be compiled.

        `layouts`: for each stage, that of blocks that are not shifted, and that of blocks that are.
        """
        x = patches(clips).to(self.dtype)  # N T' H' W' 2*4*4*3
        x = self.embed_norm(F.linear(x, self.patch_matrix).float() + self.patch_bias)  # N T' H' W' C
        out = {}
        for number, (stage, of_stage) in enumerate(zip(self.stages, layouts, strict=True), 1):
            if number > max(stages):
                break
            x = stage(x, of_stage)
            if number in stages:
                out[number] = self.norm(x) if number == 4 else x
        return out


class CudaStage(nn.Module):
    """Patch merging and the blocks of one stage."""

    def __init__(self, stage: Stage, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.merge = None if stage.merge is None else copied(stage.merge, device)
        if self.merge is not None:
            self.merge.reduction.to(dtype)
        self.blocks = nn.ModuleList(
            CudaBlock(block, device, dtype) for block in stage.blocks if isinstance(block, Block)
        )

    def forward(self, x: Tensor, layouts: Sequence[WindowLayout]) -> Tensor:
        """`x`: (N, T, H, W, C) float32. `layouts`: of blocks that are not shifted, and of blocks that are."""
        if self.merge is not None:
            x = self.merge.reduction(self.merge.norm(neighbours(x)).to(self.dtype)).float()
        for number, block in enumerate(self.blocks):
            x = block(x, layouts[number % 2])
        return x


class CudaBlock(nn.Module):
    """One block of a stage: norms and residuals in float32, everything else in `dtype`."""

    table: Tensor

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.heads = block.attn.heads
        self.norm1, self.norm2 = copied(block.norm1, device), copied(block.norm2, device)
        self.qkv, self.proj = copied(block.attn.qkv, device, dtype), copied(block.attn.proj, device, dtype)
        self.mlp = copied(block.mlp, device, dtype)
        table = block.attn.relative_position_bias_table.detach()
        self.register_buffer("table", table.t().contiguous().to(device))

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """`x`: (N, T, H, W, C) float32."""
        n, t, h, w, c = x.shape
        a = F.pad(self.norm1(x).to(self.dtype), layout.padding)
        size = a.shape[1:4]
        qkv = self.qkv(a).view(n, -1, 3, self.heads, c // self.heads)
        y = window_attention(
            qkv, self.table, layout.rows, layout.regions, layout.codes, layout.centre, layout.masked
        )  # N tokens C
        x = x + self.proj(y).view(n, *size, c)[:, :t, :h, :w]
        return x + self.mlp(self.norm2(x).to(self.dtype))  # type: ignore[no-any-return]


def copied(module: Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Module:
    """Return a copy of `module` on `device` in `dtype`. `module` itself stays as it is."""
    return deepcopy(module).to(device, dtype)
