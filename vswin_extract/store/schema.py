"""The schema of an output: its datasets, the columns of its tables, and the values that become rows of them.

The schema is described in README, "The file", and in docs/conventions.md. Importing it needs neither h5py nor torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vswin_extract.video.ranges import WHOLE, ClipRange

SCHEMA = "vswin-extract/1"
BLOCK_BYTES = 1 << 23
"""What is held in memory of a dataset at a time."""
VIDEO_BYTES = 8192
"""About what a video costs in the file besides its rows."""
GROUPED = 20_000
"""Videos up to which each has a group under /videos: they cost a millisecond and 4 kB a video."""
CLIP_COLUMNS: dict[str, tuple[tuple[int, ...], str]] = {
    "video": ((), "int64"),
    "frames": ((2,), "int64"),
    "times": ((2,), "float64"),
    "valid": ((), "int32"),
}
"""Columns of /clips: shape of a row, type."""
VIDEO_TEXTS = ("id", "path", "etag", "status", "message")
VIDEO_NUMBERS = {
    "fps": "f8", "frames": "i8", "duration": "f8", "width": "i4", "height": "i4", "size": "i8", "mtime": "f8",
}  # fmt: skip
"""Columns of /videos_table that are a record's as they are, and their types."""
VIEWED = ("frames", "times", "valid")
"""Columns of /clips that the group of each video shows too."""
Compression = Literal["none", "lzf", "gzip"]
Rows = Mapping[str, "NDArray[Any] | PackedRows"]
"""Rows of the same clips, by dataset."""


@dataclass(frozen=True)
class Arrays:
    """The feature datasets of a file: name -> shape of a clip's row, all of one type and compression."""

    shapes: dict[str, tuple[int, ...]]
    dtype: str = "float32"
    compression: Compression = "none"

    def bytes_per_clip(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values()) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """What became of a video: a row of /videos_table, or of /failures where `status` is "failed".

    `size` in bytes, `mtime` in seconds and `etag`, where a server gives one, are the file's, as it was when the video
    was begun. `frames` were decoded.
    `clip_range`: which of its clips; where its end is None, the figures are those of the whole video.
    """

    id: str
    path: str
    status: Literal["ok", "partial", "failed"]
    clips: int = 0
    fps: float = 0.0
    frames: int = 0
    duration: float = 0.0
    width: int = 0
    height: int = 0
    size: int = -1
    mtime: float = 0.0
    etag: str = ""
    start: float | None = None
    end: float | None = None
    clip_range: ClipRange = WHOLE
    error: str = ""
    message: str = ""


def row_types(arrays: Arrays) -> dict[str, tuple[tuple[int, ...], str]]:
    """The datasets whose rows come with the clips: name -> shape of a row, type."""
    return {
        **{name: (shape, arrays.dtype) for name, shape in arrays.shapes.items()},
        **{f"clips/{name}": CLIP_COLUMNS[name] for name in VIEWED},
    }


@dataclass(frozen=True)
class PackedRows:
    """Rows of a dataset with a chunk a row: `values`, and the `chunks` as they lie in the file, each with its filter
    mask, which a dataset of the same `packing` takes over as they are."""

    values: NDArray[Any]
    chunks: Sequence[tuple[int, bytes]]
    packing: object


def block_rows(rows: int, nbytes: int) -> int:
    """So many of these rows are a piece of memory of no concern."""
    return max(1, BLOCK_BYTES * rows // max(nbytes, 1))
