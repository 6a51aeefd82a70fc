"""Swin Transformer for images, as functions on the tensors of a checkpoint: to check what inflation makes of them.

Source: Liu et al., "Swin Transformer" (ICCV 2021), and models/swin_transformer.py of the published implementation. It
shares no code with `swin3d`, so that an error there, or in the inflation, does not show here as well. It is slow, and
computes in the type of the picture.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size2 = tuple[int, int]


def swin2d_maps(
    state: Mapping[str, Tensor], depths: Sequence[int], heads: Sequence[int], window: Size2, picture: Tensor
) -> dict[int, Tensor]:
    """Return the maps of a picture (1, 3, H, W), normalised: stage -> (H', W', C), stages 1 to 3 before patch merging
    and without norm, stage 4 after the final norm.

    `state`: the 2D parameters by our names. `window`: rows and columns in tokens, which the bias tables must fit.
    """
    state = {name: tensor.to(picture.dtype) for name, tensor in state.items()}
    patch = state["patch_embed.proj.weight"]
    x = F.conv2d(picture, patch, state["patch_embed.proj.bias"], stride=patch.shape[2:])[0].permute(1, 2, 0)  # H' W' C
    x = _norm(x, state, "patch_embed.norm")
    maps = {}
    for stage, (depth, heads_of_stage) in enumerate(zip(depths, heads, strict=True)):
        if stage:
            x = _merge(x, state, f"stages.{stage}.merge")
        for number in range(depth):
            x = _block(x, state, f"stages.{stage}.blocks.{number}", heads_of_stage, window, number % 2 == 1)
        maps[stage + 1] = x
    return {**maps, 4: _norm(maps[4], state, "norm")}


def _merge(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    """Patch merging: (H, W, C) to (H/2, W/2, 2C)."""
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[0] % 2))
    corners = [x[row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return _norm(torch.cat(corners, -1), state, f"{name}.norm") @ state[f"{name}.reduction.weight"].T


def _block(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int, window: Size2, shifted: bool) -> Tensor:
    """One block on a map (H, W, C)."""
    x = x + _attention(_norm(x, state, f"{name}.norm1"), state, f"{name}.attn", heads, window, shifted)
    hidden = F.gelu(_linear(_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
    return x + _linear(hidden, state, f"{name}.mlp.fc2")


def _attention(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int, window: Size2, shifted: bool) -> Tensor:
    """Attention within windows, on a map (H, W, C). Odd blocks have windows that are shifted by half their size."""
    height, width, _ = x.shape
    sides = (min(height, window[0]), min(width, window[1]))
    x = F.pad(x, (0, 0, 0, -width % sides[1], 0, -height % sides[0]))
    padded = (x.shape[0], x.shape[1])
    tokens, regions = _windows((height, width), padded, window, shifted)
    qkv = _linear(x.flatten(0, 1)[tokens], state, f"{name}.qkv")  # windows tokens 3C
    q, k, v = qkv.view(*tokens.shape, 3, heads, -1).unbind(2)
    scores = torch.einsum("wihc,wjhc->whij", q, k) * q.shape[-1] ** -0.5
    down, right = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sides), indexing="ij"))
    offsets_down, offsets_right = (place[:, None] - place[None, :] for place in (down, right))
    row = (offsets_down + window[0] - 1) * (2 * window[1] - 1) + offsets_right + window[1] - 1
    bias = state[f"{name}.relative_position_bias_table"][row].permute(2, 0, 1)  # heads tokens tokens
    apart = regions[:, None, :, None] != regions[:, None, None, :]  # windows 1 tokens tokens
    weights = (scores + bias - 100 * apart.to(scores.dtype)).softmax(-1)
    attended = torch.einsum("whij,wjhc->wihc", weights, v).flatten(2)
    out = torch.empty_like(x).flatten(0, 1)
    out[tokens] = _linear(attended, state, f"{name}.proj")
    return out.view(x.shape)[:height, :width]


def _windows(size: Size2, padded: Size2, window: Size2, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return the tokens of each window, as numbers of tokens of the padded map, and the region of each: both (windows,
    tokens). Tokens of one window that come from opposite ends of the map are in different regions."""
    order = region = torch.zeros(padded, dtype=torch.int64)
    within = torch.zeros(padded, dtype=torch.int64)
    for axis in (0, 1):
        side = min(size[axis], window[axis])
        shift = window[axis] // 2 if shifted and size[axis] > window[axis] else 0
        place = torch.arange(padded[axis]).view((-1, 1) if axis == 0 else (1, -1))
        moved = (place - shift) % padded[axis]
        order = order * padded[axis] + moved // side
        within = within * side + moved % side
        region = region * 2 + (place < shift).long()
    sides = [min(of_map, of_window) for of_map, of_window in zip(size, window, strict=True)]
    count = sides[0] * sides[1]
    tokens = (order * count + within).flatten().argsort().view(-1, count)
    return tokens, region.flatten()[tokens]


def _norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
