"""How the parity fixtures' weights and clips are drawn: each tensor from its published name, each clip from its own."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PARITY = Path(__file__).parent / "data" / "parity"


def normal(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A parameter as the fixtures were made with; `name` is the official key."""
    drawn = normal(name, shape)
    if not name.endswith("relative_position_bias_table"):
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.02 * drawn
        else:
            drawn = drawn / np.sqrt(np.prod(shape[1:])) * (2 if ".qkv." in name else 1)
    return torch.from_numpy(drawn.astype(np.float32))


def clip(name: str, shape: Sequence[int]) -> Tensor:
    """White noise plus a moving wave, (N, C, T, H, W), already normalised."""
    t, h, w = shape[2:]
    tt, yy, xx = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    wave = np.sin(0.35 * xx + 0.2 * yy - 0.5 * tt) + np.cos(0.05 * xx - 0.11 * yy + 0.23 * tt)
    return torch.from_numpy((normal(name, shape) * 0.5 + wave).astype(np.float32))


def layouts() -> dict[str, dict[str, list[int]]]:
    """Published key -> shape, of real checkpoints."""
    return json.loads((PARITY / "layouts.json").read_text())  # type: ignore[no-any-return]


def fixture(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Facts and values of `public_<name>.npz`."""
    with np.load(PARITY / f"public_{name}.npz") as stored:
        values = {key: stored[key] for key in stored.files}
    return json.loads(str(values.pop("meta"))) if "meta" in values else {}, values


def relative_error(found: Any, expected: Any) -> float:
    """L2 norm of the difference over that of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
