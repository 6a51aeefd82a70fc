"""How this package uses HDF5: errors of the disk, the attributes of a file, columns of text, links."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5p, h5t

from vswin_extract.errors import OutputError
from vswin_extract.files import require_parent
from vswin_extract.formatting import as_utf8


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise OSError if the disk is full. HDF5 itself raises a RuntimeError of many lines."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def is_output(file: h5py.File) -> bool:
    """True if a file was written by this package."""
    return str(file.attrs.get("schema", "")).startswith("vswin-extract/")


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Return the root attributes of an output as they are stored, or None if there is no output at `path`."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs) if is_output(file) else None
    except OSError:
        return None


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
    require_parent(output, OutputError)
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write into {output.parent.absolute()}")
    if os.path.lexists(output):
        if read_attributes(output) is None:
            raise OutputError(f"{output} exists and was not written by vswin-extract; choose another name")
        if not overwrite:
            raise OutputError(f"{output} exists; add --overwrite to replace it")
