"""`vswin export`: write features as the files that other projects load."""

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import Choice, file_argument, follow_option
from vswin_extract.formatting import plural

FORMATS = ("actionformer", "opentad", "moment-detr", "tvr", "clip-retrieval", "npy", "webdataset", "parquet")


@command("vswin export actionformer out.h5 features/ --stem", "vswin export npy out.h5 arrays/ --stage 4")
@click.argument("format", type=Choice(FORMATS), metavar="FORMAT")
@file_argument
@click.argument("destination", type=click.Path(), metavar="DEST")
@click.option(
    "--stage",
    type=Choice(["embedding", "1", "2", "3", "4", "logits"]),
    default="embedding",
    show_default=True,
    help="What to export: the embedding, a stage's map, or logits.",
)
@click.option(
    "--pool",
    type=Choice(["none", "space", "all"]),
    default="all",
    show_default=True,
    help="Average a stage's map over H' and W', or over T' too. Maps go with npy and webdataset only.",
)
@click.option(
    "--resize-length",
    "length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Resample each video to N rows for equal parts of its duration, by linear interpolation between clips.",
)
@click.option("--l2", is_flag=True, help="Divide each row by its length; clip-retrieval always does.")
@click.option(
    "--stem", is_flag=True, help="Call files by ids without the video's extension, as annotations usually have them."
)
@follow_option
@reports_errors
def export(
    format: str,
    file: str,
    destination: str,
    stage: str,
    pool: str,
    length: int | None,
    l2: bool,
    stem: bool,
    follow: bool,
) -> None:
    """Write features as FORMAT into a new folder DEST, and a configuration with the numbers that make times come out.

    \b
    actionformer    <id>.npy (T, C), missing_files.txt, actionformer.yaml
    opentad         <id>.npy (T, C), missing_files.txt, opentad.py
    moment-detr     <id>.npz with "features" (T, C), moment-detr.txt
    tvr             features.h5, a dataset (T, C) by id, tvr.txt
    clip-retrieval  img_emb/img_emb_0.npy, metadata/metadata_0.parquet
    npy             <id>.npy (T, ...), <id>.times.npy (T, 2) in seconds
    webdataset      shard-000000.tar: features.npy, times.npy, json
    parquet         features.parquet, a row a clip

    The first four reckon the time of a row from its number. Every stored time is checked against that first, and the
    export refused where one is off by more than a millisecond.
    """
    from vswin_extract.export.export import export as write
    from vswin_extract.loading.sequences import Feature

    name = stage if stage in ("embedding", "logits") else f"stage{stage}"
    done = write(
        format,  # type: ignore[arg-type]  # click has checked it
        file,
        destination,
        Feature(name, pool, length, l2),  # type: ignore[arg-type]
        stem,
        follow=follow,
    )
    rows = [
        ("output", f"{done.destination}"),
        ("videos", f"{done.videos}" + (f", {plural(done.missing, 'failure')} left out" if done.missing else "")),
        ("rows", f"{done.rows} of {' x '.join(map(str, done.shape))}"),
        ("beside", ", ".join(done.files)),
    ]
    stdout().print(table(rows))
