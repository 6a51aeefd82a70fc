"""Several finished outputs and journals to one output: every source is read from front to back, and checked on the way.

    out-0.h5, out-1.h5, other.h5.parts ──> rows in the order of ids ──> out.h5

Features are not computed again, and nothing is kept in memory but the tables and a block of rows a source.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import OutputError, UsageError
from vswin_extract.journal.directory import (
    check_output,
    claim,
    describe_difference,
    journal_directory,
    read_job,
    read_list,
    remove_journal,
)
from vswin_extract.journal.entries import Extracted
from vswin_extract.journal.journal import Journal
from vswin_extract.journal.parts import read_rows
from vswin_extract.store.features import FeatureFile, linked_files, open_features
from vswin_extract.store.layouts import Layout, Linked, make_index, make_output
from vswin_extract.store.schema import (
    BLOCK_BYTES,
    CLIP_COLUMNS,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
    Arrays,
    PackedRows,
    Rows,
    VideoRecord,
    row_types,
)
from vswin_extract.store.write import packing
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.videos import walk_order

OnDuplicate = Literal["error", "first"]
SETTINGS = ("weights_sha256", "variant", "sampling", "preprocessing", "features", "precision", "decoder")
"""What features depend on, which must be the same everywhere."""
BLOCKS = 256 << 20
"""Bytes of rows that all sources together hold at a time."""


@dataclass(frozen=True)
class Merged:
    """The output is in place: of `sources`, with so many `videos`, `clips` and failures."""

    output: Path
    sources: int
    videos: int
    clips: int
    failed: int
    bytes: int
    seconds: float


class Source(Protocol):
    """A finished output, or a journal. `records`: its videos by id, those that failed among them. `expected`: the ids
    that it should have, where it knows them."""

    path: Path
    settings: dict[str, Any]
    arrays: Arrays
    attributes: dict[str, Any]
    classes: tuple[str, ...]
    records: dict[str, VideoRecord]
    expected: list[str]

    def rows(self, video_id: str) -> Iterator[Rows]:
        """A video's rows, in pieces."""
        ...

    def finish(self) -> None:
        """Raise OutputError if something of it was not what it was when it was written."""
        ...


class JournalSource:
    """A journal, whose parts were checked when it was opened."""

    def __init__(self, path: Path) -> None:
        begun = read_job(path)
        if begun is None or begun["arrays"] is None:
            raise UsageError(f"{path} is no journal of vswin-extract that can be merged")
        self.path = path
        self.settings = begun["settings"]
        self.arrays = Arrays(**{**begun["arrays"], "shapes": _tuples(begun["arrays"]["shapes"])})
        self.attributes = begun["attributes"]
        self.classes = tuple(begun["classes"])
        self.run = begun["run"]
        journal = Journal(path.with_suffix(""), path, self.arrays, begun["run"])
        journal.load()
        self.notes = journal.notes
        through = {video_id: journal.complete(video_id) for video_id in journal.entries}
        self.videos: dict[str, Extracted] = {name: video for name, video in through.items() if video is not None}
        self.records = {name: video.record for name, video in self.videos.items()}
        self.expected = list(read_list(path) | dict.fromkeys(through, 0))

    def rows(self, video_id: str) -> Iterator[Rows]:
        return read_rows(self.videos[video_id].pieces, self.arrays)

    def finish(self) -> None:
        """Nothing is left to check."""


class OutputSource:
    """A finished output, or of its videos those of some `ids`. Its rows are hashed as they are read, so that what was
    damaged is not passed on as whole."""

    expected: list[str] = []  # noqa: RUF012

    def __init__(
        self, features: FeatureFile, path: Path, block: int, hashing: Executor, ids: Container[str] | None = None
    ) -> None:
        self.path = path
        file, info = features.file, features.info
        if not info["complete"]:
            raise UsageError(f"{path} is not marked complete")
        if lacking := [name for name in SETTINGS if name not in info]:
            raise UsageError(f"{path} does not say its {lacking[0]}, so it cannot be merged")
        self.settings = {name: info[name] for name in SETTINGS}
        said = self.settings["features"]
        self.arrays = Arrays(
            {name: file[name].shape[1:] for name in features.names}, said["dtype"], said["compression"]
        )
        self.attributes = {name: value for name, value in info.items() if name not in ("schema", "complete")}
        self.classes = tuple(file["classes"].asstr()[:]) if "classes" in file else ()
        try:
            self.records = {record.id: record for record in read_records(features) if ids is None or record.id in ids}
        except KeyError as error:
            raise UsageError(f"{path} lacks a column of /videos_table; vswin check says more") from error
        table = file["videos_table"]
        self.places = dict(
            zip(features, zip(table["first_clip"][:].tolist(), table["clips"][:].tolist(), strict=True), strict=True)
        )
        self.columns = {name: Column(path, file, name, block, hashing) for name in row_types(self.arrays)}
        self.piece = max(1, BLOCK_BYTES // self.arrays.bytes_per_clip())

    def rows(self, video_id: str) -> Iterator[Rows]:
        first, count = self.places[video_id]
        for begin in range(first, first + count, self.piece):
            rows = min(self.piece, first + count - begin)
            yield {name: column.read(begin, rows) for name, column in self.columns.items()}

    def finish(self) -> None:
        for column in self.columns.values():
            column.finish()


class Column:
    """A dataset, read in blocks of about so many bytes: the one that was read last is `held`, from row `first` on.
    `digest` is of the rows up to `hashed`, as long as they are read in order; it is made beside the reading."""

    def __init__(self, path: Path, file: h5py.File, name: str, block: int, hashing: Executor) -> None:
        self.path = path
        self.name = name
        self.dataset = file[name]
        self.hashing = hashing
        self.length = len(self.dataset)
        self.packing = packing(self.dataset)
        # of packed chunks whole ones, since each is unpacked as often as a row of it is read
        chunk = self.dataset.chunks[0] if self.dataset.compression else 1
        self.step = max(1, block * self.length // max(int(self.dataset.nbytes), 1) // chunk) * chunk
        self.first = 0
        self.held: NDArray[Any] = np.empty(0)
        self.hashed = 0
        self.digest = hashlib.sha256()
        self.later: Future[None] | None = None

    def read(self, first: int, count: int) -> NDArray[Any] | PackedRows:
        """So many rows from row `first` on."""
        rows = self._some(first, count)
        while len(rows) < count:
            rows = np.concatenate([rows, self._some(first + len(rows), count - len(rows))])
        if self.packing is None:
            return rows
        zeros = (0,) * (rows.ndim - 1)
        chunks = [self.dataset.id.read_direct_chunk((row, *zeros)) for row in range(first, first + count)]
        return PackedRows(rows, chunks, self.packing)

    def _some(self, first: int, count: int) -> NDArray[Any]:
        begin = first - self.first
        if not 0 <= begin < len(self.held):
            self._load(self.hashed if self.hashed <= first < self.hashed + self.step else first)
            begin = first - self.first
        rows = self.held[begin : begin + count]
        if begin + len(rows) == len(self.held):
            self.held = np.empty(0)  # rows may be large, and sources many
        return rows

    def _load(self, first: int) -> None:
        self.first = first
        try:
            self.held = self.dataset[first : first + self.step]
        except OSError as error:
            raise OutputError(f"{self.path}: /{self.name} cannot be read: {error}") from error
        if first == self.hashed:
            if self.later is not None:
                self.later.result()  # so that not many blocks wait for it
            self.later = self.hashing.submit(self.digest.update, self.held.data)
            self.hashed += len(self.held)

    def finish(self) -> None:
        """Read what nobody asked for, or asked for in another order. Raises OutputError for a wrong checksum."""
        while self.hashed < self.length:
            self._load(self.hashed)
        if self.later is not None:
            self.later.result()
        if self.dataset.attrs.get("sha256") != self.digest.hexdigest():
            raise OutputError(
                f"{self.path}: /{self.name} has another sha256 than when it was written; vswin check says more"
            )


def merge(
    output: Path,
    parts: Sequence[Path] = (),
    *,
    layout: Layout | Literal["linked"] = "single",
    on_duplicate: OnDuplicate = "error",
    allow_missing: bool = False,
    overwrite: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> Merged:
    """Make one output of finished outputs and journals; without `parts`, of the output's own journal, which then goes.

    Videos come in the order of their ids, as a directory is walked; those of a single run in the run's own order.
    `layout`: one file; or shards of bounded size and an index of them; or an index of the parts, which are finished
    outputs and stay where they are, part by part.
    `on_duplicate`: what to do where a video is in several parts; a part in which it failed gives way to one in which it
    did not. Raises OutputError where parts differ in what features depend on, videos are missing or double, or a part
    is damaged; UsageError for what cannot be merged.
    """
    begun = time.monotonic()
    own = journal_directory(output)
    paths = [Path(part) for part in parts] or [own]
    check_output(output, overwrite)
    with ExitStack() as stack:
        ours = any(os.path.abspath(path) == os.path.abspath(own) for path in paths)
        if ours and not own.is_dir():
            raise UsageError(f"no unfinished run {own} to make {output.name} of; name the files to merge after it")
        if ours:
            stack.enter_context(claim(own / "lock", output))
        sources = open_sources(paths, stack)
        for source in sources:
            for note in source.notes if isinstance(source, JournalSource) else ():
                on_note(note)
        check_alike(sources)
        chosen = choose(sources, on_duplicate)
        expected = dict.fromkeys(name for source in sources for name in source.expected)
        if (lacking := [name for name in expected if name not in chosen]) and not allow_missing:
            raise OutputError(
                f"{name_some(lacking)} not through; the same commands as before continue, or --allow-missing leaves "
                "them out"
            )
        one_run = len(sources) == 1 and bool(expected)
        order = [name for name in expected if name in chosen] if one_run else sorted(chosen, key=walk_order)
        records = [chosen[name].records[name] for name in order]
        failed = [record for record in records if record.status == "failed"]
        first = sources[0]
        run = first.run if one_run and isinstance(first, JournalSource) else uuid.uuid4().hex
        unfinished = output.with_name(f".{output.name}.{run}.tmp")
        made_of = first.arrays, {**first.attributes, **first.settings, "run": run}, first.classes

        def rows(mine: Sequence[VideoRecord]) -> Iterator[Rows]:
            for record in mine:
                yield from chosen[record.id].rows(record.id)

        def finish() -> None:
            for source in sources:
                source.finish()

        if layout == "linked":
            make_index(output, unfinished, [linked(source, chosen) for source in sources], failed, *made_of)
        else:
            make_output(output, unfinished, layout, rows, records, *made_of, finish)
        if ours:
            remove_journal(own)
    clips = sum(record.clips for record in records)
    nbytes = sum(path.stat().st_size for path in (output, *linked_files(output)))
    seconds = time.monotonic() - begun
    return Merged(output, len(sources), len(records) - len(failed), clips, len(failed), nbytes, seconds)


def linked(source: Source, chosen: Mapping[str, Source]) -> Linked:
    """What an index has of a file: the videos for which it was chosen."""
    if not isinstance(source, OutputSource):
        raise UsageError(f"only finished files can be linked to, and {source.path} is a journal; merge it first")
    mine = [source.records[name] for name in source.places if chosen.get(name) is source]
    return Linked(source.path, [(record, source.places[record.id][0]) for record in mine])


def open_sources(paths: Sequence[Path], stack: ExitStack) -> list[Source]:
    """Journals, and finished outputs; in the place of an index those that it links to. Raises UsageError for what is
    neither."""
    sources: list[Source] = []
    hashing = stack.enter_context(ThreadPoolExecutor(1))
    files = [file for path in paths for file in _expand(path)]
    block = max(1 << 16, BLOCKS // (len(files) * (len(CLIP_COLUMNS) + 1)))
    for path, ids in files:
        if path.is_dir():
            sources.append(JournalSource(path))
        elif not path.exists() and journal_directory(path).is_dir():
            sources.append(JournalSource(journal_directory(path)))
        else:
            features = stack.enter_context(open_features(path, chunk_cache=0))
            sources.append(OutputSource(features, path, block, hashing, ids))
    return sources


def _expand(path: Path) -> list[tuple[Path, set[str] | None]]:
    """The files that an index links to, and which of their videos it has; else the path itself, and all of its own."""
    if not linked_files(path):
        return [(path, None)]
    with open_features(path) as index:
        ends = np.cumsum(index.file["linked/videos"][:]).tolist()
        ids, failed = list(index), {failure["id"] for failure in index.failures}
        return [
            (file, failed.union(ids[begin:end]))
            for file, begin, end in zip(index.linked, [0, *ends], ends, strict=False)
        ]


def check_alike(sources: Sequence[Source]) -> None:
    """Raises OutputError where features of two sources were not made in the same way, naming the difference."""
    first = sources[0]
    for source in sources[1:]:
        one, other = ({**s.settings, "classes": list(s.classes)} for s in (first, source))
        other["features"] = {**other["features"], "compression": one["features"]["compression"]}
        if one != other:
            raise OutputError(
                f"{source.path} does not go with {first.path}: {describe_difference(one, other)}; "
                "features of different settings do not belong into one file"
            )


def choose(sources: Sequence[Source], on_duplicate: OnDuplicate) -> dict[str, Source]:
    """From which source each video is taken. Raises OutputError where it is in several, unless the first counts."""
    chosen: dict[str, Source] = {}
    double: dict[str, tuple[Source, Source]] = {}
    for source in sources:
        for name, record in source.records.items():
            before = chosen.setdefault(name, source)
            if before is source:
                continue
            if before.records[name].status == "failed":
                chosen[name] = source
            elif record.status != "failed":
                double[name] = before, source
    if double and on_duplicate == "error":
        name, (one, other) = next(iter(double.items()))
        raise OutputError(
            f"{name_some(list(double))} in more than one part ({name} in {one.path} and {other.path}); "
            "--on-duplicate first takes the first"
        )
    return chosen


def read_records(features: FeatureFile) -> Iterator[VideoRecord]:
    """The rows of /videos_table and /failures as they were written."""
    table = features.file["videos_table"]
    columns: dict[str, Iterable[Any]] = {name: table[name].asstr()[:].tolist() for name in VIDEO_TEXTS}
    for name in ("clips", *VIDEO_NUMBERS):
        columns[name] = table[name][:].tolist()
    columns["start"] = [start or None for start in table["start"][:].tolist()]
    columns["end"] = [None if end == float("inf") else end for end in table["end"][:].tolist()]
    columns |= {"clip_range": repeat(WHOLE), "error": repeat("")}
    yield from map(VideoRecord, *(columns[field.name] for field in fields(VideoRecord)))
    for failure in features.failures:
        yield VideoRecord(failure["id"], failure["path"], "failed", error=failure["error"], message=failure["message"])


def name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _tuples(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}
