"""The published layouts of checkpoints: the names that each one gives to our parameters.

To read the checkpoints of another project, add its table to LAYOUTS and recognise it in `find_layout`. Everything else
follows: `load` accepts a file of any layout only if its renamed tensors fit the network exactly.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.weights.recipe import Recipe

Replacement = str | Callable[[re.Match[str]], str]


def _stage(shift: int, rest: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"stages.{int(found[1]) + shift}.{rest}."


def _half_stage(shift: int, rest: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"stages.{int(found[1]) // 2 + shift}.{rest}."


_NO_PREFIX = (r"^backbone\.", "")
_BLOCKS = (r"layers\.(\d)\.blocks\.", _stage(0, "blocks"))
_MERGE = (r"layers\.(\d)\.downsample\.", _stage(1, "merge"))  # here merging ends a stage, in our names it begins one
_HEAD = (r"^cls_head\.fc_cls\.", "head.")

LAYOUTS: dict[str, tuple[tuple[str, Replacement], ...]] = {
    "vswin-extract": (),
    "official": (_NO_PREFIX, _BLOCKS, _MERGE, _HEAD),
    "mmaction2": (_NO_PREFIX, _BLOCKS, _MERGE, (r"^norm3\.", "norm."), _HEAD),
    "torchvision": (  # `features` alternates between blocks (even numbers) and merging (odd numbers)
        (r"^features\.([0246])\.", _half_stage(0, "blocks")),
        (r"^features\.([135])\.", _half_stage(1, "merge")),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    "swin2d": (_NO_PREFIX, _BLOCKS, _MERGE),
    "timm": (_BLOCKS, (r"layers\.(\d)\.downsample\.", _stage(0, "merge")), (r"^head\.fc\.", "head.")),
}
"""Regular expressions and their replacements, applied one after another to each published name."""
RECIPES = {"torchvision": Recipe(resize=256)}
"""The recipes of layouts that differ from the usual one. Files of published layouts do not contain it."""
LAYOUTS_2D = ("swin2d", "timm")
"""The layouts of image models, which are inflated."""
DERIVED = ("relative_position_index", "attn_mask")
"""Buffers in published files that can be computed from the window. They are not parameters."""


def find_layout(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Return the layout of a checkpoint by the names of its tensors. Raise WeightsError if it is unknown."""

    def any_name(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    patch = tensors.get("patch_embed.proj.weight", tensors.get("backbone.patch_embed.proj.weight"))
    if patch is None:
        raise WeightsError(f"{path} is not a Video Swin or Swin checkpoint: it has no patch_embed.proj.weight")
    if any_name(r"stages\."):
        return "vswin-extract"
    if any_name(r"features\.") and patch.ndim == 5:
        return "torchvision"
    if any_name(r"(backbone\.)?layers\."):
        if patch.ndim == 5:
            return "mmaction2" if any_name(r"(backbone\.)?norm3\.") else "official"
        if patch.ndim == 4:
            return "timm" if any_name(r"head\.fc\.|layers\.3\.downsample\.") else "swin2d"
    raise WeightsError(f"{path} has no known layout; the known layouts are {', '.join(LAYOUTS)}")


def our_name(published: str, layout: str) -> str:
    """Return our name of a parameter that a layout calls `published`."""
    for pattern, replacement in LAYOUTS[layout]:
        published = re.sub(pattern, replacement, published)
    return published
