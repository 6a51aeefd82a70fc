"""The parity fixtures: their clips, their values, and checkpoints in published layouts. `checks.golden` draws their
weights."""

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vswin_extract.checks.golden import drawn_tensor, normal_numbers, official_name
from vswin_extract.network.inference import InferenceNetwork, as_frames
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.variants import Variant

PARITY = Path(__file__).parent / "data" / "parity"


def clip(name: str, shape: Sequence[int]) -> Tensor:
    """Return white noise plus a moving wave, (N, C, T, H, W), already normalised."""
    t, h, w = shape[2:]
    tt, yy, xx = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    wave = np.sin(0.35 * xx + 0.2 * yy - 0.5 * tt) + np.cos(0.05 * xx - 0.11 * yy + 0.23 * tt)
    return torch.from_numpy((normal_numbers(name, shape) * 0.5 + wave).astype(np.float32))


def layouts() -> dict[str, dict[str, list[int]]]:
    """Return published key -> shape, of real checkpoints."""
    return json.loads((PARITY / "layouts.json").read_text())  # type: ignore[no-any-return]


def fixture(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return facts and values of `public_<name>.npz`."""
    with np.load(PARITY / f"public_{name}.npz") as stored:
        values = {key: stored[key] for key in stored.files}
    return json.loads(str(values.pop("meta"))) if "meta" in values else {}, values


def relative_error(found: Any, expected: Any) -> float:
    """Return the L2 norm of the difference over that of `expected`."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def errors(network: InferenceNetwork, name: str) -> dict[str, float]:
    """Return the relative errors of the four stages, the embedding and, if there is a head, the logits.

    The fixtures' clips are normalised, so `network` must have mean 0 and standard deviation 1.
    """
    return errors_of(computed(network, name), name)


def computed(network: InferenceNetwork, name: str) -> dict[str, Tensor]:
    """Return the maps, the embedding and the logits of a fixture's clip, in host memory."""
    facts, _ = fixture(name)
    with torch.inference_mode():
        clips = clip(facts["clip"], facts["shape"]).permute(0, 2, 3, 4, 1)
        maps = network(*as_frames(clips), (1, 2, 3, 4))
        found = {f"stage{stage}": x for stage, x in maps.items()}
        found["embedding"] = pool_map(maps[4], "all")
        if network.head is not None:
            found["logits"] = network.head(found["embedding"])
        return {what: values.cpu() for what, values in found.items()}


def errors_of(found: dict[str, Tensor], name: str) -> dict[str, float]:
    """Return the relative error of each of the features that were `computed`."""
    _, expected = fixture(name)
    averaged: list[str] = [what for what in ("embedding", "logits") if what in found]
    apart = {what: relative_error(found[what], expected[what]) for what in averaged}
    for stage in (1, 2, 3, 4):
        published = found[f"stage{stage}"].permute(0, 4, 1, 2, 3)  # N C T H W, as in the fixture
        assert list(published.shape) == list(expected[f"stage{stage}.shape"])
        values = published.flatten()[torch.from_numpy(expected[f"stage{stage}.index"].astype(np.int64))]
        norm = float(published.double().norm()) / float(expected[f"stage{stage}.norm"])
        apart[f"stage{stage}"] = max(relative_error(values, expected[f"stage{stage}.value"]), abs(norm - 1))
    return apart


@cache
def published_state(layout: str) -> dict[str, Tensor]:
    """Return a whole checkpoint in a published layout, with the values of the fixtures."""
    by_name = {}
    for key, shape in layouts()[layout].items():
        if key.endswith("relative_position_index") or key.endswith("attn_mask"):
            by_name[key] = torch.zeros(shape, dtype=torch.int64 if key.endswith("index") else torch.float32)
        elif "2d" in layout or "timm" in layout:
            microsoft = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
            by_name[key] = drawn_tensor("swin2d/" + (microsoft if "timm" in layout else key), shape)
        elif "torchvision" in layout:
            by_name[key] = drawn_tensor(torchvision_to_official(key), shape)
        else:
            by_name[key] = drawn_tensor(key.replace("norm3", "norm"), shape)
    return by_name


def torchvision_to_official(key: str) -> str:
    key = re.sub(r"\.mlp\.0\.", ".mlp.fc1.", re.sub(r"\.mlp\.3\.", ".mlp.fc2.", key))
    block = re.match(r"features\.(\d)\.(.*)", key)
    if block:
        index = int(block[1])
        inner = f"layers.{index // 2}." + ("downsample." if index % 2 else "blocks.") + block[2]
        return "backbone." + inner
    return key.replace("head.", "cls_head.fc_cls.") if key.startswith("head.") else "backbone." + key


def in_layout(family: str, variant: Variant, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our parameters under a publisher's names, for any variant, with the buffers that checkpoints have."""
    by_name = {}
    for ours, value in state.items():
        key = published_name(official_name(ours), family)
        by_name[key] = value
        if key.endswith("bias_table"):
            tokens = math.prod(variant.window)
            by_name[key.replace("bias_table", "index")] = torch.zeros(tokens, tokens, dtype=torch.int64)
    return by_name


def published_name(official: str, family: str) -> str:
    if family == "mmaction2":
        return re.sub(r"^backbone\.norm\.", "backbone.norm3.", official)
    if family == "torchvision":
        name = official.removeprefix("backbone.").replace("cls_head.fc_cls.", "head.")
        name = re.sub(r"^layers\.(\d)\.blocks\.", lambda m: f"features.{2 * int(m[1])}.", name)
        name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 1}.", name)
        return name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
    return official


def write(layout: str, path: Path, state: dict[str, Tensor] | None = None) -> Path:
    """Write a checkpoint as its publisher saves it."""
    state = published_state(layout) if state is None else state
    if layout.startswith(("official", "mmaction2")):
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    elif layout.startswith("swin2d"):
        torch.save({"model": state}, path)
    else:
        torch.save(state, path)
    return path
