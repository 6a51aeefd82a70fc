"""Writes what the documentation takes from the code: `python docs/reference.py` makes docs/cli.md, docs/python.md
and the drawings of docs/conventions.md again. The tests compare."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from python_reference import python_page

from vswin_extract.cli import vswin
from vswin_extract.cli.command import OPTIONS
from vswin_extract.cli.extract import extract
from vswin_extract.video.sampling import Sampling

HERE = Path(__file__).parent
FIRST = "## vswin-extract\n"
"""Where the made part of docs/cli.md begins."""


def reference(text: str) -> str:
    """The text of docs/cli.md, whose introduction stays."""
    introduction = text.partition(FIRST)[0].rstrip("\n") + "\n"
    return "\n".join([introduction, *section("vswin-extract", extract), *section("vswin", vswin)])


def section(name: str, command: click.Command) -> Iterator[str]:
    """A command, or a group and the commands below it."""
    context = click.Context(command, info_name=name)
    yield f"## {name}\n"
    yield f"    {name} {' '.join(command.collect_usage_pieces(context))}\n"
    yield "\n".join(f"    {example}" for example in getattr(command, "examples", ())) + "\n"
    yield from paragraphs(command.help or "")
    yield from tables(command, context)
    yield from paragraphs(command.epilog or "")
    if not isinstance(command, click.Group):
        return
    below = [(each, command.get_command(context, each)) for each in command.list_commands(context)]
    for each, made in below:
        if made is extract:
            yield f"## {name} {each}\n\nThe same as [vswin-extract](#vswin-extract).\n"
        elif made is not None:
            yield from section(f"{name} {each}", made)


def paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):  # as it stands
            yield "\n".join(f"    {line}" for line in paragraph.splitlines()[1:]) + "\n"
        elif paragraph:
            yield " ".join(paragraph.split()) + "\n"


def tables(command: click.Command, context: click.Context) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for each in command.params:
        record = each.get_help_record(context) if isinstance(each, click.Option) else None
        if record is not None:
            names, description = (text.replace("|", "\\|") for text in record)
            variable = f"`{each.envvar}`" if each.envvar else ""
            groups.setdefault(getattr(each, "group", OPTIONS), []).append(f"| `{names}` | {description} | {variable} |")
    for title, rows in groups.items():
        yield "\n".join([f"| {title if len(groups) > 1 else 'option'} | | variable |", "|---|---|---|", *rows]) + "\n"


def draw(words: str) -> str:
    """The clips of options and a number of frames, as `--clip-len 3 --stride 4, 12 frames`: x a frame that a clip
    shows, r one that it shows in place of frames that there are not, . one that it skips."""
    options, frames = re.fullmatch(r"(.*), (\d+) frames", words.strip()).groups()  # type: ignore[union-attr]
    values = re.findall(r"--([a-z-]+) (\S+)", options)
    sampling = Sampling(
        **{name.replace("-", "_"): int(value) if value.isdigit() else value for name, value in values}  # type: ignore[arg-type]
    )
    count = int(frames)
    lines = ["frame  " + "".join(f"{position:3}" for position in range(count))]
    for k in range(sampling.count(count)):
        clip = sampling.clip(k, count)
        edge = 0 if clip.positions[0] == clip.positions[1] == 0 else count - 1
        marks = dict.fromkeys(range(clip.first, clip.end), ".") | dict.fromkeys(clip.positions, "x")
        if clip.valid < sampling.clip_len:
            marks[edge] = "r"
        row = "".join(f"{marks.get(position, ''):>3}" for position in range(count))
        lines.append(f"clip {k} {row}   [{clip.first}, {clip.end})  valid {clip.valid}")
    return "\n".join(lines) + "\n"


def redrawn(text: str) -> str:
    """A page whose drawings, blocks of ```text that begin with options, are made again."""
    return re.sub(
        r"^```text\n(--[^\n]* frames)\n.*?^```$",
        lambda found: f"```text\n{found[1]}\n\n{draw(found[1])}```",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


if __name__ == "__main__":
    pages = {"cli.md": reference, "python.md": python_page, "conventions.md": redrawn}
    for page, made in ((HERE / name, made) for name, made in pages.items()):
        page.write_text(made(page.read_text("utf-8")), "utf-8")
