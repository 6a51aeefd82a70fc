"""Writes what the documentation takes from the code: `python docs/reference.py` makes docs/cli.md and the drawings of
docs/conventions.md again. The tests compare."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from vswin_extract.cli import vswin
from vswin_extract.cli.console import RUN
from vswin_extract.cli.extract import extract
from vswin_extract.clips import Sampling

HERE = Path(__file__).parent
HEADER = """\
# Command line

Made from the commands themselves by `python docs/reference.py`.

An option is taken from the command line; else from the environment, from the variable in the last column; else, by
`vswin-extract`, from the file of `--config`; else it has its default. A variable that is empty does not count. Switches are
set by `1` or `true`, and unset by `0` or `false`; several values have spaces between them, as `VSWIN_EXTRACT_STAGE="2 4"`.

Variables that are no options: `VSWIN_WEIGHTS_DIR`, where weights are kept.

**A file of options.** `vswin-extract --config run.toml` takes every option of `vswin-extract` from a TOML file, by the names
that they have below without the dashes (`_` for `-` will do), the videos as `videos`, the file to write as `output`:

    videos = ["videos/"]
    output = "out.h5"
    weights = "t-k400"
    stage = [4]
    pool = "space"
    fps = 15
    embedding = true

Relative paths are from the working directory, as on the command line. An unknown key is an error, and so is a value of
another type. One path on the command line is another output; several are other videos, too. A run writes what it used beside
its output, as `out.toml`, with absolute paths: `vswin-extract --config out.toml` does the same again, anywhere. What is not in
it follows from the weights or the device. Queries of web addresses, where signatures are, and the number of a shard are left
out; a file of that name that the tool did not write stays as it is.

**Completion.** Once for each shell, into its start-up file:

    eval "$(_VSWIN_COMPLETE=bash_source vswin)"; eval "$(_VSWIN_EXTRACT_COMPLETE=bash_source vswin-extract)"  # ~/.bashrc
    eval "$(_VSWIN_COMPLETE=zsh_source vswin)"; eval "$(_VSWIN_EXTRACT_COMPLETE=zsh_source vswin-extract)"    # ~/.zshrc
    _VSWIN_COMPLETE=fish_source vswin | source; _VSWIN_EXTRACT_COMPLETE=fish_source vswin-extract | source    # config.fish

Then the tab key completes commands, options, their values, names of weights, and the videos of a file after
`vswin search out.h5` and `vswin plot out.h5`.

`NO_COLOR` is respected; on no terminal, and with `TERM=dumb`, there are neither colours nor a live display.
"""


def reference() -> str:
    """The text of docs/cli.md."""
    sections = [HEADER, *section("vswin-extract", extract), *section("vswin", vswin)]
    return "\n".join(sections)


def section(name: str, command: click.Command) -> Iterator[str]:
    """A command, or a group and the commands below it."""
    context = click.Context(command, info_name=name)
    yield f"## {name}\n"
    yield f"    {name} {' '.join(command.collect_usage_pieces(context))}\n"
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
            names, said = (text.replace("|", "\\|") for text in record)
            variable = f"`{each.envvar}`" if each.envvar else ""
            groups.setdefault(getattr(each, "group", RUN), []).append(f"| `{names}` | {said} | {variable} |")
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
    (HERE / "cli.md").write_text(reference(), "utf-8")
    page = HERE / "conventions.md"
    page.write_text(redrawn(page.read_text("utf-8")), "utf-8")
