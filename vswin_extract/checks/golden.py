"""Golden features: stored features of known weights for a known clip. Every machine must compute the same.

For each variant there are drawn weights: each tensor is drawn by NumPy's RandomState, whose numbers never change, with
its official name as the seed. The parity fixtures in tests/ use the same weights. The clip is made by arithmetic on
whole numbers. The stored values were computed in float64 by the reference implementation `swin3d`; they are compared
with what `backbone` computes on a device.

golden.json holds the values of every variant, and those of the bundled weights under their sha256. Values of other
weights are stored in the weights cache by `vswin weights verify --record`.
"""

import json
import os
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

from vswin_extract.files import atomic_write, write_json
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.weights.cache import GOLDEN, bundled_file, cache_dirs, require_writable_cache
from vswin_extract.weights.checkpoints import Checkpoint, StateDict
from vswin_extract.weights.fit import build_network, expected_shapes
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED

TABLE = Path(__file__).with_name("golden.json")
FIRST = 16
"""Number of channels of the embedding that are stored."""
SHAPE = (32, 64, 64)
"""Frames, rows and columns of the clip: enough for windows that are shifted in time and space, and for padded ones."""
TOLERANCE = {"fp32": 4e-5, "fp16": 1e-2, "bf16": 6e-2}
"""Largest relative L2 error of values that agree. Drawn weights amplify rounding errors more than trained ones do."""

GoldenValues = tuple[float, ...]


def normal_numbers(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return standard normal numbers that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def drawn_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """Return a drawn parameter, float32. `name`: its official name."""
    drawn = normal_numbers(name, shape)
    if not name.endswith("relative_position_bias_table"):
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.02 * drawn
        else:
            drawn = drawn / np.sqrt(np.prod(shape[1:])) * (2 if ".qkv." in name else 1)
    return torch.from_numpy(drawn.astype(np.float32))


def official_name(ours: str) -> str:
    """Return the official name of one of our parameters."""
    if ours.startswith("head."):
        return ours.replace("head.", "cls_head.fc_cls.")
    merge = re.match(r"stages\.(\d)\.merge\.(.*)", ours)
    if merge:
        return f"backbone.layers.{int(merge[1]) - 1}.downsample.{merge[2]}"
    return "backbone." + ours.replace("stages.", "layers.")


def drawn_state(variant: Variant, num_classes: int = 0) -> StateDict:
    """Return all drawn parameters of a variant."""
    shapes = expected_shapes(variant, num_classes)
    return {ours: drawn_tensor(official_name(ours), shape) for ours, shape in shapes.items()}


def drawn_checkpoint(variant: Variant) -> Checkpoint:
    """Return the drawn weights of a variant, without a head, as if they had been read from a file."""
    return Checkpoint(drawn_state(variant), variant, "drawn", "", 0, recipe=Recipe())


@cache
def golden_clip() -> Tensor:
    """Return coarse moving tiles with grain, (1, 32, 64, 64, 3) uint8, by arithmetic on whole numbers."""
    t, y, x, c = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2], :3]
    tiles = ((x + 2 * t) // 16 * 73 + (y + t) // 12 * 151 + c * 37) % 211
    grain = (x * 2654435761 + y * 40503 + t * 9973 + c * 101 + x * y * (t + 3)) // 7 % 45
    return torch.from_numpy((tiles + grain).astype(np.uint8))[None]


def reference_values(checkpoint: Checkpoint) -> GoldenValues:
    """Return the values to store: the first channels of the clip's embedding, by `swin3d` in float64."""
    recipe = checkpoint.recipe or Recipe()
    state = {name: value.double() for name, value in checkpoint.state.items()}
    network = build_network(state, checkpoint.variant, checkpoint.num_classes)
    mean, std = (torch.tensor(of_rgb, dtype=torch.float64) for of_rgb in (recipe.mean, recipe.std))
    pixels = ((golden_clip().double() - mean) / std).permute(0, 4, 1, 2, 3)  # N 3 T H W
    with torch.inference_mode():
        embedding = pool_map(network(pixels)[4], "all")[0]
    return tuple(float(f"{value:.9g}") for value in embedding[:FIRST].tolist())


def of_variant(variant: Variant) -> GoldenValues | None:
    """Return the stored values of a variant's drawn weights, or None if these sizes are not stored."""
    return _find_values(_read_table()["variants"], _key(variant))


def of_weights(sha256: str) -> GoldenValues | None:
    """Return the stored values of weights by the sha256 of their file, or None if they are not stored."""
    candidates = [directory / GOLDEN / f"{sha256}.json" for directory in cache_dirs()]
    recorded = next((file.read_text("utf-8") for file in candidates if os.path.isfile(file)), "{}")
    return _find_values({**json.loads(recorded), **_read_table()["weights"]}, sha256)


def record_values(name: str, checkpoint: Checkpoint, table: Path = TABLE) -> Path:
    """Compute the values of weights and store them for later comparison. Return the file that has them now.

    In a checkout, those of the bundled weights replace the older ones in `table`, golden.json. The values of their
    variant are computed again, too, because its sizes may have changed. Raise WeightsError if no cache can be written,
    and OSError.
    """
    values = {checkpoint.sha256: list(reference_values(checkpoint))}
    in_checkout = bundled_file().parent != Path(__file__).parent / "bundled"
    if name == BUNDLED and in_checkout:
        _write_table(table, {**_read_table(table), "weights": values})
        record_variants([checkpoint.variant.name], table)
        return table
    file = require_writable_cache() / GOLDEN / f"{checkpoint.sha256}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, values)
    return file


def record_variants(names: Sequence[str] = tuple(VARIANTS), table: Path = TABLE) -> None:
    """Compute the values of variants' drawn weights again and write them into `table`. For changed sizes."""
    content = _read_table(table)
    kept = {key: values for key, values in content["variants"].items() if key.partition(" ")[0] not in names}
    for name in names:
        kept[_key(VARIANTS[name])] = list(reference_values(drawn_checkpoint(VARIANTS[name])))
    _write_table(table, {**content, "variants": kept})


def _key(variant: Variant) -> str:
    sizes = (variant.depths, variant.heads, variant.window)
    return " ".join([variant.name, str(variant.embed_dim), *("-".join(map(str, size)) for size in sizes)])


def _find_values(values: Mapping[str, Any], key: str) -> GoldenValues | None:
    return tuple(values[key]) if key in values else None


def _read_table(table: Path = TABLE) -> dict[str, Any]:
    return json.loads(table.read_text("utf-8"))  # type: ignore[no-any-return]


def _write_table(table: Path, content: dict[str, Any]) -> None:
    with atomic_write(table) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
