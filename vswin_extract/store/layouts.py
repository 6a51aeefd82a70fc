"""An output as one file, or as an index over several: a small file that reads as if all rows were in it.

out.h5                             the index: tables, and virtual datasets and external links to the files' own
out.h5.shards/00000-<run>-<id>.h5  at most 10,000 videos each, every one an output that can be read by itself
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from vswin_extract.files import publish
from vswin_extract.formatting import as_utf8
from vswin_extract.store.hdf5 import disk_errors, expect_room, link_properties, write_texts
from vswin_extract.store.schema import Arrays, FileDescription, RowBlock, VideoRecord, row_types, split_failed
from vswin_extract.store.shards import mark_linked, replacing
from vswin_extract.store.write import write_attributes, write_output, write_tables

Layout = Literal["single", "sharded"]


@dataclass(frozen=True)
class ShardLimit:
    """A shard ends at so many videos, or bytes of features."""

    videos: int = 10_000
    nbytes: int = 64 << 30


SHARD_LIMIT = ShardLimit()
INDEX_BYTES = 256
"""About how many bytes a video takes in an index."""


@dataclass(frozen=True)
class LinkedFile:
    """A file that an index links to, and the videos of it that the index has, each with its first row in the file."""

    path: Path
    videos: Sequence[tuple[VideoRecord, int]]

    def row_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the rows of the videos as [first, end), with neighbouring ranges joined."""
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
    rows: Callable[[Sequence[VideoRecord]], Iterable[RowBlock]],
    records: Sequence[VideoRecord],
    description: FileDescription,
    finish: Callable[[], None] = lambda: None,
    shard_limit: ShardLimit = SHARD_LIMIT,
    sources: Collection[Path] = (),
) -> list[str]:
    """Write an output of these videos, failed ones included, to `unfinished`, and rename it to `output`. Return notes
    for the user.

    `rows(videos)`: the rows of videos that did not fail, in order. `finish` is called when all rows have been read; if
    it raises, there is no output. Shards appear together with their index. `sources`: files that the rows are read
    from; they stay. Raises OSError if the disk is full.
    """
    with replacing(output, unfinished, str(description.attributes.get("run", "")), sources) as attempt:
        if layout == "single":
            write_output(unfinished, rows(split_failed(records)[0]), records, description)
        else:
            shards: list[LinkedFile] = []
            for mine in split(records, description.arrays, shard_limit):
                path = attempt.new_shard()
                videos, _ = split_failed(mine)
                write_output(path.with_name(path.name + ".tmp"), rows(videos), mine, description)
                publish(path.with_name(path.name + ".tmp"), path)
                firsts = np.cumsum([0, *(record.clips for record in videos)]).tolist()
                shards.append(LinkedFile(path, list(zip(videos, firsts[:-1], strict=True))))
            _write_index(unfinished, output.parent, shards, split_failed(records)[1], description)
        finish()
    return attempt.notes


def make_index(
    output: Path,
    unfinished: Path,
    files: Sequence[LinkedFile],
    failed: Sequence[VideoRecord],
    description: FileDescription,
    finish: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write an index of finished outputs, in their order, to `unfinished`, and rename it to `output`. Return notes for
    the user. `finish` is called before; if it raises, there is no output.

    Files below the directory of the index are named relative to it, so that all can be moved together.
    """
    with replacing(output, unfinished, sources=[file.path for file in files]) as attempt:
        _write_index(unfinished, output.parent, files, failed, description)
        finish()
        mark_linked(output, [file.path for file in files])
    return attempt.notes


def split(
    records: Sequence[VideoRecord],
    arrays: Arrays,
    limit: ShardLimit = SHARD_LIMIT,
) -> Iterator[list[VideoRecord]]:
    """Yield the videos of each shard; of one at least, which may be empty."""
    shard: list[VideoRecord] = []
    nbytes = 0
    for record in records:
        size = record.clips * arrays.bytes_per_clip()
        if shard and (len(shard) == limit.videos or nbytes + size > limit.nbytes):
            yield shard
            shard, nbytes = [], 0
        shard.append(record)
        nbytes += size
    yield shard


def _write_index(
    path: Path,
    base: Path,
    files: Sequence[LinkedFile],
    failed: Sequence[VideoRecord],
    description: FileDescription,
) -> None:
    names = [_relative(file.path, base) for file in files]
    records = [record for file in files for record, _ in file.videos]
    clips = [record.clips for record in records]
    expect_room(path, len(records) * INDEX_BYTES)
    with disk_errors(path), h5py.File(path, "w") as index, contextlib.ExitStack() as stack:
        write_attributes(index, description.attributes)
        opened = [stack.enter_context(h5py.File(file.path, "r")) for file in files]
        table = index.create_group("linked")
        table.create_dataset("path", data=np.array(names, object), dtype=h5py.string_dtype())
        write_texts(table, "run", [str(file.attrs["run"]) for file in opened])
        table["videos"] = np.array([len(file.videos) for file in files], np.int64)
        for name, (shape, dtype) in row_types(description.arrays).items():
            whole, first = h5py.VirtualLayout((sum(clips), *shape), dtype), 0
            for file, source, link in zip(files, opened, names, strict=True):
                for begin, end in file.row_ranges():
                    rows = h5py.VirtualSource(link, name, source[name].shape, dtype)
                    whole[first : first + end - begin] = rows[begin:end]
                    first += end - begin
            index.create_virtual_dataset(name, whole, fillvalue=np.nan if np.dtype(dtype).kind == "f" else -1)
        index["clips/video"] = np.repeat(np.arange(len(clips)), clips)
        write_tables(index, records, failed, description.classes)
        groups, linking = index.create_group("videos"), link_properties()
        for file, source, link in zip(files, opened, names, strict=True):
            if not len(source["videos"]):  # it has too many videos to have groups
                continue
            for record, _ in file.videos:
                group = as_utf8(record.id).encode()
                groups.id.links.create_external(group, os.fsencode(link), b"/videos/" + group, linking)
        index.attrs["complete"] = True


def _relative(file: Path, base: Path) -> str:
    """Return the path of a file relative to `base` if it is below it, else its absolute path."""
    file, base = file.resolve(), base.resolve()
    return os.fspath(file.relative_to(base) if file.is_relative_to(base) else file)
