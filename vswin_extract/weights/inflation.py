"""Inflate 2D Swin weights to 3D, as in section 3.3 of the paper, and check the result.

`inflate_state` does what `inflate_weights` of the published implementation does. `check_still` compares an inflated
network with the 2D network: a clip of one repeated picture must give the 2D features at every time step.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import PATCH, Variant
from vswin_extract.weights.checkpoints import Checkpoint, StateDict
from vswin_extract.weights.fit import build_network

TOLERANCE = 2e-6
"""Largest relative L2 error of a stage at a time step. In float64, correct inflation has an error of about 1e-15."""


def inflate_state(state_2d: Mapping[str, Tensor], variant: Variant) -> StateDict:
    """Return the parameters of the 3D network of `variant`.

    The patch embedding is repeated over time and divided by the frames of a patch, so that a still clip gives the 2D
    tokens. Bias tables are resized to the window (bicubic) and repeated for every temporal offset.
    """
    frames, rows, columns = variant.window
    inflated = dict(state_2d)
    for name, tensor in state_2d.items():
        if name == "patch_embed.proj.weight" and tensor.ndim == 4:
            inflated[name] = tensor.float().unsqueeze(2).repeat(1, 1, PATCH[0], 1, 1) / PATCH[0]
        elif name.endswith("relative_position_bias_table"):
            offsets, heads = tensor.shape
            side = round(offsets**0.5)
            wanted = (2 * rows - 1, 2 * columns - 1)
            if (side, side) != wanted:
                plane = tensor.float().T.reshape(1, heads, side, side)
                plane = F.interpolate(plane, size=wanted, mode="bicubic", align_corners=False)
                tensor = plane.reshape(heads, -1).T
            inflated[name] = tensor.repeat(2 * frames - 1, 1)
    return inflated


def unused_head_note(state: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for the user if a 2D checkpoint has a head, else nothing."""
    if "head.weight" not in state:
        return []
    return [f"a 2D checkpoint, inflated; its head of {len(state['head.weight'])} image classes is not used: no logits"]


def resized_window_note(state_2d: Mapping[str, Tensor], variant: Variant) -> list[str]:
    """Return a sentence for the user if inflation resizes the window of a 2D checkpoint, else nothing."""
    table = state_2d.get("stages.0.blocks.0.attn.relative_position_bias_table", torch.empty(0))
    side, (_, rows, columns) = (round(len(table) ** 0.5) + 1) // 2, variant.window
    if (side, side) == (rows, columns):
        return []
    resized = f"its window of {side}x{side} tokens is resized to {rows}x{columns}"
    return [f"{resized}, so features differ from those of the 2D network"]


def check_still(checkpoint: Checkpoint) -> dict[int, float]:
    """Compare an inflated checkpoint with its 2D network. Return the largest relative error of each stage over time.

    If inflation has resized the window, the 2D network gets the resized window and tables, too. Raise WeightsError for
    a checkpoint that was not inflated, and for an error above TOLERANCE.
    """
    if not checkpoint.state_2d:
        raise WeightsError("this checkpoint was not inflated from a 2D Swin, so there is nothing to compare it with")
    variant = checkpoint.variant
    # The picture has whole windows in the last stage. Windows that are cut off read other rows of the bias table in 2D
    # than in 3D, as in the published implementation.
    side = PATCH[1] * 8 * max(variant.window[1:])
    picture = still_picture(side)
    expected = maps_2d(checkpoint.state_2d, variant, picture)
    network = _float64_network(checkpoint.state, variant)
    clip = picture[:, :, None].expand(-1, -1, PATCH[0] * variant.window[0], -1, -1)
    with torch.inference_mode():
        maps = network(clip, (1, 2, 3, 4))
    errors = {}
    for stage, found in maps.items():
        differences = found[0].flatten(1) - expected[stage].flatten()  # T' H'*W'*C
        errors[stage] = float(differences.norm(dim=1).max() / expected[stage].norm())
    if not max(errors.values()) <= TOLERANCE:
        found_errors = ", ".join(f"stage {stage} {error:.1e}" for stage, error in errors.items())
        raise WeightsError(
            f"a still clip does not give the 2D features (relative error {found_errors}); the file was not written"
        )
    return errors


def still_picture(side: int) -> Tensor:
    """Return a picture of waves and grain, (1, 3, side, side) float64, in the range of normalised pixels."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    waves = [torch.sin(0.35 * x + 0.2 * y + c) + torch.cos(0.07 * x - 0.11 * y) for c in range(3)]
    grain = (3 * x + 7 * y) % 5 / 5
    return torch.stack(waves)[None] + grain


def maps_2d(state_2d: Mapping[str, Tensor], variant: Variant, picture: Tensor) -> dict[int, Tensor]:
    """Return what the 2D network gives for a picture (1, 3, H, W): stage -> (H', W', C), float64.

    Its patch embedding is a 2D convolution. Its blocks are those of `swin3d` with windows of one frame, for which the
    2D bias tables fit as they are.
    """
    one_frame = replace(variant, window=(1, *variant.window[1:]))
    # For a window of one frame, inflation only resizes tables. The inflated patch embedding is not used.
    network = _float64_network(inflate_state(state_2d, one_frame), one_frame)
    weight, bias = state_2d["patch_embed.proj.weight"].double(), state_2d["patch_embed.proj.bias"].double()
    with torch.inference_mode():
        x = F.conv2d(picture, weight, bias, stride=PATCH[1:]).permute(0, 2, 3, 1)[:, None]  # 1 1 H' W' C
        x = network.patch_embed.norm(x)
        maps = {}
        for number, stage in enumerate(network.stages, 1):
            x = stage(x)
            maps[number] = (network.norm(x) if number == 4 else x)[0, 0]
    return maps


def _float64_network(state: Mapping[str, Tensor], variant: Variant) -> VideoSwin:
    return build_network({name: value.double() for name, value in state.items()}, variant)
