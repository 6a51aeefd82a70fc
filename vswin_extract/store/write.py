"""The output file: its schema, and writing it from the rows of finished videos. Schema: README, "The file".

Files are written under another name, synced and renamed, so that a name never stands for half a file.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from vswin_extract.formatting import as_utf8
from vswin_extract.store.schema import (
    GROUPED,
    SCHEMA,
    VIDEO_BYTES,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
    VIEWED,
    Arrays,
    PackedRows,
    Rows,
    VideoRecord,
    block_rows,
    row_types,
)

CHUNK_BYTES = 1 << 20


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
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
    rows: Iterable[Rows],
    extracted: Sequence[VideoRecord],
    failed: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Write a whole output to a path of no meaning yet. `rows`: those of all `extracted` videos in order, in pieces, by
    the names of `row_types`. Raises OSError where the disk is full."""
    clips = [record.clips for record in extracted]
    _expect_room(path, sum(clips), len(extracted), arrays)
    with (
        disk_errors(path),
        h5py.File(path, "w", rdcc_nbytes=0) as file,  # no chunks are cached, since they are written whole
        ThreadPoolExecutor(2) as beside,
        _written_back(file) as write_back,
    ):
        write_attributes(file, attributes)
        columns: dict[str, Column] = {}
        for name, (shape, dtype) in row_types(arrays).items():
            how = arrays if name in arrays.shapes else Arrays({}, dtype)
            columns[name] = Column(_create(file, name, sum(clips), shape, how), beside, write_back)
        for piece in rows:
            for name, values in piece.items():
                columns[name].append(values)
        for column in columns.values():
            column.finish()
        file["clips/video"] = np.repeat(np.arange(len(clips)), clips)
        write_tables(file, extracted, failed, classes)
        file.create_group("videos")
        if len(extracted) <= GROUPED:
            _write_views(file, extracted, arrays)
        file.attrs["complete"] = True


@contextmanager
def _written_back(file: h5py.File) -> Iterator[Callable[[], None]]:
    """What has the disk begin with all that is written so far, so that little is left to wait for at the end."""
    descriptor = file.id.get_vfd_handle()
    with ThreadPoolExecutor(1) as syncing:
        going: Future[None] | None = None

        def write_back() -> None:
            nonlocal going
            if going is None or going.done():
                if going is not None:
                    going.result()  # raises what the disk said
                going = syncing.submit(os.fdatasync, descriptor)

        yield write_back
        if going is not None:
            going.result()


class Column:
    """A dataset that is filled from its first row on, whole chunks at a time. They are written `beside` what the caller
    does next, and so the sha256 of all rows is found, which ends up in its attributes."""

    def __init__(self, dataset: h5py.Dataset, beside: Executor, write_back: Callable[[], None]) -> None:
        self.dataset = dataset
        self.beside = beside
        self.write_back = write_back
        self.packing = packing(dataset)
        self.rows, chunk = len(dataset), dataset.chunks[0]
        size = min(-(-self.rows // chunk), max(1, block_rows(self.rows, dataset.nbytes) // chunk)) * chunk
        self.block, self.other = (np.empty((size, *dataset.shape[1:]), dataset.dtype) for _ in range(2))
        self.filled = self.written = 0
        self.digest = hashlib.sha256()
        self.going: list[Future[None]] = []

    def append(self, rows: "NDArray[Any] | PackedRows") -> None:
        if isinstance(rows, PackedRows):
            if rows.packing == self.packing:
                self._copy(rows)
                return
            rows = rows.values
        while (room := len(self.block) - self.filled) <= len(rows):
            self.block[self.filled :] = rows[:room]
            self.filled, rows = len(self.block), rows[room:]
            self._write()
            if not len(rows):
                return
        self.block[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def finish(self) -> None:
        self._write()
        self._wait()
        self.dataset.attrs["sha256"] = self.digest.hexdigest()

    def _write(self) -> None:
        rows = self.block[: self.filled]
        self._wait()  # for the block before, whose memory is filled next
        self.going = [self.beside.submit(self._store, rows, self.written), self._hash(rows)]
        self.written, self.filled = self.written + self.filled, 0
        self.block, self.other = self.other, self.block
        if self.written < self.rows:
            self.write_back()

    def _store(self, rows: NDArray[Any], first: int) -> None:
        self.dataset[first : first + len(rows)] = rows

    def _hash(self, rows: NDArray[Any]) -> "Future[None]":
        return self.beside.submit(self.digest.update, rows.data)

    def _copy(self, rows: "PackedRows") -> None:
        self._write()
        self._wait()
        self.going = [self._hash(rows.values)]
        for mask, chunk in rows.chunks:
            self.dataset.id.write_direct_chunk((self.written, *(0 for _ in self.dataset.shape[1:])), chunk, mask)
            self.written += 1

    def _wait(self) -> None:
        for future in self.going:
            future.result()


def packing(dataset: h5py.Dataset) -> object:
    """How the rows of a dataset are packed, if they are, each on its own; else None."""
    if dataset.chunks[0] > 1 or dataset.compression is None:
        return None
    return dataset.chunks, dataset.dtype.str, dataset.compression, dataset.shuffle


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


def write_tables(
    file: h5py.File, extracted: Sequence[VideoRecord], failed: Sequence[VideoRecord], classes: Sequence[str]
) -> None:
    clips = np.array([record.clips for record in extracted], np.int64)
    table = file.create_group("videos_table")
    text = h5py.string_dtype()
    for name in VIDEO_TEXTS:
        table.create_dataset(name, data=_texts(extracted, name), dtype=text)
    table["first_clip"] = np.cumsum(clips) - clips
    table["clips"] = clips
    for name, dtype in VIDEO_NUMBERS.items():
        table[name] = np.array([getattr(record, name) for record in extracted], dtype)
    for name, otherwise in (("start", 0.0), ("end", np.inf)):
        given = [getattr(record, name) for record in extracted]
        table[name] = np.array([otherwise if value is None else value for value in given], "f8")
    failures = file.create_group("failures")
    for name in ("id", "path", "error", "message"):
        failures.create_dataset(name, data=_texts(failed, name), dtype=text)
    if classes:
        file.create_dataset("classes", data=np.array(classes, object), dtype=text)


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
        group = h5g.create(file["videos"].id, as_utf8(record.id).encode(), linking)
        for (path, name, _), (rows, kind, shape) in zip(sources, kinds, strict=True):
            view = h5s.create_simple((record.clips, *shape))
            rows.select_hyperslab((first, *(0 for _ in shape)), (record.clips, *shape))
            creation = h5p.create(h5p.DATASET_CREATE)
            creation.set_virtual(view, b".", path, rows)  # "." is this file itself, whatever it is called later
            h5d.create(group, name, kind, view, creation)
        attributes = h5py.Group(group).attrs
        for fact in ("fps", "duration", "frames", "width", "height", "status", "path"):
            value = getattr(record, fact)
            attributes[fact] = as_utf8(value) if isinstance(value, str) else value
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
    return np.array([as_utf8(getattr(record, name)) for record in records], object)
