"""An HDF5 file that is written through plain writes, so that a disk that fills up does not end the process."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import h5py
from numpy.typing import NDArray

from vswin_extract.files import names_path


class GuardedFile:
    """What HDF5 writes to. HDF5 ends the process if it cannot write what it has to when it closes a file. Here no write
    fails: what the disk does not take is kept in memory, to be read again, and `error` is the disk's error. The writer
    looks at it after every dataset, so this is not much."""

    def __init__(self, disk: IO[bytes]) -> None:
        self.descriptor = disk.fileno()
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []
        self.position = self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        pass

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self.descriptor, view[done:], self.position + done)
        except OSError as error:
            self.error = error
        if done < len(view):
            self.kept.append((self.position + done, bytes(view[done:])))
        self.position += len(view)
        self.size = max(self.size, self.position)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """Return bytes from here on. h5py takes an object for a file if it can be read."""
        content = bytearray(self.size - self.position if size < 0 else size)
        return bytes(content[: self.readinto(content)])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        begin, end = self.position, min(self.position + len(view), self.size)
        view = view[: max(0, end - begin)]
        try:
            read = os.preadv(self.descriptor, [view], begin)
        except OSError as error:
            read, self.error = 0, error
        view[read:] = bytes(len(view) - read)
        for at, piece in self.kept:
            first, last = max(at, begin), min(at + len(piece), end)
            if first < last:
                view[first - begin : last - begin] = piece[first - at : last - at]
        self.position += len(view)
        return len(view)


class GuardedWriter:
    """Writes a new HDF5 file, dataset by dataset. Raises OSError if the disk fails, or if the file is there.

    HDF5 runs in a thread of its own. A signal's exception, as KeyboardInterrupt, is raised in the main thread only; in
    the middle of `GuardedFile.write` HDF5 would take it for a failure.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.guarded = GuardedFile(stack.enter_context(self.path.open("x+b", buffering=0)))
            stack.callback(self.thread.shutdown)
            self.file = self.thread.submit(h5py.File, self.guarded, "w").result()
            self.opened = stack.pop_all()
        return self

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Write a dataset. Raises OSError if the disk has failed."""
        self.thread.submit(self.file.create_dataset, name, data=values).result()
        self._expect_written()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.opened:
            self.thread.submit(self.file.close).result()
            if error is None:
                self._expect_written()

    def _expect_written(self) -> None:
        if self.guarded.error is not None:
            with names_path(self.path):
                raise self.guarded.error
