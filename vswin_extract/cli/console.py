"""The streams that commands print to, and tables.

Names, messages of servers and decoders, and what files say may have control characters, which a terminal would obey.
The two consoles escape them in all that is printed, and so does `PrintableFormatter` in what is logged.
"""

import io
import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from vswin_extract.formatting import printable

CHECK_WIDTH = 28
"""Columns of a terminal for what is checked."""

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment
    from rich.table import Table

    from vswin_extract.checks.result import Check


def stderr() -> "Console":
    """Return the console for progress and messages. Lines are wrapped on a terminal only."""

    class Stderr(_printable_console()):  # type: ignore[misc]
        def on_broken_pipe(self) -> None:  # no one reads the messages, but the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    _make_writable("stderr")
    # emoji=False: names may have colons; and rich would import a module that a signal handler may interrupt
    return Stderr(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())


def stdout() -> "Console":
    """Return the console for results. Lines are wrapped on a terminal only."""

    class Stdout(_printable_console()):  # type: ignore[misc]
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    _make_writable("stdout")
    return Stdout(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 1000)


def _printable_console() -> "type[Console]":
    from rich.console import Console

    class Printable(Console):
        def render(self, *what: Any, **options: Any) -> "Iterator[Segment]":
            for segment in super().render(*what, **options):
                yield segment if segment.control else segment._replace(text=printable_lines(segment.text))

    return Printable


def printable_lines(text: str) -> str:
    """Escape control characters other than the ends of lines."""
    return "\n".join(map(printable, text.split("\n")))


class PrintableFormatter(logging.Formatter):
    """Formats what is logged, for example what FFmpeg says of a video, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _make_writable(name: str) -> None:
    """Replace a closed stream by one that leads nowhere, and escape characters that its encoding lacks."""
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def say(console: "Console", text: str) -> None:
    """Print a line as plain text, without control characters."""
    console.print(printable(text), markup=False)


def note(text: str) -> None:
    """Print a note for the user to standard error."""
    say(stderr(), f"note: {text}")


def table(rows: Iterable[Sequence[object]], titles: Sequence[str] = (), right: Collection[str] = ()) -> "Table":
    """Return a table of plain text. Columns named in `right` are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
        header_style="bold",
        show_header=bool(titles),
    )
    rows = list(rows)
    for title in titles or [""] * max(map(len, rows), default=0):
        made.add_column(title, justify="right" if title in right else "left", overflow="fold")
    if titles:
        made.columns[0].no_wrap = True
    for row in rows:
        made.add_row(*(Text(printable(str(value))) for value in row))
    return made


def show_checks(checks: Iterable["Check"], what: str = "") -> "list[Check]":
    """Print each check as soon as it ends, and what to do where it is not ok. Return them. `what`: what a terminal
    shows meanwhile."""
    out, shown = stdout(), []
    with out.status(what) if what and out.is_terminal else nullcontext():
        for check in checks:
            out.print(table([(f"{check.state:<7}", f"{check.what:<{CHECK_WIDTH}}", check.found)]))
            if check.advice:
                say(out, f"{check.what}: {check.advice}")
            shown.append(check)
    return shown
