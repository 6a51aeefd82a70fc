"""`vswin check`: verify an output."""

import os
import shlex
import sys

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import note, say, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.merge import merge_command
from vswin_extract.cli.options import follow_option, output_argument
from vswin_extract.formatting import plural


@command("vswin check out.h5", "vswin check out.h5 --against videos/")
@output_argument
@click.option(
    "--against",
    multiple=True,
    type=click.Path(),
    metavar="VIDEOS",
    help="Directory or file that the output should cover, as it was given to extract. Repeatable.",
)
@click.option("--manifest", type=click.Path(), metavar="FILE", help="The manifest that the output should cover.")
@follow_option
@reports_errors
def check(file: str, against: tuple[str, ...], manifest: str | None, follow: bool) -> None:
    """Verify a finished or unfinished output: structure, checksums, times, no NaN; with --against or --manifest, also
    which videos are missing, changed or extra. Exit code 4 where something is wrong."""
    from pathlib import Path

    from vswin_extract.checks.output import verify_output
    from vswin_extract.video.videos import find_videos

    videos = find_videos(against, manifest, say=note) if against or manifest else ()
    found = verify_output(Path(file), videos, follow=follow)
    out = stdout()
    state = "finished" if found.finished else "unfinished"
    if found.readable:
        amount = f"{plural(found.videos, 'video')} with {plural(found.clips, 'clip')}, {found.failures} failed"
        out.print(f"{state}: {amount}")
    else:
        out.print("not read any further, because of its structure")
    for text in found.notes:
        say(out, f"note: {text}")
    if found.problems:
        out.print(table([(problem.where, problem.what) for problem in found.problems], ("where", "what is wrong")))
        sys.exit(4)
    if found.finished:
        out.print("nothing wrong")
    elif found.mergeable and found.output:
        command = merge_command(found.output, found.mergeable, overwrite=os.path.lexists(found.output))
        say(out, f"nothing wrong; every video is finished, and this makes the file: {shlex.join(['vswin', *command])}")
    else:
        say(out, "nothing wrong so far; the command that was stopped continues it")
