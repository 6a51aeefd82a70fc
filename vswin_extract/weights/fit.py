"""Which network a state dict belongs to, and whether it fits exactly: no tensor is missing, left over or misshapen."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.formatting import name_some
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant

TABLE = "attn.relative_position_bias_table"
LARGEST_SIDE, MOST_FRAMES = 64, 64
"""Rows of a window at most, and frames of a usual one, in tokens. The largest published windows have 24 and 16."""


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


def window_by_shape(
    state: Mapping[str, Tensor], published: Mapping[str, str], tokens: int, path: Path
) -> tuple[int, int, int]:
    """Return the window (frames, rows, columns) that a 3D state dict was made for.

    A bias table has (2t-1)(2h-1)(2w-1) rows, with h = w. If several windows have so many, it is the one with this
    number of `tokens` (0: not known), else the one of 7 x 7, as in every published checkpoint, else the one of a usual
    length. `published`: the names in the file, by our names. Raise WeightsError if a table is missing or fits no
    window, or if blocks differ.
    """
    name, rows = _one_table(state, published, path)
    fits = []
    for side in range(2, LARGEST_SIDE + 1):
        temporal, rest = divmod(rows, (2 * side - 1) ** 2)
        if not rest and temporal % 2:
            fits.append(((temporal + 1) // 2, side, side))
    likely = [fit for fit in fits if math.prod(fit) == tokens] or [fit for fit in fits if fit[1] == 7]
    likely = likely or [fit for fit in fits if fit[0] <= MOST_FRAMES] or fits
    if len(likely) == 1:
        return likely[0]
    problem = f"{path}: {published[name]} has {rows} rows"
    if not likely:
        raise WeightsError(f"{problem}, which fits no window of T x H x H tokens")
    windows = ", ".join("x".join(map(str, fit)) for fit in likely)
    raise WeightsError(f"{problem}, which fits several windows: {windows}; add relative_position_index to the file")


def window_2d(state: Mapping[str, Tensor], published: Mapping[str, str], path: Path) -> int:
    """Return the side of the square window that a 2D state dict was made for, whose bias tables have (2 side - 1)^2
    rows. Raise WeightsError if a table is missing or fits no window, or if blocks differ."""
    name, rows = _one_table(state, published, path)
    offsets = math.isqrt(rows)
    if offsets**2 != rows or not offsets % 2:
        raise WeightsError(f"{path}: {published[name]} has {rows} rows, which fits no square window")
    return (offsets + 1) // 2


def _one_table(state: Mapping[str, Tensor], published: Mapping[str, str], path: Path) -> tuple[str, int]:
    """Return the name of the first bias table, and its rows, which all tables must have: the network has one window.
    Raise WeightsError."""
    first = f"stages.0.blocks.0.{TABLE}"
    if first not in state:
        raise WeightsError(f"{path} lacks {first}")
    rows = state[first].shape[0]
    for name, tensor in state.items():
        if name.endswith(TABLE) and tensor.shape[0] != rows:
            raise WeightsError(
                f"{path} has windows of different sizes, which this network cannot have: {published[first]} has "
                f"{_rows_in_words(rows)}, {published[name]} has {_rows_in_words(tensor.shape[0])}"
            )
    return first, rows


def _rows_in_words(rows: int) -> str:
    """Return the rows of a bias table, and the window if it is a square one of images: 169 rows (window 7x7)."""
    offsets = math.isqrt(rows)
    square = offsets**2 == rows and offsets % 2
    return f"{rows} rows" + (f" (window {(offsets + 1) // 2}x{(offsets + 1) // 2})" if square else "")


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


def require_finite(state: Mapping[str, Tensor], published: Mapping[str, str], path: Path) -> None:
    """Raise WeightsError if a tensor has NaN or infinite values. `published`: the names in the file, by our names."""
    if broken := not_finite(state):
        names = name_some([published[name] for name in broken])
        raise WeightsError(f"{path} has NaN or infinite values in {names}; get the file again, or an earlier one")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that have NaN or infinite values."""
    # A sum is quicker than a test of each value. It is finite only if all values are, but it may overflow.
    suspects = [name for name, value in state.items() if not math.isfinite(value.sum())]
    return [name for name in suspects if not bool(torch.isfinite(state[name]).all())]
