"""Files at addresses, fetched one ahead into a bounded cache, from which they are decoded.

A cache is a directory on a local disk that decoders of several runs may share. Whoever uses a file in it holds a lock
on that file (flock), which goes with the process however it ends; what nobody holds is removed by whoever comes next.
A file's length is the room that it takes, and it has it before its bytes arrive.

Read-ahead waits for room. What a decoder needs now never does, whatever the cache's size is: lanes are read in a fixed
order, so waiting for room that another lane's files take could be for ever.
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from vswin_extract.errors import UsageError, VideoChanged, VideoError, VideoUnreachable
from vswin_extract.video.remote import WAITS, Address, alike, known, name, open_filesystem, patiently, refusal

CACHE_SIZE = 10_000_000_000
BLOCK = 1 << 21
"""Bytes that are read at once; they are a sign of progress, too."""
RESTARTS = 3
"""So often a file that changes while it is fetched is begun."""
POLL = 0.05
"""Seconds after which who waits for room, or for a file, looks again."""
PREFIX = "vswin-cache-"
"""Names in the cache begin so; what is called otherwise is not touched."""


@dataclass(frozen=True)
class Cache:
    """Where fetched files are, and how many bytes of them there may be; beyond that, only the one that each decoder is
    reading."""

    directory: str
    size: int


def cache_directory(given: str | os.PathLike[str] | None) -> Path:
    """The cache that is meant, made if need be. Raises UsageError where there can be none."""
    from tempfile import gettempdir

    directory = Path(given) if given is not None else Path(gettempdir()) / f"vswin-extract-{os.getuid()}"
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"no cache can be kept in {directory}: {error.strerror}; give a --cache-dir") from error
    if not os.access(directory, os.W_OK) or (given is None and directory.stat().st_uid != os.getuid()):
        raise UsageError(f"no cache can be kept in {directory}, which is another user's; give a --cache-dir")
    return directory


class Fetch(threading.Thread):
    """A file that is fetched into a cache by a thread of its own, after the one `after`. It stays there until `drop`.

    `exact`: it must be what is known of it, since others read it, too. Once it is over, `found` says what it was.
    """

    def __init__(self, address: Address, cache: Cache, exact: bool = False, after: "Fetch | None" = None) -> None:
        super().__init__(daemon=True)
        self.address = self.found = address
        self.cache = cache
        self.exact = exact
        self.after = after
        self.wanted = threading.Event()
        self.steps = 0
        """Signs of progress so far."""
        self.path = Path()
        self.file = -1
        self.error: Exception | None = None

    def run(self) -> None:
        if self.after is not None:
            self.after.join()
            self.after = None
        try:
            self._fetch()
        except Exception as error:  # for `wait` to raise in the thread that waits
            self.drop()
            self.error = error

    def wait(self, on_progress: Callable[[], None]) -> Path:
        """The file. `on_progress` is called as it makes progress. Raises VideoMissing, VideoChanged and VideoUnreachable."""
        self.wanted.set()
        seen = 0
        while self.is_alive():
            self.join(POLL)
            if self.steps > seen:
                seen = self.steps
                on_progress()
        if self.error is not None:
            raise self.error
        return self.path

    def _fetch(self) -> None:
        filesystem, path = patiently(lambda: open_filesystem(self.address.url), self._sleep)
        for turn in range(RESTARTS):
            now = self._look(filesystem, path)
            if self.exact and not alike(astuple(self.address), astuple(now)):
                raise VideoChanged("its file changed since it was looked at")
            whole = self._enter(now)
            try:
                if not whole:
                    self._download(filesystem, path, now)
            except VideoChanged:
                self.drop()
                if turn + 1 == RESTARTS:
                    raise
                continue
            with _alone(self.cache.directory):
                fcntl.flock(self.file, fcntl.LOCK_SH)  # which says that it is whole
            self.found = replace(now, size=os.fstat(self.file).st_size)
            return

    def _enter(self, now: Address) -> bool:
        """Have a file in the cache: one that another holds and that is whole, which it returns, or else a new one."""
        from hashlib import sha256

        key = sha256(repr(now).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        suffix = re.search(r"(\.\w{1,8})?$", name(now.url))
        ending = suffix[0] if suffix else ""
        directory = Path(self.cache.directory)
        directory.mkdir(0o700, parents=True, exist_ok=True)
        with _alone(directory):
            _sweep(directory)
            for own in (key, f"{key}-{os.urandom(8).hex()}"):  # which is for when another is fetching it just now
                self.path = directory / f"{PREFIX}{own}{ending}"
                self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                for lock, whole in ((fcntl.LOCK_EX, False), (fcntl.LOCK_SH, True)):
                    with suppress(BlockingIOError):
                        fcntl.flock(self.file, lock | fcntl.LOCK_NB)
                        return whole
                os.close(self.file)
        raise RuntimeError("a new name in the cache was taken")

    def drop(self) -> None:
        """The file is no longer needed here; the last one who says so removes it."""
        if self.file < 0:
            return
        with _alone(self.cache.directory):
            with suppress(BlockingIOError):
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink(missing_ok=True)
            os.close(self.file)
        self.file = -1

    def _reserve(self, total: int) -> None:
        """Make the file this long. Read-ahead waits until there is room for that, or until it is wanted."""
        tries = 0
        while total > os.fstat(self.file).st_size:
            wanted = self.wanted.is_set()
            if self._claim(total, wanted):
                return
            if not wanted:
                self.wanted.wait(POLL)
                continue
            if tries == len(WAITS):
                raise VideoUnreachable(
                    f"the disk of {self.cache.directory} has no room for {total} bytes; give another --cache-dir"
                )
            self._sleep(WAITS[tries])  # others may soon be through with their files
            tries += 1

    def _claim(self, total: int, wanted: bool) -> bool:
        with _alone(self.cache.directory):
            length = os.fstat(self.file).st_size
            if not wanted and _sweep(Path(self.cache.directory)) - length + total > self.cache.size:
                return False
            disk = os.fstatvfs(self.file)
            if disk.f_bavail * disk.f_frsize < total - length:  # else all of the disk would be filled before it fails
                return False
            try:
                os.posix_fallocate(self.file, 0, total)
            except OSError as error:
                os.ftruncate(self.file, length)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return False
            return True

    def _download(self, filesystem: Any, path: str, address: Address) -> None:
        """All bytes. After a failure that may pass it goes on where it was, or, where the server cannot do that, from
        the start. Raises VideoError: VideoChanged where the file is another than `address` says."""
        self._reserve(address.size)
        at = furthest = tries = 0
        while True:
            try:
                if tries and self._look(filesystem, path) != address:
                    raise VideoChanged("its file changes again and again while it is fetched")
                source, at = _open(filesystem, path, address, at)
                with source:
                    while block := source.read(BLOCK):
                        if address.size < 0:
                            self._reserve(((at + len(block)) // BLOCK + 1) * BLOCK)
                        os.pwrite(self.file, block, at)
                        at += len(block)
                        self.steps += 1
                        if at > (self.cache.size if address.size < 0 else address.size):
                            break
                        if at > furthest:
                            furthest, tries = at, 0
                if address.size < 0 and at > self.cache.size:
                    raise VideoUnreachable("its server does not say how long it is, and it is longer than --cache-size")
                if address.size not in (-1, at):
                    came, at = at, 0
                    raise EOFError(f"{came} bytes came where {address.size} were announced")
                if self._look(filesystem, path) != address:
                    raise VideoChanged("its file changes again and again while it is fetched")
                os.ftruncate(self.file, at)
                return
            except VideoError:
                raise
            except Exception as error:  # each package's family again
                if refused := refusal(error, last=tries == len(WAITS)):
                    raise refused from error
            self._sleep(WAITS[tries])
            tries += 1

    def _look(self, filesystem: Any, path: str) -> Address:
        return known(self.address.url, patiently(lambda: filesystem.info(path), self._sleep))

    def _sleep(self, seconds: float) -> None:
        self.steps += 1  # tries are counted, so this does not go on for ever
        time.sleep(seconds)


def sweep(directory: str) -> None:
    """Remove what processes that are gone have left in a cache."""
    if os.path.isdir(directory):
        with _alone(directory):
            _sweep(Path(directory))


def _sweep(directory: Path) -> int:
    """The same, for who is alone; how many bytes the files have that are left."""
    held = 0
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # somebody tidied up by hand
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except (BlockingIOError, PermissionError):  # the latter where it is another user's
                held += path.stat().st_size
    return held


@contextmanager
def _alone(directory: str | Path) -> Iterator[None]:
    """One at a time changes what is in a cache."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open(filesystem: Any, path: str, address: Address, at: int) -> tuple[Any, int]:
    """What to read a file's bytes from, beginning with byte `at`, or with the first where that cannot be done."""
    if not re.match("https?://", path):
        source = filesystem.open(path, "rb", block_size=BLOCK, cache_type="none")
        source.seek(at)
        return source, at
    # one response, since bytes of it are there as they arrive; whole blocks of a slow server would be late
    headers = {"Accept-Encoding": "identity"}
    if at:
        headers |= {"Range": f"bytes={at}-", **({"If-Range": f'"{address.etag}"'} if address.etag else {})}
    source = filesystem.open(path, "rb", block_size=0, size=-1, headers=headers)
    if at and not source.r.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
        source.close()
        return _open(filesystem, path, address, 0)
    return source, at
