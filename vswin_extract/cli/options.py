"""Options: kinds of values, and the options that several commands share."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from vswin_extract.cli.command import OPTIONS, suggest
from vswin_extract.cli.complete import weights_names

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Choice(click.Choice[str]):
    """A choice whose error suggests the nearest value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        hint = suggest(str(value), self.choices)
        return f"{message} {hint[0].upper()}{hint[1:]}" if hint else message


class Stages(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 takes no argument here
    """Stages in one word: 4, or 3,4, or all."""

    name = "stages"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found = self.parse(value)
        if not found:
            self.fail(f"{value!r} is no stage; stages are 1 to 4, several as 3,4, or all", param, ctx)
        return found

    def parse(self, value: str | int) -> tuple[int, ...]:
        """Return the stages that a word names; none if it is no such word."""
        from vswin_extract.errors import UsageError
        from vswin_extract.network.variants import parse_stages

        try:
            return parse_stages(value)
        except UsageError:
            return ()


class GroupedOption(click.Option):
    """An option with the heading that it has in --help."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Several(click.Argument):
    """An argument that may be repeated. If the command line has none, a file may have some; click before 8.4 does not
    look there."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        return super().consume_value(ctx, {name: value for name, value in opts.items() if value != ()})


def option(group: str, *names: str, **attributes: Any) -> Decorator:
    """A click option under a heading of --help."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def together(*decorators: Decorator) -> Decorator:
    """Return one decorator for several, applied so that --help has their options in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


output_argument = click.argument("file", type=click.Path(), metavar="OUT.h5")
"""An output that may be unfinished."""

file_argument = click.argument("file", type=click.Path(), metavar="IN.h5")

follow_option = click.option(
    "--follow", is_flag=True, help="Read an index of files that are outside of its directory, wherever it says."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")


def output_option(metavar: str, help: str) -> Decorator:
    """The option -o, --output. A command has a default of its own, see `beside`."""
    return click.option("-o", "--output", type=click.Path(dir_okay=False), metavar=metavar, help=help)


def beside(file: str, ending: str) -> str:
    """Return the default of -o: a file beside the one that a command reads, with another ending."""
    return os.path.splitext(file)[0] + ending


def layout_option(group: str = OPTIONS) -> Decorator:
    return option(
        group,
        "--layout",
        type=Choice(["single", "sharded"]),
        default="single",
        show_default=True,
        help="One file; or files of at most 10,000 videos in OUT.h5.shards, and OUT.h5 as an index that reads the "
        "same.",
    )


def overwrite_option(group: str = OPTIONS) -> Decorator:
    text = "Replace OUT.h5 if it is there, once the new one is complete."
    return option(group, "--overwrite", is_flag=True, help=text)


def target_option(what: str) -> Decorator:
    """The option --overwrite of commands that replace files of their own kind without it."""
    text = f"Replace {what} even if another program wrote it; never a file that this command reads."
    return click.option("--overwrite", is_flag=True, help=text)


def weights_option(help: str, group: str = OPTIONS, **attributes: Any) -> Decorator:
    names = {"metavar": "NAME|FILE", "shell_complete": weights_names}
    return option(group, "--weights", help=help, **names, **attributes)


def ema_option(group: str = OPTIONS) -> Decorator:
    """The option --ema of every command that reads weights."""
    return option(
        group,
        "--ema",
        is_flag=True,
        help="Take the averaged weights (EMA) of a checkpoint file that has both, as under state_dict_ema.",
    )


def device_option(help: str, group: str = OPTIONS) -> Decorator:
    return option(group, "--device", default="auto", show_default=True, metavar="DEVICE", help=help)


def videos_option(help: str) -> Decorator:
    """The option --videos: the directory that pictures are made from."""
    path = click.Path(exists=True, file_okay=False)
    return click.option("--videos", type=path, metavar="DIR", help=help)


def play_option(page: str) -> Decorator:
    """The option --play, of commands that write a page."""
    return click.option(
        "--play/--no-play",
        default=None,
        help=f"{page} videos by their paths from the page, so that a click plays a clip.  [default: only videos in or "
        "below the folder of the page]",
    )


def version_option() -> Decorator:
    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_versions,
        help="Show the versions of this tool, Python, torch, HDF5 and the decoders, and exit.",
    )


def _show_versions(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from vswin_extract.job.versions import detailed_versions

        for name, number in detailed_versions():
            click.echo(f"{name} {number}")
        sys.exit(0)
