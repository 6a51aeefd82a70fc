"""Options of commands: help in groups, suggestions for misspelt words, and the options that several commands share.

cloup and rich-click give help in groups, too. With them --help takes 0.6 and 0.9 s instead of 0.3 s, and they do not
know which variable or file a wrong value comes from, so the classes here would stay.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.origins import names_origin

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
RUN = "Run"
"""The heading in --help for options about the run itself, and for --help."""
HELP = {"help_option_names": ["-h", "--help"]}
"""The context settings of every command."""


def suggest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """Return "did you mean …?" for the known word that is nearest to a misspelt one, "" if none is near. `least`: how
    alike they must be, from 0 to 1. Click itself suggests names of options only."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=least)
    return f"did you mean {near[0]}?" if near else ""


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


class GroupedCommand(click.Command):
    """A command whose --help shows its options under the headings that `option` gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)  # parsing empties args
        try:
            with names_origin():
                return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            names = {name for parameter in self.params for name in parameter.opts}
            for word in words:  # -stride: the parser sees -s, and would not suggest --stride
                if word[:2] == error.option_name and f"-{word}" in names:
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


file_argument = click.argument("file", type=click.Path(), metavar="OUT.h5")

follow_option = click.option(
    "--follow", is_flag=True, help="Read an index of files that are outside of its directory, wherever it says."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")


def output_option(metavar: str, help: str, *names: str) -> Decorator:
    """The option -o, which must be given."""
    path = click.Path(dir_okay=False)
    return click.option("-o", *(names or ("output",)), type=path, required=True, metavar=metavar, help=help)


def layout_option(group: str = RUN) -> Decorator:
    return option(
        group,
        "--layout",
        type=Choice(["single", "sharded"]),
        default="single",
        show_default=True,
        help="One file; or files of at most 10,000 videos in OUT.h5.shards, and OUT.h5 as an index that reads the "
        "same.",
    )


def overwrite_option(group: str = RUN) -> Decorator:
    text = "Replace OUT.h5 if it is there, once the new one is complete."
    return option(group, "--overwrite", is_flag=True, help=text)


def target_option(what: str) -> Decorator:
    """The option --overwrite of commands that replace files of their own kind without it."""
    text = f"Replace {what} even if another program wrote it; never a file that this command reads."
    return click.option("--overwrite", is_flag=True, help=text)


def weights_option(help: str, group: str = RUN, **attributes: Any) -> Decorator:
    names = {"metavar": "NAME|FILE", "shell_complete": weights_names}
    return option(group, "--weights", help=help, **names, **attributes)


def ema_option(group: str = RUN) -> Decorator:
    """The option --ema of every command that reads weights."""
    return option(
        group,
        "--ema",
        is_flag=True,
        help="Take the averaged weights (EMA) of a checkpoint file that has both, as under state_dict_ema.",
    )


def device_option(help: str, group: str = RUN) -> Decorator:
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
