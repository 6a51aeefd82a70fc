"""Which network a state dict belongs to, and whether it fits exactly: no tensor is missing, left over or misshapen."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.formatting import name_some
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant


def build_network(state: Mapping[str, Tensor], variant: Variant, num_classes: int = 0) -> VideoSwin:
    """Return the network with these tensors as its parameters. They are not copied."""
    with torch.device("meta"):
        network = VideoSwin(variant, num_classes)
    network.load_state_dict(state, strict=True, assign=True)
    return network


def expected_shapes(variant: Variant, num_classes: int) -> dict[str, torch.Size]:
    """Return the name and shape of every parameter of a network, without allocating them."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in VideoSwin(variant, num_classes).state_dict().items()}


def closest_variant(state: Mapping[str, Tensor], path: Path) -> Variant:
    """Return the variant of the same width whose parameters have the most names in common with a state dict.

    Raise WeightsError if no variant has this width.
    """
    width = state["patch_embed.proj.weight"].shape[0]
    same_width = [variant for variant in VARIANTS.values() if variant.embed_dim == width]
    if not same_width:
        widths = ", ".join(f"{variant.name} {variant.embed_dim}" for variant in VARIANTS.values())
        raise WeightsError(f"{path} has {width} channels in its first stage, which no variant has ({widths})")
    return min(same_width, key=lambda variant: len(expected_shapes(variant, 0).keys() ^ state.keys()))


def window_by_shape(state: Mapping[str, Tensor], published: Mapping[str, str], path: Path) -> tuple[int, int, int]:
    """Return the window (frames, rows, columns) that a 3D state dict was made for.

    A bias table has (2t-1)(2h-1)(2w-1) rows, and h = w = 7 in every published checkpoint. `published`: the names in the
    file, by our names. Raise WeightsError if the table is missing or fits no such window.
    """
    name = "stages.0.blocks.0.attn.relative_position_bias_table"
    if name not in state:
        raise WeightsError(f"{path} lacks {name}")
    rows = state[name].shape[0]
    frames = (rows // 169 + 1) // 2
    if frames < 1 or (2 * frames - 1) * 169 != rows:
        raise WeightsError(f"{path}: {published[name]} has {rows} rows, which fits no window of 7x7 tokens")
    return frames, 7, 7


def require_fit(
    state: Mapping[str, Tensor], published: Mapping[str, str], variant: Variant, num_classes: int, path: Path
) -> None:
    """Raise WeightsError unless a state dict has exactly the names and shapes of a network.

    `published`: the names in the file, by our names.
    """
    expected = expected_shapes(variant, num_classes)
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(published[name] for name in state.keys() - expected.keys())
    misshapen = [
        f"{published[name]} is {tuple(state[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    for problem, names in (("lacks", missing), ("has unknown tensors:", extra), ("has wrong shapes:", misshapen)):
        if names:
            raise WeightsError(f"{path} does not fit variant {variant.name}: it {problem} {name_some(names)}")
