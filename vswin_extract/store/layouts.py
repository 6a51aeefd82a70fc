"""An output as one file, or as an index over several: a small file that reads as if all rows were in it.

out.h5                        the index: tables, and virtual datasets and external links to the files' own
out.h5.shards/00000-<run>.h5  at most 10,000 videos each, every one an output that can be read by itself
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5p, h5t

from vswin_extract.files import publish
from vswin_extract.formatting import as_utf8
from vswin_extract.store.features import read_links
from vswin_extract.store.schema import Arrays, Rows, VideoRecord, row_types
from vswin_extract.store.write import disk_errors, write_attributes, write_output, write_tables

Layout = Literal["single", "sharded"]
SHARD_VIDEOS = 10_000
SHARD_BYTES = 64 << 30
"""A shard ends at so many videos, or bytes of features."""


@dataclass(frozen=True)
class Linked:
    """A file that an index links to: of its videos those that the index has, each with its first row there."""

    path: Path
    videos: Sequence[tuple[VideoRecord, int]]

    def runs(self) -> Iterator[tuple[int, int]]:
        """Their rows as [first, end), those together that follow one another."""
        begin = end = 0
        for record, first in self.videos:
            if first != end:
                if end > begin:
                    yield begin, end
                begin = first
            end = first + record.clips
        if end > begin:
            yield begin, end


def make_output(
    output: Path,
    unfinished: Path,
    layout: Layout,
    rows: Callable[[Sequence[VideoRecord]], Iterable[Rows]],
    records: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Write an output of these videos, those that failed among them, and rename it into place from `unfinished`.

    `rows(videos)`: the rows of videos that did not fail, in order. `finish` may raise when all rows have been read, and
    then there is no output. Whatever the layout, the output appears at once. Raises OSError where the disk is full.
    """
    with _appearing(output, unfinished):
        if layout == "single":
            _write(unfinished, rows, records, arrays, attributes, classes)
        else:
            directory = _shards_directory(output)
            directory.mkdir(exist_ok=True)
            shards: list[Linked] = []
            for number, mine in enumerate(split(records, arrays)):
                path = directory / f"{number:05}-{attributes['run'][:8]}.h5"
                _write(path.with_name(path.name + ".tmp"), rows, mine, arrays, attributes, classes)
                publish(path.with_name(path.name + ".tmp"), path)
                videos = [record for record in mine if record.status != "failed"]
                firsts = np.cumsum([0, *(record.clips for record in videos)]).tolist()
                shards.append(Linked(path, list(zip(videos, firsts[:-1], strict=True))))
            failed = [record for record in records if record.status == "failed"]
            _write_index(unfinished, output.parent, shards, failed, arrays, attributes, classes)
        finish()


def make_index(
    output: Path,
    unfinished: Path,
    files: Sequence[Linked],
    failed: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Write an index of finished outputs, in their order, and rename it into place from `unfinished`.

    Those below the index's directory are named relative to it, so that all can be moved together; others absolutely.
    """
    with _appearing(output, unfinished):
        _write_index(unfinished, output.parent, files, failed, arrays, attributes, classes)


@contextlib.contextmanager
def _appearing(output: Path, unfinished: Path) -> Iterator[None]:
    """What is written meanwhile to `unfinished` becomes the output, and shards stay that this links to; if it fails,
    the output and its shards are as they were."""
    try:
        yield
        publish(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an output that cannot be read now keeps what it may need
            _sweep(_shards_directory(output), read_links(output))


def split(records: Sequence[VideoRecord], arrays: Arrays) -> Iterator[list[VideoRecord]]:
    """Videos in shards of bounded size; one at least."""
    shard: list[VideoRecord] = []
    nbytes = 0
    for record in records:
        size = record.clips * arrays.bytes_per_clip()
        if shard and (len(shard) == SHARD_VIDEOS or nbytes + size > SHARD_BYTES):
            yield shard
            shard, nbytes = [], 0
        shard.append(record)
        nbytes += size
    yield shard


def _write_index(
    path: Path,
    base: Path,
    files: Sequence[Linked],
    failed: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    names = [_name(file.path, base) for file in files]
    records = [record for file in files for record, _ in file.videos]
    clips = [record.clips for record in records]
    with disk_errors(path), h5py.File(path, "w") as index, contextlib.ExitStack() as stack:
        write_attributes(index, attributes)
        opened = [stack.enter_context(h5py.File(file.path, "r")) for file in files]
        table = index.create_group("linked")
        table.create_dataset("path", data=np.array(names, object), dtype=h5py.string_dtype())
        table.create_dataset("run", data=[str(file.attrs["run"]) for file in opened], dtype=h5py.string_dtype())
        table["videos"] = np.array([len(file.videos) for file in files], np.int64)
        for name, (shape, dtype) in row_types(arrays).items():
            whole, first = h5py.VirtualLayout((sum(clips), *shape), dtype), 0
            for file, source, link in zip(files, opened, names, strict=True):
                for begin, end in file.runs():
                    rows = h5py.VirtualSource(link, name, source[name].shape, dtype)
                    whole[first : first + end - begin] = rows[begin:end]
                    first += end - begin
            index.create_virtual_dataset(name, whole, fillvalue=np.nan if np.dtype(dtype).kind == "f" else -1)
        index["clips/video"] = np.repeat(np.arange(len(clips)), clips)
        write_tables(index, records, failed, classes)
        groups = index.create_group("videos")
        linking = h5p.create(h5p.LINK_CREATE)
        linking.set_char_encoding(h5t.CSET_UTF8)
        linking.set_create_intermediate_group(True)
        for file, source, link in zip(files, opened, names, strict=True):
            if not len(source["videos"]):  # it has too many to have groups
                continue
            for record, _ in file.videos:
                group = as_utf8(record.id).encode()
                groups.id.links.create_external(group, os.fsencode(link), b"/videos/" + group, linking)
        index.attrs["complete"] = True


def _shards_directory(output: Path) -> Path:
    return output.with_name(f"{output.name}.shards")


def _write(
    path: Path,
    rows: Callable[[Sequence[VideoRecord]], Iterable[Rows]],
    records: Sequence[VideoRecord],
    arrays: Arrays,
    attributes: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    extracted = [record for record in records if record.status != "failed"]
    failed = [record for record in records if record.status == "failed"]
    write_output(path, rows(extracted), extracted, failed, arrays, attributes, classes)


def _name(file: Path, base: Path) -> str:
    file, base = file.resolve(), base.resolve()
    return os.fspath(file.relative_to(base) if file.is_relative_to(base) else file)


def _sweep(directory: Path, kept: Collection[Path]) -> None:
    """Remove shards that no output needs: of an output that was replaced, or of one that was not finished."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if re.fullmatch(r"\d{5,}-[0-9a-f]{8}\.h5(\.tmp)?", path.name) and path not in kept:
            path.unlink()
    with contextlib.suppress(OSError):  # something else is in it
        directory.rmdir()
