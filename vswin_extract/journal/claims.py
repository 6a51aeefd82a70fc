"""What a process holds while it makes an output: the output itself, and the journals that it is made of."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vswin_extract import locks
from vswin_extract.errors import OutputError
from vswin_extract.journal.directory import DEAD_AFTER, claim, in_use, refuse_beside_tasks
from vswin_extract.store.hdf5 import check_output

MOST_NAME = 200
"""Bytes of the name of a lock, which gets 37 more while it is made; file systems allow 255."""

State = tuple[int, int, int] | None
"""Which file is there: its number, size and time of change in nanoseconds. None if there is none."""


class OutputClaim:
    """An output that this process makes. `lock` stands beside it. `before`: what was there at the beginning."""

    def __init__(self, output: Path, lock: locks.Lock) -> None:
        self.output = output
        self.lock = lock
        self.before = state(output)

    def check(self) -> None:
        """Raise OutputError if the output must not be replaced: another process makes it now, or it has appeared or
        changed since this process began."""
        self.lock.check()
        if state(self.output) in (None, self.before):
            return
        if self.before is None:
            raise OutputError(
                f"{self.output} has appeared since this command began, so it is not replaced; what is finished is "
                "kept: move that file away and give the same command again"
            )
        raise OutputError(
            f"{self.output} has changed since this command began, so it is not replaced; what is finished is kept: "
            "the same command again replaces it"
        )


class MergeClaim:
    """The output that a merge makes, and the journals that it reads, each with its lock as `claim_journal` gives it."""

    def __init__(self, output: OutputClaim, journals: Mapping[Path, locks.Lock | None]) -> None:
        self.output = output
        self.journals = {root: lock for root, lock in journals.items() if lock is not None}

    def check(self) -> None:
        """Raise OutputError if another process has one of them now, or if the output must not be replaced."""
        self.check_journals()
        self.output.check()

    def check_journals(self) -> None:
        for lock in self.journals.values():
            lock.check()

    def refuse_beside_tasks(self) -> None:
        """Raise OutputError if a living task writes into one of the journals."""
        for root, lock in self.journals.items():
            refuse_beside_tasks(root, self.output.output, lock)


def state(output: Path) -> State:
    """Return which file is there."""
    try:
        found = os.lstat(output)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def output_lock(output: Path) -> Path:
    """Return the lock of an output. All processes that make an output use it, wherever their journals are."""
    name = f".{output.name}.lock"
    if len(os.fsencode(name)) > MOST_NAME:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.lock"
    return output.with_name(name)


@contextlib.contextmanager
def claim_output(output: Path, overwrite: bool) -> Iterator[OutputClaim]:
    """Hold the lock of an output while it is made. Raises OutputError if another process makes it, or if it cannot be
    written or is there and may not be overwritten."""
    check_output(output, overwrite)
    with claim(output_lock(output), output) as lock:
        check_output(output, overwrite)  # again: the process that had the lock a moment ago may have finished it
        yield OutputClaim(output, lock)


@contextlib.contextmanager
def claim_merge(output: Path, overwrite: bool, journals: Iterable[Path]) -> Iterator[MergeClaim]:
    """Hold the lock of an output, and of the journals that it is made of. Raises OutputError as `claim_output`, and if
    a run is going on in one of the journals."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(claim_output(output, overwrite))
        yield MergeClaim(target, {root: stack.enter_context(claim_journal(root)) for root in journals})


@contextlib.contextmanager
def claim_journal(root: Path) -> Iterator[locks.Lock | None]:
    """Hold the lock of a journal while it is read. Raises OutputError if a run is going on in it. A journal that cannot
    be written has no lock of ours; then give None."""
    if os.access(root, os.W_OK):
        with claim(root / "lock", root) as lock:
            yield lock
        return
    if living := locks.seen_holder(root / "lock", DEAD_AFTER):
        raise in_use(root, living, root / "lock")
    yield None
