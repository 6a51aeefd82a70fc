"""`vswin export`: write features as the files that other projects load."""

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import note, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import Choice, file_argument, follow_option
from vswin_extract.formatting import plural

FORMATS = (
    "actionformer",
    "opentad",
    "moment-detr",
    "tvr",
    "clip-retrieval",
    "npy",
    "npz",
    "csv",
    "webdataset",
    "parquet",
    "ten-crop",
    "summary",
)


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
    help="Average a stage's map over H' and W', or over T' too. Maps go with npy, npz and webdataset only.",
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
    "--crop-pool",
    type=Choice(["mean", "none"]),
    default="mean",
    show_default=True,
    help="Average the crops of a clip, where the file keeps them. Crops go with npy, npz and webdataset; ten-crop "
    "always has them.",
)
@click.option(
    "--stem", is_flag=True, help="Call files by ids without the video's extension, as annotations usually have them."
)
@click.option("--suffix", default="", help="Put this behind the name of each file of features, as in <id>_rgb.npy.")
@click.option(
    "--key", metavar="NAME", help="Name of the array in .npz files (features); actionformer: write .npz, with feats."
)
@click.option("--transpose", is_flag=True, help="Write channels first, (C, T), in npy and npz.")
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
    crop_pool: str,
    stem: bool,
    suffix: str,
    key: str | None,
    transpose: bool,
    follow: bool,
) -> None:
    """Write features as FORMAT into a new folder DEST, and a configuration with the numbers that make times come out.

    \b
    actionformer    <id>.npy (T, C), missing_files.txt, actionformer.yaml
    opentad         <id>.npy (T, C), missing_files.txt, opentad.py
    moment-detr     <id>.npz with "features" (T, C), moment-detr.txt
    tvr             features.h5, a dataset (T, C) by id, tvr.txt
    ten-crop        <id>.npy (T, 10, C), ten-crop.list, ten-crop.txt (MGFN, RTFM)
    summary         summary.h5, a group a video (DSNet, PGL-SUM, VASNet, vsumm)
    clip-retrieval  img_emb/img_emb_0.npy, metadata/metadata_0.parquet
    npy             <id>.npy (T, ...), times/<id>.npy (T, 2) in seconds
    npz             <id>.npz with "features" (T, ...) and "times" (T, 2)
    csv             <id>.csv, a line a row; times/<id>.csv; mmaction2.json
    webdataset      shard-000000.tar: features.npy, times.npy, json
    parquet         features.parquet, a row a clip

    The projects of the first four compute the time of a row from its number. What they compute is compared with the
    stored times first, and the export is refused if a time differs by more than a millisecond. A video of one clip
    that would have a wrong time is left out, with a note.
    """
    from vswin_extract.export.export import export as write
    from vswin_extract.loading.sequences import Feature

    name = stage if stage in ("embedding", "logits") else f"stage{stage}"
    done = write(
        format,  # type: ignore[arg-type]  # click has checked it
        file,
        destination,
        Feature(name, pool, length, l2, crop_pool),  # type: ignore[arg-type]
        stem,
        follow=follow,
        suffix=suffix,
        key=key,
        transpose=transpose,
    )
    for text in done.notes:
        note(text)
    rows = [
        ("output", f"{done.destination}"),
        ("videos", f"{done.videos}" + (f", {plural(done.missing, 'failure')} left out" if done.missing else "")),
        ("rows", f"{done.rows}, {' x '.join(map(str, done.shape))} values each"),
        ("beside", ", ".join(name for name in done.files if (done.destination / name).stat().st_size)),
    ]
    stdout().print(table(rows))
