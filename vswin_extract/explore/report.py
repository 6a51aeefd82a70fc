"""An output as one HTML page that opens anywhere: what was extracted, how its clips are alike, videos in detail.

Everything is in the page: pictures as JPEG, matrices as PNG, curves as SVG, and BokehJS, which draws the map. Bokeh
shows pictures under the pointer with little further code, and its script (1.3 MB) is a quarter of plotly's. The size of
a page is limited, so that a browser opens the page of any output: `limit` videos in detail, `spots` clips on the map,
`table_rows` rows of tables. The most telling videos come first: those with problems, then the most varied.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import needs
from vswin_extract.explore.clip_map import make_map, moments_of
from vswin_extract.explore.page import PAGE, Links, files_read, open_template, write_page
from vswin_extract.explore.search import SearchResult, nearest_videos
from vswin_extract.explore.section import describe_video, middle, strip_seconds
from vswin_extract.explore.similarity import lowest_cosine, variety
from vswin_extract.explore.thumbnails import Pictures, take_pictures
from vswin_extract.files import Target
from vswin_extract.store.features import FeatureFile
from vswin_extract.system import some_home

TEMPLATE = Path(__file__).with_name("report.html")
LIMIT, SPOTS = 50, 1000
"""Videos in detail and clips on the map, unless a caller wants more. The page of 10,000 videos has less than 25 MB."""
TABLE_ROWS = 20_000
"""Rows of the table of videos, and of the table of failures, at most: 5 MB."""
PICTURE = (160, 120)
"""Width and height of a picture in pixels, at most; it has 3 to 6 kB."""
OPEN = 5
"""Videos in detail that are not folded."""
NEAREST = 5
"""Clips of other videos that are shown for a video."""
BARS = 24
"""Bars of the histogram of durations."""


def write_report(
    features: FeatureFile,
    output: Path,
    videos: Path | None = None,
    *,
    facts: Iterable[tuple[str, str]] = (),
    limit: int = LIMIT,
    spots: int = SPOTS,
    within: str = "*",
    table_rows: int = TABLE_ROWS,
    play: bool | None = None,
    on_video: Callable[[int, int], None] = lambda done, total: None,
    overwrite: bool = False,
) -> Pictures:
    """Write the page and return the pictures in it. Videos are looked for where they were extracted, or by their ids
    below `videos`; where a video is missing or does not decode, the page says so.

    `facts`: names and values about the run. `limit`: videos in detail, of those whose ids match `within`.
    `spots`: clips on the map, evenly spaced. `play`: link the videos by their paths from the page; None: only those in
    or below its folder. `on_video`: called after the pictures of each video, with how many of how
    many videos are done. `overwrite`: replace `output` even if it is no page of ours. Raises UsageError.
    """
    target = Target(output, PAGE, partial(files_read, features, videos), overwrite)
    target.check()
    template = open_template(TEMPLATE, "a report needs Jinja")
    with needs("bokeh", "report", "a report needs Bokeh"), some_home():
        from bokeh.resources import Resources
    matching = features.matching(within) if limit and len(features) else []
    embedded = "embedding" in features.names
    varied = variety(features).tolist() if embedded else []
    chosen = choose_videos(features, matching, varied, limit)
    near = nearest_videos(features, chosen, NEAREST) if embedded else {}
    count = min(spots, features.clips) if embedded else 0
    rows = np.unique(np.linspace(0, features.clips - 1, count).astype(int)).tolist()
    pictures = take_pictures(features, videos, _wanted_pictures(features, chosen, near, rows), PICTURE, on_video)
    links = Links(output, play)
    lowest = lowest_cosine(features, chosen) if embedded else 0.0
    parts = template.generate(
        **_overview(features, table_rows, varied),
        facts=facts,
        sections=(describe_video(features, name, pictures, near.get(name, []), links, lowest) for name in chosen),
        lowest=lowest,
        plays=any(links.find(file, 0.0) for file in pictures.files.values()),
        open=OPEN,
        chosen=set(chosen),
        rows=min(len(features), table_rows),
        place={name: row for row, name in enumerate(features)}.get,
        matching=len(matching),
        within=within,
        embedded=embedded,
        map=make_map(features, rows, pictures, links) if rows else None,
        spots=len(rows),
        scripts=Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw if rows else [],
    )
    write_page(target, parts)
    return pictures


def choose_videos(features: FeatureFile, names: Sequence[str], varied: Sequence[float], limit: int) -> list[str]:
    """Return at most `limit` of these videos: first those with problems, but half of the limit at most, then the
    others, each the most varied first. Without `varied`, which is by row, they stay in the order of the file."""
    rows = {name: row for row, name in enumerate(features)}
    ranked = sorted(names, key=lambda name: -varied[rows[name]]) if varied else names
    status = dict(zip(rows, features.file["videos_table/status"].asstr()[:], strict=True))
    odd = [name for name in ranked if status[name] != "ok"][: -(-limit // 2)]
    taken = set(odd)
    return [*odd, *(name for name in ranked if name not in taken)][:limit]


def _wanted_pictures(
    features: FeatureFile, chosen: Sequence[str], near: Mapping[str, Sequence[SearchResult]], rows: Sequence[int]
) -> dict[str, set[float]]:
    """Return the seconds of each video that a picture is wanted of: of videos in detail, of the clips that are like
    theirs, and of clips on the map."""
    wanted: dict[str, set[float]] = {}
    for name in chosen:
        wanted.setdefault(name, set()).update(strip_seconds(features[name]))
        for result in near.get(name, ()):
            wanted.setdefault(result.best.video, set()).add(middle(result))
    for name, seconds in zip(*moments_of(features, rows), strict=True):
        wanted.setdefault(name, set()).add(seconds)
    return wanted


def _overview(features: FeatureFile, table_rows: int, varied: Sequence[float]) -> dict[str, Any]:
    """Return what the page says about the whole file, by the names of the template."""
    durations = features.file["videos_table/duration"][:]
    failures = features.failures
    failed = Counter(failure["error"] for failure in failures)
    failures.sort(key=lambda failure: -failed[failure["error"]])  # the most frequent first
    return {
        "file": os.path.basename(features.file.filename),
        "features": features,
        "failures": failures[:table_rows],
        "failed": failed,
        "durations": durations,
        "bars": histogram(durations),
        "table": _list_videos(features, table_rows, varied),
        "table_rows": table_rows,
    }


def _list_videos(features: FeatureFile, most: int, varied: Sequence[float]) -> Iterator[tuple[Any, ...]]:
    """Yield id, clips, seconds, frames per second, width, height, variety if there is an embedding, and status with its
    reason, of the first videos."""
    table = features.file["videos_table"]
    texts = [table[name].asstr()[:most] for name in ("id", "status", "message")]
    numbers = [table[name][:most].tolist() for name in ("clips", "duration", "fps", "width", "height")]
    shown: Sequence[float | None] = varied[:most] or [None] * min(most, len(features))
    for name, status, message, *values in zip(*texts, *numbers, shown, strict=True):
        yield name, *values, f"{status}: {message}" if message else status


def histogram(durations: NDArray[np.float64]) -> list[tuple[float, float, int]]:
    """Return the bars of a histogram: from how many seconds, to how many, and how many videos. If durations differ
    much, the bars are equally wide on a logarithmic scale."""
    if not len(durations):
        return []
    lengths = np.maximum(durations, 0.01)  # of a single frame it is 0, which a logarithmic scale does not have
    longest = float(lengths.max())
    if longest > 20 * float(np.median(lengths)):
        edges = np.geomspace(lengths.min(), longest, BARS + 1)
    else:
        edges = np.linspace(0, longest, BARS + 1)
    counts, _ = np.histogram(lengths.clip(edges[0], edges[-1]), edges)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))
