"""Read weights by name, or a checkpoint file of any known layout, strictly."""

import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vswin_extract.errors import WeightsError, first_line
from vswin_extract.files import file_sha256
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.cache import check_hash, find_weights
from vswin_extract.weights.checkpoints import Checkpoint, OwnMetadata, StateDict, parse_metadata
from vswin_extract.weights.fit import closest_variant, require_fit, window_by_shape
from vswin_extract.weights.inflation import inflate_state, resized_window_note, unused_head_note
from vswin_extract.weights.layouts import DERIVED, LAYOUTS_2D, RECIPES, find_layout, our_name
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED, class_names, find_by_sha256, manifest


def load_checkpoint(name_or_file: str, variant: str | None = None) -> tuple[str, Checkpoint]:
    """Read weights by name or file. Return their name and the checkpoint.

    The name is that of the manifest if it knows the file, else that of the file. Published weights must have the hash
    of the manifest. The manifest adds the recipe, classes, source and licence that the file does not contain. Raise
    what `find_weights`, `read_checkpoint` and `check_hash` raise.
    """
    path = find_weights(name_or_file)
    checkpoint = read_checkpoint(path, variant)
    if name_or_file == BUNDLED:
        return BUNDLED, checkpoint
    row = manifest().get(name_or_file) or find_by_sha256(checkpoint.sha256)
    if row is None:
        return path.name, replace(checkpoint, recipe=checkpoint.recipe or Recipe())
    check_hash(checkpoint.sha256, row)
    return row.name, replace(
        checkpoint,
        recipe=checkpoint.recipe or row.recipe,
        classes=checkpoint.classes or class_names(row.dataset, checkpoint.num_classes),
        source=checkpoint.source or row.url,
        license=checkpoint.license or row.license,
    )


def read_checkpoint(path: Path, variant: str | None = None, window: tuple[int, int, int] | None = None) -> Checkpoint:
    """Read a checkpoint file of any known layout.

    `variant`: a name of `VARIANTS`; without it, the shapes decide. `window`: the window that a 2D checkpoint is
    inflated to; without it, that of the variant. Raise WeightsError if the file cannot be read, has no known layout, or
    does not fit its variant exactly.
    """
    if variant is not None and variant not in VARIANTS:
        raise WeightsError(f"unknown variant {variant!r}; the variants are {', '.join(VARIANTS)}")
    with ThreadPoolExecutor(1, "hashing") as hashing:  # hashes the file while its tensors are read
        sha256 = hashing.submit(file_sha256, path)
        checkpoint = _read_unhashed(path, variant, window)
        return replace(checkpoint, sha256=sha256.result())


def _read_unhashed(path: Path, variant: str | None, window: tuple[int, int, int] | None) -> Checkpoint:
    tensors, own = _read_tensors(path)
    layout = find_layout(tensors, path)
    published = {our_name(name, layout): name for name in tensors if not name.endswith(DERIVED)}
    state = {ours: tensors[name] for ours, name in published.items()}
    if own and variant in (None, own.variant.name):
        sizes = own.variant  # with its window
    else:
        sizes = VARIANTS[variant] if variant else closest_variant(state, path)
        if layout not in LAYOUTS_2D:
            sizes = replace(sizes, window=window_by_shape(state, published, path))
    state_2d: StateDict = {}
    notes: list[str] = []
    if layout in LAYOUTS_2D:
        sizes = replace(sizes, window=window or sizes.window)
        state_2d = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
        notes = [*unused_head_note(state), *resized_window_note(state_2d, sizes)]
        state = inflate_state(state_2d, sizes)
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    require_fit(state, published, sizes, num_classes, path)
    return Checkpoint(
        state={name: tensor.float() for name, tensor in state.items()},
        variant=sizes,
        layout=layout,
        sha256="",
        num_classes=num_classes,
        classes=own.classes if own else (),
        recipe=own.recipe if own else RECIPES.get(layout),
        source=own.source if own else "",
        license=own.license if own else "",
        notes=tuple(notes),
        state_2d=state_2d,
    )


def _read_tensors(path: Path) -> tuple[StateDict, OwnMetadata | None]:
    """Return all tensors by their names in the file, and the metadata if the file has our format."""
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            with safe_open(path, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                metadata = stored.metadata() or {}
            return tensors, parse_metadata(tensors, metadata)
        if not head.startswith((b"PK", b"\x80")):
            raise ValueError(f"it is not a PyTorch file; it begins with {head!r}")
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"loading it would run code of {code[1]}" if code else "loading it would run code, or it is damaged"
        raise WeightsError(
            f"{path} was refused: it is not a plain table of tensors ({reason}). Training checkpoints often contain "
            "more than weights; if you trust the file, save its 'state_dict' alone, with "
            "torch.load(..., weights_only=False) and torch.save"
        ) from error
    except Exception as error:  # the parsers raise many errors for damaged and foreign files
        raise WeightsError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    return _find_table(content, path), None


def _find_table(content: Any, path: Path) -> StateDict:
    """Return the table of tensors in what `torch.load` gave."""
    for container in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} has no table of tensors, neither at its top nor under 'state_dict' or 'model'")
    return dict(content)
