"""A checkpoint in memory, and our own file format: safetensors with everything about the weights in its metadata."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vswin_extract.errors import WeightsError
from vswin_extract.files import atomic_write, file_sha256
from vswin_extract.network.variants import Variant
from vswin_extract.weights.recipe import Recipe

StateDict = dict[str, Tensor]
"""Parameters by name."""
FORMAT = "vswin-extract/weights/1"
MOST_TEXT = 10_000
"""Characters of a class name, source or licence at most. An attribute of HDF5 has at most 64 kB."""
MOST_TOKENS = 1000
"""Tokens of a side of a window at most. The largest published ones have 24."""


FileState = tuple[int, int, int, int]
"""Size, times of change of content and of inode, and inode. A file that is saved again has another one."""


def file_state(found: os.stat_result) -> FileState:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights as it was read: its path, the sha256 of its bytes, and its state."""

    path: Path
    sha256: str
    state: FileState

    def describe_change(self) -> str:
        """Return a sentence for the user if the file has other bytes now, or is not there, else ""."""
        try:
            if file_state(self.path.stat()) == self.state:
                return ""
            found = file_sha256(self.path)
        except OSError as error:
            now = f"it cannot be read any more ({error.strerror})"
        else:
            if found == self.sha256:
                return ""
            now = f"it has sha256 {found} now"
        return f"the weights {self.path} have changed: features are of the file as it was, sha256 {self.sha256}; {now}"


@dataclass(frozen=True)
class Checkpoint:
    """A state dict under our parameter names, in float32, and what is known about it.

    `recipe` is None and `classes` is () if the file does not contain them. `notes`: sentences for the user.
    `state_2d`: the 2D parameters that `state` was inflated from, without their head; else empty. `file`: the file that
    it was read from, None for drawn weights. `metadata_hashed`: True if the file has a hash of its metadata.
    """

    state: StateDict
    variant: Variant
    layout: str
    sha256: str
    num_classes: int
    classes: tuple[str, ...] = ()
    recipe: Recipe | None = None
    source: str = ""
    license: str = ""
    notes: tuple[str, ...] = ()
    state_2d: StateDict = field(default_factory=dict, repr=False)
    file: WeightsFile | None = None
    metadata_hashed: bool = False


@dataclass(frozen=True)
class OwnMetadata:
    """The metadata of a file that `save_checkpoint` wrote. `hashed`: the file has a hash of them. Files of earlier
    versions do not."""

    variant: Variant
    recipe: Recipe
    classes: tuple[str, ...]
    source: str
    license: str
    hashed: bool


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    variant: Variant,
    recipe: Recipe,
    classes: Sequence[str] = (),
    source: str = "",
    license: str = "",
) -> None:
    """Write a file of our format, atomically: the tensors of `VideoSwin.state_dict()` in their types, and as metadata
    all arguments, a sha256 of the tensors, and a sha256 of the metadata.

    Raise WeightsError for class names that are not as many as the head has classes, and OSError.
    """
    require_class_names(classes, len(state["head.weight"]) if "head.weight" in state else 0, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    metadata = {
        "format": FORMAT,
        "variant": json.dumps(asdict(variant)),
        "recipe": json.dumps(asdict(recipe)),
        "classes": json.dumps(list(classes)),
        "source": source,
        "license": license,
        "tensors_sha256": tensors_sha256(tensors),
    }
    metadata["metadata_sha256"] = metadata_sha256(metadata)
    with atomic_write(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        unfinished.chmod(0o644)


def parse_metadata(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> OwnMetadata | None:
    """Return the metadata of a safetensors file of our format, or None for a file of another format.

    Raise ValueError, KeyError or TypeError if they are damaged or belong to other tensors.
    """
    if metadata.get("format") != FORMAT:
        return None
    if metadata["tensors_sha256"] != tensors_sha256(tensors):
        raise ValueError("the sha256 of its tensors is not the one that was written with them")
    hashed = "metadata_sha256" in metadata
    if hashed and metadata["metadata_sha256"] != metadata_sha256(metadata):
        raise ValueError(
            "the sha256 of its metadata (classes, recipe, variant, source, licence) is not the one that was written: "
            "they were changed later"
        )
    variant, recipe = (_with_tuples(json.loads(metadata[name])) for name in ("variant", "recipe"))
    classes, source, licence = json.loads(metadata["classes"]), metadata["source"], metadata["license"]
    if not isinstance(classes, list):
        raise ValueError(f"its class names are not a list, but {type(classes).__name__}")
    for text in (*classes, source, licence):
        _require_text(text)
    sizes = Variant(**variant)
    _require_sizes(sizes, tensors)
    return OwnMetadata(sizes, Recipe(**recipe), tuple(classes), source, licence, hashed)


def require_class_names(names: Sequence[str], classes: int, path: Path) -> None:
    """Raise WeightsError unless there are no names, or as many as the head has classes."""
    if names and len(names) != classes:
        head = f"a head of {classes}" if classes else "no head"
        raise WeightsError(f"{path} cannot have {len(names)} class names and {head}; give as many names, or none")


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    """Return a hash of the metadata of our format. It covers the hash of the tensors, but not itself."""
    covered = {name: value for name, value in metadata.items() if name != "metadata_sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes, types and values. It does not depend on the file that contains them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_sizes(variant: Variant, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for sizes that cannot be those of the tensors, so that no network is made of them. The shapes
    are compared later."""
    numbers = (variant.embed_dim, *variant.depths, *variant.heads, *variant.window)
    lengths = (len(variant.depths), len(variant.heads), len(variant.window))
    whole = isinstance(variant.name, str) and all(isinstance(number, int) and number > 0 for number in numbers)
    width = tensors["patch_embed.proj.weight"].shape[0]
    blocks = sum(name.endswith(".attn.qkv.weight") for name in tensors)
    if not whole or lengths != (4, 4, 3) or max(variant.window) > MOST_TOKENS or variant.embed_dim != width:
        raise ValueError(f"{variant} is not the variant of a network with {width} channels")
    if sum(variant.depths) != blocks:
        raise ValueError(f"its tensors are of {blocks} blocks, and not of {variant}")


def _require_text(text: object) -> None:
    """Raise ValueError for what an output cannot store as text."""
    if not isinstance(text, str) or len(text) > MOST_TEXT or "\0" in text:
        raise ValueError(
            f"class names, source and licence are texts of at most {MOST_TEXT} characters, not {text!r:.60}"
        )
    text.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where our dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
