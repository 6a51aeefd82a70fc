"""How this package uses HDF5: names of outputs, errors of files, the attributes of a file, columns of text, links."""

import errno
import os
import re
import stat
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5p, h5t

from vswin_extract.errors import OutputError, UsageError, first_line
from vswin_extract.files import names_path, require_parent
from vswin_extract.formatting import as_utf8, human_bytes
from vswin_extract.store.attributes import stored_value, stored_values, unread_texts

READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises where a file is damaged."""
SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
"""Endings of HDF5 files, in lower case. The name of an output has one of them."""


@dataclass(frozen=True)
class Problem:
    """Something wrong, and where: in a dataset, a video, or a file of the journal."""

    where: str
    what: str


class UnsoundOutput(UsageError):
    """An output whose structure is wrong: it is damaged, or made to deceive. `problems`: all that is wrong."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        where, what = problems[0].where, problems[0].what
        also = f"; and {len(problems) - 1} more: vswin check" if len(problems) > 1 else ""
        super().__init__(
            (f"{path}: {what}" if where == "/" else f"{path}: {where} {what}" if where else f"{path} {what}") + also
        )
        self.problems = problems


def output_path(given: str | os.PathLike[str]) -> Path:
    """Return the file that the name of an output means: a link is followed, so that its target is written. Raises
    UsageError for a name that does not end as those of HDF5 files do."""
    name = os.fspath(given)
    if Path(name).suffix.lower() not in SUFFIXES or name.endswith("/"):
        raise UsageError(_wrong_name(name))
    return Path(os.path.realpath(name))


def _wrong_name(name: str) -> str:
    """Return why a name cannot be that of an output, and which one can."""
    if name in ("", "-"):
        return f"{name!r} cannot be the output: name a file that ends in .h5, as out.h5"
    if os.path.isdir(name) and not name.endswith(".parts"):
        return f"{name} is a directory; name the file to write, as {os.path.join(name, 'out.h5')}"
    path = Path(name)
    # run.1 has no ending, and gets .h5 too
    foreign = path.suffix == ".parts" or re.fullmatch(r"\.[a-zA-Z]{2,6}\d?", path.suffix)
    stem = path.with_suffix("") if foreign else path
    better = stem if stem.suffix.lower() in SUFFIXES else f"{stem}.h5"
    if os.path.isfile(name) and read_attributes(path) is None:
        return f"{name} exists and was not written by vswin-extract; name the file to write, as {better}"
    unfinished = f"; to continue its run, rename {name}.parts to {better}.parts"
    return f"{name} cannot be the output: its name must end in .h5 or .hdf5, as {better}" + unfinished * os.path.isdir(
        f"{name}.parts"
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise OSError with the path if the disk is full. HDF5 itself raises a RuntimeError of many lines."""
    with names_path(path):
        try:
            yield
        except (RuntimeError, OSError) as error:
            number = re.search(r"errno = (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def expect_room(path: Path, needed: int) -> None:
    """Raise OSError unless the disk has room for so many bytes. HDF5 does not survive a disk that fills up."""
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < needed:
        reason = f"{os.strerror(errno.ENOSPC)}: the output needs {human_bytes(needed)}"
        raise OSError(errno.ENOSPC, reason, str(path))


def is_locked(error: OSError) -> bool:
    """True if HDF5 could not open a file because a program writes to it, or locks do not work there."""
    return "unable to lock file" in str(error) or "already open for" in str(error)


def why_not_opened(error: OSError) -> str:
    """Return why HDF5 could not open a file that is there."""
    if is_locked(error):
        if error.errno not in (None, errno.EAGAIN, errno.EACCES):  # "already open" comes without a number
            return "its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE"
        return (
            "another program has it open for writing, or ended without closing it; close it there, or if no program "
            "has it open: h5clear -s"
            if error.errno is None
            else "another program has it open for writing; close it there"
        )
    if error.filename is not None:  # of the system itself
        return str(error.strerror)
    return "not an HDF5 file, or not a whole one" if error.errno is None else os.strerror(error.errno)


@contextmanager
def read_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors that h5py raises in the block an UnsoundOutput: what it reads is damaged. Errors of others
    pass, and those of the system, as of a broken disk."""
    try:
        yield
    except READ_ERRORS as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        by_h5py = str(frame.f_globals.get("__name__")).partition(".")[0] == "h5py"
        if not by_h5py or getattr(error, "errno", None) or "errno = " in str(error):
            raise
        raise UnsoundOutput(os.fspath(path), [Problem("/", f"cannot be read: {first_line(error)[:200]}")]) from error


def expect_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError if what is at `path` is not a regular file: opening a pipe would wait for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def is_output(file: h5py.File) -> bool:
    """True if a file was written by this package."""
    return str(stored_value(file, "schema") or "").startswith("vswin-extract/")


def is_unreadable(file: h5py.File) -> bool:
    """True if it cannot be known whether a file is an output, because its attributes are not read."""
    return h5a.exists(file.id, b"schema") and unread_texts(file)


def why_no_output(file: h5py.File) -> str:
    """Return why a file is no output, or why that cannot be known."""
    if is_unreadable(file):
        return (
            "has its attributes in the newest format of HDF5, which is not read, or they are damaged; h5repack without "
            "-L writes it in the usual format"
        )
    return "was not written by vswin-extract"


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Return the root attributes of an output as they are stored, or None if there is no output at `path`. Raises
    OutputError if there is a file that cannot be opened now."""
    try:
        expect_file(path)
        with h5py.File(path, "r") as file:
            if is_output(file):
                return stored_values(file)
            if is_unreadable(file):
                raise OutputError(f"{path} {why_no_output(file)}")
            return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EISDIR) or not (error.errno or is_locked(error)):
            return None
        raise OutputError(f"cannot open {path}: {why_not_opened(error)}") from error
    except READ_ERRORS as error:
        raise OutputError(f"cannot read {path}: {first_line(error)}") from error


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write a column of texts. Bytes of file names that are not UTF-8 become escapes."""
    group.create_dataset(name, data=np.array([as_utf8(text) for text in texts], object), dtype=h5py.string_dtype())


def link_properties() -> h5p.PropLCID:
    """Return how links are made by h5py's low-level interface: names are UTF-8, and missing parent groups are made."""
    properties = h5p.create(h5p.LINK_CREATE)
    properties.set_char_encoding(h5t.CSET_UTF8)
    properties.set_create_intermediate_group(True)
    return properties


def check_output(output: Path, overwrite: bool) -> None:
    """Raise OutputError unless `output` can be written: it is not there, or is ours and may be overwritten."""
    if output.is_dir():
        raise OutputError(f"{output} is a directory; the last argument is the file to write, as in: videos/ out.h5")
    if output.exists() and not output.is_file():  # HDF5 would wait for somebody to write into a pipe
        raise OutputError(f"{output} is a device or a pipe; name the file to write")
    require_parent(output, OutputError)
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write into {output.parent.absolute()}; name a file in another directory")
    if os.path.lexists(output):
        if read_attributes(output) is None:
            raise OutputError(f"{output} exists and was not written by vswin-extract; choose another name")
        if not overwrite:
            raise OutputError(f"{output} exists; add --overwrite (in Python: overwrite=True) to replace it")
