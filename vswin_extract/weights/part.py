"""An unfinished download, FILE.part, and the source of its bytes, FILE.part.json.

FILE.part.json holds the address of the bytes and the validator of the file there: its ETag or Last-Modified, by which
HTTP recognises one version of a file. A part without a validator cannot be continued.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from vswin_extract import files
from vswin_extract.errors import WeightsError
from vswin_extract.formatting import human_bytes
from vswin_extract.video.remote import without_secrets
from vswin_extract.weights.registry import MOST_BYTES

BLOCK = 1 << 20
"""Bytes to read at once, at most."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

ProgressCallback = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the complete file, 0 if the latter are unknown."""


@dataclass(frozen=True)
class PartOrigin:
    """The file that is downloaded into a part: its address without secrets, its validator, and its size (0 if
    unknown)."""

    url: str
    validator: str
    size: int


def read_origin(part: Path) -> PartOrigin | None:
    """Return the origin of a part, or None if it cannot be read, or if one of the two is missing or is not a regular
    file of this user with a single name: other users may plant files in a shared cache."""
    try:
        if not all(files.is_own_file(path.lstat()) for path in (part, _origin_file(part))):
            return None
        return PartOrigin(**json.loads(_origin_file(part).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def resumable_bytes(part: Path, url: str) -> int:
    """Return how many bytes from an earlier download of this address can be used again."""
    origin = read_origin(part)
    return part.stat().st_size if origin and origin.url == without_secrets(url) and origin.validator else 0


def start_part(part: Path, origin: PartOrigin | None = None) -> FileIO:
    """Open an empty part for writing.

    An older part and its origin are removed first, so that the origin never describes bytes of another file.
    """
    remove_part(part)  # removed instead of truncated, because it may belong to another user
    file = FileIO(part, "xb")  # a new file: a link that another user has put there meanwhile is not followed
    if origin:
        with _origin_file(part).open("x", encoding="utf-8") as described:
            described.write(json.dumps(asdict(origin)))
    return file


def continue_part(part: Path) -> FileIO:
    """Open a part for writing at its end. Raise OSError if it is not a regular file of this user with a single name."""
    file = FileIO(part, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    if not files.is_own_file(os.fstat(file.fileno())):
        file.close()
        raise PermissionError(errno.EPERM, "it is no regular file of this user alone", str(part))
    return file


def write_block(file: FileIO, block: bytes) -> int:
    """Write all bytes of a block. Return the position behind them."""
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]
    return file.tell()


def copy_to_part(
    source: Path, part: Path, progress: ProgressCallback = lambda done, total: None, most: int = MOST_BYTES
) -> None:
    """Copy a file on a disk to `part`. Raise WeightsError for one of more than `most` bytes, and OSError."""
    size = source.stat().st_size
    if size > most:
        raise WeightsError(f"the file has {human_bytes(size)}, but at most {human_bytes(most)} are expected")
    with source.open("rb") as file, start_part(part) as target:
        try:
            require_space(part, size)
            while block := file.read(BLOCK):
                progress(write_block(target, block), size)
        except OSError as error:
            remove_part(part)
            raise explain_disk_error(error, part) from None


def remove_part(part: Path) -> None:
    """Remove a part and its origin, if they are there."""
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)


def remove_unless_resumable(part: Path, url: str) -> None:
    """Remove a part that no later download can continue. A part from another address may be continued from there."""
    origin = read_origin(part)
    if origin is None or (origin.url == without_secrets(url) and not resumable_bytes(part, url)):
        remove_part(part)


def publish_part(part: Path, path: Path) -> None:
    """Rename a complete part to `path`, readable for all users."""
    with suppress(PermissionError):  # the part belongs to another user
        part.chmod(0o644)
    files.publish(part, path)
    _origin_file(part).unlink(missing_ok=True)


def require_space(part: Path, needed: int) -> None:
    """Raise OSError unless the disk has room for so many bytes."""
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        reason = f"{human_bytes(needed)} are needed, {human_bytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {reason}")


def explain_disk_error(error: OSError, part: Path, kept: int = 0) -> OSError:
    """Return the error; if the disk is full, with advice. `kept`: bytes that a later download can continue."""
    if error.errno not in DISK_FULL:
        return error
    advice = "free some space, or choose another directory with VSWIN_WEIGHTS_DIR"
    if kept:
        advice = f"{human_bytes(kept)} are kept for a later try (vswin weights prune --yes removes them); {advice}"
    return OSError(error.errno, f"{error.strerror}, in {part.parent}; {advice}")


def _origin_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")
