"""How commands end: exit codes, and errors as one line."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import click

from vswin_extract.cli.origins import origins
from vswin_extract.cli.signals import Terminated, termination
from vswin_extract.formatting import printable

P = ParamSpec("P")

EXIT_CODES = {
    0: "everything was extracted",
    1: "the machine failed: disk full, no permission, out of memory; or `vswin doctor` found that it will",
    2: "what was asked for cannot work: an argument, weights, a device, the output; what was finished before is kept",
    3: "some videos failed: see /failures in the file (also of a shard, a merge, and --dry-run)",
    4: "`vswin check` or `vswin weights verify` found something wrong",
    130: "stopped by Ctrl-C; the same command continues",
    143: "stopped by SIGTERM or SIGUSR1; the same command continues",
}
HDF5_ERROR = re.compile(r"\berrno = (\d+)")
HDF5_FILE = re.compile(r"name = '(.*?)'")
"""What HDF5 says of an error of the system, in a text of many lines."""
WRITTEN = ("output", "destination", "script", "html", "paths")
"""Parameters of commands that name what is written."""
RESTARTED = "VSWIN_RESTARTED"
"""The variable that is set for a command that was started again after its device failed."""


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    click.echo(f"Error: {printable(message)}", err=True)
    sys.exit(code)


def reports_errors(command: Callable[P, Any]) -> Callable[P, Any]:
    """Decorate a command: errors of the library and of the machine become one line and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        from vswin_extract.cli.config import check_environment
        from vswin_extract.errors import VswinError, first_line, is_out_of_memory

        _expect_working_directory()
        check_environment(click.get_current_context())
        try:
            with termination():
                return command(*args, **kwargs)
        except VswinError as error:
            elsewhere = origins(click.get_current_context(silent=True))
            also = f" (some options come from {elsewhere})" if elsewhere else ""
            fail(f"{error}{_meant_by_input()}{also}", 2)
        except KeyboardInterrupt:
            fail("stopped; the same command begins again", 130)
        except Terminated:
            fail("stopped by SIGTERM; the same command begins again", 143)
        except BrokenPipeError:  # the reader of our output, as `head`, wants no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (MemoryError, RuntimeError) as error:
            message = first_line(error)
            if HDF5_ERROR.search(str(error)):
                fail(describe_system_error(error), 1)
            if "CUDA error" in message or "CUBLAS" in message or "CUDNN" in message:
                _start_again(message)
            if not is_out_of_memory(error):
                raise
            fail(describe_memory_error(error), 1)
        except (OSError, ImportError) as error:
            if is_out_of_memory(error):
                fail(describe_memory_error(error), 1)
            if isinstance(error, ImportError):
                raise
            fail(describe_system_error(error), 1)

    return wrapped


def _expect_working_directory() -> None:
    """Exit if the working directory was removed: libraries that are loaded later would end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        fail("the working directory was removed; go to one that is there, and give the command again", 2)


def _meant_by_input() -> str:
    """Return what to do about the input of a command if it may be a video, or is a directory; else ""."""
    context = click.get_current_context(silent=True)
    path = context.params.get("file") if context else None
    if not isinstance(path, str) or path.endswith((".h5", ".hdf5")) or not os.path.exists(path):
        return ""
    from pathlib import Path

    from vswin_extract.video.file_kinds import other_kind

    if not os.path.isdir(path) and other_kind(Path(path)):
        return ""
    return f"; features of videos are extracted by: {shlex.join(['vswin-extract', path, 'out.h5'])}"


def describe_memory_error(error: BaseException) -> str:
    """Return what was short, the limits that are in force, and what to do."""
    from vswin_extract.errors import first_line
    from vswin_extract.system import memory_limits

    limits = " and ".join(f"{option} {size // 1024}" for option, size in memory_limits().items())
    advice = [f"allow more than {limits} (kB)"] if limits else []
    context = click.get_current_context(silent=True)
    if context and "batch_size" in context.params and "address space" not in str(error):
        size = context.params["batch_size"]
        advice.append("try a smaller --batch-size" + (f" than {size}" if size else "") + ", or fewer --workers")
    return printable(f"out of memory: {first_line(error)}; {', or '.join(advice) or 'this machine has too little'}")


def describe_system_error(error: Exception) -> str:
    """Return what an error of the system is, with the path that it is about."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    path = getattr(error, "filename", None)
    if number := HDF5_ERROR.search(text):
        named = HDF5_FILE.search(text)
        path = path or (named and named[1])
        text = os.strerror(int(number[1]))
        if isinstance(error, OSError):
            from vswin_extract.store.hdf5 import is_locked, why_not_opened

            text = why_not_opened(error) if is_locked(error) else text
    where = os.fsdecode(path) if isinstance(path, str | bytes) else _guess_path(error, text)
    return f"{text} ({where})" if where else text


def _guess_path(error: Exception, text: str) -> str:
    """Return what was being read or written when an error came that names no path; "" if that is not known."""
    frames = traceback.walk_tb(error.__traceback__)
    if any(str(frame.f_globals.get("__name__")).startswith(("click.utils", "rich.")) for frame, _ in frames):
        return "standard output"
    context = click.get_current_context(silent=True)
    parameters = context.params if context else {}
    if "read data" in text and "file" in parameters:  # by HDF5
        return f"while reading {parameters['file']}"
    for name in WRITTEN:
        if value := parameters.get(name):
            written = str(value[0] if isinstance(value, tuple) else value)
            return "" if written in text else f"while writing {written}"
    return ""


def _start_again(message: str) -> NoReturn:
    """Run the command again in a new process: this one cannot use the device any more. Finished videos are kept."""
    if RESTARTED in os.environ or "-" in sys.argv:
        fail(f"the device failed: {message}; what is finished is kept, and the same command continues", 1)
    click.echo(f"the device failed: {printable(message)}; starting again once", err=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, RESTARTED: "1"})
