"""Locks that hosts on a shared file system see, without flock, which network file systems may lack.

A lock is a file that names a process: its host, its pid, and when it began. A process of this host that is gone holds
nothing; one of another host holds what it touched lately.
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

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What a file system without hard links answers."""


@dataclass(frozen=True)
class Holder:
    """A process that has a lock."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def acquire(lock: Path, dead_after: float) -> Holder | None:
    """Claim a lock: None where it is ours from here on, else who has it. Who lives touches it (`os.utime`) more often
    than every `dead_after` seconds. Raises OSError."""
    with _fresh(lock) as candidate:
        while True:
            try:
                create(candidate, lock)
                return None
            except FileExistsError:
                if holder := _living(lock, candidate, dead_after):
                    return holder


def holder(lock: Path, dead_after: float) -> Holder | None:
    """Who has a lock, which goes where its process is dead; None where nobody has it."""
    with _fresh(lock) as candidate:
        return _living(lock, candidate, dead_after)


@contextmanager
def _fresh(lock: Path) -> Iterator[Path]:
    """A lock's content under another name, written just now."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    candidate = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")
    candidate.write_text(json.dumps(mine))
    try:
        yield candidate
    finally:
        candidate.unlink(missing_ok=True)


@contextmanager
def held(lock: Path, touch_every: float) -> Iterator[None]:
    """Around what is done under a lock that was acquired: touches it by a thread, and gives it back."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(touch_every):
            with suppress(OSError):  # whoever took it away knows why
                os.utime(lock)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(lock.read_text())
            if (said["host"], said["pid"]) == (socket.gethostname(), os.getpid()):  # not another's, who thought us dead
                lock.unlink()


def create(candidate: Path, file: Path) -> None:
    """Give a file the content of `candidate`. Raises FileExistsError where it is there."""
    try:
        os.link(candidate, file)  # with its content, or not at all
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with file.open("x") as created:
            created.write(candidate.read_text())


def _living(lock: Path, fresh: Path, dead_after: float) -> Holder | None:
    """The living process that has a lock. One of a dead process is removed."""
    try:
        content = lock.read_text()
        if not content:  # being written, where there are no links
            time.sleep(0.1)
            content = lock.read_text()
        idle = fresh.stat().st_mtime - lock.stat().st_mtime  # both by the file server's clock
    except FileNotFoundError:
        return None
    try:
        said = json.loads(content)
        found = Holder(said["host"], said["pid"])
        here = found.host == socket.gethostname()
        alive = _started(found.pid) == said["started"] if here else idle < dead_after
    except (ValueError, KeyError, TypeError):  # a disk spoiled it
        alive = False
    if alive:
        return found
    taken = fresh.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")
    try:
        lock.rename(taken)
    except FileNotFoundError:
        return None
    if taken.read_text() != content:  # somebody else was quicker, and this is theirs
        create(taken, lock)
    taken.unlink()
    return None


def _started(pid: int) -> str | None:
    """When a process of this host began, as far as can be told; None where there is none. Pids are used again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:  # no such file system
        return "?"
    return fields[18] if state not in "ZX" else None  # killed, and its parent has not noticed
