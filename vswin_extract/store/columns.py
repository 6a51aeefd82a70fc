"""One dataset of a file, written or read from its first row to its last in blocks, and hashed on the way."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import OutputError, first_line
from vswin_extract.store.attributes import stored_value
from vswin_extract.store.hdf5 import READ_ERRORS
from vswin_extract.store.schema import PackedRows, block_rows


def packing(dataset: h5py.Dataset) -> object:
    """Return how the rows of a dataset are compressed if each is a chunk of its own, else None. Datasets of equal
    packing can exchange chunks as they are."""
    if dataset.compression is None or dataset.chunks[0] > 1:
        return None
    return dataset.chunks, dataset.dtype.str, dataset.compression, dataset.shuffle


class ColumnWriter:
    """Fills a dataset with rows, whole chunks at a time. `executor` writes and hashes them while the caller goes on;
    `write_back` is called after each block. `finish` stores the sha256 of all rows as an attribute."""

    def __init__(self, dataset: h5py.Dataset, executor: Executor, write_back: Callable[[], None]) -> None:
        self.dataset = dataset
        self.executor = executor
        self.write_back = write_back
        self.packing = packing(dataset)
        self.rows, chunk = len(dataset), dataset.chunks[0]
        size = min(-(-self.rows // chunk), max(1, block_rows(self.rows, dataset.nbytes) // chunk)) * chunk
        # one block is filled while the other is written
        self.block, self.other = (np.empty((size, *dataset.shape[1:]), dataset.dtype) for _ in range(2))
        self.filled = self.written = 0
        self.digest = hashlib.sha256()
        self.pending: list[Future[None]] = []

    def append(self, rows: NDArray[Any] | PackedRows) -> None:
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
        self.pending = [self.executor.submit(self._store, rows, self.written), self._hash(rows)]
        self.written, self.filled = self.written + self.filled, 0
        self.block, self.other = self.other, self.block
        if self.written < self.rows:
            self.write_back()

    def _store(self, rows: NDArray[Any], first: int) -> None:
        self.dataset[first : first + len(rows)] = rows

    def _hash(self, rows: NDArray[Any]) -> Future[None]:
        return self.executor.submit(self.digest.update, rows.data)

    def _copy(self, rows: PackedRows) -> None:
        self._write()
        self._wait()
        self.pending = [self._hash(rows.values)]
        for mask, chunk in rows.chunks:
            self.dataset.id.write_direct_chunk((self.written, *(0 for _ in self.dataset.shape[1:])), chunk, mask)
            self.written += 1

    def _wait(self) -> None:
        for future in self.pending:
            future.result()


class ColumnReader:
    """Reads a dataset in blocks of about `block` bytes. Rows that are read in order are hashed by `executor`; `finish`
    compares their sha256 with the stored one."""

    def __init__(self, path: Path, file: h5py.File, name: str, block: int, executor: Executor) -> None:
        self.path = path
        self.name = name
        self.dataset = file[name]
        self.executor = executor
        self.length = len(self.dataset)
        self.packing = packing(self.dataset)
        # whole chunks if they are compressed, since a chunk is unpacked each time that a row of it is read
        chunk = self.dataset.chunks[0] if self.dataset.compression else 1
        self.step = max(1, block * self.length // max(int(self.dataset.nbytes), 1) // chunk) * chunk
        self.first = 0
        self.block: NDArray[Any] = np.empty(0)
        """The rows that were read last, from row `first` on."""
        self.hashed = 0
        """Rows that are in the digest."""
        self.digest = hashlib.sha256()
        self.pending: Future[None] | None = None

    def read(self, first: int, count: int) -> NDArray[Any] | PackedRows:
        """Return `count` rows from row `first` on. Raises OutputError if they cannot be read."""
        rows = self._read_some(first, count)
        while len(rows) < count:
            rows = np.concatenate([rows, self._read_some(first + len(rows), count - len(rows))])
        if self.packing is None:
            return rows
        zeros = (0,) * (rows.ndim - 1)
        chunks = [self.dataset.id.read_direct_chunk((row, *zeros)) for row in range(first, first + count)]
        return PackedRows(rows, chunks, self.packing)

    def finish(self) -> None:
        """Read the rest. Raises OutputError if the rows are not those that were written."""
        while self.hashed < self.length:
            self._load(self.hashed)
        if self.pending is not None:
            self.pending.result()
        if stored_value(self.dataset, "sha256") != self.digest.hexdigest():
            raise OutputError(
                f"{self.path}: /{self.name} has another sha256 than when it was written; vswin check says more"
            )

    def _read_some(self, first: int, count: int) -> NDArray[Any]:
        begin = first - self.first
        if not 0 <= begin < len(self.block):
            self._load(self.hashed if self.hashed <= first < self.hashed + self.step else first)
            begin = first - self.first
        rows = self.block[begin : begin + count]
        if begin + len(rows) == len(self.block):
            self.block = np.empty(0)  # rows may be large, and files many
        return rows

    def _load(self, first: int) -> None:
        self.first = first
        try:
            self.block = self.dataset[first : first + self.step]
        except READ_ERRORS as error:
            raise OutputError(f"{self.path}: /{self.name} cannot be read: {first_line(error)}") from error
        if first == self.hashed:
            if self.pending is not None:
                self.pending.result()  # at most one block waits
            self.pending = self.executor.submit(self.digest.update, self.block.data)
            self.hashed += len(self.block)
