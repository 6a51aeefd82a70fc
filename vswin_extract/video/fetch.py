"""Files at addresses are fetched into a bounded cache, one ahead of the decoder, and decoded from there.

A cache is a directory on a local disk that decoders of several runs may share. A decoder that uses a file in it holds a
lock on that file (flock), which ends with the process, however that ends. The next decoder removes files that no
process has locked. A file gets its full length before its bytes arrive, so that the lengths are the room that is taken.

Read-ahead waits for room. A file that a decoder needs now never waits, whatever the size of the cache is: decoders are
read in a fixed order, so one that waited for the room of another one's files could wait for ever.

Names in a cache can be foretold, so each user has a directory that no other user may enter. Even there a file is
trusted only if it is a regular file of this user with a single name, and a link is never followed: a directory above
may be another user's.
"""

import errno
import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from vswin_extract.errors import UsageError, VideoChanged, VideoError, VideoUnreachable
from vswin_extract.files import is_own_file, names_path
from vswin_extract.formatting import human_bytes
from vswin_extract.system import reserve
from vswin_extract.video.remote import (
    WAITS,
    Address,
    address_of,
    failure_of,
    open_filesystem,
    path_of,
    same_fingerprint,
    with_retries,
)

CACHE_SIZE = 10_000_000_000
BLOCK = 1 << 21
"""Bytes that are read at once."""
SLOWEST = 256
"""Bytes a second. What comes more slowly is no progress, so that it is given up after --timeout."""
CATCH_UP = 60.0
"""Seconds of silence that count for that, at most: read-ahead may have waited for hours, or this process was stopped.
"""
RESTARTS = 3
"""How often a file that changes while it is fetched is fetched from its beginning."""
POLL = 0.05
"""Seconds between two looks at whether there is room, or whether a file has arrived."""
PREFIX = "vswin-cache-"
"""Names of files in the cache begin so. Other files in its directory are not touched."""


@dataclass(frozen=True)
class Cache:
    """The directory of fetched files, and how many bytes they may have. Only files that decoders are reading may go
    beyond that."""

    directory: str
    size: int


def cache_directory(given: str | os.PathLike[str] | None) -> Path:
    """Return the cache directory, which only this user may enter; it is made if it is missing. That is the one `given`
    or, where other users may enter that one, vswin-extract-UID in it. The default is the one for temporary files.
    Raises UsageError."""
    from tempfile import gettempdir

    above = Path(os.path.realpath(gettempdir() if given is None else given))
    own = above / f"vswin-extract-{os.geteuid()}"
    try:
        above.mkdir(0o700, parents=True, exist_ok=True)
        if given is not None and not _why_not_ours(status := above.stat()) and not status.st_mode & 0o077:
            return above
        with suppress(FileExistsError):
            own.mkdir(0o700)
        status = own.lstat()
        if why := _why_not_ours(status):
            raise UsageError(f"no cache can be kept in {own}, which {why}; give a --cache-dir")
        if status.st_mode & 0o077:
            own.chmod(0o700)
    except OSError as error:
        raise UsageError(f"no cache can be kept in {above}: {error.strerror}; give a --cache-dir") from error
    return own


def _why_not_ours(status: os.stat_result) -> str:
    """Return why a directory cannot be trusted; an empty text where it can."""
    if not stat.S_ISDIR(status.st_mode):
        return "is no directory" if not stat.S_ISLNK(status.st_mode) else "is a link"
    return "" if status.st_uid == os.geteuid() else f"belongs to the user with number {status.st_uid}"


class Fetch(threading.Thread):
    """A thread that fetches a file into a cache, once the fetch `after` has ended. The file stays until `drop`.

    `exact`: the file must have the fingerprint of `address`, because other decoders read other parts of it. `found`:
    the address with the fingerprint of what was fetched, at the end. `waits`: seconds before each further try.
    """

    def __init__(
        self,
        address: Address,
        cache: Cache,
        exact: bool = False,
        after: "Fetch | None" = None,
        waits: Sequence[float] = WAITS,
    ) -> None:
        super().__init__(daemon=True)
        self.address = self.found = address
        self.cache = cache
        self.exact = exact
        self.after = after
        self.waits = waits
        self.wanted = threading.Event()
        self.steps = 0
        """Grows with each sign of progress."""
        self._came, self._since = 0, time.monotonic()  # bytes since the last sign of progress, and when that was
        self.path = Path()
        self.file = -1
        self.error: BaseException | None = None

    def run(self) -> None:
        if self.after is not None:
            self.after.join()
            self.after = None
        try:
            self._fetch()
        except OSError as error:  # of the disk of the cache, for example because it is read-only
            reason = error.strerror or str(error)
            self.error = VideoUnreachable(f"it cannot be kept in the cache {self.cache.directory}: {reason}")
            self.drop()
        except BaseException as error:  # `wait` raises it, in the thread that waits
            self.error = error
            self.drop()

    def wait(self, on_progress: Callable[[], None]) -> Path:
        """Return the path of the file once it is there, and call `on_progress` meanwhile. Raises VideoMissing,
        VideoChanged and VideoUnreachable."""
        self.wanted.set()
        seen = 0
        while self.is_alive():
            self.join(POLL)
            if self.steps > seen:
                seen = self.steps
                on_progress()
        if self.error is not None:
            raise self.error
        if not (os.path.lexists(self.path) and os.path.samestat(os.fstat(self.file), os.lstat(self.path))):
            raise VideoUnreachable(f"its file was removed from the cache {self.cache.directory} meanwhile")
        return self.path

    def _fetch(self) -> None:
        filesystem, path = with_retries(lambda: open_filesystem(self.address.url), self._sleep, self.waits)
        for turn in range(RESTARTS):
            now = self._describe(filesystem, path)
            if self.exact and not same_fingerprint(astuple(self.address), astuple(now)):
                raise VideoChanged("its file changed since it was looked at")
            whole = self._open_in_cache(now)
            try:
                if not whole:
                    self._download(filesystem, path, now)
            except VideoChanged:
                self.drop()
                if turn + 1 == RESTARTS:
                    raise
                continue
            with _alone(self.cache.directory):
                fcntl.flock(self.file, fcntl.LOCK_SH)  # a shared lock means that it is complete
            self.found = replace(now, size=os.fstat(self.file).st_size)
            return

    def _open_in_cache(self, now: Address) -> bool:
        """Open and lock a file in the cache. Return True if it is complete, as another decoder uses it too; False if it
        is a new one."""
        from hashlib import sha256

        key = sha256(repr(now).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        suffix = re.search(r"(\.\w{1,8})?$", path_of(now.url))
        ending = suffix[0] if suffix else ""
        directory = Path(self.cache.directory)
        directory.mkdir(0o700, parents=True, exist_ok=True)
        with _alone(directory) as handle:
            _sweep(handle)
            for name in (key, f"{key}-{os.urandom(8).hex()}"):  # the second one where the first is taken
                self.path = directory / f"{PREFIX}{name}{ending}"
                with suppress(FileExistsError):
                    self.file = os.open(self.path.name, NEW, 0o600, dir_fd=handle)
                    fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return False
                if (file := _open_ours(self.path.name, handle)) >= 0:
                    if _is_complete(file):
                        self.file = file
                        return True
                    os.close(file)
        raise RuntimeError("a new name in the cache was taken")

    def drop(self) -> None:
        """Give up the file. It is removed unless another decoder uses it."""
        if self.file < 0:
            return
        # errors: another decoder uses it, or the cache was removed, or its disk is read-only now
        with suppress(VideoUnreachable, OSError), _alone(self.cache.directory) as handle:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self.file), os.lstat(self.path.name, dir_fd=handle)):
                os.unlink(self.path.name, dir_fd=handle)
        os.close(self.file)
        self.file = -1

    def _reserve(self, total: int) -> None:
        """Make the file this long. Read-ahead waits until there is room, or until a decoder waits for the file."""
        tries = 0
        while total > os.fstat(self.file).st_size:
            wanted = self.wanted.is_set()
            if self._claim(total, wanted):
                return
            if not wanted:
                self.wanted.wait(POLL)
                continue
            if tries == len(self.waits):
                raise VideoUnreachable(
                    f"the disk of {self.cache.directory} has no room for {human_bytes(total)}; give another --cache-dir"
                )
            self._sleep(self.waits[tries])  # other decoders may soon drop their files
            tries += 1

    def _claim(self, total: int, wanted: bool) -> bool:
        """Make the file this long if there is room. Return False if there is none."""
        with names_path(Path(self.cache.directory)), _alone(self.cache.directory) as handle:
            length = os.fstat(self.file).st_size
            if not wanted and _sweep(handle) - length + total > self.cache.size:
                return False
            disk = os.fstatvfs(self.file)
            if disk.f_bavail * disk.f_frsize < total - length:  # `reserve` would fill the disk before it fails
                return False
            try:
                reserve(self.file, total)
            except OSError as error:
                os.ftruncate(self.file, length)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return False
            return True

    def _download(self, filesystem: Any, path: str, address: Address) -> None:
        """Fetch all bytes. After a failure that may pass it goes on where it was, or from the start where the server
        cannot do that. Raises VideoError; VideoChanged where the file has another fingerprint than `address`."""
        self._reserve(address.size)
        at = furthest = tries = 0
        while True:
            try:
                if tries and self._describe(filesystem, path) != address:
                    raise VideoChanged("its file changes again and again while it is fetched")
                source, at = _open(filesystem, path, address, at)
                with source:
                    while block := source.read(BLOCK):
                        if address.size < 0:
                            self._reserve(((at + len(block)) // BLOCK + 1) * BLOCK)
                        with names_path(Path(self.cache.directory)):
                            os.pwrite(self.file, block, at)
                        at += len(block)
                        quick = self._count(len(block))
                        if at > (self.cache.size if address.size < 0 else address.size):
                            break
                        if at > furthest and quick:
                            furthest, tries = at, 0
                if address.size < 0 and at > self.cache.size:
                    raise VideoUnreachable("its server does not say how long it is, and it is longer than --cache-size")
                if address.size not in (-1, at):
                    came, at = at, 0
                    raise EOFError(f"{came} bytes came where {address.size} were announced")
                if self._describe(filesystem, path) != address:
                    raise VideoChanged("its file changes again and again while it is fetched")
                os.ftruncate(self.file, at)
                self.steps += 1
                return
            except VideoError:
                raise
            except Exception as error:  # the package of each protocol has a family of its own
                if failure := failure_of(error, last=tries == len(self.waits)):
                    raise failure from error
            self._sleep(self.waits[tries])
            tries += 1

    def _count(self, received: int) -> bool:
        """Count bytes that came. Return True if that is progress: if they came quickly enough since the last one."""
        now = time.monotonic()
        self._came += received
        if self._came < SLOWEST * min(now - self._since, CATCH_UP):
            return False
        self._came, self._since = 0, now
        self.steps += 1
        return True

    def _describe(self, filesystem: Any, path: str) -> Address:
        """Return the address with its present fingerprint."""
        return address_of(self.address.url, with_retries(lambda: filesystem.info(path), self._sleep, self.waits))

    def _sleep(self, seconds: float) -> None:
        self.steps += 1  # waiting counts as progress; the number of tries bounds it
        time.sleep(seconds)


def sweep(directory: str) -> None:
    """Remove the files in a cache that no process uses."""
    if os.path.isdir(directory):
        with suppress(VideoUnreachable), _alone(directory) as handle:  # no longer ours, so nothing in it is
            _sweep(handle)


def _sweep(directory: int) -> int:
    """Do the same under the lock of `_alone`. Return how many bytes the other files have."""
    held = 0
    for name in os.listdir(directory):
        if not name.startswith(PREFIX) or (file := _open_ours(name, directory)) < 0:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
        except OSError:  # in use, or the disk is read-only now
            held += os.fstat(file).st_size
        finally:
            os.close(file)
    return held


NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a new file is opened: only if its name is free."""
THERE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a file is opened that may be anything, for example a FIFO, which would make this process wait."""


def _is_complete(file: int) -> bool:
    """Lock a file of the cache that another decoder uses. Return False where that one still fetches it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False  # its process has ended in this moment, perhaps before it was complete
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a shared lock means that it is complete
        return True
    return False


def _open_ours(name: str, directory: int) -> int:
    """Open a file in a cache, by the descriptor of the cache. Return -1 where there is none, and where it is not a
    regular file of this user with a single name: then others may write to it, or it is a file from elsewhere."""
    try:
        file = os.open(name, THERE, dir_fd=directory)
    except OSError:  # removed meanwhile, a link, another user's, a socket
        return -1
    if is_own_file(os.fstat(file)):
        return file
    os.close(file)
    return -1


@contextmanager
def _alone(directory: str | Path) -> Iterator[int]:
    """Lock a cache while its list of files is read or changed. Give its descriptor. Raises VideoUnreachable where it is
    not a directory of this user."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise VideoUnreachable(f"the cache {directory} cannot be opened: {error.strerror}") from error
    try:
        if why := _why_not_ours(os.fstat(handle)):
            raise VideoUnreachable(f"the cache {directory} {why}")
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _open(filesystem: Any, path: str, address: Address, at: int) -> tuple[Any, int]:
    """Return a stream of a file's bytes and the number of its first byte: `at`, or 0 where the server cannot begin
    there."""
    if not re.match("https?://", path):
        source = filesystem.open(path, "rb", block_size=BLOCK, cache_type="none")
        source.seek(at)
        return source, at
    # one response for the whole file, whose bytes are there as they arrive; blocks of a slow server would come late
    headers = {"Accept-Encoding": "identity"}
    if at:
        headers |= {"Range": f"bytes={at}-", **({"If-Range": f'"{address.etag}"'} if address.etag else {})}
    source = filesystem.open(path, "rb", block_size=0, size=-1, headers=headers)
    if at and not source.r.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
        source.close()
        return _open(filesystem, path, address, 0)
    return source, at
