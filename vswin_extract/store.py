"""The output file: its schema, and writing it from the rows of finished videos. Schema: README, "The file".

Files are written under another name, synced and renamed, so that a name never stands for half a file.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from vswin_extract.schedule import WHOLE, Span
from vswin_extract.videos import as_text

SCHEMA = "vswin-extract/1"
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 1 << 25
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
VIEWED = ("frames", "times", "valid")
"""Columns of /clips that the group of each video shows too."""

Compression = Literal["none", "lzf", "gzip"]
Rows = Mapping[str, NDArray[Any]]


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

    `size` in bytes and `mtime` in seconds are the file's, as it was when the video was begun. `frames` were decoded.
    `span`: which of its clips; where its end is None, the figures are those of the whole video.
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
    start: float | None = None
    end: float | None = None
    span: Span = WHOLE
    error: str = ""
    message: str = ""


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """HDF5 reports a full disk as a RuntimeError of many lines; make it the OSError that it is."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_output(
    path: Path,
    rows: Callable[[str], Iterator[NDArray[Any]]],
    extracted: Sequence[VideoRecord],
    failed: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Write a whole output to a path of no meaning yet. `rows(name)`: the rows of a dataset of `row_types`, all videos'
    in order, in pieces. Raises OSError where the disk is full."""
    clips = [record.clips for record in extracted]
    _expect_room(path, sum(clips), len(extracted), arrays)
    with _disk_errors(path), h5py.File(path, "w") as file:
        write_attributes(file, attributes)
        for name, (shape, dtype) in row_types(arrays).items():
            how = arrays if name in arrays.shapes else Arrays({}, dtype)
            _write_rows(_create(file, name, sum(clips), shape, how), rows(name))
        file["clips/video"] = np.repeat(np.arange(len(clips)), clips)
        _write_tables(file, extracted, failed)
        file.create_group("videos")
        if len(extracted) <= GROUPED:
            _write_views(file, extracted, arrays)
        if classes:
            file.create_dataset("classes", data=np.array(classes, object), dtype=h5py.string_dtype())
        file.attrs["complete"] = True


def row_types(arrays: Arrays) -> dict[str, tuple[tuple[int, ...], str]]:
    """The datasets whose rows come with the clips: name -> shape of a row, type."""
    return {
        **{name: (shape, arrays.dtype) for name, shape in arrays.shapes.items()},
        **{f"clips/{name}": CLIP_COLUMNS[name] for name in VIEWED},
    }


def _write_rows(dataset: h5py.Dataset, pieces: Iterator[NDArray[Any]]) -> None:
    """Fill a dataset, small pieces together so that a chunk is written once, and note the sha256 of its rows."""
    digest = hashlib.sha256()
    first = 0
    for rows in _in_blocks(pieces):
        dataset[first : first + len(rows)] = rows
        digest.update(rows.data)
        first += len(rows)
    dataset.attrs["sha256"] = digest.hexdigest()


def _in_blocks(pieces: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    waiting: list[NDArray[Any]] = []
    nbytes = 0
    for piece in pieces:
        waiting.append(piece)
        nbytes += piece.nbytes
        if nbytes >= BLOCK_BYTES:
            yield np.ascontiguousarray(np.concatenate(waiting))
            waiting, nbytes = [], 0
    if waiting:
        yield np.ascontiguousarray(np.concatenate(waiting))


def block_rows(rows: int, nbytes: int) -> int:
    """So many of these rows are a piece of memory of no concern."""
    return max(1, BLOCK_BYTES * rows // max(nbytes, 1))


def _expect_room(path: Path, clips: int, videos: int, arrays: Arrays) -> None:
    """Raise OSError before HDF5 runs into a full disk, which it does not survive."""
    state = os.statvfs(path.parent)
    needed = clips * arrays.bytes_per_clip() // (1 if arrays.compression == "none" else 2) + videos * VIDEO_BYTES
    if state.f_bavail * state.f_frsize < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: the output needs {needed / 1e6:.1f} MB", str(path))


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Root attributes; what is nested becomes a JSON string."""
    file.attrs["schema"] = SCHEMA
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["complete"] = False
    for name, value in attributes.items():
        file.attrs[name] = json.dumps(value) if isinstance(value, dict | list | tuple) else value


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Root attributes of a file of ours, or None where it is none."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs) if str(file.attrs.get("schema", "")).startswith("vswin-extract/") else None
    except OSError:
        return None


def _write_tables(file: h5py.File, extracted: Sequence[VideoRecord], failed: Sequence[VideoRecord]) -> None:
    clips = np.array([record.clips for record in extracted], np.int64)
    table = file.create_group("videos_table")
    text = h5py.string_dtype()
    for name in ("id", "path", "status", "message"):
        table.create_dataset(name, data=_texts(extracted, name), dtype=text)
    table["first_clip"] = np.cumsum(clips) - clips
    table["clips"] = clips
    for name, dtype in (
        ("fps", "f8"), ("frames", "i8"), ("duration", "f8"), ("width", "i4"), ("height", "i4"), ("size", "i8"),
        ("mtime", "f8"),
    ):  # fmt: skip
        table[name] = np.array([getattr(record, name) for record in extracted], dtype)
    for name, otherwise in (("start", 0.0), ("end", np.inf)):
        given = [getattr(record, name) for record in extracted]
        table[name] = np.array([otherwise if value is None else value for value in given], "f8")
    failures = file.create_group("failures")
    for name in ("id", "path", "error", "message"):
        failures.create_dataset(name, data=_texts(failed, name), dtype=text)


def _write_views(file: h5py.File, extracted: Sequence[VideoRecord], arrays: Arrays) -> None:
    """/videos/<id>: every dataset again, as the rows of that video alone, without copying.

    By h5py's low-level interface, which takes a quarter of the time that its convenient one does.
    """
    linking = h5p.create(h5p.LINK_CREATE)
    linking.set_char_encoding(h5t.CSET_UTF8)
    linking.set_create_intermediate_group(True)
    names = {**{name: name for name in arrays.shapes}, **{f"clips/{name}": name for name in VIEWED}}
    sources = [(path.encode(), name.encode(), file[path].id) for path, name in names.items()]
    kinds = [(source.get_space(), source.get_type(), source.shape[1:]) for _, _, source in sources]
    first = 0
    for record in extracted:
        group = h5g.create(file["videos"].id, as_text(record.id).encode(), linking)
        for (path, name, _), (rows, kind, shape) in zip(sources, kinds, strict=True):
            view = h5s.create_simple((record.clips, *shape))
            rows.select_hyperslab((first, *(0 for _ in shape)), (record.clips, *shape))
            creation = h5p.create(h5p.DATASET_CREATE)
            creation.set_virtual(view, b".", path, rows)  # "." is this file itself, whatever it is called later
            h5d.create(group, name, kind, view, creation)
        attributes = h5py.Group(group).attrs
        for fact in ("fps", "duration", "frames", "width", "height", "status", "path"):
            value = getattr(record, fact)
            attributes[fact] = as_text(value) if isinstance(value, str) else value
        first += record.clips


def _create(file: h5py.File, name: str, rows: int, shape: tuple[int, ...], arrays: Arrays) -> h5py.Dataset:
    """A dataset in chunks of whole rows: of one row where a row is large."""
    row_bytes = max(1, int(np.prod(shape)) * np.dtype(arrays.dtype).itemsize)
    compression = None if arrays.compression == "none" else arrays.compression
    return file.create_dataset(
        name,
        (rows, *shape),
        arrays.dtype,
        chunks=(max(1, min(CHUNK_BYTES // row_bytes, rows)), *shape),
        maxshape=(None, *shape),
        compression=compression,
        shuffle=compression is not None,  # bytes of one significance side by side: floats hardly compress otherwise
    )


def _texts(records: Sequence[VideoRecord], name: str) -> NDArray[np.object_]:
    return np.array([as_text(getattr(record, name)) for record in records], object)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(value), "utf-8")
    publish(unfinished, path)


def publish(unfinished: Path, path: Path) -> None:
    """Rename a finished file into place so that it survives a power cut."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
