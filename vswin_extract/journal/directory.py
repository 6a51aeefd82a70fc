"""The directory of a journal: making it, locking it, its job.json and videos.json, and removing it."""

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vswin_extract import locks
from vswin_extract.errors import OutputError
from vswin_extract.files import require_parent, write_json
from vswin_extract.formatting import as_utf8, describe_difference
from vswin_extract.journal.entries import writer_directories
from vswin_extract.journal.stored import check_job, check_list, read_json
from vswin_extract.store.features import open_features
from vswin_extract.store.hdf5 import read_attributes
from vswin_extract.store.schema import Arrays

TOUCH_EVERY = 30.0
"""Seconds between two touches of a lock that is held."""
DEAD_AFTER = 600.0
"""Seconds after which a lock of another host that was not touched counts as abandoned."""
TASK = "shard task"
"""The role of a task that shares the journal with others. It says so by the lock of its writer's directory."""

TABLES = "frames"
"""The directory of frame tables."""


def journal_directory(output: Path, storage: Path | None = None) -> Path:
    """Return where the journal of an output is: beside it, or in `storage`."""
    return (storage or output.parent) / f"{output.name}.parts"


def tables_directory(root: Path) -> Path:
    """Make the directory of frame tables of a journal, which all its writers share, and return it."""
    (root / TABLES).mkdir(exist_ok=True)
    return root / TABLES


def make_directory(root: Path) -> None:
    """Make the directory of a journal if it is not there. Raises OutputError if it cannot be one."""
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is in the way: it is not a directory; move it, or choose another name")
    if root.is_dir() and read_job(root) is None:
        foreign = [name for name in os.listdir(root) if name not in ("lock", "probing") and not name.endswith(".tmp")]
        if foreign and read_job(root) is None:  # again, since another task may have written job.json meanwhile
            raise OutputError(
                f"{root} is in the way: it is not a journal of vswin-extract; move it, or choose another name"
            )
    require_parent(root, OutputError)
    root.mkdir(exist_ok=True)


@contextlib.contextmanager
def claim(lock: Path, output: Path, touch_every: float = TOUCH_EVERY) -> Iterator[locks.Lock]:
    """Hold a lock while `output` is being written. Raises OutputError if a living process has it."""
    if holder := locks.acquire(lock, DEAD_AFTER):
        raise in_use(output, holder, lock)
    with locks.held(lock, touch_every) as ours:
        yield ours


def in_use(output: Path, holder: locks.Holder, lock: Path) -> OutputError:
    who = f"{holder}, a {holder.role}" if holder.role else f"{holder}"
    return OutputError(f"{output} is being written by {who}; if that is no longer so, delete {lock}")


def check_lock(lock: locks.Lock, root: Path) -> None:
    """Raise OutputError if a lock of this journal is no longer ours. It names the process that has the journal now."""
    try:
        lock.check()
    except OutputError as error:
        now = None if lock.path.parent == root else locks.named_holder(root / "lock")
        if now is None:
            raise
        raise OutputError(f"{error}; {root} is used by {now} now") from error


def refuse_beside_tasks(root: Path, output: Path, ours: locks.Lock) -> None:
    """Raise OutputError if a living task shares the journal that this process has locked. Which videos the tasks are at
    is not known here. The locks of dead writers are removed, and their directories if no video was finished there."""
    now = ours.touch()
    for directory in writer_directories(root):
        lock = writer_lock(directory)
        if not lock.exists():
            continue
        holder = locks.holder(lock, DEAD_AFTER, now)
        if holder is None:
            remove_if_empty(directory)
        elif holder.role == TASK:
            raise in_use(output, holder, lock)


def writer_lock(directory: Path) -> Path:
    """Return the lock of a writer's directory. Journals of earlier versions have none."""
    return directory / "lock"


def begin_job(
    root: Path, output: Path, settings: dict[str, Any], arrays: Arrays, facts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Write job.json, unless another process does it first, and return what it says."""
    content = {"settings": settings, "run": uuid.uuid4().hex, "arrays": asdict(arrays), **(facts or {})}
    candidate = root / f"job.{uuid.uuid4().hex}.tmp"
    write_json(candidate, {**content, "output": os.path.abspath(output)})
    with contextlib.suppress(FileExistsError):
        locks.create(candidate, root / "job.json")
    candidate.unlink()
    begun = read_job(root)
    if begun is None:
        raise OutputError(f"{root} was removed while this run began")
    return begun


def read_job(root: Path) -> dict[str, Any] | None:
    """Return what job.json says, or None if there is none. Raises OutputError if it is damaged."""
    job = root / "job.json"
    if not job.is_file():
        return None
    try:
        if not job.stat().st_size:  # without hard links, its content comes a moment later
            time.sleep(0.1)
        return check_job(read_json(job))
    except ValueError as error:
        raise OutputError(f"{job} is damaged; delete {root} to begin again") from error


def check_same_output(root: Path, begun: Mapping[str, Any], output: Path) -> None:
    """Raise OutputError if the journal belongs to another output: two outputs with the same name may use the same
    --storage. A journal beside its output may have been moved together with it."""
    before, now = begun["output"], os.path.abspath(output)
    if before not in (None, now) and root.parent != output.parent:
        raise OutputError(f"{root} holds a run for {before}, not for {now}; choose another name, or another --storage")


def read_list(root: Path) -> dict[str, int | None]:
    """Return the ids of a run's videos in order, each with about how many clips it has, or None if not known.
    Empty if there is no videos.json. Raises OutputError if it is damaged."""
    try:
        return check_list(read_json(root / "videos.json"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise OutputError(f"{root / 'videos.json'} is damaged; delete it, and give the same command again") from error


def write_list(root: Path, clips: Mapping[str, int | None]) -> None:
    write_json(root / "videos.json", {"ids": list(clips), "clips": list(clips.values())})


def other_settings(
    root: Path, before: Mapping[str, Any], now: Mapping[str, Any], drop: str = "--overwrite"
) -> OutputError:
    return OutputError(
        f"{root} holds a run that was stopped, with other settings: {describe_difference(before, now)}; "
        f"use the old settings to continue it, or {drop} to drop it"
    )


def empty(root: Path, keep: Collection[str]) -> None:
    """Remove everything from the directory but the names to keep."""
    for path in root.iterdir():
        if path.name not in keep:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def tidy(root: Path, lock: locks.Lock) -> None:
    """Remove unfinished files from a journal that this process has locked; all of it, if no video is finished. Do
    nothing if the journal was published, removed by hand, or taken over by another process."""
    if not root.is_dir() or not lock.is_ours():
        return
    for unfinished in root.glob("*.tmp"):
        if not unfinished.name.startswith("lock."):  # of a process that asks for the lock just now
            unfinished.unlink(missing_ok=True)
    for directory in _abandoned(root, lock.touch()):
        remove_if_empty(directory)
    if not set(os.listdir(root)) - {"job.json", "videos.json", "lock", TABLES}:
        shutil.rmtree(root)


def remove_abandoned(root: Path, lock: locks.Lock) -> None:
    """Remove the unfinished files that killed writers left, from a journal that this process has just locked. Writers
    of earlier versions have no lock: an unfinished file that grew lately may be theirs."""
    now = lock.touch()
    for directory in _abandoned(root, now):
        for unfinished in directory.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if now - unfinished.stat().st_mtime > DEAD_AFTER:
                    unfinished.unlink()


def _abandoned(root: Path, now: float) -> Iterator[Path]:
    """Yield the directories of writers that do not live, from a journal that this process has locked. A directory
    without a lock that was made or changed lately may be of a writer that is about to lock it."""
    for directory in writer_directories(root):
        locked = writer_lock(directory).exists()
        old = any(directory.glob("*.json")) or now - directory.stat().st_mtime > DEAD_AFTER
        if locks.holder(writer_lock(directory), DEAD_AFTER, now) is None and (locked or old):
            yield directory


def remove_if_empty(directory: Path) -> None:
    """Remove a writer's directory if no video was finished in it."""
    if not any(directory.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # its own process removes it at the same time
            shutil.rmtree(directory)


def name_unfinished(directory: Path, name: str, run: str) -> Path:
    """Return a new name for the output while it is written. What killed processes of the same run left is removed."""
    for left in directory.glob(f"{glob.escape(name)}.{run}-*.tmp"):
        left.unlink(missing_ok=True)
    return directory / f"{name}.{run}-{uuid.uuid4().hex}.tmp"


def remove_journal(root: Path) -> None:
    """Remove a journal that this process has locked, and whose output is there. job.json says so first, and is removed
    last: what a kill leaves is never taken for a journal with fewer videos."""
    if begun := read_job(root):
        write_json(root / "job.json", {**begun, "published": True})
    empty(root, ("job.json", "lock"))
    (root / "job.json").unlink()
    (root / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a process that asks for the lock just now still has a file there
        root.rmdir()


def remove_emptied(root: Path, output: Path) -> bool:
    """Remove the directory of a journal of which only the lock is left. Return False if there is more in it."""
    if any(name != "lock" and not name.endswith(".tmp") for name in os.listdir(root)):
        return False
    with claim(root / "lock", output):
        shutil.rmtree(root)
    return True


def finish_interrupted_cleanup(output: Path, root: Path) -> dict[str, Any] | None:
    """If a kill came after the output was published and before its journal was removed, remove the journal. Return the
    settings that the output was made with; None if it was not made of this journal."""
    begun, made = read_job(root), read_attributes(output)
    same = begun is not None and made is not None and made.get("run") == begun["run"]
    if begun is None or not (same or begun["published"]):
        return None
    if same and not begun["published"]:
        with open_features(output, follow=True) as features:
            finished = features.fingerprints.keys()
        if not finished >= set(map(as_utf8, read_list(root))):  # merged before all videos were finished
            return None
    with claim(root / "lock", output) as lock:
        refuse_beside_tasks(root, output, lock)
        remove_journal(root)
    settings: dict[str, Any] = begun["settings"]
    return settings if same else None
