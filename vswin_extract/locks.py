"""Locks for processes on several hosts that share a file system, without flock, which network file systems may lack.

A lock is a file that names its holder: host, pid, and when the process began. If the holder is a process of this host,
the lock counts as long as the process lives; if it is one of another host, as long as it touches the file. Packages do
not do this: the hard lock of `filelock` is flock, and its `SoftFileLease` takes over the lock of a dead host only after
it has watched it for the whole lease, which a command that answers at once cannot do; `flufl.lock` needs hard links and
clocks that agree, and keeps the lock of a process that died on this host until the lease ends.
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

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lock."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def acquire(lock: Path, dead_after: float) -> Holder | None:
    """Take a lock. Return None if it is ours now, else the process that has it.

    A lock of another host that was not touched for `dead_after` seconds counts as free. Use `held` to touch ours and
    to give it back. Raises OSError.
    """
    with _candidate(lock) as candidate:
        while True:
            try:
                create(candidate, lock)
                return None
            except FileExistsError:
                if holder := _living_holder(lock, candidate, dead_after):
                    return holder


def holder(lock: Path, dead_after: float) -> Holder | None:
    """Return the process that has a lock, or None. The lock of a dead process is removed. Raises OSError."""
    with _candidate(lock) as candidate:
        return _living_holder(lock, candidate, dead_after)


@contextmanager
def held(lock: Path, touch_every: float) -> Iterator[None]:
    """Touch an acquired lock by a thread while the block runs, then remove it."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(touch_every):
            with suppress(OSError):  # it may have been removed by hand
                os.utime(lock)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(lock.read_text())
            if (content["host"], content["pid"]) == (socket.gethostname(), os.getpid()):  # not taken over
                lock.unlink()


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
def _candidate(lock: Path) -> Iterator[Path]:
    """Give a file beside the lock that names this process and was written just now."""
    content = {"host": socket.gethostname(), "pid": os.getpid(), "started": system.started(os.getpid())}
    candidate = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")
    candidate.write_text(json.dumps(content))
    try:
        yield candidate
    finally:
        candidate.unlink(missing_ok=True)


def _living_holder(lock: Path, fresh: Path, dead_after: float) -> Holder | None:
    """Return the living process that has a lock. The lock of a dead one is removed. `fresh` was written just now."""
    try:
        content = lock.read_text()
        if not content:  # without hard links, its content comes a moment later
            time.sleep(0.1)
            content = lock.read_text()
        idle = fresh.stat().st_mtime - lock.stat().st_mtime  # both by the file server's clock
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(content)
        found = Holder(stored["host"], stored["pid"])
        here = found.host == socket.gethostname()
        alive = system.is_alive(found.pid, stored["started"]) if here else idle < dead_after
    except (ValueError, KeyError, TypeError):  # damaged by a disk
        alive = False
    if alive:
        return found
    taken = fresh.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")
    try:
        lock.rename(taken)
    except FileNotFoundError:
        return None
    if taken.read_text() != content:  # another process removed the dead lock first, and this is its own
        create(taken, lock)
    taken.unlink()
    return None
