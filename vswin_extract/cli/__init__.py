"""The command line: every command parses its words, calls the library and prints. Nothing else in the package prints.

Words come in; text, files and an exit code go out. A command's file, named after it, declares its options: options.py
has the shared ones and the help in groups, extract_options.py those of `vswin extract`, complete.py what a shell
completes. A value comes from the command line, the environment or a file: origins.py knows which, config.py reads and
writes the files. A command then calls the library, while download.py gets weights, progress.py shows a run, and
signals.py stops it; console.py and results.py print what comes out, and exit.py makes errors one line and an exit code.

This file has the group `vswin`. It imports nothing but click before a command runs, so that --help answers at once.
"""

import os
import shlex
from importlib import import_module
from typing import Any

import click

from vswin_extract.cli.options import HELP, suggest, version_option
from vswin_extract.cli.origins import by_environment, names_origin
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
"""The commands of `vswin`, each in a module of its name, with the line that `vswin --help` shows."""


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
                words = printable(shlex.join(args))
                ctx.fail(f"no command {name!r}; to extract features of videos: vswin extract {words}")
            ctx.fail(f"no command {name!r}; {suggest(name, COMMANDS) or 'there are ' + ', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with names_origin():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings=HELP)
@version_option()
def vswin(**_: Any) -> None:
    """Video Swin features: extract them, look at them, manage weights."""
