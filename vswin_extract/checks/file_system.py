"""Check of the file system of a directory: everything that a run does with files, done there."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from vswin_extract import locks
from vswin_extract.checks.result import Check
from vswin_extract.errors import OutputError
from vswin_extract.files import publish
from vswin_extract.formatting import human_bytes
from vswin_extract.journal.directory import claim
from vswin_extract.system import mounts

NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "pvfs2", "smb3", "smbfs",
}  # fmt: skip
"""File systems that are shared over a network; those of FUSE may be, too."""
LITTLE_SPACE = 1e9
"""Free bytes below which there is a warning."""


def check_file_system(directory: Path) -> Iterator[Check]:
    """Yield the checks of the file system of a directory. They write into a new directory there and remove it."""
    kind = file_system_type(directory)
    shared = kind in NETWORK or kind.startswith("fuse.")
    name = f"{kind}{' (it seems to be on a network)' if shared else ''}"
    free = shutil.disk_usage(directory).free
    own = directory / f".vswin-doctor-{uuid.uuid4().hex}"
    try:
        own.mkdir()
    except OSError as error:
        advice = "name the directory where the output is to be: vswin doctor DIR"
        yield Check("file system", "failed", f"{directory} cannot be written: {error.strerror}", advice)
        return
    try:
        for what, attempt, advice in (
            ("journal lock", _try_lock, "keep the journal on another file system: --storage DIR"),
            ("fsync and rename", _try_publish, "finished videos may be lost in a power cut here; use another disk"),
            ("HDF5 locking", _try_hdf5, "set HDF5_USE_FILE_LOCKING=FALSE, or write to another disk and copy the file"),
        ):  # fmt: skip
            try:
                attempt(own)
            except (OSError, OutputError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error).replace(str(own), "…")
                yield Check(what, "failed", f"{reason} on {name}", advice)
            else:
                yield Check(what, "ok", f"works on {name}")
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if free < LITTLE_SPACE:
        advice = "embeddings need 1 to 3 kB per clip, stage maps megabytes; use --pool, or another disk"
        yield Check("free space", "warning", human_bytes(free), advice)
    else:
        yield Check("free space", "ok", human_bytes(free))


def _try_lock(folder: Path) -> None:
    """Lock as the journal does; a second lock must be refused. Raises OSError, OutputError."""
    with claim(folder / "lock", folder / "out.h5"):
        candidate = folder / "second"
        candidate.touch()
        with contextlib.suppress(FileExistsError):
            locks.create(candidate, folder / "lock")
            raise OutputError("two processes could hold one lock: a file that exists was created again")


def _try_publish(folder: Path) -> None:
    """Replace a file by an atomic rename. Raises OSError, OutputError."""
    for content in ("before", "after"):
        (folder / "unfinished").write_text(content)
        publish(folder / "unfinished", folder / "published")
        if (folder / "published").read_text() != content:
            raise OutputError("a file that was replaced by a rename has the old content")


def _try_hdf5(folder: Path) -> None:
    """Write an HDF5 file and open it twice. Raises OSError, OutputError."""
    with h5py.File(folder / "test.h5", "w") as file:
        file["numbers"] = np.arange(1000)
    with h5py.File(folder / "test.h5", "r") as file, h5py.File(folder / "test.h5", "r"):
        if file["numbers"][:].sum() != 499500:
            raise OutputError("HDF5 read other numbers than it wrote")


def file_system_type(directory: Path) -> str:
    """Return the type that a directory's file system is mounted with, as ext4, nfs4 or lustre; "unknown" if the system
    has no list of mounts."""
    here, longest, kind = str(directory.resolve()), "", "unknown"
    for mounted, found in mounts():
        below = here == mounted or here.startswith(mounted.rstrip("/") + "/")
        if below and len(mounted) >= len(longest):  # of two mounts at one place, the later hides the earlier
            longest, kind = mounted, found
    return kind
