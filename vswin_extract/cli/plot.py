"""`vswin plot`: the self-similarity of a video as a picture."""

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.complete import video_ids
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import beside, file_argument, follow_option, output_option, target_option
from vswin_extract.formatting import clock, plural, printable


@command("vswin plot out.h5 a.mp4", "vswin plot out.h5 clips/a.mp4 -o a.png")
@file_argument
@click.argument("video", metavar="ID", shell_complete=video_ids)
@output_option("OUT.png", "The picture.  [default: beside IN.h5, as IN.ID.png]")
@target_option("the picture")
@follow_option
@reports_errors
def plot(file: str, video: str, output: str | None, overwrite: bool, follow: bool) -> None:
    """Draw the self-similarity of the video ID: the cosines of its clips with one another, seconds on both axes, and
    where segments begin. Needs the extra [report]."""
    from pathlib import Path, PurePath

    from vswin_extract.explore.plot import plot_similarity
    from vswin_extract.store.features import open_features

    with open_features(file, follow=follow) as features:
        if output is None:
            stem = PurePath(video).stem
            alike = sum(PurePath(each).stem == stem for each in features)
            output = beside(file, f".{stem if alike == 1 else video.replace('/', '_')}.png")
        starts = plot_similarity(features, video, Path(output), overwrite=overwrite)
    at = f"; new ones begin at {', '.join(map(clock, starts))}" if starts else ""
    click.echo(printable(f"{output}: {plural(len(starts) + 1, 'segment')}{at}"))
