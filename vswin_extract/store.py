"""Features on disk: a journal of finished videos beside the output, and the one file that is made of it at the end.

    out.h5.parts/
      job.json           the settings that all parts share, and an id of the run
      lock               host and process of the run that is going on
      <key>.h5           the rows of one finished video; <key> is a hash of the video's id
      <key>.json         what became of the video. A video is done when this is there, and it is written last.
      *.tmp              unfinished; of no value after a kill

Everything is written under another name, synced and renamed, so a name never stands for half a file. Schema of the
output: README, "The file".
"""

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import OutputError

SCHEMA = "vswin-extract/1"
CLIP_COLUMNS: dict[str, tuple[tuple[int, ...], str]] = {
    "video": ((), "int64"),
    "frames": ((2,), "int64"),
    "times": ((2,), "float64"),
    "valid": ((), "int32"),
}
"""Columns of /clips: shape of a row, type."""
VIEWED = ("frames", "times", "valid")
"""Columns of /clips that the group of each video shows too."""

Compression = Literal["none", "lzf", "gzip"]
Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Arrays:
    """The feature datasets of a file: name -> shape of a clip's row, all of one type and compression."""

    shapes: dict[str, tuple[int, ...]]
    dtype: str = "float32"
    compression: Compression = "none"

    def bytes_per_clip(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values()) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class VideoRecord:
    """What became of a video: a row of /videos_table, or of /failures where `status` is "failed".

    `size` in bytes and `mtime` in seconds are the file's, as it was when the video was begun. `frames` were decoded.
    """

    id: str
    path: str
    status: Literal["ok", "partial", "failed"]
    clips: int = 0
    fps: float = 0.0
    frames: int = 0
    duration: float = 0.0
    width: int = 0
    height: int = 0
    size: int = -1
    mtime: float = 0.0
    start: float | None = None
    end: float | None = None
    error: str = ""
    message: str = ""


class Part:
    """The rows of one video, being written."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self.path = path
        self.unfinished = path.with_name(path.name + ".tmp")
        self.rows = 0
        self.file = h5py.File(self.unfinished, "w")
        for name, shape in arrays.shapes.items():
            _create(self.file, name, 0, shape, arrays, chunk_bytes=1 << 16)
        for name, (shape, dtype) in CLIP_COLUMNS.items():
            if name != "video":
                _create(self.file, f"clips/{name}", 0, shape, Arrays({}, dtype), chunk_bytes=1 << 12)

    def append(self, rows: Rows) -> None:
        """Rows of consecutive clips: features by name, and the columns "clips/frames" and so on."""
        count = len(next(iter(rows.values())))
        for name, values in rows.items():
            dataset = self.file[name]
            dataset.resize(self.rows + count, axis=0)
            dataset[self.rows :] = values
        self.rows += count

    def finish(self) -> None:
        """Make it durable, under its own name."""
        self.file.close()
        _publish(self.unfinished, self.path)

    def discard(self) -> None:
        self.file.close()
        self.unfinished.unlink(missing_ok=True)


@dataclass
class Journal:
    """The finished videos of a run that is going on. Made by `open_journal`; `with` releases its lock."""

    output: Path
    directory: Path
    arrays: Arrays
    settings: dict[str, Any]
    run: str
    records: dict[str, VideoRecord] = field(default_factory=dict)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.directory.is_dir():  # published
            return
        for unfinished in self.directory.glob("*.tmp"):
            unfinished.unlink()
        (self.directory / "lock").unlink(missing_ok=True)
        if os.listdir(self.directory) == ["job.json"]:  # no video got through
            shutil.rmtree(self.directory)

    def done(self, video_id: str, size: int, mtime: float) -> VideoRecord | None:
        """What became of a video that is through and has not changed since; else None."""
        path = self._file(video_id, ".json")
        if not path.is_file():
            return None
        record = VideoRecord(**json.loads(path.read_text("utf-8")))
        whole = record.status == "failed" or self._file(video_id, ".h5").is_file()
        if (record.id, record.size, record.mtime) != (video_id, size, mtime) or not whole:
            return None
        self.records[video_id] = record
        return record

    def part(self, video_id: str) -> Part:
        return Part(self._file(video_id, ".h5"), self.arrays)

    def commit(self, record: VideoRecord) -> None:
        """A video is through: its part is finished, or it failed. From here on no kill loses it."""
        _write_json(self._file(record.id, ".json"), asdict(record))
        self.records[record.id] = record

    def publish(self, video_ids: Sequence[str], attributes: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Make the output of the parts of these videos, in this order; then the journal goes."""
        records = [self.records[video_id] for video_id in video_ids]
        unfinished = self.directory / "output.h5.tmp"
        extracted = [record for record in records if record.status != "failed"]
        with h5py.File(unfinished, "w") as file:
            write_attributes(file, {**attributes, "run": self.run})
            _copy_rows(file, [(record, self._file(record.id, ".h5")) for record in extracted], self.arrays)
            _write_tables(file, extracted, [record for record in records if record.status == "failed"])
            _write_views(file, extracted, self.arrays)
            if classes:
                file.create_dataset("classes", data=np.array(classes, object), dtype=h5py.string_dtype())
            file.attrs["complete"] = True
        _publish(unfinished, self.output)
        shutil.rmtree(self.directory)

    def _file(self, video_id: str, suffix: str) -> Path:
        key = hashlib.sha256(video_id.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.directory / (key + suffix)


def open_journal(output: Path, settings: dict[str, Any], arrays: Arrays, overwrite: bool) -> Journal:
    """Begin a run, or continue the one that was stopped.

    Raises OutputError where the output is in the way, another process is at it, or the journal is of other settings.
    """
    directory = journal_directory(output)
    check_output(output, overwrite)
    directory.mkdir(exist_ok=True)
    _lock(directory / "lock", output)
    begun = _begun(directory)
    if begun and begun["settings"] != settings:
        if not overwrite:
            (directory / "lock").unlink()
            raise OutputError(
                f"{directory} holds a run that was stopped, with other settings: "
                f"{describe_difference(begun['settings'], settings)}; give the old ones to continue it, "
                "or --overwrite to drop it"
            )
        begun = None
    if begun is None:
        for path in directory.iterdir():
            if path.name != "lock":
                path.unlink()
        begun = {"settings": settings, "run": uuid.uuid4().hex}
        _write_json(directory / "job.json", begun)
    return Journal(output, directory, arrays, settings, begun["run"])


def journal_directory(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def check_output(output: Path, overwrite: bool) -> None:
    """Raise OutputError unless `output` can be written: it is not there, or is ours and may be overwritten."""
    if not output.parent.is_dir():
        raise OutputError(f"no directory {output.parent} to write {output.name} into")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write into {output.parent.absolute()}")
    if output.is_dir():
        raise OutputError(f"{output} is a directory; the last argument is the file to write, as in: videos/ out.h5")
    if os.path.lexists(output):
        if _attributes(output) is None:
            raise OutputError(f"{output} exists and was not written by vswin-extract; choose another name")
        if not overwrite:
            raise OutputError(f"{output} exists; add --overwrite to replace it")


def finish_interrupted_cleanup(output: Path) -> bool:
    """Whether a kill came between the output's appearance and its journal's removal; then the journal is removed."""
    begun = _begun(journal_directory(output))
    made = _attributes(output)
    if begun is None or made is None or made.get("run") != begun["run"]:
        return False
    shutil.rmtree(journal_directory(output))
    return True


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The settings that differ, each as "name was old, is new"."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found.append(describe_difference(before, after, f"{prefix}{key}."))
        else:
            found.append(f"{prefix}{key} was {before}, is {after}")
    return "; ".join(found)


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Root attributes; what is nested becomes a JSON string."""
    file.attrs["schema"] = SCHEMA
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["complete"] = False
    for name, value in attributes.items():
        file.attrs[name] = json.dumps(value) if isinstance(value, dict | list | tuple) else value


def _begun(directory: Path) -> dict[str, Any] | None:
    """What job.json says, or None."""
    job = directory / "job.json"
    return json.loads(job.read_text("utf-8")) if job.is_file() else None


def _attributes(path: Path) -> dict[str, Any] | None:
    """Root attributes of a file of ours, or None where it is none."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs) if str(file.attrs.get("schema", "")).startswith("vswin-extract/") else None
    except OSError:
        return None


def _copy_rows(file: h5py.File, parts: Sequence[tuple[VideoRecord, Path]], arrays: Arrays) -> None:
    """All rows of all parts, one part after another; what is in memory at a time does not grow with them."""
    total = sum(record.clips for record, _ in parts)
    for name, shape in arrays.shapes.items():
        _create(file, name, total, shape, arrays, chunk_bytes=1 << 20)
    for name, (shape, dtype) in CLIP_COLUMNS.items():
        _create(file, f"clips/{name}", total, shape, Arrays({}, dtype), chunk_bytes=1 << 16)
    first = 0
    for number, (record, path) in enumerate(parts):
        with h5py.File(path, "r") as part:
            for name in [*arrays.shapes, *(f"clips/{column}" for column in CLIP_COLUMNS if column != "video")]:
                for start, stop in _blocks(part[name]):
                    file[name][first + start : first + stop] = part[name][start:stop]
        file["clips/video"][first : first + record.clips] = number
        first += record.clips


def _blocks(dataset: h5py.Dataset, most_bytes: int = 1 << 25) -> Iterator[tuple[int, int]]:
    rows = max(1, most_bytes * len(dataset) // max(dataset.nbytes, 1))
    for start in range(0, len(dataset), rows):
        yield start, min(start + rows, len(dataset))


def _write_tables(file: h5py.File, extracted: Sequence[VideoRecord], failed: Sequence[VideoRecord]) -> None:
    clips = np.array([record.clips for record in extracted], np.int64)
    table = file.create_group("videos_table")
    text = h5py.string_dtype()
    for name in ("id", "path", "status", "message"):
        table.create_dataset(name, data=_texts(extracted, name), dtype=text)
    table["first_clip"] = np.cumsum(clips) - clips
    table["clips"] = clips
    for name, dtype in (
        ("fps", "f8"), ("frames", "i8"), ("duration", "f8"), ("width", "i4"), ("height", "i4"), ("size", "i8"),
        ("mtime", "f8"),
    ):  # fmt: skip
        table[name] = np.array([getattr(record, name) for record in extracted], dtype)
    for name, otherwise in (("start", 0.0), ("end", np.inf)):
        given = [getattr(record, name) for record in extracted]
        table[name] = np.array([otherwise if value is None else value for value in given], "f8")
    failures = file.create_group("failures")
    for name in ("id", "path", "error", "message"):
        failures.create_dataset(name, data=_texts(failed, name), dtype=text)


def _write_views(file: h5py.File, extracted: Sequence[VideoRecord], arrays: Arrays) -> None:
    """/videos/<id>: every dataset again, as the rows of that video alone, without copying."""
    videos = file.create_group("videos")
    names = {**{name: name for name in arrays.shapes}, **{f"clips/{name}": name for name in VIEWED}}
    first = 0
    for record in extracted:
        group = videos.create_group(_text(record.id))
        for source_name, name in names.items():
            source = file[source_name]
            layout = h5py.VirtualLayout((record.clips, *source.shape[1:]), source.dtype)
            # "." is this file itself, whatever it is called later
            rows = h5py.VirtualSource(".", source_name, source.shape, source.dtype)[first : first + record.clips]
            layout[:] = rows
            group.create_virtual_dataset(name, layout)
        for name in ("fps", "duration", "frames", "width", "height", "status", "path"):
            value = getattr(record, name)
            group.attrs[name] = _text(value) if isinstance(value, str) else value
        first += record.clips


def _create(file: h5py.File, name: str, rows: int, shape: tuple[int, ...], arrays: Arrays, chunk_bytes: int) -> None:
    """A dataset in chunks of whole rows; it can grow if it begins with none."""
    row_bytes = max(1, int(np.prod(shape)) * np.dtype(arrays.dtype).itemsize)
    chunk = max(1, min(chunk_bytes // row_bytes, rows or chunk_bytes))
    compression = None if arrays.compression == "none" else arrays.compression
    # bytes of one significance side by side: floats hardly compress otherwise
    file.create_dataset(
        name,
        (rows, *shape),
        arrays.dtype,
        maxshape=(None, *shape),
        chunks=(chunk, *shape),
        compression=compression,
        shuffle=compression is not None,
    )


def _texts(records: Sequence[VideoRecord], name: str) -> NDArray[np.object_]:
    return np.array([_text(getattr(record, name)) for record in records], object)


def _text(value: str) -> str:
    """Text that HDF5 can hold: names that are no UTF-8 keep their bytes as escapes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(value), "utf-8")
    _publish(unfinished, path)


def _publish(unfinished: Path, path: Path) -> None:
    """Rename a finished file into place so that it survives a power cut."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(lock: Path, output: Path) -> None:
    """Claim the journal. Raises OutputError where a living process, or one on another host, holds it."""
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    while True:
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            try:
                holder = json.loads(lock.read_text())
            except FileNotFoundError:
                continue
            except ValueError:  # killed while writing it
                holder = {"host": socket.gethostname(), "pid": 0}
            if holder["host"] != socket.gethostname() or _alive(holder["pid"]):
                raise OutputError(
                    f"{output} is being written by process {holder['pid']} on {holder['host']}; "
                    f"if that is no longer so, delete {lock}"
                ) from None
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(mine)
        return


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
