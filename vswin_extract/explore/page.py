"""HTML pages that open anywhere: pictures inside, nothing loaded from elsewhere. How templates are opened, and the page
of a search, which needs no scripts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vswin_extract.errors import needs
from vswin_extract.explore.approximate import index_path
from vswin_extract.explore.near_copies import NearCopy
from vswin_extract.explore.query import Moment, Query
from vswin_extract.explore.search import SearchResult
from vswin_extract.explore.thumbnails import find_video, thumbnail
from vswin_extract.files import FileKind, Target
from vswin_extract.formatting import clock
from vswin_extract.store.features import FeatureFile

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("search.html")
PAGE = FileKind(
    "a page of vswin-extract",
    (b'<meta name="generator" content="vswin-extract">', b"default-src 'none'; img-src data:; style-src"),
)
"""Pages of searches and reports. Those that were written before the first mark was have the second."""


def files_read(features: FeatureFile, videos: Path | None = None) -> Iterator[str | os.PathLike[str]]:
    """Yield the files that pages and pictures of an output are made from, and its index of FAISS. They are never
    written over."""
    yield features.file.filename
    yield from features.linked
    yield index_path(features)
    for name, path in zip(features, features.file["videos_table/path"].asstr()[:], strict=True):
        yield path
        if videos is not None:
            yield videos / name


@dataclass(frozen=True)
class Card:
    """Seconds [start, end) of a video, and its picture `at` a second."""

    video: str
    start: float
    end: float
    at: float
    picture: str | None
    score: float | None = None


def page_of_results(
    features: FeatureFile, query: Query, results: Sequence[SearchResult], videos: Path | None = None
) -> str:
    """Return the page of the results of a query: a picture of the query, and of the best clip of each result.

    Videos are looked for where they were extracted, or by their ids below `videos`. Raises UsageError without Jinja or
    Pillow.
    """
    asked = query.moments[0] if not results else results[0].like
    whole = Moment(asked.video, query.moments[0].start, query.moments[-1].end)
    path = Path(query.path) if query.video is None else find_video(features, query.video, videos)
    first = _card(whole, asked, path)
    found = [_card(each.run, each.best, find_video(features, each.best.video, videos), each.score) for each in results]
    return _render(features, f"Nearest to {asked.video}", [[first]], [[each] for each in found])


def page_of_copies(features: FeatureFile, copies: Iterable[NearCopy], videos: Path | None = None) -> str:
    """Return the page of near-copies, with pictures of the middles of both videos. Raises UsageError as above."""
    pairs = [
        [_card(side, side, find_video(features, side.video, videos), pair.score) for side in (pair.one, pair.other)]
        for pair in copies
    ]
    return _render(features, "Near-copies", [], pairs)


def _card(run: Moment, best: Moment, path: Path | None, score: float | None = None) -> Card:
    middle = (best.start + best.end) / 2
    return Card(run.video, run.start, run.end, middle, thumbnail(path, middle), score)


def _render(features: FeatureFile, title: str, asked: list[list[Card]], found: list[list[Card]]) -> str:
    template = open_template(TEMPLATE, "--html needs Jinja")
    name = os.path.basename(features.file.filename)
    return template.render(title=title, file=name, info=features.info, features=features, asked=asked, found=found)


def write_page(target: Target, parts: Iterable[str]) -> None:
    """Write the parts of a page by an atomic write. Raises UsageError, OSError."""
    with target.write() as unfinished, unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(parts)


def open_template(path: Path, who: str) -> "Template":
    """Return the template of a page; values that are filled in are escaped. `who` needs Jinja, as the UsageError says
    if it is not installed."""
    with needs("jinja2", "report", who):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # Bokeh's models must be described before they are named: unsorted
    environment.filters.update(clock=clock, duration=duration)
    return environment.from_string(path.read_text("utf-8"))


def duration(seconds: float) -> str:
    """4.2 -> 4.2 s, 754.0 -> 12.6 min, 37250.0 -> 10.3 h"""
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 3600:,.1f} h"
