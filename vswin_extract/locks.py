"""Locks for processes on several hosts that share a file system, without flock, which network file systems may lack.

A lock is a file that names its holder: host, pid, and when the process began. If the holder is a process of this host,
the lock counts as long as the process lives; if it is one of another host, as long as it touches the file. A process
with this host's name whose pid means nothing here, as that of a container of the same name, counts as one of another
host. Packages do
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from vswin_extract import system
from vswin_extract.errors import OutputError

REBOOT = 120.0
"""Seconds after which a lock counts as one of a process that ended with its machine, if nobody has touched it since
this machine, which has the same name, was started."""
MOST_BYTES = 1 << 16
"""Bytes of a lock that are read."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links."""
SECOND_LOOK = 0.2
"""Seconds after which a lock that is missing is looked for again."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lock. `role`: what it said about itself when it took the lock. `space`: the boot of its
    machine and its namespace of process ids; None in locks of earlier versions. `started`: when it began."""

    host: str
    pid: int
    role: str = ""
    space: tuple[str, str] | None = field(default=None, compare=False)
    started: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_alive(self, idle: float, dead_after: float) -> bool:
        """True if the process lives, as far as that can be known. Its lock was not touched for `idle` seconds."""
        boot, space = system.process_space()
        if self.host == socket.gethostname():
            if self.space in (None, (boot, space)):
                return system.is_alive(self.pid, self.started)
            if self.space is not None and self.space[0] != boot and (up := system.uptime()) is not None:
                return idle < min(dead_after, max(up, REBOOT))
        return idle < dead_after


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
        ours = socket.gethostname(), os.getpid(), system.process_space()
        if found is None or (found.host, found.pid, found.space) != ours:
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
            with _open(self.path) as file:
                if file.read(MOST_BYTES) == self._content:
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


def seen_holder(lock: Path, dead_after: float) -> Holder | None:
    """The same in a directory that cannot be written: no lock is removed, and the time is that of this host."""
    try:
        content, idle = _look(lock, time.time())
    except FileNotFoundError:
        return None
    found = _holder_in(content)
    return found if found is not None and found.is_alive(idle, dead_after) else None


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
    content |= {"space": system.process_space(), "role": role, "token": uuid.uuid4().hex}
    candidate = _beside(lock)
    try:
        candidate.write_text(json.dumps(content))
        yield candidate
    finally:
        candidate.unlink(missing_ok=True)


def _beside(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")


def _read(lock: Path) -> str:
    with _open(lock) as file:
        return file.read(MOST_BYTES)


def _open(lock: Path) -> TextIO:
    """Open a lock. A pipe of that name has no content; it is not waited for."""
    return open(lock, errors="replace", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _holder_in(content: str) -> Holder | None:
    """Return the process that a lock with this content names, or None if it is damaged."""
    try:
        stored = json.loads(content)
        host, pid, role, begun = stored["host"], stored["pid"], stored.get("role", ""), stored.get("started") or ""
        space = stored.get("space")
        if type(pid) is not int or not 0 < pid < 1 << 31:  # 0 and -1 would mean many processes
            return None
        if not all(isinstance(text, str) for text in (host, role, begun, *(space or ()))):
            return None
        return Holder(host, pid, role, None if space is None else (space[0], space[1]), begun)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _look(lock: Path, now: float) -> tuple[str, float]:
    """Return the content of a lock, and for how many seconds it was not touched. Raises FileNotFoundError."""
    content = _read(lock)
    if not content:  # without hard links, its content comes a moment later
        time.sleep(0.1)
        content = _read(lock)
    return content, now - lock.stat().st_mtime


def _living_holder(lock: Path, now: float, dead_after: float) -> Holder | None:
    """Return the living process that has a lock. The lock of a dead one is removed. `now`: the time by the file
    server's clock."""
    try:
        content, idle = _look(lock, now)
    except FileNotFoundError:
        return None
    found = _holder_in(content)
    if found is not None and found.is_alive(idle, dead_after):
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
