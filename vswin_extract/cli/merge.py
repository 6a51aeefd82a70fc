"""`vswin merge`: make one output of several outputs and journals."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import note, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import Choice, follow_option, layout_option, overwrite_option
from vswin_extract.formatting import human_bytes

MOST_NAMED = 8
"""Parts that a message names."""


def find_output(paths: Sequence[str], output: str | None) -> tuple[str, Sequence[str]]:
    """Return the file to write and the parts. Raises UsageError if the first path may be meant as a part."""
    from vswin_extract.errors import UsageError
    from vswin_extract.journal.directory import journal_directory
    from vswin_extract.store.hdf5 import output_path, read_attributes

    if output is not None:
        return output, paths
    if not paths:
        raise click.UsageError("name the files to merge: vswin merge -o OUT.h5 PART...")
    first, *parts = paths
    file = output_path(first)
    own = journal_directory(file)
    unfinished = own.is_dir() and os.path.realpath(own) not in map(os.path.realpath, parts)
    if parts and (unfinished or read_attributes(file) is not None):
        others = shlex.join(parts) if len(parts) <= MOST_NAMED else "PART..."
        also = shlex.join(["vswin", "merge", "-o", "OUT.h5", first])
        instead = shlex.join(["vswin", "merge", "--overwrite", "-o", first])
        raise UsageError(
            f"{own if unfinished else first} is there; to merge it with the other parts: {also} {others}; to write "
            f"{first} of the other parts alone: {instead} {others}"
        )
    return first, parts


def merge_command(output: Path, journal: Path, layout: str = "single", overwrite: bool = False) -> list[str]:
    """Return the words of `vswin` that make an output of its journal."""
    own = os.path.realpath(output) == os.path.realpath(journal).removesuffix(".parts")
    words = ["merge", str(output)] if own else ["merge", "-o", str(output), str(journal)]
    words += ["--layout", layout] if layout != "single" else []
    return [*words, *(["--overwrite"] if overwrite else [])]


@command("vswin merge out.h5", "vswin merge -o all.h5 a.h5 b.h5", "vswin merge -o all.h5 --link a.h5 b.h5")
@click.argument("paths", nargs=-1, metavar="[OUT.h5] [PART...]", type=click.Path())
@click.option(
    "-o",
    "output",
    type=click.Path(),
    metavar="OUT.h5",
    help="The file to write. Without -o it is the first path, which must not be there if others follow.",
)
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
@click.option("--allow-missing", is_flag=True, help="Merge what there is, even if some videos are not complete.")
@overwrite_option()
@follow_option
@reports_errors
def merge(
    paths: tuple[str, ...],
    output: str | None,
    layout: str,
    link: bool,
    on_duplicate: str,
    allow_missing: bool,
    overwrite: bool,
    follow: bool,
) -> None:
    """Make one file of features of PARTs: finished files, and the OUT.h5.parts that runs and shards leave. Without
    PARTs, of OUT.h5.parts, which is then removed. Videos come in the order of their ids; those of a single run in the
    order of the run; with --link part by part."""

    from vswin_extract.journal.merge import merge as merge_parts
    from vswin_extract.system import allow_open_files

    output, parts = find_output(paths, output)
    if link and layout == "sharded":
        raise click.UsageError("--link leaves the files as they are; use it without --layout")
    allow_open_files()  # all parts are open at the same time
    merged = merge_parts(
        output,
        [Path(part) for part in parts],
        layout="linked" if link else layout,  # type: ignore[arg-type]  # click has checked it
        on_duplicate=on_duplicate,  # type: ignore[arg-type]
        allow_missing=allow_missing,
        overwrite=overwrite,
        follow=follow,
        on_note=note,
    )
    inspect = shlex.join(["vswin", "inspect", str(merged.output)])
    rows = [
        ("output", f"{merged.output} ({human_bytes(merged.bytes)})"),
        ("videos", f"{merged.videos} of {merged.sources} parts" if merged.sources > 1 else f"{merged.videos}"),
        ("failed", f"{merged.failed}" + (f", see: {inspect}" if merged.failed else "")),
        ("clips", f"{merged.clips}"),
        ("time", f"{merged.seconds:.1f} s"),
    ]
    stdout().print(table(rows))
    sys.exit(3 if merged.failed else 0)
