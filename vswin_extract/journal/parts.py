"""The rows of finished videos as flat binary records, one for each clip.

A .rows file is no HDF5 file: HDF5 does not survive a full disk, and such records can be appended, joined and hashed
as they are.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import OutputError
from vswin_extract.files import names_path, publish
from vswin_extract.store.schema import BLOCK_BYTES, Arrays, RowBlock, VideoRecord, row_types

SUFFIX = ".rows"


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished video, or a clip range of one. Its rows are `record.clips` of those in `file`, from row `first` on."""

    record: VideoRecord
    file: Path
    first: int = 0


class Part:
    """The rows of a video while they are written. `digest`: sha256 of the rows so far. `rows`: their number."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self.path = path
        self.unfinished = path.with_name(path.name + ".tmp")
        self.dtype = record_type(arrays)
        self.rows = 0
        self.digest = hashlib.sha256()
        self.file = self.unfinished.open("wb")

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Add rows of consecutive clips, by the names of `row_types`."""
        records = np.empty(len(next(iter(rows.values()))), self.dtype)
        for name, values in rows.items():
            records[name] = values
        self.write(records.tobytes(), len(records))

    def write(self, records: bytes, count: int) -> None:
        """Add so many records as they are."""
        with names_path(self.path):
            self.file.write(records)
        self.digest.update(records)
        self.rows += count

    def finish(self) -> None:
        """Make the rows durable, under their own name."""
        with names_path(self.path):
            self.file.close()
        publish(self.unfinished, self.path)

    def discard(self) -> None:
        """Remove the rows, unless they are finished."""
        with contextlib.suppress(OSError):  # a full disk does not take what is still in memory
            self.file.close()
        self.unfinished.unlink(missing_ok=True)


def join(path: Path, entries: Sequence[Entry], arrays: Arrays) -> str:
    """Write the rows of several entries as one finished part, and return its sha256."""
    part = Part(path, arrays)
    try:
        for entry in entries:
            for records in read_entry(entry, arrays):
                part.write(records.tobytes(), len(records))
        part.finish()
    finally:
        part.discard()
    return part.digest.hexdigest()


def read_rows(entries: Iterable[Entry], arrays: Arrays) -> Iterator[RowBlock]:
    """Yield the rows of all entries in order, in blocks. Raises OutputError if a file ends before they do."""
    names = row_types(arrays)
    for entry in entries:
        for records in read_entry(entry, arrays):
            yield {name: records[name] for name in names}


def read_entry(entry: Entry, arrays: Arrays) -> Iterator[NDArray[np.void]]:
    """Yield an entry's records as they are on the disk, in blocks. Raises OutputError if the file ends too early."""
    dtype = record_type(arrays)
    step = max(1, BLOCK_BYTES // dtype.itemsize)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.first * dtype.itemsize)
        for begin in range(0, entry.record.clips, step):
            count = min(step, entry.record.clips - begin)
            if len(read := file.read(count * dtype.itemsize)) < count * dtype.itemsize:
                raise OutputError(f"{entry.file} was cut off while it was read; the same command continues")
            yield np.frombuffer(read, dtype)


def record_type(arrays: Arrays) -> np.dtype[np.void]:
    """Return the type of a record: a field for each dataset."""
    return np.dtype([(name, dtype, shape) for name, (shape, dtype) in row_types(arrays).items()])
