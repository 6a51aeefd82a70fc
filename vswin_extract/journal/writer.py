"""Writing into a journal: each process has a shard directory of its own, so that writers need not wait for each other.

The directory has a lock, so that others know whether its process lives. Only this process writes into it.
"""

import contextlib
import uuid
from pathlib import Path

from vswin_extract.files import sync
from vswin_extract.journal.directory import DEAD_AFTER, TOUCH_EVERY, check_lock, remove_if_empty, writer_lock
from vswin_extract.journal.entries import single_path, write_entry_file
from vswin_extract.journal.parts import SUFFIX, Entry, Part, join
from vswin_extract.locks import Lock, acquire, held
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.videos import Video

PACK = 256
"""Single videos that are packed into one file."""


class JournalWriter:
    """The shard directory of one process. Made by `open_writer`; one thread at a time uses it. `stack`: gives the lock
    back."""

    def __init__(
        self, directory: Path, arrays: Arrays, pack_size: int, lock: Lock, stack: contextlib.ExitStack
    ) -> None:
        self.directory = directory
        self.lock = lock
        self.stack = stack
        self.arrays = arrays
        self.pack_size = pack_size
        self.packs = 0
        self.parts: list[Part] = []
        """Of videos in flight."""
        self.singles: dict[Path, VideoRecord] = {}
        """Finished videos that are in no pack, by the file of their rows."""

    def part(self, video: Video) -> Part:
        """Return a new part for the rows of a video. When all are in it, give it to `commit`. Raises OutputError if the
        directory was removed."""
        if not self.directory.is_dir():
            check_lock(self.lock, self.directory.parent)
        part = Part(single_path(self.directory, video.id, video.clip_range), self.arrays)
        self.parts = [*(other for other in self.parts if not other.file.closed), part]
        return part

    def commit(self, record: VideoRecord, part: Part | None = None) -> None:
        """Make a video durable, or a clip range of one: with its rows, or without if it failed. When this returns, no
        kill loses it. Raises OutputError if another process has taken this one for dead, and removed its lock."""
        check_lock(self.lock, self.directory.parent)
        rows, sha256 = single_path(self.directory, record.id, record.clip_range), ""
        if part is not None:
            part.finish()
            rows, sha256 = part.path, part.digest.hexdigest()
        write_entry_file(rows, [record], sha256)
        self.singles.pop(rows, None)  # an earlier version of the video, whose rows are overwritten
        self.singles[rows] = record
        if len(self.singles) >= self.pack_size:
            self._pack()

    def close(self, pack: bool = True) -> None:
        """Remove unfinished files, pack the single videos if `pack`, and remove the directory if nothing was finished.
        Do nothing the second time."""
        with self.stack:
            for part in self.parts:
                part.discard()
            if not self.lock.is_ours():  # the journal was published, removed by hand, or taken over by another process
                return
            for unfinished in self.directory.glob("*.tmp"):
                unfinished.unlink(missing_ok=True)
            if pack and len(self.singles) > 1:
                with contextlib.suppress(OSError):  # a disk may be full; single videos are as good as a pack
                    self._pack()
            self.singles = {}
            remove_if_empty(self.directory)

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(pack=kind is None)  # a run that is stopped at once does not wait for it

    def _pack(self) -> None:
        """Join the single videos to one file. A kill leaves the singles, the pack, or both: each of these is fine."""
        rows = self.directory / f"pack-{self.packs}{SUFFIX}"
        records = list(self.singles.values())
        with_rows = [Entry(record, path) for path, record in self.singles.items() if record.status != "failed"]
        write_entry_file(rows, records, join(rows, with_rows, self.arrays))
        self.packs += 1
        for path in self.singles:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        self.singles = {}


def open_writer(root: Path, arrays: Arrays, pack_size: int = PACK, role: str = "") -> JournalWriter:
    """Make a shard directory in the journal `root`, for this process alone, and lock it. Raises OSError."""
    directory = root / f"shard-{uuid.uuid4().hex}"
    directory.mkdir()
    acquire(writer_lock(directory), DEAD_AFTER, role)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(held(writer_lock(directory), TOUCH_EVERY))
        sync(root)
        return JournalWriter(directory, arrays, pack_size, lock, stack.pop_all())
