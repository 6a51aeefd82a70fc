"""The rows of finished videos as flat records, one a clip: what the journal keeps until the output is made.

No HDF5: it does not survive a full disk, and records of one type can be appended, joined and hashed as they are.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.store import Arrays, VideoRecord, block_rows, publish, row_types

SUFFIX = ".rows"


@dataclass(frozen=True, slots=True)
class Entry:
    """A video, or a span of one, that is through, and where its rows are: `record.clips` of them from row `first` of
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
    """Write the rows of several entries as one finished part; its sha256."""
    part = Part(path, arrays)
    for entry in entries:
        records = read_records(entry, arrays)
        step = block_rows(len(records), records.nbytes)
        for start in range(0, len(records), step):
            part.write(records[start : start + step].tobytes(), len(records[start : start + step]))
    part.finish()
    return part.digest.hexdigest()


def read_rows(entries: Sequence[Entry], arrays: Arrays, name: str) -> Iterator[NDArray[Any]]:
    """The rows of a dataset, of all entries in order, in pieces."""
    for entry in entries:
        rows = read_records(entry, arrays)[name]
        step = block_rows(len(rows), rows.nbytes)
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def read_records(entry: Entry, arrays: Arrays) -> NDArray[np.void]:
    """An entry's records, as they lie on disk."""
    kind = record_type(arrays)
    return np.memmap(entry.file, kind, "r", entry.first * kind.itemsize, (entry.record.clips,))


def record_type(arrays: Arrays) -> np.dtype[np.void]:
    return np.dtype([(name, dtype, shape) for name, (shape, dtype) in row_types(arrays).items()])


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
