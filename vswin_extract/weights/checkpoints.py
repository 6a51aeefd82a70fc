"""Checkpoint files to our parameter names, strictly; and the one format that we write.

Every published layout is a table of name rewrites. Whatever the layout, the result must fit the network exactly: a
tensor that is missing, left over or misshapen is an error that names it. 2D Swin checkpoints are inflated as in section
3.3 of the paper (`inflate_weights` of the published implementation).
"""

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vswin_extract.errors import WeightsError, first_line
from vswin_extract.files import file_sha256
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import PATCH, VARIANTS, Variant
from vswin_extract.weights.recipe import Recipe

State = dict[str, Tensor]
FORMAT = "vswin-extract/weights/1"

# How each published layout writes our names, tried in order: (pattern, replacement) on the whole name.
_BLOCKS = (r"layers\.(\d)\.blocks\.", r"stages.\1.blocks.")
LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "vswin-extract": (),
    "official": (
        (r"^backbone\.", ""),
        _BLOCKS,
        (r"layers\.(\d)\.downsample\.", r"stages.\1+1.merge."),
        (r"^cls_head\.fc_cls\.", "head."),
    ),
    "mmaction2": (
        (r"^backbone\.", ""),
        _BLOCKS,
        (r"layers\.(\d)\.downsample\.", r"stages.\1+1.merge."),
        (r"^norm3\.", "norm."),
        (r"^cls_head\.fc_cls\.", "head."),
    ),
    "torchvision": (
        (r"^features\.([0246])\.", r"stages.\1/2.blocks."),
        (r"^features\.([135])\.", r"stages.\1/2+1.merge."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    "swin2d": ((r"^backbone\.", ""), _BLOCKS, (r"layers\.(\d)\.downsample\.", r"stages.\1+1.merge.")),
    "timm": (
        _BLOCKS,
        (r"layers\.(\d)\.downsample\.", r"stages.\1.merge."),
        (r"^head\.fc\.", "head."),
    ),
}
FLAT = ("swin2d", "timm")
"""The layouts of 2D models."""
DERIVED = ("relative_position_index", "attn_mask")
"""Buffers in published files that follow from the window; not parameters."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint under our parameter names, in float32 unless the file is ours, and what is known about it.

    `recipe` is None where the file does not say; `classes` is empty where it has no names. `notes` are for the user.
    `flat`: the 2D parameters that `state` was inflated from, without their head; else empty.
    """

    state: State
    variant: Variant
    layout: str
    sha256: str
    num_classes: int
    classes: tuple[str, ...] = ()
    recipe: Recipe | None = None
    source: str = ""
    license: str = ""
    notes: tuple[str, ...] = ()
    flat: State = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Ours:
    """What the metadata of a file that `save` wrote say."""

    variant: Variant
    recipe: Recipe
    classes: tuple[str, ...]
    source: str
    license: str


def read(path: Path, variant: str | None = None, window: tuple[int, int, int] | None = None) -> Checkpoint:
    """Read a checkpoint of any known layout.

    `variant`: a name of `VARIANTS`, instead of the one that the shapes tell. `window`: that a 2D checkpoint is inflated
    to, instead of 8x7x7. Raises WeightsError where the file cannot be read, is of no known layout, or does not fit its
    variant exactly.
    """
    if variant is not None and variant not in VARIANTS:
        raise WeightsError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    with ThreadPoolExecutor(1, "hashing") as hashing:  # while the tensors are read, and theirs is taken
        sha256 = hashing.submit(file_sha256, path)
        tensors, ours = _load(path)
        layout = _layout(tensors, path)
        names = {_our_name(name, layout): name for name in tensors if not name.endswith(DERIVED)}
        state = {ours: tensors[name] for ours, name in names.items()}
        if ours and variant == ours.variant.name:
            variant = None  # its file says more than the name, as its window
        sizes = ours.variant if ours and not variant else _closest(state, variant, path)
        notes, flat = [], {}
        if layout in FLAT:
            if "head.weight" in state:
                classes = len(state["head.weight"])
                notes.append(f"a 2D checkpoint, inflated; its {classes}-way head is of images and not used: no logits")
            flat = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
            sizes = replace(sizes, window=window or sizes.window)
            if resized := _resized(flat, sizes):
                notes.append(resized)
            state = inflate(flat, sizes)
        elif not ours or variant:
            sizes = replace(sizes, window=_window(state, names, path))
        num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
        _fit(state, names, expected_shapes(sizes, num_classes), path, sizes)
        published_recipe = Recipe(resize=256) if layout == "torchvision" else None
        return Checkpoint(
            state={name: tensor.float() for name, tensor in state.items()},
            variant=sizes,
            layout=layout,
            sha256=sha256.result(),
            num_classes=num_classes,
            classes=ours.classes if ours else (),
            recipe=ours.recipe if ours else published_recipe,
            source=ours.source if ours else "",
            license=ours.license if ours else "",
            notes=tuple(notes),
            flat=flat,
        )


def save(
    path: Path,
    state: Mapping[str, Tensor],
    variant: Variant,
    recipe: Recipe,
    classes: Sequence[str] = (),
    source: str = "",
    license: str = "",
) -> None:
    """Write our safetensors: the tensors of `VideoSwin.state_dict()` as they are, and in the metadata everything that
    `read` needs to know, with a sha256 over the tensors. Published by rename."""
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
    unfinished = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, unfinished, metadata)
    except SafetensorError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    unfinished.chmod(0o644)
    unfinished.replace(path)


def inflate(state: State, variant: Variant) -> State:
    """2D Swin parameters to the 3D network of `variant`.

    The patch embedding is repeated over time and divided by the patch's frames, so that a still clip gives the 2D
    tokens; bias tables are resized to the window (bicubic) and repeated for every temporal offset.
    """
    frames, rows, columns = variant.window
    inflated = dict(state)
    for name, tensor in state.items():
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


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and values, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build(state: Mapping[str, Tensor], variant: Variant, num_classes: int = 0) -> VideoSwin:
    """The network that has these very parameters, without a copy of them."""
    with torch.device("meta"):
        network = VideoSwin(variant, num_classes)
    network.load_state_dict(state, strict=True, assign=True)
    return network


def expected_shapes(variant: Variant, num_classes: int) -> dict[str, torch.Size]:
    """Name and shape of every parameter of the network, without making it."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in VideoSwin(variant, num_classes).state_dict().items()}


def _load(path: Path) -> tuple[State, Ours | None]:
    """Tensors by published name, and what our metadata say where the file is ours."""
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            with safe_open(path, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                metadata = stored.metadata() or {}
            return tensors, _ours(tensors, metadata) if metadata.get("format") == FORMAT else None
        if not head.startswith((b"PK", b"\x80")):
            raise ValueError(f"it is no PyTorch file, but begins with {head!r}")
        with warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"loading it would run code of {wants[1]}" if wants else "loading it would run code, or it is damaged"
        raise WeightsError(
            f"{path} was refused: it is not a plain table of tensors ({what}). Training checkpoints often hold more "
            "than weights; if you trust it, save its 'state_dict' alone, by torch.load(..., weights_only=False) and "
            "torch.save"
        ) from error
    except Exception as error:  # whatever the parsers trip over in a file of some other kind
        reason = first_line(error)
        raise WeightsError(f"{path} cannot be read as a checkpoint: {reason}") from error
    for container in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no table of tensors, neither bare nor under 'state_dict' or 'model'")
    return dict(content), None


def _ours(tensors: State, metadata: Mapping[str, str]) -> Ours:
    if metadata["tensors_sha256"] != tensors_sha256(tensors):
        raise ValueError("its tensors have another sha256 than when it was written")
    variant, recipe = (_tuples(json.loads(metadata[name])) for name in ("variant", "recipe"))
    classes = tuple(json.loads(metadata["classes"]))
    return Ours(Variant(**variant), Recipe(**recipe), classes, metadata["source"], metadata["license"])


def _layout(tensors: State, path: Path) -> str:
    def any_key(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    patch = tensors.get("patch_embed.proj.weight", tensors.get("backbone.patch_embed.proj.weight"))
    if patch is None:
        raise WeightsError(f"{path} is no Video Swin or Swin checkpoint: it has no patch_embed.proj.weight")
    if any_key(r"stages\."):
        return "vswin-extract"
    if any_key(r"features\.") and patch.ndim == 5:
        return "torchvision"
    if any_key(r"(backbone\.)?layers\."):
        if patch.ndim == 5:
            return "mmaction2" if any_key(r"(backbone\.)?norm3\.") else "official"
        if patch.ndim == 4:
            return "timm" if any_key(r"head\.fc\.|layers\.3\.downsample\.") else "swin2d"
    raise WeightsError(f"{path} is of no known layout; known are {', '.join(LAYOUTS)}")


def _our_name(name: str, layout: str) -> str:
    for pattern, replacement in LAYOUTS[layout]:
        name = re.sub(pattern, replacement, name)
    # "stages.3/2+1." -> "stages.2.": the two places where layouts count otherwise
    return re.sub(
        r"^stages\.(\d)(/2)?(\+1)?\.",
        lambda m: f"stages.{int(m[1]) // (2 if m[2] else 1) + (1 if m[3] else 0)}.",
        name,
    )


def _closest(state: State, name: str | None, path: Path) -> Variant:
    """The named variant, or the known one that most of the checkpoint's tensors fit."""
    if name is not None:
        return VARIANTS[name]
    width = state["patch_embed.proj.weight"].shape[0]
    fitting = [variant for variant in VARIANTS.values() if variant.embed_dim == width]
    if not fitting:
        widths = ", ".join(f"{variant.name} {variant.embed_dim}" for variant in VARIANTS.values())
        raise WeightsError(f"{path} has {width} channels in its first stage, which no variant has ({widths})")
    return min(fitting, key=lambda variant: len(expected_shapes(variant, 0).keys() ^ state.keys()))


def _tuples(written: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}


def _window(state: State, names: dict[str, str], path: Path) -> tuple[int, int, int]:
    """The window that a 3D bias table was made for: (2t-1)(2h-1)(2w-1) rows, h and w being 7 in every published one."""
    name = "stages.0.blocks.0.attn.relative_position_bias_table"
    if name not in state:
        raise WeightsError(f"{path} lacks {name}")
    rows = state[name].shape[0]
    frames = (rows // 169 + 1) // 2
    if frames < 1 or (2 * frames - 1) * 169 != rows:
        raise WeightsError(f"{path}: {names[name]} has {rows} rows, which fits no window of 7x7 tokens")
    return frames, 7, 7


def _resized(flat: State, variant: Variant) -> str:
    """What inflating does to the window of a 2D checkpoint, if anything."""
    table = flat.get("stages.0.blocks.0.attn.relative_position_bias_table", torch.empty(0))
    side, (_, rows, columns) = (round(len(table) ** 0.5) + 1) // 2, variant.window
    if (side, side) == (rows, columns):
        return ""
    return (
        f"its window of {side}x{side} tokens is resized to {rows}x{columns}, so features differ from the 2D network's"
    )


def _fit(state: State, names: dict[str, str], expected: dict[str, torch.Size], path: Path, variant: Variant) -> None:
    """Raise WeightsError unless `state` has exactly the expected names and shapes."""
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(names[name] for name in state.keys() - expected.keys())
    misshapen = [
        f"{names[name]} is {tuple(state[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    for what, found in (("lacks", missing), ("has what does not belong there:", extra), ("is misshapen:", misshapen)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise WeightsError(f"{path} does not fit variant {variant.name}: it {what} {', '.join(found[:3])}{more}")
