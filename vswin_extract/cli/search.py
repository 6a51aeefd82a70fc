"""`vswin search`: the clips nearest to a clip or a video, and near-copies."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vswin_extract.cli.complete import video_ids, weights_names
from vswin_extract.cli.console import Choice, reports_errors, stderr, stdout, table
from vswin_extract.formatting import plural, printable

if TYPE_CHECKING:
    from vswin_extract.explore.search import Moment, NearCopy, Query, Result
    from vswin_extract.job.events import Event


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(), metavar="OUT.h5")
@click.argument("query", required=False, metavar="[QUERY]", shell_complete=video_ids)
@click.option("--duplicates", is_flag=True, help="Instead of a QUERY: videos that agree over some time, near-copies.")
@click.option(
    "-k", "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Results at most."
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    metavar="COSINE",
    help="With --duplicates: what clips have in common at least.  [default: 0.95]",
)
@click.option(
    "--within", metavar="PATTERN", help="Only videos whose ids match, as 'clips/*'; of near-copies one of two."
)
@click.option("--not-same-video", is_flag=True, help="Nothing of the query's own video.")
@click.option(
    "--index",
    type=Choice(["exact", "faiss"]),
    default="exact",
    show_default=True,
    help="Compare with every clip; or by an index that is kept in OUT.h5.faiss, for millions of clips, which may miss "
    "some.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page with pictures.")
@click.option(
    "--videos",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="With --html: where the videos are, if no longer where they were extracted.",
)
@click.option(
    "--weights",
    metavar="NAME|FILE",
    shell_complete=weights_names,
    help="For a video file as QUERY: the weights that OUT.h5 was made with, if they are neither bundled nor in the "
    "cache.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="For a video file as QUERY: auto, cpu, cuda."
)
@reports_errors
def search(
    file: str,
    query: str | None,
    duplicates: bool,
    top: int,
    threshold: float | None,
    within: str | None,
    not_same_video: bool,
    index: str,
    as_json: bool,
    html: str | None,
    videos: str | None,
    weights: str | None,
    device: str,
) -> None:
    """Find the clips that are most like QUERY, by the cosine of their embeddings: a clip of the file (ID@SECONDS), a
    video of it (ID), or a video file (PATH or PATH@SECONDS), which is extracted first as those of OUT.h5 were. A run of
    clips of one video that are alike is one result, at the score of its best clip."""
    from pathlib import Path

    if (query is None) != duplicates:
        raise click.UsageError("give either a QUERY (ID@SECONDS, ID, or a video file) or --duplicates")
    if threshold is not None and not duplicates:
        raise click.UsageError("--threshold is for --duplicates")
    if html and not Path(html).absolute().parent.is_dir():
        raise click.UsageError(f"no directory {Path(html).absolute().parent} to write into")

    from vswin_extract.explore.approximate import import_faiss, open_index
    from vswin_extract.explore.search import THRESHOLD, find_query, near_copies, nearest
    from vswin_extract.store.features import open_features

    console = stderr()

    def say(text: str) -> None:
        console.print(printable(text), markup=False)

    def said(event: "Event") -> None:
        from vswin_extract.job.events import Notice, Started  # torch, which only a video file needs

        if isinstance(event, Started):
            say(f"extracting {query} by {event.model} on {event.device} in {event.precision}")
        if isinstance(event, Notice):
            say(event.text)

    with open_features(file) as features:
        if index == "faiss":
            import_faiss()
        if query is not None:
            asked = find_query(
                features,
                query,
                weights=weights,
                device=device,
                on_event=said,
            )
        approximate = open_index(features) if index == "faiss" else None
        if approximate is not None and approximate.built:
            say(f"note: built the index of {plural(features.clips, 'clip')}, {approximate.path}")
        if query is None:
            least = THRESHOLD if threshold is None else threshold
            copies = near_copies(features, threshold=least, within=within, index=approximate)
            found: dict[str, Any] = {"threshold": least, "found": len(copies)}
            found["duplicates"] = [asdict(pair) for pair in copies[:top]]
        else:
            results = nearest(features, asked, top=top, within=within, same_video=not not_same_video, index=approximate)
            found = {"query": [asdict(moment) for moment in asked.moments]}
            found["results"] = [asdict(result) for result in results]
        if html:
            from vswin_extract.explore.page import page_of_copies, page_of_results

            where = Path(videos) if videos else None
            page = (
                page_of_copies(features, copies[:top], where)
                if query is None
                else page_of_results(features, asked, results, where)
            )
            Path(html).write_text(page, "utf-8", "backslashreplace")
            say(f"note: wrote {html}")
    if as_json:
        click.echo(json.dumps({"file": file, "index": index, **found}, indent=1, allow_nan=False))
    elif query is None:
        show_copies(copies, top)
    else:
        show_results(asked, results)


def show_results(query: "Query", results: "list[Result]") -> None:
    several = len(query.moments) > 1
    rows = [
        (
            r.run.video,
            seconds(r.run),
            seconds(r.best),
            *((seconds(r.like),) if several else ()),
            f"{r.score:.4f}",
        )
        for r in results
    ]
    titles = ("video", "seconds", "best clip", *(("like the query's",) if several else ()), "cosine")
    stdout().print(table(rows, titles, right=titles[1:]) if rows else "nothing found")


def show_copies(copies: "list[NearCopy]", top: int) -> None:
    out = stdout()
    rows = [
        (pair.one.video, seconds(pair.one), "~", pair.other.video, seconds(pair.other), f"{pair.score:.4f}")
        for pair in copies[:top]
    ]
    titles = ("video", "seconds", "", "video", "seconds", "cosine")
    out.print(table(rows, titles, right=("seconds", "cosine")) if rows else "nothing found")
    if len(copies) > top:
        out.print(f"… and {len(copies) - top} more; -k {len(copies)} shows them")


def seconds(moment: "Moment") -> str:
    return f"{moment.start:.2f} – {moment.end:.2f}"
