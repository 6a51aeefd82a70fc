"""`vswin report`: a page about a file of features."""

import os
from typing import TYPE_CHECKING

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import stderr
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import (
    beside,
    file_argument,
    follow_option,
    output_option,
    play_option,
    target_option,
    videos_option,
)
from vswin_extract.formatting import human_bytes, plural, printable

if TYPE_CHECKING:
    from vswin_extract.store.features import FeatureFile

LIMIT, SPOTS = 50, 1000
"""The defaults of `write_report`. Importing them would make --help slow."""


@command("vswin report out.h5", "vswin report out.h5 -o page.html --within 'clips/*'")
@file_argument
@output_option("OUT.html", "The page.  [default: as IN.h5, but .html]")
@target_option("the page")
@videos_option("Where the videos are, if no longer where they were extracted.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="Videos that are shown in detail, at most, those with problems and the most varied first; about 150 kB each.",
)
@click.option("--within", default="*", metavar="PATTERN", help="In detail, only videos whose ids match, as 'clips/*'.")
@click.option(
    "--map",
    "spots",
    type=click.IntRange(min=0),
    default=SPOTS,
    show_default=True,
    metavar="N",
    help="Clips on the map, at most; about 6 kB each.",
)
@play_option("Link")
@follow_option
@reports_errors
def report(
    file: str,
    output: str | None,
    overwrite: bool,
    videos: str | None,
    limit: int,
    within: str,
    spots: int,
    play: bool | None,
    follow: bool,
) -> None:
    """Write one page to look at, with all in it, that opens from disk: the run and its failures, a map of all clips,
    and videos in detail, with their frames, segments, classes and the clips of others that are like theirs. Needs the
    extra [report]."""
    from pathlib import Path

    from rich.progress import Progress

    from vswin_extract.explore.report import write_report
    from vswin_extract.store.features import open_features

    output = output or beside(file, ".html")
    console = stderr()
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    with open_features(file, follow=follow) as features, progress as bar:
        task = bar.add_task("pictures", total=None)
        pictures = write_report(
            features,
            Path(output),
            Path(videos) if videos else None,
            facts=shared_facts(features, file),
            limit=limit,
            spots=spots,
            within=within,
            play=play,
            overwrite=overwrite,
            on_video=lambda done, total: bar.update(task, completed=done, total=total),
        )
    written = f"{output}: {human_bytes(Path(output).stat().st_size)}, {plural(len(pictures.made), 'picture')}"
    if lost := len(pictures.missing):
        written += f"; no pictures of {plural(lost, 'video')}, the page says why"
    click.echo(printable(written))


def shared_facts(features: "FeatureFile", file: str) -> list[tuple[str, str]]:
    """Return the facts of a run for a page, which others may see: without the folder of the file."""
    from vswin_extract.cli.inspect import run_facts

    facts = run_facts(features, file)
    return [(name, text.replace(file, os.path.basename(file), 1) if name == "file" else text) for name, text in facts]
