"""The command line: every command parses its words, calls the library and prints. Nothing else in the package prints.

Words come in; text, files and an exit code go out. A command's file, named after it, declares its options: command.py
has the class of all commands, options.py the shared options, extract_options.py those of `vswin extract`, complete.py
what a shell completes. A value comes from the command line, the environment or a file: origins.py knows which,
config.py reads, writes and shows the files. A command then calls the library, while download.py gets weights,
progress.py shows a run, and signals.py stops it; console.py and results.py print what comes out, and exit.py makes
errors one line and an exit code.

This file has the group `vswin`. It imports nothing but click before a command runs, so that --help answers at once.
"""

import os
import shlex
from importlib import import_module
from typing import Any

import click

from vswin_extract.cli.command import HELP, AliasGroup, suggest
from vswin_extract.cli.options import version_option
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
    "config": "Show the settings in force, and where each comes from.",
    "doctor": "Check whether this machine can do the work.",
}
"""The commands of `vswin`, each in a module of its name, with the line that `vswin --help` shows."""


ALIASES = {"info": "inspect", "show": "inspect", "ls": "inspect"}
"""Names that other tools have for commands."""


class LazyGroup(AliasGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = self.aliases.get(name, name)
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return by_environment(command, f"VSWIN_{name.upper()}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in (*COMMANDS, *ALIASES) and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command {printable(name)!r}; {meant_by(args)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with names_origin():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def meant_by(words: list[str]) -> str:
    """Return what was meant by words that do not begin with a command."""
    name, *rest = words
    if name == "help":
        return f"did you mean: vswin {printable(shlex.join([*rest[:1], '--help']))}"
    if name == "version":
        return "did you mean: vswin --version"
    if name.endswith((".h5", ".hdf5")) and not rest:
        return f"to show what is in it: vswin inspect {printable(shlex.quote(name))}"
    if "/" in name or os.path.exists(name):
        extract = shlex.join(["vswin", "extract", *words, *([] if rest else ["out.h5"])])
        return f"to extract features of videos: {printable(extract)}"
    return suggest(name, [*COMMANDS, *ALIASES]) or f"there are {', '.join(COMMANDS)}"


@click.group(
    cls=LazyGroup,
    context_settings=HELP,
    aliases=ALIASES,
    examples=("vswin extract videos/ out.h5", "vswin inspect out.h5", "vswin search out.h5 a.mp4@12.5"),
)
@version_option()
def vswin(**_: Any) -> None:
    """Video Swin features: extract them, look at them, manage weights."""
