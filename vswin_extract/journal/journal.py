"""The journal of a run: what is finished lies beside the output until the output is made of it.

    out.h5.parts/
      job.json             the settings that all parts share, an id of the run, and what else the output will say
      videos.json          the videos; where several devices or tasks share them, about how many clips each has
      lock                 host and process of the run that is going on
      <key>.rows           the rows of a finished video or clip_range; <key> is a hash of the video's id and the clip_range
      <key>.json           what became of the video, and the sha256 of its rows' file
      pack-<n>.rows, .json the same of several hundred videos, so that there are never too many files
      branch-<id>/         what one of several devices or tasks wrote: the same files again
      *.tmp                unfinished; of no value after a kill

A video is done when a .json says so, which is always written last. What a .json points at and does not have the
sha256 that it says is not done: its videos are extracted again.

Several processes, on several machines, write at a time, each into a branch of its own that no other process ever
writes into: so they need no locks, and whoever is killed leaves nothing behind that stops another.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vswin_extract import locks
from vswin_extract.errors import OutputError
from vswin_extract.files import file_sha256, publish, write_json
from vswin_extract.journal.parts import SUFFIX, Entry, Part, join, read_rows, record_type
from vswin_extract.store.layouts import Layout, make_output
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.store.write import read_attributes
from vswin_extract.video.ranges import WHOLE, ClipRange, without
from vswin_extract.video.remote import Address, is_remote, same_fingerprint
from vswin_extract.video.videos import Video

PACK = 256
"""So many single videos are packed into one file."""
PASSING = ("VideoMissing", "VideoChanged", "VideoUnreachable", "DecoderTimeout", "DecoderCrash", "WorkerDied")
"""Failures that may pass."""
TOUCH_EVERY = 30.0
DEAD_AFTER = 600.0
"""Seconds: how often a lock is touched while it is held, and when one of another host is taken for dead."""


State = tuple[str, float | None, float | None, int, str, float]
"""What was asked for, and the file as it was: path, start, end, size, etag, mtime."""


@dataclass
class Journal:
    """The finished videos of a run. Made by `open_journal`, `join_journal` and `branch`; `with` releases what it holds.

    `root` is the whole journal, `directory` what this process writes into: the root itself, or a branch. `entries` are
    by video id. `notes` are for the user.
    """

    output: Path
    root: Path
    directory: Path
    arrays: Arrays
    run: str
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    singles: list[Entry] = field(default_factory=list)
    """Those of this directory that are in no pack."""
    wanted: dict[str, State] = field(default_factory=dict)
    """What was asked for, and the files as they were, by video id; see `missing`."""
    notes: list[str] = field(default_factory=list)
    holding: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self.holding:
            self._clean()

    def _clean(self) -> None:
        if not self.directory.is_dir():  # published, or removed by hand
            return
        for unfinished in self.directory.glob("*.tmp"):
            unfinished.unlink()
        if self.directory != self.root:
            if len(self.singles) > 1:
                self._pack()
            _remove_if_empty(self.directory)
            return
        for written in self.root.glob("branch-*"):
            _remove_if_empty(written)
        if not set(os.listdir(self.root)) - {"job.json", "videos.json", "lock"}:  # no video got through
            shutil.rmtree(self.root)

    def missing(self, video: Video, size: int, mtime: float, etag: str = "") -> list[ClipRange]:
        """The clip_ranges of a video's clips that are still to be extracted; none where it is through.

        What was found when its file was another, or asked for otherwise, does not count, and neither does what failed
        for a reason that may pass: another try may be luckier. Of an address that nobody has looked at, what is through
        counts, whatever its file was.
        """
        now = self.wanted[video.id] = (video.location, video.start, video.end, size, etag, mtime)
        entries = [
            entry
            for entry in self.entries.get(video.id, ())
            if _is(entry.record, now) and entry.record.error not in PASSING
        ]
        if assemble(entries):
            return []
        if isinstance(video.path, Address) and size < 0:  # clip_ranges may be of different files
            return [video.clip_range]
        return without(video.clip_range, [entry.record.clip_range for entry in entries])

    def part(self, video: Video) -> Part:
        """A new part for a video, to be given to `commit` when it has all rows."""
        return Part(self._file(video.id, video.clip_range, SUFFIX), self.arrays)

    def commit(self, record: VideoRecord, part: Part | None = None) -> None:
        """A video, or a clip_range of one, is through: here are its rows, or it failed. From here on no kill loses it."""
        if part is not None:
            part.finish()
        rows = part.path if part is not None else self._file(record.id, record.clip_range, SUFFIX)
        sha256 = part.digest.hexdigest() if part is not None else ""
        write_json(rows.with_suffix(".json"), {"videos": [asdict(record)], "sha256": sha256})
        entry = Entry(record, rows)
        entries = self.entries.setdefault(record.id, [])
        for others in (entries, self.singles):  # of the file as it was before, whose rows are overwritten
            others[:] = [other for other in others if other.file != rows]
            others.append(entry)
        if len(self.singles) >= PACK:
            self._pack()

    def through(self, video_id: str) -> "Extracted | None":
        """A video of which nothing is missing, or None; of the file as `missing` saw it, if there is such a one."""
        entries, wanted = self.entries.get(video_id, []), self.wanted.get(video_id)
        same = [entry for entry in entries if wanted and _is(entry.record, wanted)]
        return assemble(same) or assemble(entries)

    def extracted(self, video_id: str) -> "Extracted":
        """The same. Raises OutputError where some of it is missing."""
        if (video := self.through(video_id)) is None:
            raise OutputError(f"{video_id} is not through; the same command continues {self.root}")
        return video

    def publish(
        self,
        video_ids: Sequence[str],
        attributes: Mapping[str, Any],
        classes: Sequence[str] = (),
        layout: Layout = "single",
    ) -> None:
        """Make the output of these videos, in this order; then the journal goes."""
        videos = {video_id: self.extracted(video_id) for video_id in video_ids}
        inside = self.root.parent == self.output.parent
        make_output(
            self.output,
            self.root / "output.h5.tmp" if inside else self.output.with_name(f".{self.output.name}.tmp"),
            layout,
            lambda mine: read_rows((piece for record in mine for piece in videos[record.id].pieces), self.arrays),
            [video.record for video in videos.values()],
            self.arrays,
            {**attributes, "run": self.run},
            classes,
        )
        remove_journal(self.root)

    def _pack(self) -> None:
        """Bring single videos into one file. A kill leaves the singles, or the pack, or both, which is as good."""
        number = 1 + max((int(path.stem[5:]) for path in self.directory.glob("pack-*.json")), default=-1)
        rows = self.directory / f"pack-{number}{SUFFIX}"
        sha256 = join(rows, [entry for entry in self.singles if entry.record.status != "failed"], self.arrays)
        records = [entry.record for entry in self.singles]
        write_json(rows.with_suffix(".json"), {"videos": [asdict(record) for record in records], "sha256": sha256})
        for entry in self.singles:
            if entry in (others := self.entries.get(entry.record.id, [])):
                others.remove(entry)
        self._enter(records, rows)
        for entry in self.singles:
            entry.file.with_suffix(".json").unlink(missing_ok=True)
            entry.file.unlink(missing_ok=True)
        self.singles = []

    def load(self, verify: bool = True) -> None:
        """Take in what is finished, in all branches. Damaged files are dropped, and noted; without `verify` only those
        that are gone or cut off."""
        self.entries, self.singles = {}, []
        for path in entry_files(self.root):
            records, problem = read_entry_file(path, self.arrays, verify)
            if problem:
                names = ", ".join(record.id for record in records[:3]) + ("…" if len(records) > 3 else "")
                self.notes.append(f"{path.with_suffix(SUFFIX)} {problem}; extracting again: {names or 'its videos'}")
                path.unlink(missing_ok=True)
                continue
            entered = self._enter(records, path.with_suffix(SUFFIX))
            if path.parent == self.directory and not path.stem.startswith("pack-"):
                self.singles += entered

    def _enter(self, records: Sequence[VideoRecord], rows: Path) -> list[Entry]:
        first, entered = 0, []
        for record in records:
            entered.append(Entry(record, rows, first))
            self.entries.setdefault(record.id, []).append(entered[-1])
            first += record.clips
        return entered

    def _file(self, video_id: str, clip_range: ClipRange, suffix: str) -> Path:
        name = video_id if clip_range == WHOLE else f"{video_id}\0{clip_range}"
        key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_LENGTH]
        return self.directory / (key + suffix)


@dataclass(frozen=True)
class Extracted:
    """A video that is through: its record as a whole, and the pieces whose rows follow one another."""

    record: VideoRecord
    pieces: tuple[Entry, ...] = ()


def assemble(entries: Sequence[Entry]) -> Extracted | None:
    """The video that these entries of it are, or None where some of it is missing.

    Entries that were made when its file was another do not go together; those count that were written last and are
    whole. A clip_range that failed is a video that failed.
    """
    states: dict[State, list[Entry]] = {}
    for entry in entries:
        states.setdefault(_state(entry.record), []).append(entry)
    latest = list(states.values())
    if len(latest) > 1:  # the usual one need not be asked for
        latest.sort(key=lambda them: max(map(_written, them)), reverse=True)
    for them in latest:
        if pieces := _chain([entry for entry in them if entry.record.status != "failed"]):
            last, clips = pieces[-1].record, sum(piece.record.clips for piece in pieces)
            first = pieces[0].record
            whole = replace(last, clip_range=WHOLE, clips=clips, width=first.width, height=first.height)
            return Extracted(whole, tuple(pieces))
        for entry in them:
            if entry.record.status == "failed":
                return Extracted(replace(entry.record, clip_range=WHOLE))
    return None


def _written(entry: Entry) -> int:
    """When, by the file server's clock: the time of a video's file tells its age, and not when it was put there."""
    try:
        return entry.file.with_suffix(".json").stat().st_mtime_ns
    except FileNotFoundError:  # its branch has packed it meanwhile
        return 0


def _chain(entries: Sequence[Entry]) -> list[Entry]:
    """Pieces that follow one another from a video's beginning to its end, or none."""
    at, chain = 0, []
    while True:
        fitting = [
            entry for entry in entries if entry.record.clip_range[0] <= at and at < (entry.record.clip_range[1] or 1 << 62)
        ]  # fmt: skip
        if not fitting:
            return []
        entry = max(fitting, key=lambda entry: entry.record.clip_range[1] or 1 << 62)
        skipped, end = at - entry.record.clip_range[0], entry.record.clip_range[1]
        clips = max(0, entry.record.clips - skipped)
        chain.append(Entry(replace(entry.record, clips=clips), entry.file, entry.first + skipped) if skipped else entry)
        if end is None:
            return chain
        at = end


def _state(record: VideoRecord) -> State:
    return record.path, record.start, record.end, record.size, record.etag, record.mtime


def _is(record: VideoRecord, wanted: State) -> bool:
    """Whether it is of this file as it is now; of one at an address, as far as that is known."""
    then = _state(record)
    if then == wanted:
        return True
    return is_remote(record.path) and then[:3] == wanted[:3] and same_fingerprint(then[3:], wanted[3:])


KEY_LENGTH = 32


def entry_files(root: Path) -> list[Path]:
    """The .json files that say which videos are done: packs before singles, which are younger, branch by branch."""
    found = []
    for directory in [root, *sorted(root.glob("branch-*"))]:
        packs = sorted(directory.glob("pack-*.json"), key=lambda path: int(path.stem[5:]))
        found += [*packs, *(path for path in directory.glob("*.json") if len(path.stem) == KEY_LENGTH)]
    return found


def read_entry_file(path: Path, arrays: Arrays | None = None, verify: bool = True) -> tuple[list[VideoRecord], str]:
    """The videos that a .json of the journal says are done, and what is wrong with it or its rows, if anything.

    Without `verify` the rows are not read; with `arrays` there must be as many as are spoken of.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
        records = [_record(stored) for stored in said["videos"]]
        expected = said["sha256"]
    except FileNotFoundError:  # its branch has packed it meanwhile
        return [], ""
    except (ValueError, KeyError, TypeError):
        return [], "is described by a damaged .json"
    rows = path.with_suffix(SUFFIX)
    if expected and not rows.is_file():
        return records, "is gone"
    if arrays is not None and expected:
        size = sum(record.clips for record in records) * record_type(arrays).itemsize
        if rows.stat().st_size != size:
            return records, f"is damaged: it has {rows.stat().st_size} bytes where {size} were written"
    if verify and expected and file_sha256(rows) != expected:
        return records, "is damaged: it has another sha256 than when it was written"
    return records, ""


def _record(stored: dict[str, Any]) -> VideoRecord:
    clips = stored.pop("span", None) or stored["clip_range"]  # "span" in journals of version 0.1
    return VideoRecord(**{**stored, "clip_range": tuple(clips)})


def open_journal(
    output: Path,
    settings: dict[str, Any],
    arrays: Arrays,
    overwrite: bool,
    video_ids: Sequence[str],
    facts: Mapping[str, Any] | None = None,
    storage: Path | None = None,
) -> Journal:
    """Begin a run over these videos, or continue the one that was stopped. `facts`: what else the output will say, for
    those who make it without having computed anything. `storage`: where the journal is, if not beside the output.

    Raises OutputError where the output is in the way, another process is at it, or the journal is of other settings
    or has videos that this run would drop.
    """
    check_output(output, overwrite)
    root = journal_directory(output, storage)
    _check_root(root)
    root.mkdir(exist_ok=True)
    with contextlib.ExitStack() as holding:
        holding.enter_context(claim(root / "lock", output))
        begun = read_job(root)
        if begun:
            _check_output(root, begun, output)
        if begun and begun["settings"] != settings:
            if not overwrite:
                raise _other_settings(root, begun["settings"], settings)
            begun = None
        if begun is None:
            _empty(root, ("lock",))
            begun = _begin(root, output, settings, arrays, facts)
        journal = Journal(output, root, root, arrays, begun["run"])
        journal.load()
        dropped = sorted(journal.entries.keys() - set(video_ids))
        if dropped and not overwrite:
            names = ", ".join(dropped[:3]) + (f" and {len(dropped) - 3} more" if len(dropped) > 3 else "")
            raise OutputError(
                f"{root} holds finished videos that are not among those named now: {names}; "
                "name them too, or --overwrite to drop them"
            )
        if list(known := read_list(root)) != list(video_ids):
            write_list(root, {video_id: known.get(video_id) for video_id in video_ids})
        journal.holding = holding.pop_all()
    return journal


def join_journal(
    output: Path, settings: dict[str, Any], arrays: Arrays, facts: Mapping[str, Any], storage: Path | None = None
) -> Journal:
    """Work on a run together with other processes, here or on other hosts: a branch of its journal, which the first
    of them begins.

    Raises OutputError where the journal is of other settings, or one process alone is at it.
    """
    root = journal_directory(output, storage)
    _check_root(root)
    root.mkdir(exist_ok=True)
    if holder := locks.holder(root / "lock", DEAD_AFTER):
        raise _in_use(output, holder, root / "lock")
    begun = read_job(root) or _begin(root, output, settings, arrays, facts)
    _check_output(root, begun, output)
    if begun["settings"] != settings:
        raise _other_settings(root, begun["settings"], settings, f"delete {root}")
    journal = branch(output, root, arrays, begun["run"])
    journal.load(verify=False)  # which is left to `merge`, not to every task for what all of them wrote
    return journal


@contextlib.contextmanager
def claim(lock: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a journal, or one beside it. Raises OutputError where a living process has it."""
    if holder := locks.acquire(lock, DEAD_AFTER):
        raise _in_use(output, holder, lock)
    with locks.held(lock, TOUCH_EVERY):
        yield


def branch(output: Path, root: Path, arrays: Arrays, run: str) -> Journal:
    """A new branch of a journal, for this process alone."""
    directory = root / f"branch-{uuid.uuid4().hex}"
    directory.mkdir()
    return Journal(output, root, directory, arrays, run)


def journal_directory(output: Path, storage: Path | None = None) -> Path:
    return (storage or output.parent) / f"{output.name}.parts"


def _check_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is in the way: it is no directory; move it, or choose another name")
    if root.is_dir() and read_job(root) is None:
        foreign = [name for name in os.listdir(root) if name not in ("lock", "probing") and not name.endswith(".tmp")]
        if foreign and read_job(root) is None:  # asked again, since another task may begin it at this moment
            raise OutputError(
                f"{root} is in the way: it is no journal of vswin-extract; move it, or choose another name"
            )
    if not root.parent.is_dir():
        raise OutputError(f"no directory {root.parent} to keep {root.name} in")


def _begin(
    root: Path, output: Path, settings: dict[str, Any], arrays: Arrays, facts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Write job.json, unless another process does so first; what it says."""
    said = {"settings": settings, "run": uuid.uuid4().hex, "arrays": asdict(arrays), **(facts or {})}
    candidate = root / f"job.{uuid.uuid4().hex}.tmp"
    write_json(candidate, {**said, "output": os.path.abspath(output)})
    with contextlib.suppress(FileExistsError):
        locks.create(candidate, root / "job.json")
    candidate.unlink()
    begun = read_job(root)
    if begun is None:
        raise OutputError(f"{root} was removed while this run began")
    return begun


def _empty(root: Path, but: Collection[str]) -> None:
    for path in root.iterdir():
        if path.name not in but:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _remove_if_empty(written: Path) -> None:
    """A branch in which nothing was finished."""
    if not any(written.glob("*.json")):
        shutil.rmtree(written)


def _check_output(root: Path, begun: Mapping[str, Any], output: Path) -> None:
    """Raise OutputError where the run is another output's: two of one name may be given one --storage. A journal beside
    its output may have been moved with it."""
    before, now = begun["output"], os.path.abspath(output)
    if before not in (None, now) and root.parent != output.parent:
        raise OutputError(f"{root} holds a run for {before}, not for {now}; choose another name, or another --storage")


def _other_settings(
    root: Path, before: Mapping[str, Any], now: Mapping[str, Any], drop: str = "--overwrite"
) -> OutputError:
    return OutputError(
        f"{root} holds a run that was stopped, with other settings: {describe_difference(before, now)}; "
        f"give the old ones to continue it, or {drop} to drop it"
    )


def read_list(root: Path) -> dict[str, int | None]:
    """The videos of a run in order, and about how many clips each has, if somebody looked, by videos.json; empty where
    there is none."""
    try:
        said = json.loads((root / "videos.json").read_text("utf-8"))
        return dict(zip(said["ids"], said["clips"], strict=True))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{root / 'videos.json'} is damaged; delete it, and give the same command again") from error


def write_list(root: Path, clips: Mapping[str, int | None]) -> None:
    candidate = root / f"videos.{uuid.uuid4().hex}.tmp"
    write_json(candidate, {"ids": list(clips), "clips": list(clips.values())})
    publish(candidate, root / "videos.json")


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


def finish_interrupted_cleanup(output: Path, directory: Path) -> dict[str, Any] | None:
    """Where a kill came between the output's appearance and its journal's removal: remove the journal, and return the
    settings that the output was made with. Else None."""
    begun, made = read_job(directory), read_attributes(output)
    if begun is None or made is None or made.get("run") != begun["run"]:
        return None
    with claim(directory / "lock", output):
        remove_journal(directory)
    settings: dict[str, Any] = begun["settings"]
    return settings


def remove_journal(directory: Path) -> None:
    """job.json goes last but one, so that a kill leaves what can be recognised, and the lock last."""
    _empty(directory, ("job.json", "lock"))
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
        known = {"settings": said["settings"], "run": said["run"]}
        return {"arrays": None, "attributes": {}, "classes": [], "output": None, **said, **known}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{job} is damaged; delete {directory} to begin again") from error


def _in_use(output: Path, holder: locks.Holder, lock: Path) -> OutputError:
    return OutputError(f"{output} is being written by {holder}; if that is no longer so, delete {lock}")
