"""The journal of a run: what is finished lies beside the output until the output is made of it.

    out.h5.parts/
      job.json             the settings that all parts share, and an id of the run
      lock                 host and process of the run that is going on
      <key>.rows           the rows of a finished video; <key> is a hash of the video's id
      <key>.json           what became of the video, and the sha256 of its rows' file
      pack-<n>.rows, .json the same of several hundred videos, so that there are never too many files
      *.tmp                unfinished; of no value after a kill

A video is done when a .json says so, which is always written last. What a .json points at and does not have the
sha256 that it says is not done: its videos are extracted again.
"""

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vswin_extract.errors import OutputError
from vswin_extract.parts import SUFFIX, Entry, Part, file_sha256, join, read_rows
from vswin_extract.store import Arrays, VideoRecord, publish, read_attributes, write_json, write_output
from vswin_extract.videos import Video

PACK = 256
"""So many single videos are packed into one file."""
PASSING = ("VideoMissing", "VideoChanged", "DecoderTimeout", "DecoderCrash")
"""Failures that may pass."""
TOUCH_EVERY = 30.0
DEAD_AFTER = 600.0
"""Seconds: how often a run touches its lock, and when one of another host is taken for dead."""


@dataclass
class Journal:
    """The finished videos of a run. Made by `open_journal`; `with` releases its lock. `notes` are for the user."""

    output: Path
    directory: Path
    arrays: Arrays
    run: str
    entries: dict[str, Entry] = field(default_factory=dict)
    singles: list[str] = field(default_factory=list)
    """Ids of videos that are in no pack."""
    notes: list[str] = field(default_factory=list)
    touched: float = 0.0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.directory.is_dir():  # published, or removed by hand
            return
        for unfinished in self.directory.glob("*.tmp"):
            unfinished.unlink()
        (self.directory / "lock").unlink(missing_ok=True)
        if os.listdir(self.directory) == ["job.json"]:  # no video got through
            shutil.rmtree(self.directory)

    def done(self, video: Video, size: int, mtime: float) -> bool:
        """Whether a video is through, was asked for as now, and its file has not changed since.

        What failed for a reason that may pass is not done: another try may be luckier.
        """
        entry = self.entries.get(video.id)
        if entry is None or entry.record.error in PASSING:
            return False
        record = entry.record
        then = (record.path, record.start, record.end, record.size, record.mtime)
        return then == (os.path.abspath(video.path), video.start, video.end, size, mtime)

    def touch(self) -> None:
        """Tell other hosts that this run is alive; call it often."""
        if time.monotonic() - self.touched > TOUCH_EVERY:
            os.utime(self.directory / "lock")
            self.touched = time.monotonic()

    def part(self, video_id: str) -> Part:
        """A new part for a video, to be given to `commit` when it has all rows."""
        return Part(self._file(video_id, SUFFIX), self.arrays)

    def commit(self, record: VideoRecord, part: Part | None = None) -> None:
        """A video is through: here are its rows, or it failed. From here on no kill loses it."""
        rows = self._file(record.id, SUFFIX)
        if part is not None:
            part.finish()
        sha256 = part.digest.hexdigest() if part is not None else ""
        write_json(rows.with_suffix(".json"), {"videos": [asdict(record)], "sha256": sha256})
        self.entries[record.id] = Entry(record, rows)
        self.singles.append(record.id)
        if len(self.singles) >= PACK:
            self._pack()

    def publish(self, video_ids: Sequence[str], attributes: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Make the output of these videos, in this order; then the journal goes."""
        entries = [self.entries[video_id] for video_id in video_ids]
        extracted = [entry for entry in entries if entry.record.status != "failed"]
        unfinished = self.directory / "output.h5.tmp"
        write_output(
            unfinished,
            lambda name: read_rows(extracted, self.arrays, name),
            [entry.record for entry in extracted],
            [entry.record for entry in entries if entry.record.status == "failed"],
            self.arrays,
            {**attributes, "run": self.run},
            classes,
        )
        publish(unfinished, self.output)
        remove_journal(self.directory)

    def _pack(self) -> None:
        """Bring single videos into one file. A kill leaves the singles, or the pack, or both, which is as good."""
        entries = [self.entries[video_id] for video_id in self.singles]
        number = 1 + max((int(path.stem[5:]) for path in self.directory.glob("pack-*.json")), default=-1)
        rows = self.directory / f"pack-{number}{SUFFIX}"
        sha256 = join(rows, [entry for entry in entries if entry.record.status != "failed"], self.arrays)
        records = [entry.record for entry in entries]
        write_json(rows.with_suffix(".json"), {"videos": [asdict(record) for record in records], "sha256": sha256})
        self._enter(records, rows)
        for video_id in self.singles:
            self._file(video_id, ".json").unlink(missing_ok=True)
            self._file(video_id, SUFFIX).unlink(missing_ok=True)
        self.singles = []

    def load(self) -> None:
        """Take in what an earlier run finished. Damaged files are dropped, and noted."""
        packs = sorted(self.directory.glob("pack-*.json"), key=lambda path: int(path.stem[5:]))
        singles = [path for path in self.directory.glob("*.json") if len(path.stem) == KEY_LENGTH]
        for path in [*packs, *singles]:
            records, problem = read_entry_file(path)
            if problem:
                names = ", ".join(record.id for record in records[:3]) + ("…" if len(records) > 3 else "")
                self.notes.append(f"{path.with_suffix('.h5')} {problem}; extracting again: {names or 'its videos'}")
                path.unlink()
                continue
            self._enter(records, path.with_suffix(SUFFIX))
            if path in singles:
                self.singles += [record.id for record in records]

    def _enter(self, records: Sequence[VideoRecord], rows: Path) -> None:
        first = 0
        for record in records:
            self.entries[record.id] = Entry(record, rows, first)
            first += record.clips

    def _file(self, video_id: str, suffix: str) -> Path:
        key = hashlib.sha256(video_id.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_LENGTH]
        return self.directory / (key + suffix)


KEY_LENGTH = 32


def read_entry_file(path: Path) -> tuple[list[VideoRecord], str]:
    """The videos that a .json of the journal says are done, and what is wrong with it or its rows, if anything."""
    try:
        said = json.loads(path.read_text("utf-8"))
        records = [VideoRecord(**record) for record in said["videos"]]
        expected = said["sha256"]
    except (ValueError, KeyError, TypeError):
        return [], "is described by a damaged .json"
    rows = path.with_suffix(SUFFIX)
    if expected and not rows.is_file():
        return records, "is gone"
    if expected and file_sha256(rows) != expected:
        return records, "is damaged: it has another sha256 than when it was written"
    return records, ""


def open_journal(
    output: Path, settings: dict[str, Any], arrays: Arrays, overwrite: bool, video_ids: Collection[str]
) -> Journal:
    """Begin a run over these videos, or continue the one that was stopped.

    Raises OutputError where the output is in the way, another process is at it, or the journal is of other settings
    or has videos that this run would drop.
    """
    check_output(output, overwrite)
    directory = journal_directory(output)
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is in the way: it is no directory; move it, or choose another name")
    if directory.is_dir() and read_job(directory) is None and set(os.listdir(directory)) - {"lock", "job.json.tmp"}:
        raise OutputError(
            f"{directory} is in the way: it is no journal of vswin-extract; move it, or choose another name"
        )
    directory.mkdir(exist_ok=True)
    _lock(directory / "lock", output)
    begun = read_job(directory)
    try:
        if begun and begun["settings"] != settings:
            if not overwrite:
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
            write_json(directory / "job.json", begun)
        journal = Journal(output, directory, arrays, begun["run"])
        journal.load()
        dropped = sorted(journal.entries.keys() - set(video_ids))
        if dropped and not overwrite:
            names = ", ".join(dropped[:3]) + (f" and {len(dropped) - 3} more" if len(dropped) > 3 else "")
            raise OutputError(
                f"{directory} holds finished videos that are not among those named now: {names}; "
                "name them too, or --overwrite to drop them"
            )
    except OutputError:
        (directory / "lock").unlink()
        raise
    return journal


def journal_directory(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def check_output(output: Path, overwrite: bool) -> None:
    """Raise OutputError unless `output` can be written: it is not there, or is ours and may be overwritten."""
    if output.is_dir():
        raise OutputError(f"{output} is a directory; the last argument is the file to write, as in: videos/ out.h5")
    if not output.parent.is_dir():
        raise OutputError(f"no directory {output.parent} to write {output.name} into")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write into {output.parent.absolute()}")
    if os.path.lexists(output):
        if read_attributes(output) is None:
            raise OutputError(f"{output} exists and was not written by vswin-extract; choose another name")
        if not overwrite:
            raise OutputError(f"{output} exists; add --overwrite to replace it")


def finish_interrupted_cleanup(output: Path) -> dict[str, Any] | None:
    """Where a kill came between the output's appearance and its journal's removal: remove the journal, and return the
    settings that the output was made with. Else None."""
    directory = journal_directory(output)
    begun, made = read_job(directory), read_attributes(output)
    if begun is None or made is None or made.get("run") != begun["run"]:
        return None
    _lock(directory / "lock", output)
    remove_journal(directory)
    settings: dict[str, Any] = begun["settings"]
    return settings


def remove_journal(directory: Path) -> None:
    """job.json goes last but one, so that a kill leaves what can be recognised, and the lock last."""
    for path in directory.iterdir():
        if path.name not in ("job.json", "lock"):
            path.unlink()
    (directory / "job.json").unlink()
    (directory / "lock").unlink(missing_ok=True)
    directory.rmdir()


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


def read_job(directory: Path) -> dict[str, Any] | None:
    """What job.json says, or None."""
    job = directory / "job.json"
    if not job.is_file():
        return None
    try:
        said: dict[str, Any] = json.loads(job.read_text("utf-8"))
        return {"settings": said["settings"], "run": said["run"]}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{job} is damaged; delete {directory} to begin again") from error


def _lock(lock: Path, output: Path) -> None:
    """Claim the journal, without relying on flock, which network file systems may lack.

    Raises OutputError where a living process holds it: one on this host, or one elsewhere that touched it lately.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    candidate = lock.with_name(f"lock.{uuid.uuid4().hex}.tmp")
    candidate.write_text(json.dumps(mine))
    try:
        while True:
            try:
                os.link(candidate, lock)  # with its content, or not at all
                return
            except FileExistsError:
                _remove_if_dead(lock, candidate, output)
    finally:
        candidate.unlink()


def _remove_if_dead(lock: Path, fresh: Path, output: Path) -> None:
    try:
        content = lock.read_text()
        idle = fresh.stat().st_mtime - lock.stat().st_mtime  # both by the file server's clock
    except FileNotFoundError:
        return
    try:
        holder = json.loads(content)
        here = holder["host"] == socket.gethostname()
        alive = _started(holder["pid"]) == holder["started"] if here else idle < DEAD_AFTER
    except (ValueError, KeyError, TypeError):  # written whole or not at all, so a disk spoiled it
        alive = False
    if alive:
        raise OutputError(
            f"{output} is being written by process {holder['pid']} on {holder['host']}; "
            f"if that is no longer so, delete {lock}"
        )
    taken = fresh.with_name(f"lock.{uuid.uuid4().hex}.tmp")
    try:
        lock.rename(taken)
    except FileNotFoundError:
        return
    if taken.read_text() != content:  # somebody else was quicker, and this is theirs
        os.link(taken, lock)
    taken.unlink()


def _started(pid: int) -> str | None:
    """When a process of this host began, as far as can be told; None where there is none. Pids are used again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:  # no such file system
        return "?"
