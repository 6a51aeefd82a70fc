"""`vswin search`: the clips nearest to a clip or a video, and near-copies."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.complete import video_ids
from vswin_extract.cli.console import note, say, stderr, stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import (
    Choice,
    device_option,
    file_argument,
    follow_option,
    json_option,
    play_option,
    target_option,
    together,
    videos_option,
    weights_option,
)
from vswin_extract.formatting import clock, plural

if TYPE_CHECKING:
    from vswin_extract.explore.approximate import Index
    from vswin_extract.explore.near_copies import NearCopy
    from vswin_extract.explore.page import Links
    from vswin_extract.explore.query import Moment, Query
    from vswin_extract.explore.search import SearchResult
    from vswin_extract.files import Target
    from vswin_extract.job.events import Event
    from vswin_extract.store.features import FeatureFile

search_options = together(
    click.option(
        "--duplicates", is_flag=True, help="Instead of a QUERY: videos that agree over some time, near-copies."
    ),
    click.option(
        "-k", "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Results at most."
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(-1, 1),
        metavar="COSINE",
        help="With --duplicates: what clips have in common at least.  [default: 0.95]",
    ),
    click.option(
        "--within", metavar="PATTERN", help="Only videos whose ids match, as 'clips/*'; of near-copies one of two."
    ),
    click.option("--not-same-video", is_flag=True, help="Nothing of the query's own video."),
    click.option(
        "--index",
        type=Choice(["exact", "faiss"]),
        default="exact",
        show_default=True,
        help="Compare with every clip; or by an index that is kept in IN.h5.faiss, for millions of clips, which may "
        "miss some.",
    ),
    json_option,
    click.option(
        "-o", "--html", type=click.Path(dir_okay=False), metavar="OUT.html", help="Write a page with pictures, too."
    ),
    target_option("the page"),
    follow_option,
    videos_option("Where the videos are, if no longer where they were extracted."),
    play_option("Link"),
    weights_option("The weights that IN.h5 was made with, if they are neither bundled nor published."),
    device_option("auto, cpu, cuda, mps."),
)


@command(
    "vswin search out.h5 a.mp4@12.5",
    "vswin search out.h5 query.mp4 -k 20 -o found.html",
    "vswin search out.h5 --duplicates",
    headings={
        **dict.fromkeys(("html", "overwrite", "videos", "play"), "Page"),
        **dict.fromkeys(("weights", "device"), "A video file as QUERY"),
    },
)
@file_argument
@click.argument("query", required=False, metavar="[QUERY]", shell_complete=video_ids)
@search_options
@reports_errors
def search(
    file: str,
    query: str | None,
    duplicates: bool,
    as_json: bool,
    html: str | None,
    overwrite: bool,
    videos: str | None,
    play: bool | None,
    follow: bool,
    **options: Any,
) -> None:
    """Find the clips that are most like QUERY, by the cosine of their embeddings: a clip of the file (ID@TIME, as
    a.mp4@65.3 or a.mp4@1:05.3), a video of it (ID), or a video file (PATH or PATH@TIME), which is extracted first as
    the videos of IN.h5 were. A run of clips of one video that are alike is one result, at the score of its best clip.
    """
    if (query is None) != duplicates:
        raise click.UsageError("give either a QUERY (ID@TIME, ID, or a video file) or --duplicates")
    if options["threshold"] is not None and not duplicates:
        raise click.UsageError("--threshold is for --duplicates")

    from vswin_extract.store.features import open_features

    with open_features(file, follow=follow) as features:
        folder = Path(videos) if videos else None
        page = page_target(features, html, overwrite, folder, query, options["weights"]) if html else None
        found = find_copies(features, **options) if query is None else find_results(features, query, **options)
        if page is not None:
            from vswin_extract.explore.page import Links, write_page

            write_page(page, [found.page(features, folder, Links(page.given, play))])
            note(f"wrote {html}")
    if as_json:
        facts = {"file": file, "index": options["index"], **found.facts()}
        click.echo(json.dumps(facts, indent=1, allow_nan=False))
    else:
        found.show()


def page_target(
    features: "FeatureFile", html: str, overwrite: bool, videos: Path | None, query: str | None, weights: str | None
) -> "Target":
    """Return the file of --html. Raises UsageError if it must not be written, before the search."""
    from vswin_extract.explore.page import PAGE, files_read
    from vswin_extract.files import Target

    given = [text for text in (query, query and query.rpartition("@")[0], weights) if text]
    target = Target(Path(html), PAGE, lambda: [*files_read(features, videos), *given], overwrite)
    target.check()
    return target


@dataclass(frozen=True)
class FoundClips:
    """What is nearest to a query."""

    query: "Query"
    results: "list[SearchResult]"

    def facts(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "query": [asdict(moment) for moment in self.query.moments],
            "results": [asdict(result) for result in self.results],
        }

    def page(self, features: "FeatureFile", videos: Path | None, links: "Links") -> str:
        from vswin_extract.explore.page import page_of_results

        return page_of_results(features, self.query, self.results, videos, links)

    def show(self) -> None:
        several = len(self.query.moments) > 1
        rows = [
            (
                each.run.video,
                _time(each.run),
                _time(each.best),
                *((_time(each.like),) if several else ()),
                f"{each.score:.4f}",
            )
            for each in self.results
        ]
        titles = ("video", "time", "best clip", *(("like the query's",) if several else ()), "cosine")
        stdout().print(table(rows, titles, right=titles[1:]) if rows else "nothing found")


@dataclass(frozen=True)
class FoundCopies:
    """Near-copies, of which the first `top` are shown."""

    copies: "list[NearCopy]"
    threshold: float
    top: int

    def facts(self) -> dict[str, Any]:
        """Return what --json prints."""
        shown = [asdict(pair) for pair in self.copies[: self.top]]
        return {"threshold": self.threshold, "found": len(self.copies), "duplicates": shown}

    def page(self, features: "FeatureFile", videos: Path | None, links: "Links") -> str:
        from vswin_extract.explore.page import page_of_copies

        return page_of_copies(features, self.copies[: self.top], videos, links)

    def show(self) -> None:
        out = stdout()
        rows = [
            (pair.one.video, _time(pair.one), "~", pair.other.video, _time(pair.other), f"{pair.score:.4f}")
            for pair in self.copies[: self.top]
        ]
        titles = ("video", "time", "", "video", "time", "cosine")
        out.print(table(rows, titles, right=("time", "cosine")) if rows else "nothing found")
        if len(self.copies) > self.top:
            out.print(f"… and {len(self.copies) - self.top} more; -k {len(self.copies)} shows them")


def find_results(
    features: "FeatureFile",
    text: str,
    *,
    top: int,
    within: str | None,
    not_same_video: bool,
    index: str,
    weights: str | None,
    device: str,
    **_: Any,
) -> FoundClips:
    """Search a file for the clip, video or video file that a text names."""
    from vswin_extract.explore.approximate import import_faiss
    from vswin_extract.explore.query import find_query
    from vswin_extract.explore.search import nearest

    if index == "faiss":
        import_faiss()  # fails before a video is extracted
    query = find_query(features, text, weights=weights, device=device, on_event=show_extraction(text))
    by_index = open_index_if(features, index)
    results = nearest(features, query, top=top, within=within, same_video=not not_same_video, index=by_index)
    return FoundClips(query, results)


def find_copies(
    features: "FeatureFile", *, top: int, threshold: float | None, within: str | None, index: str, **_: Any
) -> FoundCopies:
    """Search a file for near-copies."""
    from vswin_extract.explore.near_copies import THRESHOLD, near_copies

    least = THRESHOLD if threshold is None else threshold
    copies = near_copies(features, threshold=least, within=within, index=open_index_if(features, index))
    return FoundCopies(copies, least, top)


def open_index_if(features: "FeatureFile", kind: str) -> "Index | None":
    """Return the index of a file if --index is faiss, and say so if it was built."""
    if kind != "faiss":
        return None
    from vswin_extract.explore.approximate import open_index

    index = open_index(features)
    if index.built:
        note(f"built the index of {plural(features.clips, 'clip')}, {index.path}")
    return index


def show_extraction(text: str) -> "Callable[[Event], None]":
    """Return what prints the events of extracting a query."""
    console = stderr()

    def show(event: "Event") -> None:
        from vswin_extract.job.events import Notice, Started

        if isinstance(event, Started):
            say(console, f"extracting {text} by {event.model} on {event.device} in {event.precision}")
        if isinstance(event, Notice):
            say(console, event.text)

    return show


def _time(moment: "Moment") -> str:
    return f"{clock(moment.start)} – {clock(moment.end)}"
