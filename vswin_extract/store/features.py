"""Reading an output: videos by id, and their rows only when they are asked for. Needs neither decoders nor torch.

All classes can be pickled and used in forked processes: each process opens the file for itself.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from vswin_extract.errors import UsageError, first_line
from vswin_extract.formatting import plural
from vswin_extract.network.variants import STAGES
from vswin_extract.store.attributes import NESTED, parse_nested, stored_values
from vswin_extract.store.hdf5 import (
    READ_ERRORS,
    Problem,
    UnsoundOutput,
    expect_file,
    is_output,
    read_errors,
    why_no_output,
    why_not_opened,
)
from vswin_extract.store.links import link_problems, row_problems
from vswin_extract.store.schema import FAILURE_TEXTS, FEATURES, LONGEST, VIDEO_COLUMNS, VIEWED
from vswin_extract.store.structure import find_problems, read_numbers
from vswin_extract.video.sampling import Sampling

if TYPE_CHECKING:
    import torch

CHUNK_CACHE = 1 << 20


def linked_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that an index links to; none if `path` is anything else, or cannot be read."""
    try:
        return read_links(path)
    except OSError:
        return []


def read_links(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that an index links to, wherever they are; none if nothing is there. Raises OSError if it cannot
    be read."""
    try:
        expect_file(path)
        with h5py.File(path, "r") as file:
            problems, found = find_problems(file)
            if problems and is_output(file):
                raise UnsoundOutput(os.fspath(path), problems)
            return [Path(os.path.realpath(path)).parent / name for name in found.links]
    except FileNotFoundError:
        return []
    except (UnsoundOutput, *READ_ERRORS) as error:
        if isinstance(error, OSError):
            raise
        raise OSError(first_line(error)) from error


class VideoRows:
    """A video's rows of a dataset. Indexing reads the indexed rows only; `np.asarray` reads all.

    >>> with vswin_extract.open_features("out.h5") as features:
    ...     rows = features["shapes.mkv"].stage4
    ...     rows, rows[-1].shape, rows.to_torch().shape
    (<VideoRows (2, 16, 2, 2, 128) float32>, (16, 2, 2, 128), torch.Size([2, 16, 2, 2, 128]))
    """

    def __init__(self, features: "FeatureFile", name: str, first: int, count: int) -> None:
        self._features = features
        self._name = name
        self._first = first
        self.shape: tuple[int, ...] = (count, *self._dataset.shape[1:])
        self.dtype: np.dtype[Any] = self._dataset.dtype

    @property
    def _dataset(self) -> h5py.Dataset:
        return self._features.file[self._name]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        count = len(self)
        rows, *rest = (index if isinstance(index, tuple) else (index,)) or (slice(None),)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(count)
            if step < 1:
                return np.asarray(self)[index]  # type: ignore[no-any-return]
            where: Any = slice(self._first + start, self._first + max(start, stop), step)
        elif isinstance(rows, int | np.integer):
            if not -count <= rows < count:
                raise IndexError(f"row {rows} of {count}")
            where = self._first + int(rows) % count
        else:
            return np.asarray(self)[index]  # type: ignore[no-any-return]
        return self._sound(self._dataset[(where, *rest)])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._sound(self._dataset[self._first : self._first + len(self)]), dtype)

    def _sound(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values that were read. Raises UsageError for times that cannot be: all that computes with them relies
        on numbers."""
        if self._name == "clips/times" and not (np.abs(values) <= LONGEST).all():
            raise UsageError(
                f"{self._features.file.filename}: /clips/times has a time that cannot be; vswin check says more"
            )
        return values

    def to_torch(self) -> "torch.Tensor":
        """Return all rows, in memory of their own."""
        import torch

        return torch.from_numpy(np.asarray(self))

    def __repr__(self) -> str:
        return f"<VideoRows {self.shape} {self.dtype}>"


class VideoFeatures:
    """One video's features, as attributes: `embedding`, `stage1` to `stage4` and `logits`, if the file has them, and
    `frames` (clips, 2), `times` (clips, 2) in seconds, `valid` (clips,). `output`: the file that they are of. `len` is
    the number of clips.

        >>> with vswin_extract.open_features("out.h5") as features:
        ...     written = features["shapes.mkv"]
        ...     len(written), written.stages, written.times[0].tolist(), written.at(3.0), list(written.to_torch())
        (2, {4: <VideoRows (2, 16, 2, 2, 128) float32>}, [0.0, 2.669], 1, ['embedding', ..., 'times', 'valid'])
    """

    crops = 0
    """How many crops of a clip the rows of features have, as their first axis; 0 if there is no such axis."""

    def __init__(self, video_id: str, features: "FeatureFile", row: int, first: int, count: int) -> None:
        self.id = video_id
        self.output = self._features = features
        self.crops = features.crops
        self._row = row
        self._first = first
        self._count = count

    def __len__(self) -> int:
        """Return the number of clips."""
        return self._count

    def __getattr__(self, name: str) -> VideoRows:
        if name.startswith("_"):  # copy and pickle ask for such names
            raise AttributeError(name)
        file = self._features.tables
        path = f"clips/{name}" if name in VIEWED else name
        if name not in VIEWED and name not in feature_names(file):
            raise AttributeError(f"the file has no {name}; it has {', '.join(feature_names(file))}")
        return VideoRows(self._features, path, self._first, self._count)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names, *VIEWED]

    @property
    def names(self) -> list[str]:
        """The features that it has: embedding, stage4…"""
        return self._features.names

    @property
    def stages(self) -> dict[int, VideoRows]:
        """The features of stages, by the number of the stage: `stages[4]` is `stage4`."""
        return {stage: getattr(self, f"stage{stage}") for stage in STAGES if f"stage{stage}" in self.names}

    def at(self, seconds: float) -> int:
        """Return the row of the clip that covers this time, as in `video.embedding[video.at(12.5)]`.

        If several do, it is the one with the nearest centre, and of two equally near ones the first. Raises IndexError
        if none does: before the first clip, from the end of the last clip on, and in gaps.
        """
        times = self.times[:]
        covering = np.flatnonzero((times[:, 0] <= seconds) & (seconds < times[:, 1]))
        if not len(covering):
            raise IndexError(
                f"no clip of {self.id!r} covers {seconds:g} s; its clips lie within "
                f"[{times[0, 0]:.3f}, {times[:, 1].max():.3f}) s"
            )
        return int(covering[np.abs(times[covering].mean(1) - seconds).argmin()])

    def to_torch(self) -> "dict[str, torch.Tensor]":
        """Return everything about the video's clips, in memory: each feature of the file, frames, times and valid."""
        return {name: getattr(self, name).to_torch() for name in (*self.names, *VIEWED)}

    @property
    def rows(self) -> slice:
        """The video's rows in the datasets of the file."""
        return slice(self._first, self._first + self._count)

    @property
    def info(self) -> dict[str, Any]:
        """The video's row of /videos_table: path, fps, duration in seconds, width, height, status…"""
        table = self._features.tables["videos_table"]
        return {name: _plain(table[name][self._row]) for name in VIDEO_COLUMNS if name in table}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}, {plural(len(self), 'clip')} of {', '.join(self.names)}>"


class FeatureFile(Mapping[str, VideoFeatures]):
    """An output, as a mapping from video id to its features. For all videos at once, use the datasets of `file`.

    >>> features = vswin_extract.open_features("out.h5")
    >>> list(features), features.matching("*.mkv"), features.names, features.file["embedding"].shape
    (['shapes.avi', 'shapes.mkv'], ['shapes.mkv'], ['embedding', 'stage4'], (3, 128))
    >>> features.close()
    """

    def __init__(self, path: str | os.PathLike[str], chunk_cache: int = CHUNK_CACHE, follow: bool = False) -> None:
        name = os.fspath(path)
        # HDF5 looks for linked files in the directory of the name by which it opens an index
        self._path = (
            os.path.abspath(name) if os.path.realpath(name) == os.path.abspath(name) else os.path.realpath(name)
        )
        self._chunk_cache = chunk_cache
        self._follow = follow
        try:
            expect_file(name)
            self._open(name if self._path == os.path.abspath(name) else self._path)
        except OSError as error:
            if os.path.exists(name):
                reason = why_not_opened(error)
            elif os.path.isdir(f"{name}.parts"):
                reason = f"it is not complete yet; how far it is: vswin check {name}"
            else:
                reason = "no such file"
            raise UsageError(f"cannot read {name}: {reason}") from error
        try:
            with read_errors(name):
                self._index(name)
        except BaseException:
            self._file.close()
            raise

    def _index(self, name: str) -> None:
        """Check the structure of the file, and read which videos it has. Raises UsageError."""
        if not is_output(self._file):
            raise UsageError(f"{name} {why_no_output(self._file)}")
        problems, found = find_problems(self._file)
        base = Path(self._path).parent
        if not problems and found.links:
            problems = [*link_problems(found.links, base, self._follow)]
        if problems:
            raise UnsoundOutput(name, problems)
        self.linked = [base / link for link in found.links]
        """The files that an index links to."""
        self.linked_as = found.links
        """How the index names them."""
        self.crops = found.crops
        """As of `VideoFeatures`."""
        self._unchecked = found.virtual
        """Datasets whose rows in linked files were not checked yet."""
        ids = self._file["videos_table/id"].asstr()[:].tolist()
        firsts, counts = (read_numbers(found, f"videos_table/{name}").tolist() for name in ("first_clip", "clips"))
        self._videos = dict(zip(ids, zip(range(len(ids)), firsts, counts, strict=True), strict=True))
        if "" in self._videos or len(self._videos) < len(ids) or "\0" in "".join(self._videos):
            raise UnsoundOutput(name, [Problem("/videos_table/id", "has an empty id, or one that two videos have")])

    def _open(self, path: str | os.PathLike[str]) -> None:
        self._file = h5py.File(path, "r", rdcc_nbytes=self._chunk_cache)
        self._process = os.getpid()

    @property
    def tables(self) -> h5py.File:
        """The HDF5 file, opened by this process, for its attributes and tables. Rows are read through `file`."""
        if self._process != os.getpid() and self._file:
            self._file.close()  # otherwise HDF5 would use the parent's descriptor
            self._open(self._path)
        return self._file

    @property
    def file(self) -> h5py.File:
        """The same, once the rows of linked files were found to be safe to read. Raises UnsoundOutput."""
        file = self.tables
        if self._unchecked:  # not before, since it takes long if files are many
            runs = file["linked/run"].asstr()[:].tolist()
            if problems := [*row_problems(self.linked, runs, self._unchecked)]:
                raise UnsoundOutput(file.filename, problems)
            self._unchecked = []
        return file

    def __reduce__(self) -> tuple[type["FeatureFile"], tuple[str, int, bool]]:
        return type(self), (self._path, self._chunk_cache, self._follow)

    def __getitem__(self, video_id: str) -> VideoFeatures:
        return VideoFeatures(video_id, self, *self._videos[video_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._videos)

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def info(self) -> dict[str, Any]:
        """The root attributes, nested ones as dictionaries: model, sampling, preprocessing, precision…"""
        values = stored_values(self.tables)
        return {name: parse_nested(name, value) if name in NESTED else value for name, value in values.items()}

    @property
    def sampling(self) -> Sampling:
        """The rule by which the videos became clips. Raises UsageError if the file does not say."""
        stored = self.info.get("sampling", {})
        known = {field.name: stored[field.name] for field in fields(Sampling) if field.name in stored}
        if lacking := {"clip_len", "frame_interval"} - known.keys():
            raise UsageError(f"{self.tables.filename} does not say its {min(lacking)}, which times are computed from")
        return Sampling(**{**known, "fps": Fraction(known["fps"]) if known.get("fps") else None})

    @property
    def names(self) -> list[str]:
        """The feature datasets in the file: embedding, stage4…"""
        return feature_names(self.tables)

    @property
    def clips(self) -> int:
        """The number of clips of all videos."""
        return sum(count for _, _, count in self._videos.values())

    @property
    def video_of_clips(self) -> NDArray[np.int64]:
        """The number of each clip's video (clips,), as /clips/video has it, by the numbers of clips in the table."""
        counts = [count for _, _, count in self._videos.values()]
        return np.repeat(np.arange(len(counts)), counts)

    @property
    def times(self) -> NDArray[np.float64]:
        """The seconds [begin, end) of all clips (clips, 2). Raises UsageError if some cannot be."""
        return np.asarray(VideoRows(self, "clips/times", 0, self.clips))

    @property
    def failures(self) -> list[dict[str, str]]:
        """The videos that could not be extracted: id, path, error class, message."""
        table = {name: self.tables["failures"][name].asstr()[:] for name in FAILURE_TEXTS}
        return [dict(zip(table, map(str, row), strict=True)) for row in zip(*table.values(), strict=True)]

    @property
    def fingerprints(self) -> dict[str, tuple[int, float, str] | None]:
        """The fingerprint (size, mtime, etag) of each video's file when it was extracted, None for a failed one; by the
        ids of all videos that the output knows."""
        table = self.tables["videos_table"]
        columns = table["size"][:].tolist(), table["mtime"][:].tolist(), table["etag"].asstr()[:].tolist()
        extracted = dict(zip(self, zip(*columns, strict=True), strict=True))
        return {**extracted, **{failure["id"]: None for failure in self.failures}}

    def matching(self, pattern: str) -> list[str]:
        """Return the ids that match a shell pattern, as clips/*. Raises UsageError if none does."""
        found = [video_id for video_id in self if fnmatchcase(video_id, pattern)]
        if not found:
            raise UsageError(f"no id in {self.tables.filename} matches {pattern!r}; vswin inspect lists the ids")
        return found

    def __repr__(self) -> str:
        content = f"{plural(len(self), 'video')}, {plural(self.clips, 'clip')} of {', '.join(self.names)}"
        return f"<{type(self).__name__} {self.tables.filename!r}, {content}>"

    def close(self) -> None:
        """Close the file. `with` does it too."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file. What h5py raised in the block becomes a UsageError of one line: the file is damaged."""
        name = self._file.filename if self._file else self._path
        self.close()
        if error is not None:
            with read_errors(name):
                raise error


def feature_names(file: h5py.File) -> list[str]:
    """Return the datasets at the root that have a row for each clip."""
    return [name for name in FEATURES if name in file]


def open_features(path: str | os.PathLike[str], chunk_cache: int = CHUNK_CACHE, *, follow: bool = False) -> FeatureFile:
    """Open an output for reading; `with` or `close()` closes it. `chunk_cache`: bytes of each dataset that HDF5 keeps
    in memory. `follow`: an index may link to files outside of its own directory. Raises UsageError if there is no
    complete output, and UnsoundOutput if its structure is wrong."""
    return FeatureFile(path, chunk_cache, follow)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.item() if isinstance(value, np.generic) else value
