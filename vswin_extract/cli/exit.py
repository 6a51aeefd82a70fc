"""How commands end: exit codes, and errors as one line."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import click

from vswin_extract.cli.origins import origins
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
RESTARTED = "VSWIN_RESTARTED"
"""The variable that is set for a command that was started again after its device failed."""


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def reports_errors(command: Callable[P, Any]) -> Callable[P, Any]:
    """Decorate a command: errors of the library and of the machine become one line and an exit code."""

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
        except BrokenPipeError:  # the reader of our output, as `head`, wants no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (MemoryError, RuntimeError) as error:
            message = first_line(error)
            if "CUDA error" in message or "CUBLAS" in message or "CUDNN" in message:
                _start_again(message)
            if not isinstance(error, MemoryError) and "memory" not in message:
                raise
            fail(f"out of memory: {message}; try a smaller --batch-size", 1)
        except OSError as error:
            where = f" ({printable(str(error.filename))})" if error.filename else ""
            fail(f"{error.strerror or error}{where}", 1)

    return wrapped


def _start_again(message: str) -> NoReturn:
    """Run the command again in a new process: this one cannot use the device any more. Finished videos are kept."""
    if RESTARTED in os.environ or "-" in sys.argv:
        fail(f"the device failed: {message}; what is finished is kept, and the same command continues", 1)
    click.echo(f"the device failed: {message}; starting again once", err=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, RESTARTED: "1"})
