"""The class of all commands: help that begins with examples, options in groups, and answers to misspelt words.

cloup and rich-click give help in groups, too. With them --help takes 0.6 and 0.9 s instead of 0.3 s, and they do not
know which variable or file a wrong value comes from, so the classes here would stay.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from vswin_extract.cli.origins import names_origin

OPTIONS = "Options"
"""The heading in --help for options without another one, and for --help."""
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""The context settings of every command."""
UNBROKEN = "\u2011"
"""A hyphen that no line ends with."""


def suggest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """Return "did you mean …?" for the known word that is nearest to a misspelt one, "" if none is near. `least`: how
    alike they must be, from 0 to 1. Click itself suggests names of options only."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=least)
    return f"did you mean {near[0]}?" if near else ""


class WholeNumber(click.types.IntParamType):
    """A whole number of at least `least`. Click's IntRange writes x>=1 into help and errors."""

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if number < self.least:
            self.fail(f"it must be {self.least} or more, not {number}", param, ctx)
        return number


class RealNumber(click.types.FloatParamType):
    """A number of at least `least` and at most `most`."""

    def __init__(self, least: float, most: float | None) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not self.least <= number or (self.most is not None and number > self.most):
            limits = f"{self.least:g} or more" if self.most is None else f"from {self.least:g} to {self.most:g}"
            self.fail(f"it must be {limits}, not {number:g}", param, ctx)
        return number


def in_words(kind: click.ParamType) -> click.ParamType:  # type: ignore[type-arg]  # click before 8.4 takes none
    """Return our type for a range of click's."""
    if isinstance(kind, click.IntRange) and kind.min is not None:
        return WholeNumber(int(kind.min))
    if isinstance(kind, click.FloatRange) and kind.min is not None:
        return RealNumber(kind.min, kind.max)
    return kind


class WordFormatter(click.HelpFormatter):
    """Writes help whose lines do not end inside a word with a hyphen, such as the name of an option."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", UNBROKEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(name, text.replace("-", UNBROKEN)) for name, text in rows], col_max, col_spacing)

    def write(self, string: str) -> None:
        super().write(string.replace(UNBROKEN, "-"))


class HelpContext(click.Context):
    """A context whose help is written by `WordFormatter`."""

    formatter_class = WordFormatter


class ExampleCommand(click.Command):
    """A command whose --help begins with `examples`, and shows options under the headings that `option` gives them.

    `meant`: for words that other tools have and this command does not, what is meant: an option, or a sentence.
    `headings`: by the name of a parameter, the heading of its option, instead of that of `option`.
    """

    context_class = HelpContext

    def __init__(
        self,
        *args: Any,
        examples: tuple[str, ...] = (),
        meant: Mapping[str, str] | None = None,
        headings: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.meant = meant or {}
        for parameter in self.params:
            parameter.type = in_words(parameter.type)
            if heading := (headings or {}).get(parameter.name or ""):
                parameter.group = heading  # type: ignore[attr-defined]  # as of GroupedOption

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
            if meant := self.meant.get(error.option_name):
                hint = f"did you mean {meant}?" if meant.startswith("-") else meant
                raise click.NoSuchOption(
                    error.option_name, f"No such option '{error.option_name}'; {hint}", ctx=ctx
                ) from None
            raise
        except click.MissingParameter as error:
            example = f"For example: {self.examples[0]}"
            raise click.MissingParameter(example, ctx, error.param, error.param_hint, error.param_type) from None

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_help_text(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, records in groups_of_options(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


def groups_of_options(command: click.Command, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return what --help says of each option, by heading."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is not None:
            groups.setdefault(getattr(parameter, "group", OPTIONS), []).append(record)
    return groups


def write_examples(examples: Iterable[str], formatter: click.HelpFormatter) -> None:
    """Write the lines with which help begins."""
    formatter.write_paragraph()
    with formatter.indentation():
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class AliasGroup(click.Group):
    """A group whose commands have other names, too: `aliases`, by which they are called but not listed."""

    context_class = HelpContext

    def __init__(self, *args: Any, aliases: Mapping[str, str], examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = aliases
        self.examples = examples

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_help_text(ctx, formatter)


def command(*examples: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for a command with these examples."""
    settings: dict[str, Any] = {"cls": ExampleCommand, "context_settings": HELP, **attributes}
    return click.command(examples=examples, **settings)
