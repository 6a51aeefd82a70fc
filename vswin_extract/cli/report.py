"""`vswin report`: a file of features as a page to look at."""

import click

from vswin_extract.cli.console import reports_errors, stderr
from vswin_extract.formatting import human_bytes, plural, printable

LIMIT, SPOTS = 50, 1000
"""Those of the library, whose import would take the time that --help has."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(), metavar="OUT.h5")
@click.option("-o", "output", type=click.Path(dir_okay=False), required=True, metavar="X.html", help="The page.")
@click.option(
    "--videos",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where the videos are, if no longer where they were extracted.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="Videos that are shown in detail, at most; about 150 kB each.",
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
@reports_errors
def report(file: str, output: str, videos: str | None, limit: int, within: str, spots: int) -> None:
    """Write one page to look at, with all in it, that opens from disk: the run and its failures, a map of all clips,
    and videos in detail, with their frames, segments, classes and the clips of others that are like theirs. Needs the
    extra [report]."""
    from pathlib import Path

    from rich.progress import Progress

    from vswin_extract.cli.inspect import summary
    from vswin_extract.explore.report import write_report
    from vswin_extract.store.features import open_features

    console = stderr()
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    with open_features(file) as features, progress as bar:
        task = bar.add_task("pictures", total=None)
        pictures = write_report(
            features,
            Path(output),
            Path(videos) if videos else None,
            facts=summary(features, file),
            limit=limit,
            spots=spots,
            within=within,
            on_video=lambda done, total: bar.update(task, completed=done, total=total),
        )
    said = f"{output}: {human_bytes(Path(output).stat().st_size)}, {plural(len(pictures.made), 'picture')}"
    if lost := len(pictures.missing):
        said += f"; {plural(lost, 'video')} could not be pictured, the page says why"
    click.echo(printable(said))
