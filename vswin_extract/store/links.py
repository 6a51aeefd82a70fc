"""The files that an index links to: which of them may be read, and whether they have the rows that the index shows."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
from h5py import h5f, h5g

from vswin_extract.errors import first_line
from vswin_extract.store.attributes import kept_crops, stored_value
from vswin_extract.store.hdf5 import READ_ERRORS, Problem, expect_file, is_output, why_no_output, why_not_opened
from vswin_extract.store.structure import Unsound, check_dataset, look_into, open_member

VDS_PREFIX = "HDF5_VDS_PREFIX"
"""The variable that makes HDF5 look for linked files in other directories."""


def link_problems(links: Sequence[str], base: Path, follow: bool) -> Iterator[Problem]:
    """Yield which files an index must not link to, or cannot. `base`: the directory of the index. `follow`: they may
    be outside of it."""
    if os.environ.get(VDS_PREFIX):
        yield Problem("/linked", f"would be looked for in other directories, by the variable {VDS_PREFIX}; unset it")
        return
    resolve = functools.cache(os.path.realpath)  # of few directories, and many files in them
    for link in links:
        path = base / link
        place = os.path.realpath(path) if path.is_symlink() else os.path.join(resolve(path.parent), path.name)
        if not follow and not Path(place).is_relative_to(base):
            yield Problem("", f"links to {path}, outside its directory; --follow reads it")
            continue
        try:
            expect_file(path)
            h5f.open(os.fsencode(path), h5f.ACC_RDONLY).close()  # unlike h5py.File, in a tenth of a millisecond
        except FileNotFoundError:
            yield Problem("", f"links to {path}, which is not there; both have to be moved together")
        except READ_ERRORS as error:  # also if a program writes to it: HDF5 would invent its rows
            reason = why_not_opened(error) if isinstance(error, OSError) else first_line(error)
            yield Problem("", f"links to {path}, which cannot be read: {reason}")


def row_problems(files: Sequence[Path], runs: Sequence[str], names: Sequence[str]) -> Iterator[Problem]:
    """Yield why datasets of linked files cannot be read through an index. `runs`: their runs when it was made."""
    for path, run in zip(files, runs, strict=True):
        try:
            _check_rows(path, run, names)
        except Unsound as error:
            yield Problem("", f"links to {path}, which {error}")
        except READ_ERRORS as error:
            yield Problem("", f"links to {path}, which cannot be read: {first_line(error)}")


def _check_rows(path: Path, run: str, names: Sequence[str]) -> None:
    """Raise Unsound unless datasets of a file can be read safely, and the file is a finished output of this run."""
    expect_file(path)
    file = h5f.open(os.fsencode(path), h5f.ACC_RDONLY)
    try:
        root, whole = h5g.open(file, b"/"), h5py.File(file)
        if not is_output(whole):
            raise Unsound(why_no_output(whole))
        if stored_value(whole, "complete") is not True:
            raise Unsound("is not marked complete")
        if stored_value(whole, "run") != run:
            raise Unsound("is not the file that was linked to; another was written since")
        if root.links.exists(b"linked"):
            raise Unsound("is an index itself; merge the files that it links to")
        found = look_into(file, kept_crops(whole))
        if not isinstance(open_member(root, "clips", found), h5g.GroupID):
            raise Unsound("has no group /clips")
        for name in names:
            try:
                check_dataset(open_member(root, name, found), name, found)
            except Unsound as error:
                raise Unsound(f"has /{name}, which {error}") from error
    finally:
        file.close()
