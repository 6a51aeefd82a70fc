"""The sections of the proof, in order, each within its share of the time."""

import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import Row, describe
from benchmarks.usual import torchvision

SHARES = {"parity": 2.5, "attention": 1.0, "forward": 6.0, "feed": 1.5, "faults": 1.5, "startup": 1.0}
"""Sections in order, and how much of the time each may use. What one leaves over is for those after it. Each is a
module of this package with a function of its name."""
RESERVE = 5.0
"""Seconds that are kept for the last table."""


class OutOfTime(BaseException):
    """The time of a section is over. Not an Exception: a compiler that it interrupts must not take it for its own."""


class Section:
    """One section: its device, its time, and where its rows go.

    `small`: tiny sizes, so that the code runs on a CPU in seconds.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        seconds: float,
        found: dict[str, list[Row]],
        save: Callable[[], None],
        folder: Path,
    ) -> None:
        self.name = name
        self.device = device
        self.small = device.type == "cpu"
        self.folder = folder
        self._ends = time.monotonic() + seconds
        self._found = found
        self._save = save
        self._open: list[Row] = []
        self._title = ""

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._ends - time.monotonic()

    def allows(self, what: str, seconds: float) -> bool:
        """Return True if there is time for something that may take `seconds`; else say that it is skipped."""
        if self.small or self.left() >= seconds:
            return True
        self.skip(what, f"it may take {seconds:.0f} s, and {max(0.0, self.left()):.0f} s are left")
        return False

    def skip(self, what: str, reason: str) -> None:
        say(f"SKIPPED {self.name}: {what}: {reason}")
        self._keep("skipped", {"section": self.name, "what": what, "reason": reason})

    def fail(self, what: str, reason: str) -> None:
        """Record a failure. The command will exit with 1."""
        say(f"FAILED {self.name}: {what}: {reason}")
        self._keep("failed", {"section": self.name, "what": what, "reason": reason})

    def add(self, title: str, row: Row) -> None:
        """Keep a row of the table `title`, which is printed when the next table begins or the section ends."""
        if title != self._title:
            self.show()
        self._title = title
        self._open.append(row)
        self._keep(f"{self.name}: {title}", row)

    def check(self, title: str, what: str, problem: str, found: str = "") -> None:
        """Keep the result of a check: `problem` is "" if it holds."""
        self.add(title, {"what": what, "result": "fails" if problem else "holds", "found": problem or found})
        if problem:
            self.fail(what, problem)

    def show(self) -> None:
        if self._open:
            show(f"{self.name}: {self._title}", self._open)
        self._open = []

    def _keep(self, table: str, row: Row) -> None:
        self._found.setdefault(table, []).append(row)
        self._save()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Record an error of one part of the section, and go on with the next part."""
        try:
            yield
        except Exception as error:  # the proof goes on whatever fails
            self.show()
            traceback.print_exc(file=sys.stdout)
            self.fail(what, f"{type(error).__name__}: {str(error)[:300]}")

    def free(self) -> None:
        """Give the memory of what is not used any more back to the device, for the next large part."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def prove(
    device: torch.device, minutes: float, only: Collection[str], output: Path | None, folder: Path
) -> dict[str, list[Row]]:
    """Run the sections, print their tables, and return all rows by table. `output`: a JSON file for them, which is
    written again after each row. `folder`: an empty one, for files."""
    from benchmarks.gpu.targets import targets

    if device.type == "cuda":  # for what is compared in float32
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    ends = time.monotonic() + 60 * minutes - (RESERVE if device.type == "cuda" else 0)
    found: dict[str, list[Row]] = {"machine": [{**describe(device), "device": str(device), **peers()}]}

    def save() -> None:
        if output is not None:
            output.write_text(json.dumps(found, indent=1) + "\n")

    show("machine", found["machine"])
    names = [name for name in SHARES if not only or name in only]
    for number, name in enumerate(names):
        left = ends - time.monotonic()
        share = left * SHARES[name] / sum(SHARES[later] for later in names[number:])
        section = Section(name, device, share, found, save, folder)
        begun = time.monotonic()
        try:
            with alarm(min(left, 1.3 * share + 15)), section.guarded(name):
                import_module(f"benchmarks.gpu.{name}").__dict__[name](section)
        except OutOfTime:
            section.skip("the rest of this section", "its time is over")
        section.show()
        section._keep("time", {"section": name, "share, s": share, "took, s": time.monotonic() - begun})
    found["targets"] = targets(found, device.type == "cpu")
    save()
    show("time", found["time"])
    for what in ("skipped", "failed"):
        if what in found:
            show(what, found[what])
    show("targets", found["targets"])
    return found


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in here after so many seconds."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds), 5)  # again, where the first one was in a destructor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def has_failed(found: dict[str, list[Row]]) -> bool:
    """Return True if something failed, if the numbers are not as near as they must be, or if they were to be compared
    and there was no time for it."""
    short = [row for row in found["targets"] if row["result"] == "falls short" and row["kind"] == "accuracy"]
    asked = "parity" in {row["section"] for row in found["time"]}
    compared = {"parity: published numbers", "parity: attention against float64"} <= found.keys()
    return bool(short or found.get("failed") or (asked and not compared))


def peers() -> Row:
    """Return the versions of what is optional here."""
    ways: dict[str, Callable[[], Any]] = {
        "triton": lambda: import_module("triton"),
        "torchvision": torchvision,
        "av": lambda: import_module("av"),
    }
    versions = {}
    for name, load in ways.items():
        try:
            versions[name] = load().__version__
        except ImportError:
            versions[name] = "missing"
    return versions


def say(text: str) -> None:
    print(text, flush=True)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table. A row may have more columns than the first."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(text(row.get(name, "")) for name in columns))
    Console(width=None if sys.stdout.isatty() else 170).print(table)
    sys.stdout.flush()


def text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
