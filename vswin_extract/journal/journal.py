"""The owner's view of a journal: what all its writers have finished, what is missing, and the output made of it."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vswin_extract import locks
from vswin_extract.errors import OutputError
from vswin_extract.formatting import name_some
from vswin_extract.journal.claims import OutputClaim, claim_output
from vswin_extract.journal.directory import (
    DEAD_AFTER,
    TASK,
    begin_job,
    check_lock,
    check_same_output,
    claim,
    empty,
    finish_interrupted_cleanup,
    in_use,
    journal_directory,
    make_directory,
    name_unfinished,
    other_settings,
    read_job,
    read_list,
    refuse_beside_tasks,
    remove_abandoned,
    remove_journal,
    tidy,
    write_list,
)
from vswin_extract.journal.entries import (
    TABLE_WRONG,
    Extracted,
    Version,
    assemble,
    entries_of,
    entry_files,
    read_entry_file,
    same_version,
)
from vswin_extract.journal.parts import SUFFIX, Entry, read_rows
from vswin_extract.journal.writer import JournalWriter, open_writer
from vswin_extract.store.layouts import SHARD_LIMIT, Layout, ShardLimit, make_output
from vswin_extract.store.schema import Arrays, FileDescription
from vswin_extract.video.ranges import ClipRange, without
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import Video

PASSING = ("VideoMissing", "VideoChanged", "VideoUnreachable", "DecoderTimeout", "DecoderCrash", "WorkerDied")
"""Failures that may pass: the next run tries these videos again."""


@dataclass
class Journal:
    """The finished videos of a run. Made by `open_journal` and `join_journal`; use it in a `with` statement.

    `entries` are by video id, as `load` found them. `notes` are for the user.
    """

    output: Path
    root: Path
    arrays: Arrays
    run: str
    notes: list[str] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    wanted: dict[str, Version] = field(default_factory=dict)
    """What was asked for, and the files as they were, by video id; see `missing`."""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What is to be closed with the journal."""
    own: JournalWriter | None = None
    lock: locks.Lock | None = None
    """Of a process that works alone, or of the task. None once the journal is published."""
    target: OutputClaim | None = None
    """The output, claimed by a process that works alone. A task does not make the output."""

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = None
        if isinstance(error, Exception) and not isinstance(error, OutputError):  # as if files were gone
            try:
                self.check()
            except (OutputError, OSError) as found:
                lost = found
        self.stack.__exit__(kind, error, trace)
        if isinstance(lost, OutputError):
            raise lost from error

    def check(self) -> None:
        """Raise OutputError if another process has taken the journal over. It names that process."""
        if self.lock is not None:
            check_lock(self.lock, self.root)
            if self.target is not None:
                self.target.lock.check()

    def check_noticed(self) -> None:
        """The same, without a look at the files: as far as the threads that touch the locks have noticed it."""
        if self.lock is not None and (self.lock.lost or (self.target is not None and self.target.lock.lost)):
            self.check()

    def check_output(self) -> None:
        """Raise OutputError if the output must not be written now: see `check` and `OutputClaim.check`."""
        self.check()
        if self.target is not None:
            self.target.check()

    def writer(self, role: str = "") -> JournalWriter:
        """Return the writer of this process, which is closed with the journal. What it commits is seen after `load`."""
        if self.own is None:
            self.own = self.stack.enter_context(open_writer(self.root, self.arrays, role=role))
        return self.own

    def load(self, verify: bool = True, drop: bool = True) -> None:
        """Read what all writers have finished. Damaged files do not count, and are noted; without `verify` only those
        that are gone or cut off. `drop`: remove them, so that their videos are extracted again."""
        self.entries = {}
        for path in entry_files(self.root):
            records, problem = read_entry_file(path, self.arrays, verify)
            rows = path.with_suffix(SUFFIX)
            if problem:
                names = name_some([record.id for record in records]) or "its videos"
                self.notes.append(f"{rows} {problem}; {'extracting again' if drop else 'not taken'}: {names}")
                if drop and not path.is_dir():
                    path.unlink(missing_ok=True)
                continue
            for entry in entries_of(records, rows):
                self.entries.setdefault(entry.record.id, []).append(entry)

    def missing(self, video: Video, size: int, mtime: float, etag: str = "") -> list[ClipRange]:
        """Return the clip ranges of a video that are still to be extracted; none if it is complete.

        Entries do not count if they were made of another version of the file, or of another segment of it, or if they
        failed for a reason that may pass. If the fingerprint of a remote video is not known, any version counts.
        """
        now = self.wanted[video.id] = (video.location, video.start, video.end, size, etag, mtime)
        entries = [
            entry
            for entry in self.entries.get(video.id, ())
            if same_version(entry.record, now) and entry.record.error not in PASSING
        ]
        if assemble(entries):
            return []
        if isinstance(video.path, Address) and size < 0:  # clip ranges may be of different versions of the file
            return [video.clip_range]
        if self.must_be_sequential(video.id):
            return [video.clip_range]
        return without(video.clip_range, [entry.record.clip_range for entry in entries])

    def must_be_sequential(self, video_id: str) -> bool:
        """True if the video that was last passed to `missing` has to be read from its beginning, frame after frame."""
        wanted = self.wanted[video_id]
        return any(
            entry.record.error == TABLE_WRONG and same_version(entry.record, wanted)
            for entry in self.entries.get(video_id, ())
        )

    def complete(self, video_id: str) -> Extracted | None:
        """Return a video, or None if clips of it are missing. The version of the file that was last passed to `missing`
        is preferred."""
        entries, wanted = self.entries.get(video_id, []), self.wanted.get(video_id)
        same = [entry for entry in entries if wanted and same_version(entry.record, wanted)]
        return assemble(same) or assemble(entries)

    def extracted(self, video_id: str) -> Extracted:
        """Return a video. Raises OutputError if clips of it are missing."""
        if (video := self.complete(video_id)) is None:
            raise OutputError(f"{video_id} is not complete; the same command continues {self.root}")
        return video

    def publish(
        self,
        video_ids: Sequence[str],
        attributes: Mapping[str, Any],
        classes: Sequence[str] = (),
        layout: Layout = "single",
        shard_limit: ShardLimit = SHARD_LIMIT,
    ) -> list[str]:
        """Make the output of these videos, in this order, from what `load` found; then remove the journal. Return notes
        for the user. Raises OutputError if a video is not complete, if another process has taken the journal over, or
        if the output has appeared or changed since the journal was opened, and OSError if the disk is full."""
        self.check_output()
        videos = {video_id: self.extracted(video_id) for video_id in video_ids}
        inside = self.root.parent == self.output.parent
        folder = self.root if inside else self.output.parent
        notes = make_output(
            self.output,
            name_unfinished(folder, "output" if inside else f".{self.output.name}", self.run),
            layout,
            lambda mine: read_rows((piece for record in mine for piece in videos[record.id].pieces), self.arrays),
            [video.record for video in videos.values()],
            FileDescription(self.arrays, {**attributes, "run": self.run}, classes),
            self.check_output,
            shard_limit,
        )
        self.check()
        self.lock = None
        remove_journal(self.root)
        return notes


def open_journal(
    output: Path,
    settings: dict[str, Any],
    arrays: Arrays,
    overwrite: bool,
    video_ids: Sequence[str],
    facts: Mapping[str, Any] | None = None,
    storage: Path | None = None,
) -> Journal:
    """Begin a run over these videos, or continue one that was stopped, and lock its journal. `facts`: what else the
    output will say, for `merge`. `storage`: where the journal is, if not beside the output.

    Raises OutputError if the output is in the way, if another process has the journal, or if the journal is of other
    settings or has videos that this run would drop.
    """
    root = journal_directory(output, storage)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(claim_output(output, overwrite))
        make_directory(root)
        lock = stack.enter_context(claim(root / "lock", output))
        refuse_beside_tasks(root, output, lock)
        begun = read_job(root)
        if begun:
            check_same_output(root, begun, output)
        if begun and begun["published"]:  # a kill has left it, and its output is gone or may be replaced
            begun = None
        elif begun and begun["settings"] != settings:
            if not overwrite:
                raise other_settings(root, begun["settings"], settings)
            begun = None
        if begun is None:
            empty(root, ("lock",))
            begun = begin_job(root, output, settings, arrays, facts)
        journal = Journal(output, root, arrays, begun["run"], lock=lock, target=target)
        remove_abandoned(root, lock)
        journal.load()
        dropped = sorted(journal.entries.keys() - set(video_ids))
        if dropped and not overwrite:
            raise OutputError(
                f"{root} holds finished videos that are not among those named now: {name_some(dropped)}; "
                "name them too, or --overwrite to drop them"
            )
        if list(known := read_list(root)) != list(video_ids):
            write_list(root, {video_id: known.get(video_id) for video_id in video_ids})
        stack.callback(tidy, root, lock)
        journal.stack = stack.pop_all()
    return journal


def join_journal(
    output: Path, settings: dict[str, Any], arrays: Arrays, facts: Mapping[str, Any], storage: Path | None = None
) -> Journal:
    """Share a run with other processes, here or on other hosts. The first of them begins the journal. The lock of this
    task's own directory says that it lives.

    Raises OutputError if the journal is of other settings, or if a process that works alone has it.
    """
    root = journal_directory(output, storage)
    make_directory(root)
    refuse_beside_run(root, output)
    begun = read_job(root)
    if begun and begun["published"]:  # a kill has left it, and its output is gone or may be replaced
        finish_interrupted_cleanup(output, root)
        make_directory(root)
        begun = None
    begun = begun or begin_job(root, output, settings, arrays, facts)
    check_same_output(root, begun, output)
    if begun["settings"] != settings:
        raise other_settings(root, begun["settings"], settings, f"delete {root}")
    journal = Journal(output, root, arrays, begun["run"])
    with journal.stack as stack:
        journal.lock = journal.writer(TASK).lock
        refuse_beside_run(root, output)  # again: one that began meanwhile may not have seen the lock of this task
        journal.load(verify=False)  # `merge` verifies; a task need not read what all tasks wrote
        journal.stack = stack.pop_all()
    return journal


def refuse_beside_run(root: Path, output: Path) -> None:
    """Raise OutputError if a living process works alone on the journal."""
    if (root / "lock").exists() and (holder := locks.holder(root / "lock", DEAD_AFTER)):
        raise in_use(output, holder, root / "lock")
