"""The schema of an output: its datasets, the columns of its tables, and the values that become rows of them.

The schema is described in README, "The file", and in docs/conventions.md. Importing it needs neither h5py nor torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vswin_extract.video.ranges import WHOLE, ClipRange

SCHEMA = "vswin-extract/1"
SCHEMA_OF_CROPS = "vswin-extract/2"
"""Of an output whose features have an axis of crops, which earlier versions would take for time. All others have the
first schema."""
BLOCK_BYTES = 1 << 23
"""Bytes of a dataset that are in memory at a time."""
VIDEO_BYTES = 8192
"""About how many bytes a video takes in the file, without its rows."""
GROUPED = 20_000
"""Most videos that each have a group under /videos. A group costs a millisecond and 4 kB."""
CLIP_COLUMNS: dict[str, tuple[tuple[int, ...], str]] = {
    "video": ((), "int64"),
    "frames": ((2,), "int64"),
    "times": ((2,), "float64"),
    "valid": ((), "int32"),
}
"""Columns of /clips: shape of a row, type."""
VIDEO_TEXTS = ("id", "path", "etag", "status", "message", "transfer", "matrix")
VIDEO_NUMBERS = {
    "fps": "f8", "frames": "i8", "skipped": "i8", "duration": "f8", "width": "i4", "height": "i4", "size": "i8",
    "mtime": "f8",
}  # fmt: skip
"""Columns of /videos_table that are fields of a record, and their types."""
ADDED: dict[str, str | int] = {"transfer": "", "matrix": "", "skipped": 0}
"""Columns of /videos_table that outputs of earlier versions do not have, and what counts there."""
VIDEO_COLUMNS = (*VIDEO_TEXTS, "first_clip", "clips", *VIDEO_NUMBERS, "start", "end")
"""All columns of /videos_table."""
LONGEST = 1e10
"""Seconds, at most, of a time. Matroska counts nanoseconds in 63 bits, which end at 9.2e9 s."""
INT32, INT64 = (1 << 31) - 1, (1 << 63) - 1
MOST_FRAMES = 1 << 40
"""Frames, and clips, that a video can have."""
RANGES: dict[str, tuple[float, float]] = {
    "fps": (0, 1e12), "frames": (0, MOST_FRAMES), "skipped": (0, MOST_FRAMES), "duration": (0, LONGEST),
    "width": (0, INT32), "height": (0, INT32), "size": (-1, INT64), "mtime": (-1e19, 1e19), "start": (0, LONGEST),
    "end": (0, math.inf),
}  # fmt: skip
"""Columns of /videos_table: the least and the most that their numbers can be. A video with other numbers fails when it
is extracted, and a file with other numbers is not read."""
FEATURES = {"embedding": (1,), "logits": (1,), **{f"stage{stage}": (1, 2, 4) for stage in (1, 2, 3, 4)}}
"""Feature datasets, and how many axes a row of them may have: (C,), (T', C), (T', H', W', C). With crops kept, an axis
of crops is before them."""
FAILURE_TEXTS = ("id", "path", "error", "message")
"""Columns of /failures."""
VIEWED = ("frames", "times", "valid")
"""Columns of /clips that the group of each video shows too."""
Compression = Literal["none", "lzf", "gzip"]


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
    """The result of one video: a row of /videos_table, or of /failures if `status` is "failed".

    `size` in bytes, `mtime` in seconds and `etag`, if a server gives one, are the fingerprint of its file when the
    video was begun. `frames`: how many it has; `skipped` of them were not decoded, because no clip shows them.
    `transfer` and `matrix`: how its colors are coded, see `video.color`. `clip_range`: which of its clips; if its end
    is None, the other fields are those of the whole video.
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
    transfer: str = ""
    matrix: str = ""
    size: int = -1
    mtime: float = 0.0
    etag: str = ""
    start: float | None = None
    end: float | None = None
    clip_range: ClipRange = WHOLE
    error: str = ""
    message: str = ""
    skipped: int = 0


@dataclass(frozen=True)
class FileDescription:
    """What an output has in common for all videos: its datasets, its root attributes, the names of classes."""

    arrays: Arrays
    attributes: Mapping[str, Any]
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class PackedRows:
    """Compressed rows of a dataset with one row in a chunk: `values`, and the `chunks` as they are in the file, each
    with its filter mask. A dataset of the same `packing` takes the chunks as they are."""

    values: NDArray[Any]
    chunks: Sequence[tuple[int, bytes]]
    packing: object


RowBlock = Mapping[str, NDArray[Any] | PackedRows]
"""Rows of the same clips, by the names of `row_types`."""


def row_types(arrays: Arrays) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the datasets whose rows come with the clips: name -> shape of a row, type."""
    return {
        **{name: (shape, arrays.dtype) for name, shape in arrays.shapes.items()},
        **{f"clips/{name}": CLIP_COLUMNS[name] for name in VIEWED},
    }


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, or the attributes of an output, with what earlier versions leave out."""
    features = settings.get("features")
    return {**settings, "features": {"crop_pool": "mean", **features}} if isinstance(features, dict) else {**settings}


def split_failed(records: Sequence[VideoRecord]) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Return the videos that were extracted, and those that failed."""
    return (
        [record for record in records if record.status != "failed"],
        [record for record in records if record.status == "failed"],
    )


def number_out_of_range(record: VideoRecord) -> str:
    """Return which number of a record /videos_table cannot hold, as "duration 1e+12", or "" if there is none."""
    for name, (least, most) in RANGES.items():
        value = getattr(record, name)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            return f"{name} {value:g}"
    return ""


def block_rows(rows: int, nbytes: int) -> int:
    """Return how many rows of a dataset of `rows` rows and `nbytes` bytes fit into a block of BLOCK_BYTES."""
    return max(1, BLOCK_BYTES * rows // max(nbytes, 1))
