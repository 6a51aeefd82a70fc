"""Golden features: what known weights make of a known clip, stored, to be compared on every machine.

For each variant there are drawn weights, those of the parity fixtures in tests/: each tensor from its official name, by
NumPy's RandomState, whose numbers never change. The clip is made of whole numbers. The values that are stored were
computed in float64 by the plain network of `swin3d`; they are compared with what `backbone` gives on a device.

golden.json has the values of every variant, and of the bundled weights by their sha256. Those of other weights are kept
in the weights cache once `vswin weights verify --record` has computed them.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vswin_extract.files import write_json
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.weights import registry as weights_
from vswin_extract.weights.checkpoints import Checkpoint, State, build, expected_shapes
from vswin_extract.weights.recipe import Recipe

TABLE = Path(__file__).with_name("golden.json")
FIRST = 16
"""So many channels of the embedding are stored."""
SHAPE = (32, 64, 64)
"""Frames, rows and columns of the clip: enough for shifted windows in time and space, and padded ones."""
TOLERANCE = {"fp32": 4e-5, "fp16": 1e-2, "bf16": 6e-2}
"""Relative L2 error up to which values agree. Drawn weights amplify every rounding, more than trained ones do."""

Values = tuple[float, ...]


def normal(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Standard normal numbers that follow from a name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A drawn parameter; `name` is the official key."""
    drawn = normal(name, shape)
    if not name.endswith("relative_position_bias_table"):
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.02 * drawn
        else:
            drawn = drawn / np.sqrt(np.prod(shape[1:])) * (2 if ".qkv." in name else 1)
    return torch.from_numpy(drawn.astype(np.float32))


def official_name(ours: str) -> str:
    """Our parameter name as the official checkpoints write it."""
    if ours.startswith("head."):
        return ours.replace("head.", "cls_head.fc_cls.")
    merge = re.match(r"stages\.(\d)\.merge\.(.*)", ours)
    if merge:
        return f"backbone.layers.{int(merge[1]) - 1}.downsample.{merge[2]}"
    return "backbone." + ours.replace("stages.", "layers.")


def drawn_state(variant: Variant, num_classes: int = 0) -> State:
    """All parameters of a variant as they are drawn."""
    shapes = expected_shapes(variant, num_classes)
    return {ours: tensor(official_name(ours), shape) for ours, shape in shapes.items()}


def drawn_checkpoint(variant: Variant) -> Checkpoint:
    """Drawn weights of a variant, without a head, as if they had been read from a file."""
    return Checkpoint(drawn_state(variant), variant, "drawn", "", 0, recipe=Recipe())


@cache
def clip() -> Tensor:
    """(1, 32, 64, 64, 3) uint8: coarse tiles that move, and grain, by arithmetic on whole numbers."""
    t, y, x, c = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2], :3]
    tiles = ((x + 2 * t) // 16 * 73 + (y + t) // 12 * 151 + c * 37) % 211
    grain = (x * 2654435761 + y * 40503 + t * 9973 + c * 101 + x * y * (t + 3)) // 7 % 45
    return torch.from_numpy((tiles + grain).astype(np.uint8))[None]


def reference(checkpoint: Checkpoint) -> Values:
    """What is stored: the first values of the clip's embedding, by the plain network in float64."""
    recipe = checkpoint.recipe or Recipe()
    state = {name: value.double() for name, value in checkpoint.state.items()}
    network = build(state, checkpoint.variant, checkpoint.num_classes)
    mean, std = (torch.tensor(of_rgb, dtype=torch.float64) for of_rgb in (recipe.mean, recipe.std))
    pixels = ((clip().double() - mean) / std).permute(0, 4, 1, 2, 3)  # N 3 T H W
    with torch.inference_mode():
        embedding = pool_map(network(pixels)[4], "all")[0]
    return tuple(float(f"{value:.9g}") for value in embedding[:FIRST].tolist())


def of_variant(variant: Variant) -> Values | None:
    """The values of a variant's drawn weights; None for sizes that are not stored."""
    return _values(_table()["variants"], _key(variant))


def of_weights(sha256: str) -> Values | None:
    """The values of weights by the sha256 of their file; None where nobody has stored them."""
    kept = [directory / weights_.GOLDEN / f"{sha256}.json" for directory in weights_.cache_dirs()]
    recorded = next((file.read_text("utf-8") for file in kept if file.is_file()), "{}")
    return _values({**json.loads(recorded), **_table()["weights"]}, sha256)


def record(name: str, checkpoint: Checkpoint) -> Path:
    """Store the values of weights, to be compared later; where they are now.

    In a checkout those of the bundled weights go into golden.json instead of those of the bundled weights before, and
    so do those of their variant, whose sizes may have changed. Raises OSError.
    """
    values = {checkpoint.sha256: list(reference(checkpoint))}
    in_checkout = weights_.bundled_file().parent != Path(__file__).parent / "bundled"
    if name == weights_.BUNDLED and in_checkout:
        _write_table({**_table(), "weights": values})
        record_variants([checkpoint.variant.name])
        return TABLE
    kept = weights_.cache_dir() / weights_.GOLDEN / f"{checkpoint.sha256}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, values)
    return kept


def record_variants(names: Sequence[str] = tuple(VARIANTS)) -> None:
    """Compute the values of variants' drawn weights anew and write them into golden.json: after a change of sizes."""
    table = _table()
    of = {key: values for key, values in table["variants"].items() if key.partition(" ")[0] not in names}
    for name in names:
        of[_key(VARIANTS[name])] = list(reference(drawn_checkpoint(VARIANTS[name])))
    _write_table({**table, "variants": of})


def _key(variant: Variant) -> str:
    sizes = (variant.depths, variant.heads, variant.window)
    return " ".join([variant.name, str(variant.embed_dim), *("-".join(map(str, size)) for size in sizes)])


def _values(table: Mapping[str, Any], key: str) -> Values | None:
    return tuple(table[key]) if key in table else None


def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text("utf-8"))  # type: ignore[no-any-return]


def _write_table(table: dict[str, Any]) -> None:
    TABLE.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
