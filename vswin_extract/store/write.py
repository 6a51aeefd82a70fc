"""Writing an output from the rows of its videos. The schema is described in README, "The file"."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s

from vswin_extract.formatting import as_utf8
from vswin_extract.store.columns import ColumnWriter
from vswin_extract.store.hdf5 import disk_errors, expect_room, link_properties, write_texts
from vswin_extract.store.schema import (
    GROUPED,
    SCHEMA,
    SCHEMA_OF_CROPS,
    VIDEO_BYTES,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
    VIEWED,
    Arrays,
    FileDescription,
    RowBlock,
    VideoRecord,
    row_types,
    split_failed,
)

CHUNK_BYTES = 1 << 20


def write_output(
    path: Path, blocks: Iterable[RowBlock], records: Sequence[VideoRecord], description: FileDescription
) -> None:
    """Write a whole output to `path`. `blocks`: the rows of all videos that did not fail, in the order of `records`.
    Raises OSError if the disk is full."""
    extracted, failed = split_failed(records)
    arrays = description.arrays
    clips = [record.clips for record in extracted]
    packed = 1 if arrays.compression == "none" else 2
    expect_room(path, sum(clips) * arrays.bytes_per_clip() // packed + len(extracted) * VIDEO_BYTES)
    with (
        disk_errors(path),
        h5py.File(path, "w", rdcc_nbytes=0) as file,  # no chunks are cached, since they are written whole
        ThreadPoolExecutor(2) as executor,
        _writing_back(file) as write_back,
    ):
        write_attributes(file, description.attributes)
        columns: dict[str, ColumnWriter] = {}
        for name, (shape, dtype) in row_types(arrays).items():
            how = arrays if name in arrays.shapes else Arrays({}, dtype)
            columns[name] = ColumnWriter(_create(file, name, sum(clips), shape, how), executor, write_back)
        for block in blocks:
            for name, rows in block.items():
                columns[name].append(rows)
        for column in columns.values():
            column.finish()
        file["clips/video"] = np.repeat(np.arange(len(clips)), clips)
        write_tables(file, extracted, failed, description.classes)
        file.create_group("videos")
        if len(extracted) <= GROUPED:
            _write_views(file, extracted, arrays)
        file.attrs["complete"] = True


@contextmanager
def _writing_back(file: h5py.File) -> Iterator[Callable[[], None]]:
    """Give a function that makes the disk begin to write the file, so that the sync at the end is short."""
    descriptor = file.id.get_vfd_handle()
    with ThreadPoolExecutor(1) as executor:
        pending: Future[None] | None = None

        def write_back() -> None:
            nonlocal pending
            if pending is None or pending.done():
                if pending is not None:
                    pending.result()  # raises the disk's error
                pending = executor.submit(os.fdatasync, descriptor)

        yield write_back
        if pending is not None:
            pending.result()


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Write the root attributes. Nested ones become JSON strings."""
    kept = attributes.get("features", {}).get("crop_pool") == "none"
    file.attrs["schema"] = SCHEMA_OF_CROPS if kept else SCHEMA
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["complete"] = False
    for name, value in attributes.items():
        file.attrs[name] = json.dumps(value) if isinstance(value, dict | list | tuple) else value


def write_tables(
    file: h5py.File, extracted: Sequence[VideoRecord], failed: Sequence[VideoRecord], classes: Sequence[str]
) -> None:
    """Write /videos_table, /failures and /classes."""
    clips = np.array([record.clips for record in extracted], np.int64)
    table = file.create_group("videos_table")
    for name in VIDEO_TEXTS:
        write_texts(table, name, [getattr(record, name) for record in extracted])
    table["first_clip"] = np.cumsum(clips) - clips
    table["clips"] = clips
    for name, dtype in VIDEO_NUMBERS.items():
        table[name] = np.array([getattr(record, name) for record in extracted], dtype)
    for name, missing in (("start", 0.0), ("end", np.inf)):
        given = [getattr(record, name) for record in extracted]
        table[name] = np.array([missing if value is None else value for value in given], "f8")
    failures = file.create_group("failures")
    for name in ("id", "path", "error", "message"):
        write_texts(failures, name, [getattr(record, name) for record in failed])
    if classes:
        write_texts(file, "classes", classes)


def _write_views(file: h5py.File, extracted: Sequence[VideoRecord], arrays: Arrays) -> None:
    """Write /videos/<id>: each dataset again, as a virtual dataset of the rows of that video.

    By h5py's low-level interface, which takes a quarter of the time that its convenient one does.
    """
    linking = link_properties()
    names = {**{name: name for name in arrays.shapes}, **{f"clips/{name}": name for name in VIEWED}}
    sources = [(path.encode(), name.encode(), file[path].id) for path, name in names.items()]
    spaces = [(source.get_space(), source.get_type(), source.shape[1:]) for _, _, source in sources]
    first = 0
    for record in extracted:
        group = h5g.create(file["videos"].id, as_utf8(record.id).encode(), linking)
        for (path, name, _), (rows, dtype, shape) in zip(sources, spaces, strict=True):
            view = h5s.create_simple((record.clips, *shape))
            rows.select_hyperslab((first, *(0 for _ in shape)), (record.clips, *shape))
            creation = h5p.create(h5p.DATASET_CREATE)
            creation.set_virtual(view, b".", path, rows)  # "." is this file itself, even after it was renamed
            h5d.create(group, name, dtype, view, creation)
        attributes = h5py.Group(group).attrs
        for fact in ("fps", "duration", "frames", "width", "height", "status", "path"):
            value = getattr(record, fact)
            attributes[fact] = as_utf8(value) if isinstance(value, str) else value
        first += record.clips


def _create(file: h5py.File, name: str, rows: int, shape: tuple[int, ...], arrays: Arrays) -> h5py.Dataset:
    """Create a dataset whose chunks are whole rows: a single one if a row is large."""
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
