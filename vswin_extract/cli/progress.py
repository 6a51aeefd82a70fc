"""The progress of a run: a live display on a terminal, a bar in a notebook, lines in a log, or only what went wrong.
Imports no torch."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vswin_extract.cli.console import say
from vswin_extract.formatting import human_seconds, plural, printable
from vswin_extract.job.events import ClipsDone, ClipsExpected, Event, Notice, Started, VideoDone

LOG_EVERY = 10.0
"""Seconds between two lines in a log."""


class Pace:
    """How fast clips come: over the later half of the time since the first ones, so that a slow start is forgotten.
    Times are in seconds from the begin of the run."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, clips: int) -> None:
        """Note that so many clips are done now."""
        if not self._samples or now - self._samples[-1][0] >= now / 200:
            self._samples.append((now, clips))
        while len(self._samples) > 2 and self._samples[1][0] <= now / 2:
            self._samples.popleft()

    def left(self, now: float, clips: int, expected: int) -> float | None:
        """Return the seconds until all clips are done; None if that cannot be known yet."""
        if not self._samples:
            return None
        begun, before = self._samples[0]
        return max(0, expected - clips) * (now - begun) / (clips - before) if clips > before else None


class QuietProgress:
    """Counts, and prints failures. The other displays print more."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self.videos = 0
        self.total = 0
        self.clips = 0
        self.expected = 0
        self.pace = Pace()
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

    @property
    def left(self) -> str:
        """The time that is left, in words; "" if it is not known, or there is none."""
        seconds = self.pace.left(time.monotonic() - self.begun, self.clips, self.expected)
        return f"about {human_seconds(seconds)} left" if seconds else ""

    @property
    def amount(self) -> str:
        """The clips that are done, and about how many there are."""
        most = max(self.clips, self.expected)
        return f"{self.clips:,} of about {most:,} clip{'' if most == 1 else 's'}"

    def show(self, event: Event) -> None:
        """Count an event, and print what the user should know of it."""
        match event:
            case Started():
                self.videos, self.total, self.begun = event.resumed, event.videos, time.monotonic()
            case Notice():
                self.say(event.text)
            case ClipsExpected():
                self.expected = event.clips
            case ClipsDone():
                self.clips += event.clips
                self.pace.note(time.monotonic() - self.begun, self.clips)
            case VideoDone(record=record):
                self.videos += 1
                if record.status == "failed":
                    self.say(f"failed: {record.id}: {record.error}: {record.message}")
                elif record.status == "partial":
                    self.say(f"partial: {record.id}: {plural(record.frames, 'frame')}, {record.message}")
                elif self.verbose:
                    self.say(f"{record.id}: {plural(record.clips, 'clip')} of {record.duration:.1f} s")

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
        now = time.monotonic()
        if isinstance(event, ClipsDone | VideoDone) and now - self.printed_at > LOG_EVERY:
            if self.printed_at:
                done = f"{self.videos}/{self.total} videos, {self.amount}, {self.rate:.1f} clips/s"
                self.say(", ".join(filter(None, [done, self.left])))
            self.printed_at = now


class NotebookProgress(QuietProgress):
    """Shows a bar of tqdm's: a notebook does not move the cursor as a terminal does."""

    def __enter__(self) -> Self:
        from tqdm.auto import tqdm

        self.bar = tqdm(unit=" clips", dynamic_ncols=True, leave=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def say(self, line: str) -> None:
        self.bar.write(printable(line), file=self.console.file)

    def show(self, event: Event) -> None:
        super().show(event)
        if isinstance(event, Started):
            self.introduce(event)
        self.bar.total = max(self.clips, self.expected) or None
        self.bar.set_postfix_str(f"{self.videos}/{self.total} videos", refresh=False)
        self.bar.update(self.clips - self.bar.n)


class LiveProgress(QuietProgress):
    """Shows a bar of clips, of which most are estimated, so that it moves within a video."""

    def __enter__(self) -> Self:
        self.bar = Progress(
            TextColumn("{task.fields[videos]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[clips]}"),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("loading the model", total=None, videos="", clips="")
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
            self.bar.update(self.task, description="")
        if self.total:
            clips = f"{self.clips:,}/{max(self.clips, self.expected):,} clips  {self.rate:.1f}/s  {self.left}"
            self.bar.update(
                self.task,
                videos=f"{self.videos}/{self.total} videos",
                clips=clips,
                completed=self.clips,
                total=max(self.clips, self.expected) or None,
            )
