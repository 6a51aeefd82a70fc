"""What a search found as one HTML page that opens anywhere: pictures inside, no script, nothing from elsewhere."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vswin_extract.errors import needs
from vswin_extract.explore.search import Moment, NearCopy, Query, Result
from vswin_extract.explore.thumbnails import thumbnail
from vswin_extract.store.features import FeatureFile

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("search.html")


@dataclass(frozen=True)
class Card:
    """A picture and what it shows. `at`: the second of the picture."""

    video: str
    start: float
    end: float
    at: float
    picture: str | None
    score: float | None = None


def page_of_results(features: FeatureFile, query: Query, results: Sequence[Result], videos: Path | None = None) -> str:
    """The page of what is nearest to a query: a picture of the query, and of the best clip of each result.

    Videos are looked for where they were when they were extracted, or by their ids below `videos`. Raises UsageError.
    """
    asked = query.moments[0] if not results else results[0].like
    whole = Moment(asked.video, query.moments[0].start, query.moments[-1].end)
    path = Path(query.path) if query.video is None else find_video(features, query.video, videos)
    first = card(whole, asked, path)
    found = [card(r.run, r.best, find_video(features, r.best.video, videos), r.score) for r in results]
    return render(features, f"Nearest to {asked.video}", [[first]], [[each] for each in found])


def page_of_copies(features: FeatureFile, copies: Iterable[NearCopy], videos: Path | None = None) -> str:
    """The page of near-copies: of each the middles of both sides. Raises UsageError."""
    pairs = [
        [card(side, side, find_video(features, side.video, videos), pair.score) for side in (pair.one, pair.other)]
        for pair in copies
    ]
    return render(features, "Near-copies", [], pairs)


def card(run: Moment, best: Moment, path: Path, score: float | None = None) -> Card:
    middle = (best.start + best.end) / 2
    return Card(run.video, run.start, run.end, middle, thumbnail(path, middle), score)


def find_video(features: FeatureFile, video_id: str, videos: Path | None) -> Path:
    return Path(features[video_id].info["path"]) if videos is None else videos / video_id


def render(features: FeatureFile, title: str, asked: list[list[Card]], found: list[list[Card]]) -> str:
    template = open_template(TEMPLATE, "--html needs Jinja")
    name = os.path.basename(features.file.filename)
    return template.render(title=title, file=name, info=features.info, features=features, asked=asked, found=found)


def open_template(path: Path, who: str) -> "Template":
    """A page's template, in which what is filled in is text. Raises UsageError without Jinja, for `who`."""
    with needs("jinja2", "report", who):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # sorted, Bokeh's models would be named before they are described
    environment.filters.update(clock=clock, span=span)
    return environment.from_string(path.read_text("utf-8"))


def clock(seconds: float) -> str:
    """4.2 -> 0:04.2, 3725.0 -> 1:02:05.0"""
    tenths = round(seconds * 10)
    minutes, hours = tenths // 600 % 60, tenths // 36000
    begins = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{begins}:{tenths // 10 % 60:02}.{tenths % 10}"


def span(seconds: float) -> str:
    """4.2 -> 4.2 s, 754.0 -> 12.6 min, 37250.0 -> 10.3 h"""
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < most:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 3600:,.1f} h"
