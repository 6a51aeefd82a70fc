"""Inflate 2D Swin weights to 3D, as in section 3.3 of the paper, and check the result.

`inflate_state` does what `inflate_weights` of the published implementation does. `check_still` compares an inflated
network with the 2D network: a clip of one repeated picture must give the 2D features at every time step.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.network.swin2d import swin2d_maps
from vswin_extract.network.variants import PATCH, Variant
from vswin_extract.weights.checkpoints import Checkpoint, StateDict
from vswin_extract.weights.fit import build_network

TOLERANCE = 2e-6
"""Largest relative L2 error of a stage at a time step. In float64, correct inflation has an error of about 1e-15, and
of 1e-7 if it has resized the window: resized tables are rounded to float32."""
TABLE = "relative_position_bias_table"


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
        elif name.endswith(TABLE):
            offsets, heads = tensor.shape
            side = round(offsets**0.5)
            wanted = (2 * rows - 1, 2 * columns - 1)
            if (side, side) != wanted:
                plane = tensor.double().T.reshape(1, heads, side, side)
                plane = F.interpolate(plane, size=wanted, mode="bicubic", align_corners=False)
                tensor = plane.reshape(heads, -1).T.float()
            inflated[name] = tensor.repeat(2 * frames - 1, 1)
    return inflated


def unused_head_note(state: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for the user if a 2D checkpoint has a head, else nothing."""
    if "head.weight" not in state:
        return []
    return [f"a 2D checkpoint, inflated; its head of {len(state['head.weight'])} image classes is not used: no logits"]


def resized_window_note(state_2d: Mapping[str, Tensor], variant: Variant) -> list[str]:
    """Return a sentence for the user if inflation resizes the window of a 2D checkpoint, else nothing."""
    side, (_, rows, columns) = window_side(state_2d), variant.window
    if (side, side) == (rows, columns):
        return []
    resized = f"its window of {side}x{side} tokens is resized to {rows}x{columns}"
    return [f"{resized}, so features differ from those of the 2D network"]


def window_side(state_2d: Mapping[str, Tensor]) -> int:
    """Return the side of the window of a 2D network, in tokens. All its tables have the same number of rows."""
    table = next(tensor for name, tensor in state_2d.items() if name.endswith(TABLE))
    return (math.isqrt(len(table)) + 1) // 2


def check_still(checkpoint: Checkpoint) -> dict[int, float]:
    """Compare an inflated checkpoint with its 2D network, which is computed from the tensors of the 2D checkpoint by
    `swin2d`. Return the largest relative error of each stage over time.

    If inflation has resized the window, the 2D network gets the resized window, too; `resizing_difference` compares
    with its own. Raise WeightsError for a checkpoint that was not inflated, and for an error above TOLERANCE.
    """
    if not checkpoint.state_2d:
        raise WeightsError("this checkpoint was not inflated from a 2D Swin, so there is nothing to compare it with")
    variant = checkpoint.variant
    picture = still_picture(_picture_side(variant))
    expected = maps_2d(checkpoint.state_2d, variant, picture)
    network = build_network({name: value.double() for name, value in checkpoint.state.items()}, variant)
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


def resizing_difference(checkpoint: Checkpoint) -> dict[int, float]:
    """Return how far the features of an inflated checkpoint are from those of its 2D network with its own window, for
    the picture of `check_still`: the relative difference of each stage. It is {} if inflation has kept the window."""
    if not resized_window_note(checkpoint.state_2d, checkpoint.variant):
        return {}
    picture, side = still_picture(_picture_side(checkpoint.variant)), window_side(checkpoint.state_2d)
    resized = maps_2d(checkpoint.state_2d, checkpoint.variant, picture)
    with torch.inference_mode():
        own = swin2d_maps(
            checkpoint.state_2d, checkpoint.variant.depths, checkpoint.variant.heads, (side, side), picture
        )
    return {stage: float((resized[stage] - own[stage]).norm() / own[stage].norm()) for stage in own}


def _picture_side(variant: Variant) -> int:
    """Return the side of a picture whose map in the last stage is as large as a window. Smaller windows read other rows
    of the bias table in 2D than in 3D, as in the published implementation."""
    return PATCH[1] * 8 * max(variant.window[1:])


def still_picture(side: int) -> Tensor:
    """Return a picture of waves and grain, (1, 3, side, side) float64, in the range of normalised pixels."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    waves = [torch.sin(0.35 * x + 0.2 * y + c) + torch.cos(0.07 * x - 0.11 * y) for c in range(3)]
    grain = (3 * x + 7 * y) % 5 / 5
    return torch.stack(waves)[None] + grain


def maps_2d(state_2d: Mapping[str, Tensor], variant: Variant, picture: Tensor) -> dict[int, Tensor]:
    """Return what the 2D network gives for a picture (1, 3, H, W) float64: stage -> (H', W', C), float64.

    Its window is that of `variant`. If it had another one, its bias tables are resized, by a formula of their own.
    """
    _, rows, columns = variant.window
    side = window_side(state_2d)
    state = {name: tensor.double() for name, tensor in state_2d.items()}
    if (side, side) != (rows, columns):
        taps = [cubic_matrix(2 * side - 1, 2 * length - 1) for length in (rows, columns)]
        for name, table in state.items():
            if name.endswith(TABLE):
                plane = table.view(2 * side - 1, 2 * side - 1, -1)  # offsets down, offsets right, heads
                state[name] = torch.einsum("yr,xc,rch->yxh", taps[0], taps[1], plane).flatten(0, 1)
    with torch.inference_mode():
        return swin2d_maps(state, variant.depths, variant.heads, (rows, columns), picture)


def cubic_matrix(source: int, target: int) -> Tensor:
    """Return bicubic resizing along one axis as a matrix (target, source), float64: Keys' kernel with a = -0.75 and
    repeated edges."""
    a = -0.75
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        at = (row + 0.5) * source / target - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            x = abs(at - tap)
            near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            matrix[row, min(max(tap, 0), source - 1)] += near if x < 1 else far
    return matrix
