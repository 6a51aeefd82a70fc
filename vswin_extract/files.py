"""Files on a disk: their hash, atomic writes, after which a file is there as a whole or not at all, and whether a file
that a user names may be written."""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vswin_extract import system
from vswin_extract.errors import UsageError, VswinError


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def names_path(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Make errors of the system name `path` if they name no path, or `unfinished` or a file in it."""
    try:
        yield
    except OSError as error:
        named = error.filename
        inside = unfinished and isinstance(named, str) and Path(named).is_relative_to(unfinished)
        if error.errno is not None and (named is None or inside):
            error.filename = str(path)
        raise


def publish(unfinished: Path, path: Path) -> None:
    """Rename a finished file to its own name, so that it survives a power cut."""
    with names_path(path, unfinished):
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a new name beside `path` to write to. When the block ends, that file is published as `path`; when the block
    raises, it is removed and `path` stays as it was. The new name ends in .tmp, and no other process uses it."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with names_path(path, unfinished):
            yield unfinished
            publish(unfinished, path)
    finally:
        if os.path.lexists(unfinished):  # a disk without writing refuses to remove also what is not there
            unfinished.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value), "utf-8")


def require_parent(path: Path, error: type[VswinError] = UsageError) -> None:
    """Raise `error` unless the directory that `path` is to be written into is there."""
    if not path.absolute().parent.is_dir():
        raise error(f"no directory {path.absolute().parent} to write {path.name} into; make it, or name another")


@dataclass(frozen=True)
class FileKind:
    """What a command writes. `name`: in words, as "a page of vswin-extract". `marks`: each file of the kind has one of
    these near its beginning or its end; a file without one belongs to somebody else."""

    name: str
    marks: tuple[bytes, ...]
    within: int = 4096

    def has(self, path: Path) -> bool:
        """True if a file is of this kind, or empty, as mktemp makes it. Raises OSError."""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            content = file.read(self.within)
            file.seek(max(0, size - self.within))
            content += b"\n" + file.read(self.within)
        return not size or any(mark in content for mark in self.marks)


@dataclass(frozen=True)
class Target:
    """A file that a user names to be written. If it is there, it is replaced if it is of the same kind, or with
    `overwrite`, but never if it is one of the files that the command `reads`. `advice`: what else to do about a file of
    another kind."""

    given: Path
    kind: FileKind
    reads: Callable[[], Iterable[str | os.PathLike[str]]] = tuple
    overwrite: bool = False
    advice: str = "name another file, or add --overwrite to replace it"
    compared: set[tuple[int, int]] = field(default_factory=set, init=False, compare=False)
    """The device and inode of each file that was there and is none of those that the command reads."""

    def check(self) -> Path:
        """Return the file to write: of a link, its target. Raises UsageError if it must not be written, OSError."""
        path = self.check_replaced()
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write into {path.parent}; name a file in another directory")
        return path

    def check_replaced(self) -> Path:
        """Return the same path, and check only the file that is there, so that it can be read where nothing may be
        written. Raises UsageError if it must not be replaced, OSError."""
        path = Path(os.path.realpath(self.given))
        try:
            there = os.stat(self.given)  # also of /dev/stdout, whose real path may name no file
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(self.given):
                raise UsageError(f"{self.given} is a link to {path}, which is not there; name {path} itself") from None
            require_parent(self.given)
        else:
            self._expect_replaceable(path, there)
        return path

    def _expect_replaceable(self, path: Path, there: os.stat_result) -> None:
        if stat.S_ISDIR(there.st_mode):
            raise UsageError(f"{self.given} is a directory; name the file to write")
        if not stat.S_ISREG(there.st_mode):
            raise UsageError(f"{self.given} is a device or a pipe; name the file to write")
        if (there.st_dev, there.st_ino) not in self.compared:
            for read in self.reads():
                if is_same_file(there, read):
                    raise UsageError(f"{self.given} is read by this command, as {os.fspath(read)}; name another file")
            self.compared.add((there.st_dev, there.st_ino))
        if not self.overwrite and not self.kind.has(path):
            raise UsageError(f"{self.given} exists and is not {self.kind.name}; {self.advice}")

    @contextmanager
    def write(self) -> Iterator[Path]:
        """Check, and give a new name to write to, as `atomic_write` does. Another program may have made the file
        meanwhile, so it is checked again before it is replaced. The new file has the old one's permissions. Raises
        UsageError, OSError."""
        path = self.check()
        with atomic_write(path) as unfinished:
            yield unfinished
            if self.check() == path and path.exists():
                unfinished.chmod(stat.S_IMODE(path.stat().st_mode))


def is_own_file(status: os.stat_result) -> bool:
    """True for a regular file of this user with a single name: nobody else can write to it, and it is from nowhere
    else."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def is_same_file(state: os.stat_result, path: str | os.PathLike[str]) -> bool:
    """True if a path leads to the file with this state, by whichever links and spelling."""
    try:
        return os.path.samestat(state, os.stat(path))
    except (OSError, ValueError):  # nothing is there; ValueError: a name with a null character
        return False


def sync(path: Path) -> None:
    """Make a file survive a power cut, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        system.flush(descriptor)
    finally:
        os.close(descriptor)
