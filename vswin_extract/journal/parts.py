"""The rows of finished videos as flat records, one a clip: what the journal keeps until the output is made.

No HDF5: it does not survive a full disk, and records of one type can be appended, joined and hashed as they are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import OutputError
from vswin_extract.files import publish
from vswin_extract.store.schema import BLOCK_BYTES, Arrays, VideoRecord, row_types

SUFFIX = ".rows"


@dataclass(frozen=True, slots=True)
class Entry:
    """A video, or a clip_range of one, that is through, and where its rows are: `record.clips` of them from row `first` of
    `file`."""

    record: VideoRecord
    file: Path
    first: int = 0


class Part:
    """The rows of a video, being written; `sha256` and `rows` are of what has been."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self.path = path
        self.unfinished = path.with_name(path.name + ".tmp")
        self.type = record_type(arrays)
        self.rows = 0
        self.digest = hashlib.sha256()
        self.file = self.unfinished.open("wb")

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Rows of consecutive clips, by the names of `row_types`."""
        records = np.empty(len(next(iter(rows.values()))), self.type)
        for name, values in rows.items():
            records[name] = values
        self.write(records.tobytes(), len(records))

    def write(self, records: bytes, count: int) -> None:
        """So many records as they are."""
        self.file.write(records)
        self.digest.update(records)
        self.rows += count

    def finish(self) -> None:
        """Make it durable, under its own name."""
        self.file.close()
        publish(self.unfinished, self.path)

    def discard(self) -> None:
        self.file.close()
        self.unfinished.unlink(missing_ok=True)


def join(path: Path, entries: Sequence[Entry], arrays: Arrays) -> str:
    """Write the rows of several entries as one finished part, and return its sha256."""
    part = Part(path, arrays)
    try:
        for entry in entries:
            for records in read_records(entry, arrays):
                part.write(records.tobytes(), len(records))
        part.finish()
    finally:
        part.discard()  # what is unfinished
    return part.digest.hexdigest()


def read_rows(entries: Iterable[Entry], arrays: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows of all entries in order, in pieces."""
    names = row_types(arrays)
    for entry in entries:
        for records in read_records(entry, arrays):
            yield {name: records[name] for name in names}


def read_records(entry: Entry, arrays: Arrays) -> Iterator[NDArray[np.void]]:
    """An entry's records as they lie on disk, in pieces. Raises OutputError where the file ends before they do."""
    kind = record_type(arrays)
    step = max(1, BLOCK_BYTES // kind.itemsize)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.first * kind.itemsize)
        for begin in range(0, entry.record.clips, step):
            count = min(step, entry.record.clips - begin)
            if len(read := file.read(count * kind.itemsize)) < count * kind.itemsize:
                raise OutputError(f"{entry.file} was cut off while it was read; the same command continues")
            yield np.frombuffer(read, kind)


def record_type(arrays: Arrays) -> np.dtype[np.void]:
    return np.dtype([(name, dtype, shape) for name, (shape, dtype) in row_types(arrays).items()])
