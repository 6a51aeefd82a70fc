"""What `merge` reads: journals and finished outputs, by one protocol."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vswin_extract.errors import UsageError
from vswin_extract.journal.directory import journal_directory, read_job, read_list
from vswin_extract.journal.entries import Extracted
from vswin_extract.journal.journal import Journal
from vswin_extract.journal.parts import read_rows
from vswin_extract.journal.stored import arrays_of
from vswin_extract.store.columns import ColumnReader
from vswin_extract.store.features import FeatureFile, open_features
from vswin_extract.store.layouts import LinkedFile
from vswin_extract.store.schema import (
    ADDED,
    BLOCK_BYTES,
    CLIP_COLUMNS,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
    Arrays,
    RowBlock,
    VideoRecord,
    complete_settings,
    row_types,
)
from vswin_extract.video.ranges import WHOLE

SETTINGS = ("weights_sha256", "variant", "sampling", "preprocessing", "features", "precision", "decoder")
"""Root attributes that features depend on. They must be the same in all sources."""
READ_BYTES = 256 << 20
"""Bytes of rows that all sources together hold at a time."""


class Source(Protocol):
    """A journal or a finished output. `run`: its id. `records`: its videos by id, failed ones included. `expected`: the
    ids that it should have, if it knows them. `notes` are for the user."""

    path: Path
    run: str
    settings: dict[str, Any]
    arrays: Arrays
    attributes: dict[str, Any]
    classes: tuple[str, ...]
    records: dict[str, VideoRecord]
    expected: Sequence[str]
    notes: Sequence[str]

    def rows(self, video_id: str) -> Iterator[RowBlock]:
        """Yield a video's rows in blocks."""
        ...

    def link(self, video_ids: Collection[str]) -> LinkedFile:
        """Return how an index links to these videos. Raises UsageError if an index cannot."""
        ...

    def finish(self) -> None:
        """Raise OutputError if something in it is not what was written."""
        ...


class JournalSource:
    """A journal. Its rows are verified when it is opened. Raises UsageError for anything else."""

    def __init__(self, path: Path) -> None:
        begun = read_job(path)
        if begun is None or begun["arrays"] is None:
            raise UsageError(f"{path} is no journal of vswin-extract that can be merged")
        if begun["published"]:
            raise UsageError(f"{path} is the rest of a journal whose output was made; delete it")
        self.path = path
        self.run: str = begun["run"]
        self.settings = begun["settings"]
        self.arrays = arrays_of(begun["arrays"])
        self.attributes = begun["attributes"]
        self.classes = tuple(begun["classes"])
        journal = Journal(path.with_suffix(""), path, self.arrays, self.run)
        journal.load(drop=False)
        self.notes: Sequence[str] = journal.notes
        found = {video_id: journal.complete(video_id) for video_id in journal.entries}
        self.videos: dict[str, Extracted] = {name: video for name, video in found.items() if video is not None}
        self.records = {name: video.record for name, video in self.videos.items()}
        self.expected: Sequence[str] = list(read_list(path) | dict.fromkeys(found, 0))

    def rows(self, video_id: str) -> Iterator[RowBlock]:
        return read_rows(self.videos[video_id].pieces, self.arrays)

    def link(self, video_ids: Collection[str]) -> LinkedFile:
        raise UsageError(f"only finished files can be linked to, and {self.path} is a journal; merge it first")

    def finish(self) -> None:
        """Do nothing: everything was verified before."""


class OutputSource:
    """A finished output, or those of its videos that are in `ids`. Its rows are hashed while they are read, so that
    damaged ones are not passed on. Raises UsageError for a file that cannot be merged."""

    expected: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __init__(
        self, features: FeatureFile, path: Path, block: int, executor: Executor, ids: Collection[str] | None = None
    ) -> None:
        self.path = path
        file, info = features.file, features.info
        if not info.get("complete"):
            raise UsageError(f"{path} is not marked complete")
        if lacking := [name for name in SETTINGS if name not in info]:
            raise UsageError(f"{path} does not say its {lacking[0]}, so it cannot be merged")
        self.run = str(info.get("run", ""))
        self.settings = complete_settings({name: info[name] for name in SETTINGS})
        written = self.settings["features"]
        shapes = {name: file[name].shape[1:] for name in features.names}
        if not shapes or {str(file[name].dtype) for name in features.names} != {written.get("dtype")}:
            raise UsageError(f"{path} has features of another type than it says, so it cannot be merged")
        self.arrays = Arrays(shapes, written["dtype"], written.get("compression", "none"))
        self.attributes = {name: value for name, value in info.items() if name not in ("schema", "complete")}
        self.classes = tuple(file["classes"].asstr()[:]) if "classes" in file else ()
        try:
            self.records = {record.id: record for record in video_records(features) if ids is None or record.id in ids}
        except KeyError as error:
            raise UsageError(f"{path} lacks a column of /videos_table; vswin check says more") from error
        firsts = file["videos_table/first_clip"][:].tolist()
        self.firsts: Mapping[str, int] = dict(zip(features, firsts, strict=True))
        """The first row of each video."""
        self.columns = {name: ColumnReader(path, file, name, block, executor) for name in row_types(self.arrays)}
        self.step = max(1, BLOCK_BYTES // self.arrays.bytes_per_clip())

    def rows(self, video_id: str) -> Iterator[RowBlock]:
        first = self.firsts[video_id]
        end = first + self.records[video_id].clips
        for begin in range(first, end, self.step):
            count = min(self.step, end - begin)
            yield {name: column.read(begin, count) for name, column in self.columns.items()}

    def link(self, video_ids: Collection[str]) -> LinkedFile:
        if not self.run:
            raise UsageError(f"{self.path} does not say its run, so no index can link to it")
        videos = [(self.records[name], first) for name, first in self.firsts.items() if name in video_ids]
        return LinkedFile(self.path, videos)

    def finish(self) -> None:
        for column in self.columns.values():
            column.finish()


def open_sources(links: Sequence[tuple[Path, Sequence[Path]]], stack: ExitStack, follow: bool = False) -> list[Source]:
    """Open journals and finished outputs, each given with the files that it links to; `stack` closes them. An index is
    replaced by these files, which are outside of its directory only if `follow` is true. Raises UsageError for anything
    else."""
    sources: list[Source] = []
    executor = stack.enter_context(ThreadPoolExecutor(1))
    files = [file for path, linked in links for file in (_expand(path, follow) if linked else [(path, None)])]
    block = max(1 << 16, READ_BYTES // (len(files) * (len(CLIP_COLUMNS) + 1)))
    for path, ids in files:
        if path.is_dir():
            sources.append(JournalSource(path))
        elif not path.exists() and journal_directory(path).is_dir():
            sources.append(JournalSource(journal_directory(path)))
        else:
            features = stack.enter_context(open_features(path, chunk_cache=0))
            sources.append(OutputSource(features, path, block, executor, ids))
    return sources


def _expand(path: Path, follow: bool) -> list[tuple[Path, set[str] | None]]:
    """Return the files that an index links to, each with the ids that the index has of it."""
    with open_features(path, follow=follow) as index:
        ends = np.cumsum(index.file["linked/videos"][:]).tolist()
        ids, failed = list(index), {failure["id"] for failure in index.failures}
        return [
            (file, failed.union(ids[begin:end]))
            for file, begin, end in zip(index.linked, [0, *ends], ends, strict=False)
        ]


def video_records(features: FeatureFile) -> Iterator[VideoRecord]:
    """Yield the rows of /videos_table and /failures as they were written. Raises KeyError if a column is missing."""
    table = features.tables["videos_table"]
    columns: dict[str, Iterable[Any]] = {name: repeat(value) for name, value in ADDED.items()}
    for name in ("clips", *VIDEO_TEXTS, *VIDEO_NUMBERS):
        if name in table or name not in ADDED:
            columns[name] = (table[name].asstr() if name in VIDEO_TEXTS else table[name])[:].tolist()
    columns["start"] = [start or None for start in table["start"][:].tolist()]
    columns["end"] = [None if end == float("inf") else end for end in table["end"][:].tolist()]
    columns |= {"clip_range": repeat(WHOLE), "error": repeat("")}
    yield from map(VideoRecord, *(columns[field.name] for field in fields(VideoRecord)))
    for failure in features.failures:
        yield VideoRecord(failure["id"], failure["path"], "failed", error=failure["error"], message=failure["message"])
