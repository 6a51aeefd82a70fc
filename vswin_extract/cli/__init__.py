"""The command line: every command parses, calls the library and renders. Only here is anything printed.

Nothing but click is imported before a command runs, so that --help answers at once.
"""

import difflib
import os
import shlex
from importlib import import_module
from typing import Any

import click

from vswin_extract.cli.console import by_environment, names_origin
from vswin_extract.cli.versions import version_option
from vswin_extract.formatting import printable

COMMANDS = {
    "extract": "Extract features of videos into one HDF5 file.",
    "slurm": "Write or submit the batch script of a Slurm array.",
    "inspect": "Show what is in a file of features.",
    "search": "Find clips like a clip or a video, and near-copies.",
    "report": "Write a page to look at a file of features.",
    "plot": "Draw the self-similarity of a video.",
    "merge": "Make one file of features of several.",
    "export": "Write features as the files that other projects load.",
    "check": "Verify a file of features, or an unfinished run.",
    "weights": "List, download, convert and check weights.",
    "doctor": "Check whether this machine can do the work.",
}
"""Commands of `vswin`, each in a module of its name, with the line that `vswin --help` shows."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return by_environment(command, f"VSWIN_{name.upper()}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            if "/" in name or os.path.exists(name):
                said = printable(shlex.join(args))
                ctx.fail(f"no command {name!r}; to extract features of videos: vswin extract {said}")
            near = difflib.get_close_matches(name, COMMANDS)
            ctx.fail(
                f"no command {name!r}; "
                + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}")
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with names_origin():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option()
def vswin(**_: Any) -> None:
    """Video Swin features: extract them, look at them, manage weights."""
