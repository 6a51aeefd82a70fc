"""The command line: every command parses, calls the library and renders. Only here is anything printed.

Nothing but click is imported before a command runs, so that --help answers at once.
"""

from importlib import import_module
from typing import Any

import click

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
    "weights": "List, download and convert weights.",
}
"""Commands of `vswin`, each in a module of its name, with the line that `vswin --help` shows."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return getattr(import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vswin-extract")
def vswin(**_: Any) -> None:
    """Video Swin features: extract them, look at them, manage weights."""
