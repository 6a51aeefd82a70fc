"""How commands say things: the console, errors and exit codes, help in groups; and where options come from."""

import difflib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

import click
from click.core import ParameterSource

from vswin_extract.formatting import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vswin_extract.checks.result import Check

P = ParamSpec("P")
C = TypeVar("C", bound=click.Command)


class Choice(click.Choice[str]):
    """Names the nearest of its choices where a value is none of them."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = difflib.get_close_matches(str(value), self.choices, n=1)
        said = super().get_invalid_choice_message(value, ctx)
        return f"{said} Did you mean {near[0]}?" if near else said


RUN = "Run"
"""The heading of --help for options about the run itself, --help among them."""

LAYOUT: dict[str, Any] = {
    "type": Choice(["single", "sharded"]),
    "default": "single",
    "show_default": True,
    "help": "One file; or files of at most 10,000 videos in OUT.h5.shards, and OUT.h5 as an index that reads the same.",
}
"""The option --layout, of whatever writes an output."""

EXIT_CODES = {
    0: "everything was extracted",
    1: "the machine failed: disk full, no permission, out of memory; or `vswin doctor` found that it will",
    2: "what was asked for cannot work: an argument, weights, a device, the output; what was finished before is kept",
    3: "some videos failed: see /failures in the file (also of a shard, a merge, and --dry-run)",
    4: "`vswin check` or `vswin weights verify` found something wrong",
    130: "stopped by Ctrl-C; the same command continues",
    143: "stopped by SIGTERM or SIGUSR1; the same command continues",
}


RESTARTED = "VSWIN_RESTARTED"
"""Set in the environment of a command that was started again after its device failed."""


def _start_again(said: str) -> NoReturn:
    """After such an error a process can use the device no more, but a new one may; finished work is kept anyway."""
    if RESTARTED in os.environ or "-" in sys.argv:
        fail(f"the device failed: {said}; what is finished is kept, and the same command continues", 1)
    click.echo(f"the device failed: {said}; starting again once", err=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, RESTARTED: "1"})


class Interrupted(BaseException):
    """Stop at once: a second signal arrived, or the time to finish is over."""


class StopSignals:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into `stopping`; raises Interrupted at the second, or `grace` seconds
    later. `say` tells the user. SIGUSR1 is what Slurm can send before it ends a job.

    Interrupted can arise between any two instructions, between taking a lock and noting that it is taken, too: so
    whatever error it has become on its way out leaves as Interrupted again.
    """

    def __init__(self, grace: float, say: Callable[[str], None]) -> None:
        self.grace = grace
        self.say = say
        self.stopping = threading.Event()
        self.code = 0
        self.raised = False

    def __enter__(self) -> Self:
        self.previous = {
            number: signal.signal(number, self._arrived)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.raised and isinstance(error, Exception):
            raise Interrupted from error

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM or self.stopping.is_set():
            self.raised = True
            raise Interrupted
        self.code = 130 if number == signal.SIGINT else 143
        self.stopping.set()
        if math.isfinite(self.grace):
            signal.setitimer(signal.ITIMER_REAL, max(self.grace, 0.001))
        self.say(f"stopping: finishing the videos in flight, for up to {self.grace:g} s; Ctrl-C again stops at once")


CONFIG = "vswin_extract.config"
"""In a context's `meta`: the file that --config named."""


def key(parameter: click.Parameter) -> str:
    """What a parameter is called on the command line, in files of --config and, in capitals, in the environment."""
    if isinstance(parameter, click.Argument):
        return {"inputs": "videos"}.get(name := parameter.name or "", name)
    longest = max(parameter.opts, key=len)
    return longest[2:] if longest.startswith("--") else parameter.name or longest


def by_environment(command: C, prefix: str) -> C:
    """Let each option be set by a variable, as VSWIN_EXTRACT_CLIP_LEN or VSWIN_WEIGHTS_CONVERT_VARIANT."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (parameter.expose_value or not parameter.is_flag):
            parameter.envvar = f"{prefix}_{key(parameter)}".replace("-", "_").upper()
    for name, below in getattr(command, "commands", {}).items():
        by_environment(below, f"{prefix}_{name}")
    return command


def origin(context: click.Context, parameter: click.Parameter) -> str:
    """The variable or the line of a file that a parameter's value comes from; "" for others."""
    source = context.get_parameter_source(parameter.name or "")
    if source == ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return f"{key(parameter)} in {context.meta[CONFIG]}" if source == ParameterSource.DEFAULT_MAP else ""


def origins(context: click.Context | None) -> str:
    """All variables, and the file, that a command's options come from."""
    found = {
        origin(context, parameter).rpartition(" in ")[2]: None
        for parameter in (context.command.params if context else ())
        if context
    }
    return ", ".join(filter(None, found))


@contextmanager
def names_origin() -> Iterator[None]:
    """Around parsing: errors name the variable or the line of a file that a wrong value is from."""
    try:
        yield
    except click.BadParameter as error:
        if error.ctx and error.param and not error.param_hint and (where := origin(error.ctx, error.param)):
            error.param_hint = f"{error.param.get_error_hint(error.ctx)} ({where})"
        raise


class GroupedCommand(click.Command):
    """A command whose --help shows its options under headings: each option's `group`, see `option`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # which parsing empties
        try:
            with names_origin():
                return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for word in given:  # -stride: the parser sees -s
                if word[:2] == error.option_name and any(
                    word == name[1:] for each in self.params for name in each.opts
                ):
                    raise click.NoSuchOption(word, possibilities=[f"-{word}"], ctx=ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", RUN), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class GroupedOption(click.Option):
    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Several(click.Argument):
    """An argument that may be repeated. Without any it may be in a file, where click before 8.4 does not look."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        return super().consume_value(ctx, {name: value for name, value in opts.items() if value != ()})


def option(group: str, *names: str, **attributes: Any) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A click option under a heading of --help."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def stderr() -> "Console":
    """Where progress and messages go. No wrapping where nobody's terminal has a width."""
    from rich.console import Console

    class Stderr(Console):
        def on_broken_pipe(self) -> None:  # nobody reads on, which is no reason to stop working
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    _writable("stderr")
    # emoji=False: a name may have colons; and a signal's handler must not import what a print is importing
    return Stderr(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())


def stdout() -> "Console":
    """Where results go."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    _writable("stdout")
    width = None if sys.stdout.isatty() else 1000  # lines in a file do not break
    return Stdout(highlight=False, emoji=False, width=width)


def _writable(name: str) -> None:
    """A stream that was closed leads nowhere; what its encoding lacks is escaped."""
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def table(rows: Iterable[Sequence[object]], titles: Sequence[str] = (), right: Collection[str] = ()) -> "Table":
    """Rows as text, whatever they hold; columns named in `right` are numbers."""
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
    for title in titles:
        made.add_column(title, justify="right" if title in right else "left", overflow="fold")
    if titles:
        made.columns[0].no_wrap = True
    for row in rows:
        made.add_row(*(Text(printable(str(value))) for value in row))
    return made


def show_checks(checks: Iterable["Check"]) -> None:
    """What was looked at, and what to do where it is not ok."""
    stdout().print(table([(check.state, check.what, check.found) for check in checks]))
    for check in checks:
        if check.advice:
            stdout().print(f"{check.what}: {check.advice}", markup=False)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def reports_errors(command: Callable[P, Any]) -> Callable[P, Any]:
    """The library's errors, and the machine's, as one line and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        from vswin_extract.errors import VswinError, first_line

        try:
            return command(*args, **kwargs)
        except VswinError as error:
            elsewhere = origins(click.get_current_context(silent=True))
            fail(printable(str(error)) + (f" (options come from {elsewhere}, too)" if elsewhere else ""), 2)
        except KeyboardInterrupt:
            fail("stopped; the same command begins again", 130)
        except BrokenPipeError:  # the reader of our output, as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (MemoryError, RuntimeError) as error:
            said = first_line(error)
            if "CUDA error" in said or "CUBLAS" in said or "CUDNN" in said:
                _start_again(said)
            if not isinstance(error, MemoryError) and "memory" not in said:
                raise
            fail(f"out of memory: {said}; try a smaller --batch-size", 1)
        except OSError as error:
            where = f" ({printable(str(error.filename))})" if error.filename else ""
            fail(f"{error.strerror or error}{where}", 1)

    return wrapped
