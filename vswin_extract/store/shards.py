"""The shards of an output: their names, and which of them may be removed.

Two kinds of shards are removed: what a failed or killed attempt to make the output wrote, and what an index linked to
that is replaced. A shard stays if it is a part that is merged, or if another file links to it or may do so: an index
that was moved or copied, or one in another directory. Disk space that stays in use is said in a note.
"""

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from vswin_extract.files import names_path, publish
from vswin_extract.formatting import human_bytes, name_some, plural
from vswin_extract.store.features import read_links

NAME = re.compile(r"\d{5,}(-[0-9A-Za-z]+)?(-[0-9a-f]{8})?\.h5")
"""Names of shards: <number>-<run>-<attempt>.h5. Earlier versions wrote <number>-<attempt>.h5 and <number>.h5."""
MARK = "unfinished"
"""A file in a shard directory whose name begins so is of an attempt that has not ended."""
LINKED_ELSEWHERE = "linked-elsewhere.txt"
"""A file in a shard directory that names the indices of other directories that link to its shards."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of HDF5 in a file. It begins at byte 0, or at 512, 1024, 2048..., behind a user block."""


def shards_directory(output: Path) -> Path:
    """Return where the shards of an output are."""
    return output.with_name(f"{output.name}.shards")


def shard_files(output: Path) -> list[Path]:
    """Return the shards that are there, in order, whether the output links to them or not."""
    return sorted(path for path in files_in(shards_directory(output)) if NAME.fullmatch(path.name))


class Attempt:
    """One attempt to make an output. `shards`: those that it wrote. `notes` are for the user.

    `run`: the id of the run that makes it. `sources`: files that are read, and never removed.
    """

    def __init__(self, output: Path, run: str = "", sources: Collection[Path] = ()) -> None:
        self.output = output
        self.directory = shards_directory(output)
        self.run = run
        self.sources = {os.path.realpath(path) for path in sources}
        self.replaced = links(output) or set()
        self.id = uuid.uuid4().hex[:8]
        self.shards: list[Path] = []
        self.notes: list[str] = []

    def new_shard(self) -> Path:
        """Return the name of the next shard. It is written under this name with .tmp behind it."""
        if not self.shards:
            self.directory.mkdir(exist_ok=True)
            self._mark(self.id).touch(exist_ok=False)
        self.shards.append(self.directory / f"{len(self.shards):05}-{self.run}-{self.id}.h5")
        return self.shards[-1]

    def clear(self) -> None:
        """Remove what killed attempts of the same run left. No other process makes the output at this time."""
        for mark in self.directory.glob(self._mark("*").name):
            theirs = [path for path in shard_files(self.output) if path.stem.endswith(mark.name.removeprefix(MARK))]
            self._remove(theirs)
            if not any(map(Path.exists, theirs)):
                for unfinished in self.directory.glob(f"*{mark.name.removeprefix(MARK)}.h5.tmp"):
                    unfinished.unlink(missing_ok=True)
                mark.unlink(missing_ok=True)

    def undo(self) -> None:
        """Remove the shards that this attempt wrote, unless the output links to them: it may be in place already."""
        linked = links(self.output) if os.path.lexists(self.output) else set()
        for path in self.shards:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
            if linked is not None and os.path.realpath(path) not in linked:
                path.unlink(missing_ok=True)
        if self.shards:
            self._mark(self.id).unlink(missing_ok=True)
            remove_if_empty(self.directory)

    def finish(self) -> None:
        """Remove the shards of the replaced index, and note what is there besides the shards of the new output."""
        self._mark(self.id).unlink(missing_ok=True)
        self._remove(path for path in shard_files(self.output) if os.path.realpath(path) in self.replaced)
        remove_if_empty(self.directory)
        self.notes += [*spare_shards(self.output), *outside_note(self.output)]

    def _mark(self, attempt: str) -> Path:
        """Return the file that says that an attempt of this run has not ended, or was killed."""
        return self.directory / f"{MARK}-{self.run}-{attempt}"

    def _remove(self, shards: Iterable[Path]) -> None:
        """Remove shards that are not needed, as far as that can be known."""
        for path in without_links(list(shards), self.output):
            if os.path.realpath(path) not in self.sources:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(output: Path, unfinished: Path, run: str = "", sources: Collection[Path] = ()) -> Iterator[Attempt]:
    """Publish what the block writes to `unfinished` as the output, and remove the shards of the output before. If the
    block raises, the output stays as it was, and the shards go that the block wrote, and no others."""
    attempt = Attempt(output, run, sources)
    try:
        with names_path(output, unfinished):
            with contextlib.suppress(OSError):  # of a directory that cannot be read; what is there stays
                attempt.clear()
            yield attempt
            publish(unfinished, output)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            unfinished.unlink(missing_ok=True)
            attempt.undo()
        raise
    try:
        attempt.finish()
    except OSError as error:  # the output is in place
        attempt.notes.append(f"shards of the output before stay in {attempt.directory}: {error.strerror}")


def outside_note(output: Path) -> list[str]:
    """Return a note on a file outside the directory of an index that it links to; none if there is no such file."""
    base = os.path.dirname(os.path.realpath(output))
    outside = sorted(file for file in links(output) or () if not Path(file).is_relative_to(base))
    text = f"is outside the directory of {output.name}, so commands read it with --follow only"
    return [f"{file} {text}" for file in outside[:1]]


def spare_shards(output: Path) -> list[str]:
    """Return a note on the files in the shard directory of an output that no output beside it links to; none if there
    are no such files."""
    directory = shards_directory(output)
    if not (files := [path for path in files_in(directory) if NAME.fullmatch(path.name.removesuffix(".tmp"))]):
        return []
    linked, doubt = links_beside(output)
    spare = [path for path in files if os.path.realpath(path) not in linked]
    if not spare:
        return []
    size = human_bytes(sum(path.stat().st_size for path in spare))
    names = name_some(sorted(path.name for path in spare))
    perhaps = f"; another may ({doubt})" if doubt else "; an index in another directory may"
    return [
        f"{directory} has {plural(len(spare), 'file')} ({size}) that no output beside it links to{perhaps}; if "
        f"nothing is being written there now, delete what you do not need: {names}"
    ]


def without_links(shards: list[Path], output: Path) -> list[Path]:
    """Return those of an output's shards that no file links to; none if that cannot be known."""
    linked, doubt = links_beside(output) if shards else (set(), "")
    return [] if doubt else [path for path in shards if os.path.realpath(path) not in linked]


def links_beside(output: Path) -> tuple[set[str], str]:
    """Return the real paths of the files that all HDF5 files in the directory of an output link to, and why other files
    may link to its shards, too, or ""."""
    directory = shards_directory(output)
    found: set[str] = set()
    doubt = f"{directory} is itself a link" if directory.is_symlink() else ""
    if (directory / LINKED_ELSEWHERE).exists():
        doubt = f"see {directory / LINKED_ELSEWHERE}"
    for path in files_in(output.parent):
        if path.name.startswith(f".{output.name}.") and path.suffix == ".tmp":  # of a killed attempt to make it
            continue
        here = links(path)
        found |= here or set()
        if here is None:
            doubt = f"{path} cannot be read"
    return found, doubt


def links(path: Path) -> set[str] | None:
    """Return the real paths of the files that an index links to; none for any other file. None if it cannot be known.
    The file may be anything, under any name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is_hdf5(descriptor, found.st_size):
                return set()
        finally:
            os.close(descriptor)
        return {os.path.realpath(file) for file in read_links(path)}
    except OSError as error:
        return set() if error.errno in (errno.ENOENT, errno.ENXIO) else None


def _is_hdf5(descriptor: int, size: int) -> bool:
    """True if HDF5 would find its signature in a file of so many bytes."""
    places = [0, *(1 << power for power in range(9, size.bit_length()))]
    return any(os.pread(descriptor, len(SIGNATURE), place) == SIGNATURE for place in places)


def mark_linked(index: Path, files: Iterable[Path]) -> None:
    """Leave a mark in the shard directories of other directories that an index links to, so that these shards are not
    removed together with the output that they belong to."""
    here = index.resolve().parent
    for directory in {file.resolve().parent for file in files}:
        if directory.suffix == ".shards" and directory.parent != here:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(OSError):  # a directory of another user, or a read-only one
                descriptor = os.open(directory / LINKED_ELSEWHERE, flags, 0o666)
                with os.fdopen(descriptor, "ab") as file:
                    file.write(os.fsencode(index.resolve()) + b"\n")


def files_in(directory: Path) -> list[Path]:
    """Return the files of a directory; none if it is not there."""
    try:
        with os.scandir(directory) as entries:
            return [directory / entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):  # it is not there, or something is in it
        directory.rmdir()
