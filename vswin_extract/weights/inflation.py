"""Whether an inflated network is the 2D one: a still clip must give the 2D features at every time step.

The 2D network computes with the original 2D parameters: its patch embedding is a 2D convolution of one picture, and its
blocks are those of `swin3d` with windows of one frame, whose bias tables are the 2D ones as they are.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import PATCH, Variant
from vswin_extract.weights.checkpoints import Checkpoint, State, build, inflate

TOLERANCE = 2e-6
"""Relative L2 error of a stage at a time step; computed in float64, it is about 1e-15 where all is well."""


def check_still(checkpoint: Checkpoint) -> dict[int, float]:
    """Relative error of each stage, the largest of all time steps, against the 2D network that it was inflated from.

    Where inflation has resized the window, 2D features are other ones too, and the 2D network is taken with the window
    and the tables resized. Raises WeightsError for a checkpoint that was not inflated, and for an error beyond
    TOLERANCE.
    """
    if not checkpoint.flat:
        raise WeightsError("this checkpoint is not of a 2D Swin, so there is nothing to compare it with")
    variant = checkpoint.variant
    # Whole windows of the last stage: those that are cut off read other rows of the bias table, as published.
    side = PATCH[1] * 8 * max(variant.window[1:])
    picture = still(side)
    flat = flat_maps(checkpoint.flat, variant, picture)
    network = _network(checkpoint.state, variant)
    clip = picture[:, :, None].expand(-1, -1, PATCH[0] * variant.window[0], -1, -1)
    with torch.inference_mode():
        maps = network(clip, (1, 2, 3, 4))
    errors = {}
    for stage, found in maps.items():
        steps = found[0].flatten(1) - flat[stage].flatten()  # T' H'*W'*C
        errors[stage] = float(steps.norm(dim=1).max() / flat[stage].norm())
    if not max(errors.values()) <= TOLERANCE:
        said = ", ".join(f"stage {stage} {error:.1e}" for stage, error in errors.items())
        raise WeightsError(
            f"a still clip does not give the 2D features (relative error {said}); the file was not written"
        )
    return errors


def still(side: int) -> Tensor:
    """A picture of waves, (1, 3, side, side) float64, as if normalised."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    waves = [torch.sin(0.35 * x + 0.2 * y + c) + torch.cos(0.07 * x - 0.11 * y) for c in range(3)]
    grain = (3 * x + 7 * y) % 5 / 5
    return torch.stack(waves)[None] + grain


def flat_maps(state: State, variant: Variant, picture: Tensor) -> dict[int, Tensor]:
    """What the 2D network of 2D parameters gives for a picture (1, 3, H, W): stage -> (H', W', C), float64."""
    one = replace(variant, window=(1, *variant.window[1:]))
    network = _network(inflate(state, one), one)  # changes nothing but tables of another window, and what is not used
    weight, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    with torch.inference_mode():
        x = F.conv2d(picture, weight, bias, stride=PATCH[1:]).permute(0, 2, 3, 1)[:, None]  # 1 1 H' W' C
        x = network.patch_embed.norm(x)
        maps = {}
        for number, stage in enumerate(network.stages, 1):
            x = stage(x)
            maps[number] = (network.norm(x) if number == 4 else x)[0, 0]
    return maps


def _network(state: State, variant: Variant) -> VideoSwin:
    return build({name: value.double() for name, value in state.items()}, variant)
