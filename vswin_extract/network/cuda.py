"""The network of `swin3d` on CUDA in half precision: attention as one kernel that reads and writes the map in place.

Nothing is rolled, partitioned or masked in memory: the kernels are told in which row of the map each token of each
window is. `torch.compile` fuses norms, GELU and residuals around it (`CudaSwin.compile_for`).
"""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_extract.errors import first_line
from vswin_extract.network.swin3d import Block, Size3, Stage, VideoSwin, gathered_clips, neighbours, patches
from vswin_extract.network.variants import PATCH
from vswin_extract.network.windows import LOG2E, WindowLayout, block_table, window_layout

Module = TypeVar("Module", bound=nn.Module)


@torch.library.custom_op("vswin_extract::token_attention", mutates_args=(), device_types="cuda")
def token_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """Self-attention within windows of a map of L tokens, biased by relative position; (N, L, heads * d).

    `qkv`: (N, L, 3, heads, d) contiguous; the product of a query and a key is their score, in units of log2(e).
    `table`: (heads, offsets), the biases in this unit. `rows`, `regions`, `codes`, `centre`, `masked`: see
    `WindowLayout`.
    """
    from vswin_extract.network.triton_attention import attend_by_tokens

    return attend_by_tokens(qkv, table, rows, regions, codes, centre, masked)


@token_attention.register_kernel("cpu")
def reference_token_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool
) -> Tensor:
    """The kernel's reference implementation in PyTorch, for machines without CUDA and for tests."""
    clips, length, _, heads, dim = qkv.shape
    q, k, v = qkv[:, rows].permute(3, 0, 1, 4, 2, 5)  # N windows heads tokens d, each
    bias = table[:, codes[:, None] - codes[None, :] + centre].to(qkv.dtype) / LOG2E  # heads tokens tokens
    if masked:
        apart = regions[:, None, :, None] != regions[:, None, None, :]  # windows 1 tokens tokens
        bias = bias - 100.0 * apart.to(qkv.dtype)  # windows heads tokens tokens
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1 / LOG2E)
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    out[:, rows] = y.transpose(2, 3).flatten(3)
    return out


@token_attention.register_fake
def _(qkv: Tensor, table: Tensor, rows: Tensor, regions: Tensor, codes: Tensor, centre: int, masked: bool) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4])


@torch.library.custom_op("vswin_extract::group_attention", mutates_args=(), device_types="cuda")
def group_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, groups: Tensor, cut: Tensor, centre: int, places: int, masked: bool
) -> Tensor:
    """The same for windows whose tokens fit groups. `table`: (2, heads, blocks, 8, 8), see `windows.block_table`;
    `rows`, `groups`, `cut`, `centre`, `places`: see `FrameGroups`.

    The mask leaves no weight, while the published one of -100 leaves weights of e^-100, which are lost in float32.
    """
    from vswin_extract.network.triton_attention import attend_by_groups

    return attend_by_groups(qkv, table, rows, groups, cut, centre, places, masked)


@group_attention.register_kernel("cpu")
def reference_group_attention(
    qkv: Tensor, table: Tensor, rows: Tensor, groups: Tensor, cut: Tensor, centre: int, places: int, masked: bool
) -> Tensor:
    """The kernel's reference implementation in PyTorch, for machines without CUDA and for tests."""
    clips, length, _, heads, dim = qkv.shape
    q, k, v = qkv[:, rows.clamp(min=0)].permute(3, 0, 1, 4, 2, 5)  # N windows heads slots d, each
    query, key = groups[:, :, None], groups[:, None, :]
    number = torch.where((query ^ key) < 65536, query - key + centre, table.shape[2] - 1)  # windows groups groups
    of_head = torch.arange(heads, device=qkv.device)[:, None, None]
    bias = table[cut[:, None, None, None], of_head, number[:, None]]  # windows heads groups groups 8 8
    bias = bias.transpose(4, 3).flatten(4, 5).flatten(2, 3)  # windows heads slots slots
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(qkv.dtype) / LOG2E, scale=1 / LOG2E)
    out = torch.empty(clips, length, heads * dim, dtype=qkv.dtype, device=qkv.device)
    out[:, rows[rows >= 0]] = y.transpose(2, 3).flatten(3)[:, rows >= 0]
    return out


@group_attention.register_fake
def _(
    qkv: Tensor, table: Tensor, rows: Tensor, groups: Tensor, cut: Tensor, centre: int, places: int, masked: bool
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4])


def window_attention(qkv: Tensor, table: Tensor, layout: WindowLayout) -> Tensor:
    """Attend by groups where the windows fit them, else by tokens. `table`: see `attention_table`."""
    if layout.groups is None:
        y: Tensor = token_attention(qkv, table, *layout[:5])
    else:
        y = group_attention(qkv, table, *layout.groups, layout.masked)
    return y


Attention = tuple[WindowLayout, Tensor]
"""Windows and biases, as `window_attention` takes them."""


def attention_table(table: Tensor, full: Size3, layout: WindowLayout, dtype: torch.dtype) -> Tensor:
    """Return the biases as `window_attention` needs them for `layout` and maps of `dtype`.

    `table`: (heads, offsets), of windows of shape `full`, as trained.
    """
    table = table * LOG2E
    if layout.groups is None:
        return table
    # float16 is more exact than bfloat16, and large enough
    return block_table(
        table, full, layout.frames, layout.shift, torch.float16 if dtype.itemsize == 2 else torch.float32
    )


def kernel_problem(device: torch.device, dtype: torch.dtype, groups: bool) -> str:
    """Return in one line why a kernel, that of groups or that of tokens, cannot be used on `device`, or "" if it agrees
    with its reference."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    full, heads = (8, 7, 7), 8  # so many that a program takes several tiles of queries
    layout = window_layout((16, 14, 14), full, True, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 16 * 14 * 14, 3, heads, 32, generator=generator).to(device, dtype)
    table = torch.randn(heads, 15 * 13 * 13, generator=generator).to(device)
    expected = reference_token_attention(qkv.float(), table * LOG2E, *layout[:5])
    if not groups:
        layout = layout._replace(groups=None)
    try:
        found = window_attention(qkv, attention_table(table, full, layout, dtype), layout).float()
    except Exception as error:  # compilers and drivers raise many kinds
        return f"{type(error).__name__}: {first_line(error)}"
    apart = float((found - expected).norm() / expected.norm())
    return "" if apart < 2e-2 else f"its results are off by {apart:.1e}"


class CudaSwin(nn.Module):
    """An `InferenceNetwork` for CUDA: matrix products in `dtype`, norms and residuals in float32.

    `groups`: attend by groups where windows fit them. In float32, groups take too much shared memory.
    """

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
        groups: bool = True,
    ) -> None:
        super().__init__()
        embed = network.patch_embed
        self.dtype = dtype
        self.groups = groups and dtype is not torch.float32
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
        attention = []
        for stage in self.stages:
            layouts = [window_layout((t, h, w), self.window, shifted, self.device) for shifted in (False, True)]
            if not self.groups:
                layouts = [layout._replace(groups=None) for layout in layouts]
            blocks = (block for block in stage.get_submodule("blocks").children() if isinstance(block, CudaBlock))
            attention.append([block.attention(layouts[number % 2]) for number, block in enumerate(blocks)])
            h, w = -(-h // 2), -(-w // 2)
        maps = self._run(clips, stages, attention)
        return {stage: x[:count] for stage, x in maps.items()}

    def _compute(
        self, clips: Tensor, stages: Collection[int], attention: Sequence[Sequence[Attention]]
    ) -> dict[int, Tensor]:
        """Compute the maps of `clips`, (N, T, H, W, 3): the part that can be compiled.

        `attention`: for each block of each stage, its windows and biases.
        """
        x = patches((clips.float() - self.mean) / self.std).to(self.dtype)  # N T' H' W' 2*4*4*3
        x = self.embed_norm(F.linear(x, self.patch_matrix).float() + self.patch_bias)  # N T' H' W' C
        out = {}
        for number, (stage, of_stage) in enumerate(zip(self.stages, attention, strict=True), 1):
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

    def forward(self, x: Tensor, attention: Sequence[Attention]) -> Tensor:
        """`x`: (N, T, H, W, C) float32. `attention`: for each block, its windows and biases."""
        if self.merge is not None:
            x = self.merge.reduction(self.merge.norm(neighbours(x)).to(self.dtype)).float()
        for block, of_block in zip(self.blocks, attention, strict=True):
            x = block(x, of_block)
        return x


class CudaBlock(nn.Module):
    """One block of a stage: norms and residuals in float32, everything else in `dtype`."""

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.heads = block.attn.heads
        self.norm1, self.norm2 = copied(block.norm1, device), copied(block.norm2, device)
        self.qkv, self.proj = scaled_queries(block, device).to(dtype), copied(block.attn.proj, device, dtype)
        self.mlp = copied(block.mlp, device, dtype)
        self.window = block.attn.window
        self.table = block.attn.relative_position_bias_table.detach().t().contiguous().to(device)
        self._tables: dict[tuple[bool, int, int], Tensor] = {}

    def attention(self, layout: WindowLayout) -> Attention:
        """Return what `forward` needs for maps of this layout."""
        key = (layout.groups is not None, layout.frames, layout.shift)
        if key not in self._tables:
            self._tables[key] = attention_table(self.table, self.window, layout, self.dtype)
        return layout, self._tables[key]

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """`x`: (N, T, H, W, C) float32."""
        layout, table = attention
        n, t, h, w, c = x.shape
        a = self.norm1(x).to(self.dtype)
        if any(layout.padding):
            a = F.pad(a, layout.padding)
        size = a.shape[1:4]
        qkv = self.qkv(a).view(n, -1, 3, self.heads, c // self.heads)
        y = window_attention(qkv, table, layout)  # N tokens C
        x = x + self.proj(y).view(n, *size, c)[:, :t, :h, :w]
        return x + self.mlp(self.norm2(x).to(self.dtype))  # type: ignore[no-any-return]


def scaled_queries(block: Block, device: torch.device) -> nn.Linear:
    """Return the layer of queries, keys and values in float32. Its queries are scaled so that the product of a query
    and a key is their score in units of log2(e)."""
    layer = copied(block.attn.qkv, device).requires_grad_(False)
    channels = layer.in_features
    scale = LOG2E * (channels // block.attn.heads) ** -0.5
    layer.weight[:channels] *= scale
    layer.bias[:channels] *= scale
    return layer


def copied(module: Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Module:
    """Return a copy of `module` on `device` in `dtype`. `module` itself stays as it is."""
    return deepcopy(module).to(device, dtype)
