"""Read weights by name, or a checkpoint file of any known layout, strictly."""

import hashlib
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vswin_extract.errors import WeightsError, first_line, is_out_of_memory
from vswin_extract.formatting import name_some, plural
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.cache import check_hash, find_weights, standard_name
from vswin_extract.weights.checkpoints import (
    Checkpoint,
    OwnMetadata,
    StateDict,
    WeightsFile,
    file_state,
    parse_metadata,
    require_class_names,
)
from vswin_extract.weights.fit import closest_variant, require_finite, require_fit, window_2d, window_by_shape
from vswin_extract.weights.inflation import inflate_state, resized_window_note, unused_head_note
from vswin_extract.weights.layouts import (
    DERIVED,
    LAYOUTS_2D,
    PATCH_WEIGHT,
    RECIPES,
    FoundNetwork,
    find_layout,
    find_networks,
    our_name,
)
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED, class_names, find_by_sha256, manifest

CONTAINERS = (("state_dict",), ("model",), ("state_dict", "model"), ())
"""Where the table of a checkpoint file is, most usual first. Others are looked for, too."""
DEPTH = 4
"""Levels of tables in tables that are searched."""
AVERAGED = re.compile(r"(?<![A-Za-z])ema(?![a-z])|(?<![A-Z])EMA|Ema(?![a-z])")
"""In the name of a table or in a prefix: weights averaged over the training (exponential moving average)."""


@dataclass(frozen=True)
class StoredNetwork:
    """A network in a checkpoint file: its `table`, the `keys` that lead to it, and the names in it. `averaged`: True
    for an exponential moving average. `where`: the same place in a word."""

    keys: tuple[str, ...]
    table: StateDict
    network: FoundNetwork
    where: str
    averaged: bool


def load_checkpoint(name_or_file: str, variant: str | None = None, ema: bool = False) -> tuple[str, Checkpoint]:
    """Read weights by name or file. Return their name and the checkpoint.

    The name is that of the manifest if it knows the file, else that of the file. Published weights must have the hash
    of the manifest. The manifest adds the recipe, classes, source and licence that the file does not contain. Raise
    what `find_weights`, `read_checkpoint` and `check_hash` raise.
    """
    name_or_file = standard_name(name_or_file)
    path = find_weights(name_or_file)
    checkpoint = read_checkpoint(path, variant, ema=ema)
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


def read_checkpoint(
    path: Path,
    variant: str | None = None,
    window: tuple[int, int, int] | None = None,
    *,
    ema: bool = False,
    finite: bool = True,
) -> Checkpoint:
    """Read a checkpoint file of any known layout.

    `variant`: a name of `VARIANTS`; without it, the shapes decide. `window`: the window that a 2D checkpoint is
    inflated to; without it, that of the variant. `ema`: take the averaged weights that a training has saved beside the
    usual ones; `sha256` of the result then also says where they are. `finite`: refuse NaN and infinite values. Raise
    WeightsError if the file cannot be read, has no known layout, does not fit its variant exactly, has NaN or infinite
    values, or has no averaged weights though `ema` asks for them.
    """
    if variant is not None and variant not in VARIANTS:
        raise WeightsError(f"unknown variant {variant!r}; the variants are {', '.join(VARIANTS)}")
    file, content = read_file(path)
    return parse_checkpoint(file, content, variant, window, ema=ema, finite=finite)


def read_file(path: Path) -> tuple[WeightsFile, BytesIO]:
    """Read a file of weights into memory, once: the same bytes are hashed and parsed, so the recorded hash is that of
    the weights that are used. A file that another process saves over later does not change them.

    Raise WeightsError if there is no such file, if it cannot be a checkpoint, or if it changes while it is read.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    with path.open("rb") as file:
        before = file_state(os.fstat(file.fileno()))
        head = file.read(9)
        if head[8:9] != b"{" and not head.startswith((b"PK", b"\x80")):  # before all of a large file is read
            raise WeightsError(
                f"{path} cannot be read as a checkpoint: it is not a PyTorch file; it begins with {head!r}"
            )
        file.seek(0)
        content = BytesIO(file.read())
        if file_state(os.fstat(file.fileno())) != before:
            raise WeightsError(f"{path} was written to while it was read; try again when it is complete")
    return WeightsFile(path, hashlib.sha256(content.getbuffer()).hexdigest(), before), content


def parse_checkpoint(
    file: WeightsFile,
    content: BytesIO,
    variant: str | None = None,
    window: tuple[int, int, int] | None = None,
    *,
    ema: bool = False,
    finite: bool = True,
) -> Checkpoint:
    """Return the checkpoint in the `content` of a file that was read, which is then closed, so that its memory is free.
    The other arguments and the errors are those of `read_checkpoint`."""
    with content:
        tables, own = _parse_content(content, file.path)
    chosen, notes, label = choose_network(tables, ema, file.path)
    checkpoint = _fit_network(chosen, own, file.path, variant, window, finite)
    return replace(checkpoint, sha256=file.sha256 + label, file=file, notes=(*notes, *checkpoint.notes))


def _fit_network(
    stored: StoredNetwork,
    own: OwnMetadata | None,
    path: Path,
    variant: str | None,
    window: tuple[int, int, int] | None,
    finite: bool,
) -> Checkpoint:
    """Return the checkpoint of a network, without the hash of its file."""
    tensors = stored.network.tensors(stored.table)
    layout = find_layout(tensors, path)
    inner = {our_name(name, layout): name for name in tensors if not name.endswith(DERIVED)}
    published = {ours: stored.network.names[name] for ours, name in inner.items()}
    state = {ours: tensors[name] for ours, name in inner.items()}
    if own and variant in (None, own.variant.name):
        sizes = own.variant  # with its window
    else:
        sizes = VARIANTS[variant] if variant else closest_variant(state, path)
        if layout not in LAYOUTS_2D:
            sizes = replace(sizes, window=window_by_shape(state, published, _window_tokens(tensors), path))
    state_2d: StateDict = {}
    notes: list[str] = []
    if layout in LAYOUTS_2D:
        window_2d(state, published, path)
        sizes = replace(sizes, window=window or sizes.window)
        state_2d = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
        notes = [*unused_head_note(state), *resized_window_note(state_2d, sizes)]
        state = inflate_state(state_2d, sizes)
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    require_fit(state, published, sizes, num_classes, path)
    require_class_names(own.classes if own else (), num_classes, path)
    if finite:
        require_finite(state, published, path)
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
        metadata_hashed=own.hashed if own else False,
        notes=tuple(notes),
        state_2d=state_2d,
    )


def _window_tokens(tensors: StateDict) -> int:
    """Return the tokens of a window by the buffer of their relative positions; 0 if a file does not have it."""
    index = next((tensor for name, tensor in tensors.items() if name.endswith("relative_position_index")), None)
    return 0 if index is None else math.isqrt(index.numel())


def _parse_content(content: BytesIO, path: Path) -> tuple[Any, OwnMetadata | None]:
    """Return what a file has: tensors by name, or tables of them; and the metadata if it has our format."""
    try:
        if content.getvalue()[8:9] == b"{":
            tensors = safetensors.torch.load(content.getvalue())  # copies, also of the bytes of each tensor
            return tensors, parse_metadata(tensors, _safetensors_metadata(content.getvalue()))
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch then refuses
            tables = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"loading it would run code of {code[1]}" if code else "loading it would run code, or it is damaged"
        raise WeightsError(
            f"{path} was refused: it is not a plain table of tensors ({reason}). Training checkpoints often contain "
            "more than weights; if you trust the file, save its 'state_dict' alone, with "
            "torch.load(..., weights_only=False) and torch.save"
        ) from error
    except Exception as error:  # the parsers raise many errors for damaged and foreign files
        if is_out_of_memory(error):
            raise
        raise WeightsError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    return tables, None


def _safetensors_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file that was parsed before."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def choose_network(content: Any, ema: bool, path: Path) -> tuple[StoredNetwork, list[str], str]:
    """Return the network of a checkpoint file that is meant: the usual one, or its average if `ema`; notes for the
    user; and what tells its hash from that of another network in the same file, or "" for the usual one.

    Raise WeightsError if the file has none, or several without telling which one is meant.
    """
    tables = list(_find_tables(content))
    networks = [each for keys, table in tables for each in _stored_networks(keys, table)]
    if not networks:
        raise _no_network(tables, path)
    averaged = [each for each in networks if each.averaged]
    usual = [each for each in networks if not each.averaged]
    swapped = next(
        (each.where for each in averaged if each.keys[-1:] == ("ema_state_dict",) and "steps" in each.table), ""
    )
    if ema and usual and swapped:
        raise WeightsError(
            f"{path} was saved by mmengine, which stores the averaged weights as state_dict and the others as "
            f"{swapped}; leave out --ema"
        )
    if ema and not averaged:
        raise WeightsError(f"{path} has no averaged weights (EMA) beside the usual ones; leave out --ema")
    chosen = _most_usual(averaged if ema else usual or averaged, path)
    notes = []
    others = [each.where for each in networks if each is not chosen and each.averaged == chosen.averaged]
    if chosen.averaged:
        notes.append(f"these are the averaged weights (EMA) of {path.name}, {chosen.where}")
    elif swapped:
        notes.append(
            f"mmengine has stored the averaged weights (EMA) as state_dict; {swapped} has the others, not used"
        )
    elif averaged:
        notes.append(
            f"{path.name} also has averaged weights (EMA), {name_some([each.where for each in averaged])}, which are "
            "not used; --ema takes them"
        )
    if others:
        notes.append(f"{path.name} also has another network, {name_some(others)}, which is not used")
    label = "+" + re.sub(r"[^\w.-]", "_", chosen.where) if ema and usual else ""
    return chosen, [*notes, *_left_out(chosen, networks)], label


def _find_tables(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Yield all tables of tensors in what was read, with the keys that lead to each."""
    if not isinstance(content, dict) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield keys, dict(content)
    elif len(keys) < DEPTH:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _find_tables(value, (*keys, key))


def _stored_networks(keys: tuple[str, ...], table: StateDict) -> list[StoredNetwork]:
    found = find_networks(table)
    stored = []
    for network in found:
        place = [*keys, network.prefix.rstrip(".")] if len(found) > 1 or not keys else keys
        averaged = any(AVERAGED.search(key) for key in (*keys, network.prefix))
        stored.append(StoredNetwork(keys, table, network, ".".join(filter(None, place)), averaged))
    return stored


def _most_usual(networks: list[StoredNetwork], path: Path) -> StoredNetwork:
    """Return the only network, or the only one in the most usual table."""
    if len(networks) == 1:
        return networks[0]
    for keys in CONTAINERS:
        there = [each for each in networks if each.keys == keys]
        if there:
            networks = there
            break
    if len(networks) == 1:
        return networks[0]
    names = name_some([each.where or "(without prefix)" for each in networks])
    raise WeightsError(f"{path} has several networks: {names}; save the state_dict of one of them alone")


def _left_out(chosen: StoredNetwork, networks: list[StoredNetwork]) -> list[str]:
    """Return sentences for the user: a prefix that was left out, and tensors beside the network."""
    notes = []
    if prefix := chosen.network.prefix:
        notes.append(f"the names of the weights begin with {prefix!r}, which is left out")
    used = {full for each in networks if each.table is chosen.table for full in each.network.names.values()}
    beside = [full for full in chosen.table if full not in used and not full.endswith(DERIVED)]
    if beside:
        count = plural(len(beside), "tensor")
        notes.append(f"{count} beside the network {'is' if len(beside) == 1 else 'are'} not used: {name_some(beside)}")
    return notes


def _no_network(tables: list[tuple[tuple[str, ...], StateDict]], path: Path) -> WeightsError:
    """Return the error of a file without a network."""
    if not tables:
        return WeightsError(
            f"{path} has no table of tensors, neither at its top nor under a key such as 'state_dict' or 'model'"
        )
    order = {keys: number for number, keys in enumerate(CONTAINERS)}
    _, table = min(tables, key=lambda found: (order.get(found[0], len(order)), -len(found[1])))
    return WeightsError(
        f"{path} is not a Video Swin or Swin checkpoint: none of its names ends in {PATCH_WEIGHT}; it has "
        f"{name_some(list(table))}"
    )
