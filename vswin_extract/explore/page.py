"""HTML pages that open anywhere: pictures inside, nothing loaded from elsewhere, but videos that are asked for by a
click. How templates are opened, and the page of a search, which has no scripts unless it links videos."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vswin_extract.errors import VideoError, needs
from vswin_extract.explore.approximate import index_path
from vswin_extract.explore.near_copies import NearCopy
from vswin_extract.explore.query import Moment, Query
from vswin_extract.explore.search import SearchResult
from vswin_extract.explore.thumbnails import PictureProcess, find_video
from vswin_extract.files import FileKind, Target
from vswin_extract.formatting import clock, plural
from vswin_extract.store.features import FeatureFile

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("search.html")
PLAYER = Path(__file__).with_name("player.html")
"""What plays videos in a page, on a click on a link of the class `play`."""
PAGE = FileKind(
    "a page of vswin-extract",
    (b'<meta name="generator" content="vswin-extract">', b"default-src 'none'; img-src data:; style-src"),
)
"""Pages of searches and reports. Those that were written before the first mark was have the second."""
LONGEST_WORD = 24
"""Characters of a word in a name; only a longer one is broken where a line ends."""


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
class Links:
    """How a page links videos, by their paths from the folder of the page. `play`: whether it does; None: only videos
    in or below that folder, so that the page tells nothing of other folders."""

    page: Path
    play: bool | None = None

    def find(self, path: Path | None, start: float, end: float | None = None) -> str | None:
        """Return the link of a video, to be played from one second to another one, None if there is none."""
        if path is None or self.play is False:
            return None
        try:
            way = os.path.relpath(os.path.abspath(path), os.path.dirname(os.path.abspath(self.page)))
        except ValueError:  # on another drive
            return None
        if self.play is None and way.split(os.sep)[0] == os.pardir:
            return None
        moments = f"{start:.2f}" if end is None else f"{start:.2f},{end:.2f}"
        return f"{quote(os.fsencode(Path(way).as_posix()))}#t={moments}"


@dataclass(frozen=True)
class Card:
    """Seconds [start, end) of a video, and its picture `at` a second. `link`: plays it, None if the page does not link
    the video."""

    video: str
    start: float
    end: float
    at: float
    picture: str | None
    link: str | None
    score: float | None = None


class CardMaker:
    """Makes the cards of a page of results. `videos`: videos are looked for where they were extracted, or by their ids
    below this folder."""

    def __init__(self, features: FeatureFile, videos: Path | None, links: Links, process: PictureProcess) -> None:
        self.features = features
        self.videos = videos
        self.links = links
        self.process = process

    def make(self, run: Moment, best: Moment, score: float | None = None, path: Path | None = None) -> Card:
        """Return the card of a run of clips with the picture of the best one. `path`: of a video that is not of the
        file."""
        path = path or find_video(self.features, run.video, self.videos)
        middle = (best.start + best.end) / 2
        try:
            (picture,) = self.process.take(path, [middle])
        except VideoError:  # the page says that there is no picture
            return Card(run.video, run.start, run.end, middle, None, None, score)
        return Card(run.video, run.start, run.end, middle, picture, self.links.find(path, run.start, run.end), score)


def page_of_results(
    features: FeatureFile, query: Query, results: Sequence[SearchResult], videos: Path | None, links: Links
) -> str:
    """Return the page of the results of a query: a picture of the query, and of the best clip of each result.

    Videos are looked for where they were extracted, or by their ids below `videos`. Raises UsageError without Jinja or
    Pillow.
    """
    asked = query.moments[0] if not results else results[0].like
    whole = Moment(asked.video, query.moments[0].start, query.moments[-1].end)
    with PictureProcess() as process:
        cards = CardMaker(features, videos, links, process)
        first = cards.make(whole, asked, path=Path(query.path) if query.video is None else None)
        found = [[cards.make(each.run, each.best, each.score)] for each in results]
    return _render(features, f"Nearest to {asked.video}", first, found, [])


def page_of_copies(features: FeatureFile, copies: Iterable[NearCopy], videos: Path | None, links: Links) -> str:
    """Return the page of near-copies: for each two videos, the seconds in which they agree, with pictures of the
    middles of both; the two that agree best are first. Raises UsageError as above."""
    best: dict[tuple[str, str], int] = {}
    listed = list(copies)
    for number, pair in enumerate(listed):
        best.setdefault((pair.one.video, pair.other.video), number)
    listed.sort(key=lambda pair: best[pair.one.video, pair.other.video])
    groups: list[tuple[tuple[str, str], list[list[Card]]]] = []
    with PictureProcess() as process:
        cards = CardMaker(features, videos, links, process)
        for names, pairs in groupby(listed, lambda pair: (pair.one.video, pair.other.video)):
            rows = [[cards.make(side, side, pair.score) for side in (pair.one, pair.other)] for pair in pairs]
            groups.append((names, rows))
    return _render(features, "Near-copies", None, [], groups)


def _render(
    features: FeatureFile,
    title: str,
    asked: Card | None,
    results: list[list[Card]],
    groups: list[tuple[tuple[str, str], list[list[Card]]]],
) -> str:
    template = open_template(TEMPLATE, "--html needs Jinja")
    shown = [asked, *chain(*results), *chain.from_iterable(chain(*rows) for _, rows in groups)]
    return template.render(
        title=title,
        file=os.path.basename(features.file.filename),
        info=features.info,
        features=features,
        asked=asked,
        results=results,
        groups=groups,
        plays=any(card is not None and card.link for card in shown),
    )


def write_page(target: Target, parts: Iterable[str]) -> None:
    """Write the parts of a page by an atomic write. Raises UsageError, OSError."""
    with target.write() as unfinished, unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(parts)


def open_template(path: Path, who: str) -> "Template":
    """Return the template of a page; values that are filled in are escaped. `who` needs Jinja, as the UsageError says
    if it is not installed."""
    with needs("jinja2", "report", who):
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # Bokeh's models must be described before they are named: unsorted
    environment.filters.update(clock=clock, duration=duration, breakable=breakable, plural=plural)
    environment.globals["player"] = Markup(PLAYER.read_text("utf-8"))
    return environment.from_string(path.read_text("utf-8"))


def duration(seconds: float) -> str:
    """4.2 -> 4.2 s, 754.0 -> 12.6 min, 37250.0 -> 10.3 h"""
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 3600:,.1f} h"


def breakable(text: str) -> "Markup":
    """Return a text as HTML that lines may break after spaces and punctuation, not inside a word, unless it is longer
    than LONGEST_WORD."""
    from markupsafe import Markup, escape

    words = re.findall(r".+?(?:[/_\-,;:@+=)\]\s]+|$)", text, re.DOTALL)
    marked = (Markup('<span class="long">{}</span>').format(w) if len(w) > LONGEST_WORD else escape(w) for w in words)
    return Markup("<wbr>").join(marked)
