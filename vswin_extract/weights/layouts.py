"""Which networks a table of tensors has, and the published layouts: the names that each one gives to our parameters.

To read the checkpoints of another project, add its table to LAYOUTS and recognise it in `find_layout`. Everything else
follows: `load` accepts a file of any layout only if its renamed tensors fit the network exactly.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.formatting import name_some
from vswin_extract.weights.recipe import Recipe

Replacement = str | Callable[[re.Match[str]], str]


def _stage(shift: int, rest: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"stages.{int(found[1]) + shift}.{rest}."


def _half_stage(shift: int, rest: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"stages.{int(found[1]) // 2 + shift}.{rest}."


PATCH_WEIGHT = "patch_embed.proj.weight"
"""A name that every layout has. What stands before it is before all names of the network."""
_BLOCKS = (r"layers\.(\d)\.blocks\.", _stage(0, "blocks"))
_MERGE = (r"layers\.(\d)\.downsample\.", _stage(1, "merge"))  # here merging ends a stage, in our names it begins one
_HEAD = (r"^cls_head\.fc_cls\.", "head.")

LAYOUTS: dict[str, tuple[tuple[str, Replacement], ...]] = {
    "vswin-extract": (),
    "official": (_BLOCKS, _MERGE, _HEAD),
    "mmaction2": (_BLOCKS, _MERGE, (r"^norm3\.", "norm."), _HEAD),
    "torchvision": (  # `features` alternates between blocks (even numbers) and merging (odd numbers)
        (r"^features\.([0246])\.", _half_stage(0, "blocks")),
        (r"^features\.([135])\.", _half_stage(1, "merge")),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    "swin2d": (_BLOCKS, _MERGE),
    "timm": (_BLOCKS, (r"layers\.(\d)\.downsample\.", _stage(0, "merge")), (r"^head\.fc\.", "head.")),
}
"""Regular expressions and their replacements, applied one after another to each published name."""
RECIPES = {"torchvision": Recipe(resize=256)}
"""The recipes of layouts that differ from the usual one. Files of published layouts do not contain it."""
LAYOUTS_2D = ("swin2d", "timm")
"""The layouts of image models, which are inflated."""
DERIVED = ("relative_position_index", "attn_mask")
"""Buffers in published files that can be computed from the window. They are not parameters."""


@dataclass(frozen=True)
class FoundNetwork:
    """A network in a table of tensors.

    `prefix` stands before each of its names in the table: "" in published files, "module." of a wrapper. `names`: its
    names in the table, by their names without prefix. Official files also have a "backbone." before the names, except
    for those of the head. It is left out of `prefix` and of `names`.
    """

    prefix: str
    names: Mapping[str, str]

    def tensors(self, table: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return its tensors by their names without prefix."""
        return {name: table[full] for name, full in self.names.items()}


def find_networks(table: Mapping[str, Tensor]) -> list[FoundNetwork]:
    """Return all networks in a table of tensors: one for each name that ends in PATCH_WEIGHT."""
    ending = re.compile(rf"(|.*\.){re.escape(PATCH_WEIGHT)}", re.DOTALL)
    starts = [found[1] for name in table if (found := ending.fullmatch(name))]
    networks = []
    for start in starts:
        before, backbone, _ = f".{start}".rpartition(".backbone.")
        outer = f"{before}."[1:] if backbone else start
        head = f"{outer}cls_head."
        others = tuple(other for other in starts if len(other) > len(start))
        names = {}
        for full in table:
            if full.startswith(start) and not full.startswith(others):
                names[full.removeprefix(start)] = full
            elif full.startswith(head):
                names[full.removeprefix(outer)] = full
        official = any(name.startswith("layers.") for name in names) and table[start + PATCH_WEIGHT].ndim == 5
        networks.append(FoundNetwork(outer if official else start, names))
    return networks


def find_layout(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Return the layout of a network by the names of its tensors, without prefix. Raise WeightsError if it is
    unknown."""

    def any_name(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    patch = tensors[PATCH_WEIGHT]
    if any_name(r"stages\."):
        return "vswin-extract"
    if any_name(r"features\.") and patch.ndim == 5:
        return "torchvision"
    if any_name(r"layers\."):
        if patch.ndim == 5:
            return "mmaction2" if any_name(r"norm3\.") else "official"
        if patch.ndim == 4:
            return "timm" if any_name(r"head\.fc\.|layers\.3\.downsample\.") else "swin2d"
    others = [name for name in tensors if not name.startswith("patch_embed.")] or list(tensors)
    raise WeightsError(
        f"{path} has no known layout; the known layouts are {', '.join(LAYOUTS)}; names in it are {name_some(others)}"
    )


def our_name(published: str, layout: str) -> str:
    """Return our name of a parameter that a layout calls `published`, without prefix."""
    for pattern, replacement in LAYOUTS[layout]:
        published = re.sub(pattern, replacement, published)
    return published
