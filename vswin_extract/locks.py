"""Locks for processes on several hosts that share a file system, without flock, which network file systems may lack.

A lock is a file that names its holder: host, pid, and when the process began. If the holder is a process of this host,
the lock counts as long as the process lives; if it is one of another host, as long as it touches the file. Packages do
not do this: the hard lock of `filelock` is flock, and its `SoftFileLease` takes over the lock of a dead host only after
it has watched it for the whole lease, which a command that answers at once cannot do; `flufl.lock` needs hard links and
clocks that agree, and keeps the lock of a process that died on this host until the lease ends.

A process that was suspended for long, with its machine, may find that another one has taken over its lock. It never
touches or removes that one's file; `Lock.check` tells it.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vswin_extract import system
from vswin_extract.errors import OutputError

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links."""
SECOND_LOOK = 0.2
"""Seconds after which a lock that is missing is looked for again."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lock. `role`: what it said about itself when it took the lock."""

    host: str
    pid: int
    role: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock that this process took; `held` makes it. `lost`: it is no longer ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        try:
            self._content = _read(path)
        except FileNotFoundError:
            self._content = ""
        found = _holder_in(self._content)
        if found is None or (found.host, found.pid) != (socket.gethostname(), os.getpid()):
            self._content, self.lost = "", True

    def is_ours(self) -> bool:
        """Look whether the lock is still ours. Raises OSError where that cannot be found out."""
        if not self.lost and not self._is_there():
            time.sleep(SECOND_LOOK)  # a process that found another's lock in its place puts it back
            self.lost = not self._is_there()
        return not self.lost

    def _is_there(self) -> bool:
        try:
            return _read(self.path) == self._content
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise OutputError if the lock is no longer ours. It names the process that has it now."""
        if self.is_ours():
            return
        now = named_holder(self.path)
        what = f"was taken over by {now}" if now else "was removed by another process, or by hand"
        raise OutputError(
            f"{self.path} {what}, because this process seemed to have ended (was its machine suspended?); it stops "
            "here, and keeps what is finished"
        )

    def touch(self) -> float:
        """Touch the file if it is still ours, and return its time, by the file server's clock; else 0. It is touched as
        it was opened, so never that of another process."""
        if not self.is_ours():
            return 0.0
        try:
            with self.path.open(errors="replace") as file:
                if file.read() == self._content:
                    os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return 0.0

    def release(self) -> None:
        """Remove the file if it is still ours."""
        if self.is_ours():
            _remove(self.path, self._content)


def acquire(lock: Path, dead_after: float, role: str = "") -> Holder | None:
    """Take a lock. Return None if it is ours now, else the process that has it.

    A lock of another host that was not touched for `dead_after` seconds counts as free. Use `held` to touch ours and
    to give it back. Raises OSError.
    """
    with _candidate(lock, role) as candidate:
        while True:
            try:
                create(candidate, lock)
                return None
            except FileExistsError:
                if holder := _living_holder(lock, candidate.stat().st_mtime, dead_after):
                    return holder


def holder(lock: Path, dead_after: float, now: float | None = None) -> Holder | None:
    """Return the process that has a lock, or None. The lock of a dead process is removed. `now`: the time by the file
    server's clock; without it, a file is written beside the lock to find out. Raises OSError."""
    if now is not None:
        return _living_holder(lock, now, dead_after)
    with _candidate(lock, "") as candidate:
        return _living_holder(lock, candidate.stat().st_mtime, dead_after)


def named_holder(lock: Path) -> Holder | None:
    """Return the process that a lock names, alive or not, or None if there is no lock."""
    try:
        return _holder_in(_read(lock))
    except FileNotFoundError:
        return None


@contextmanager
def held(lock: Path, touch_every: float) -> Iterator[Lock]:
    """Touch an acquired lock by a thread while the block runs, then remove it, both as long as it is ours."""
    ours = Lock(lock)
    over = threading.Event()

    def touch() -> None:
        while not over.wait(touch_every) and not ours.lost:
            with suppress(OSError):  # of a file server that does not answer now
                ours.touch()

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            ours.release()


def create(candidate: Path, file: Path) -> None:
    """Create a file with the content of `candidate`. Raises FileExistsError if it is there."""
    try:
        os.link(candidate, file)  # with its content, or not at all
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with file.open("x") as created:
            created.write(candidate.read_text())


@contextmanager
def _candidate(lock: Path, role: str) -> Iterator[Path]:
    """Give a file beside the lock that names this process and was written just now."""
    content = {"host": socket.gethostname(), "pid": os.getpid(), "started": system.started(os.getpid())}
    candidate = _beside(lock)
    candidate.write_text(json.dumps({**content, "role": role, "token": uuid.uuid4().hex}))
    try:
        yield candidate
    finally:
        candidate.unlink(missing_ok=True)


def _beside(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")


def _read(lock: Path) -> str:
    return lock.read_text(errors="replace")


def _holder_in(content: str) -> Holder | None:
    """Return the process that a lock with this content names, or None if it is damaged."""
    try:
        stored = json.loads(content)
        return Holder(stored["host"], stored["pid"], stored.get("role", ""))
    except (ValueError, KeyError, TypeError):
        return None


def _living_holder(lock: Path, now: float, dead_after: float) -> Holder | None:
    """Return the living process that has a lock. The lock of a dead one is removed. `now`: the time by the file
    server's clock."""
    try:
        content = _read(lock)
        if not content:  # without hard links, its content comes a moment later
            time.sleep(0.1)
            content = _read(lock)
        idle = now - lock.stat().st_mtime
    except FileNotFoundError:
        return None
    found = _holder_in(content)
    if found is not None:
        if found.host == socket.gethostname():
            alive = system.is_alive(found.pid, json.loads(content).get("started", ""))
        else:
            alive = idle < dead_after
        if alive:
            return found
    _remove(lock, content)
    return None


def _remove(lock: Path, content: str) -> None:
    """Remove a lock that has this content."""
    taken = _beside(lock)
    try:
        lock.rename(taken)
    except FileNotFoundError:
        return
    if _read(taken) != content:  # another process removed that lock first, and this is its own
        with suppress(FileExistsError):  # a third one has the lock now; the other process will notice
            create(taken, lock)
    taken.unlink()
