"""The progress of a run: a live display on a terminal, lines in a log, or only what went wrong. Imports no torch."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vswin_extract.cli.console import say
from vswin_extract.formatting import plural, printable
from vswin_extract.job.events import ClipsDone, Event, Notice, Started, VideoDone

LOG_EVERY = 10.0
"""Seconds between two lines in a log."""


class QuietProgress:
    """Counts, and prints failures. The other displays print more."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self.videos = 0
        self.total = 0
        self.clips = 0
        self.begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @property
    def rate(self) -> float:
        """Clips per second."""
        return self.clips / max(time.monotonic() - self.begun, 1e-9)

    def show(self, event: Event) -> None:
        """Count an event, and print what the user should know of it."""
        match event:
            case Started():
                self.videos, self.total, self.begun = event.resumed, event.videos, time.monotonic()
            case Notice():
                self.say(event.text)
            case ClipsDone():
                self.clips += event.clips
            case VideoDone(record=record):
                self.videos += 1
                if record.status == "failed":
                    self.say(f"failed: {record.id}: {record.error}: {record.message}")
                elif record.status == "partial":
                    self.say(f"partial: {record.id}: {record.frames} frames, {record.message}")
                elif self.verbose:
                    self.say(f"{record.id}: {record.clips} clips of {record.duration:.2f} s")

    def say(self, line: str) -> None:
        say(self.console, line)

    def introduce(self, event: Started) -> None:
        """Print the model, the device, how many videos there are, and notes."""
        size = f"{event.parameters / 1e6:.1f} M parameters"
        resumed = f", {event.resumed} of them done before" if event.resumed else ""
        videos = plural(event.videos, "video")
        self.say(f"{event.model} ({size}) on {event.device} in {event.precision}; {videos}{resumed}")
        for note in event.notes:
            self.say(f"note: {note}")


class LogProgress(QuietProgress):
    """Prints a line every LOG_EVERY seconds."""

    printed_at = 0.0

    def show(self, event: Event) -> None:
        super().show(event)
        if isinstance(event, Started):
            self.introduce(event)
            self.done, self.bytes = 0, event.bytes
        if isinstance(event, VideoDone):
            self.done += event.bytes
        now = time.monotonic()
        if isinstance(event, ClipsDone | VideoDone) and now - self.printed_at > LOG_EVERY:
            if self.printed_at:
                left = (now - self.begun) * (self.bytes / self.done - 1) if self.done else None
                when = f", about {max(left, 0):.0f} s left" if left is not None else ""
                self.say(f"{self.videos}/{self.total} videos, {self.clips} clips, {self.rate:.1f} clips/s{when}")
            self.printed_at = now


class RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['clips']} clips  {task.fields['rate']:.1f} clips/s")


class LiveProgress(QuietProgress):
    """Shows a bar of bytes of videos: how many clips there are is known only after decoding."""

    def __enter__(self) -> Self:
        self.bar = Progress(
            TextColumn("{task.fields[videos]} videos"),
            BarColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("loading the model", total=None, videos="", clips=0, rate=0.0)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        super().show(event)
        if isinstance(event, Started):
            self.introduce(event)
            self.bar.update(self.task, total=event.bytes or None, description="")
        if isinstance(event, VideoDone):
            self.bar.update(self.task, advance=event.bytes, description=escape(printable(event.record.id)[-40:]))
        self.bar.update(self.task, videos=f"{self.videos}/{self.total}", clips=self.clips, rate=self.rate)
