"""Files on a disk: their hash, and atomic writes, after which a file is there as a whole or not at all."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value), "utf-8")


def require_parent(path: Path, error: type[VswinError] = UsageError) -> None:
    """Raise `error` unless the directory that `path` is to be written into is there."""
    if not path.absolute().parent.is_dir():
        raise error(f"no directory {path.absolute().parent} to write {path.name} into")


def sync(path: Path) -> None:
    """Make a file survive a power cut, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        system.flush(descriptor)
    finally:
        os.close(descriptor)
