"""`vswin merge`: make one output of several outputs and journals."""

import sys

import click

from vswin_extract.cli.console import say, stderr, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import HELP, Choice, layout_option, overwrite_option
from vswin_extract.formatting import human_bytes


@click.command(context_settings=HELP)
@click.argument("output", metavar="OUT.h5")
@click.argument("parts", nargs=-1, metavar="[PART...]", type=click.Path())
@layout_option()
@click.option(
    "--link",
    is_flag=True,
    help="Copy nothing: OUT.h5 becomes an index of PARTs, finished files that stay where they are.",
)
@click.option(
    "--on-duplicate",
    type=Choice(["error", "first"]),
    default="error",
    show_default=True,
    help="A video that several parts have: an error, or the first counts.",
)
@click.option("--allow-missing", is_flag=True, help="Merge what there is, though some videos are not through.")
@overwrite_option()
@reports_errors
def merge(
    output: str,
    parts: tuple[str, ...],
    layout: str,
    link: bool,
    on_duplicate: str,
    allow_missing: bool,
    overwrite: bool,
) -> None:
    """Make one file of features of PARTs: finished files, and the OUT.h5.parts that runs and shards leave. Without
    PARTs, of OUT.h5.parts, which then goes. Videos come in the order of their ids; those of one run in the run's; with
    --link part by part."""
    import os
    from pathlib import Path

    from vswin_extract.journal.merge import merge as merge_parts
    from vswin_extract.system import allow_open_files

    if link and layout == "sharded":
        raise click.UsageError("--link leaves the files as they are; use it without --layout")
    allow_open_files()  # all parts are open at the same time
    console = stderr()
    merged = merge_parts(
        Path(os.path.realpath(output)),
        [Path(part) for part in parts],
        layout="linked" if link else layout,  # type: ignore[arg-type]  # click has checked it
        on_duplicate=on_duplicate,  # type: ignore[arg-type]
        allow_missing=allow_missing,
        overwrite=overwrite,
        on_note=lambda text: say(console, f"note: {text}"),
    )
    rows = [
        ("output", f"{merged.output} ({human_bytes(merged.bytes)})"),
        ("videos", f"{merged.videos} of {merged.sources} parts" if merged.sources > 1 else f"{merged.videos}"),
        ("failed", f"{merged.failed}" + (", see: vswin inspect" if merged.failed else "")),
        ("clips", f"{merged.clips}"),
        ("time", f"{merged.seconds:.1f} s"),
    ]
    stdout().print(table(rows))
    sys.exit(3 if merged.failed else 0)
