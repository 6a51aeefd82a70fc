"""Files on a disk: hashed as they are, and in place whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(unfinished: Path, path: Path) -> None:
    """Rename a finished file into place so that it survives a power cut."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(value), "utf-8")
    publish(unfinished, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
