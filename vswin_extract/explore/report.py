"""An output as one HTML page that opens anywhere: what was extracted, how its clips lie to one another, videos in
detail.

Everything is in the page: pictures as JPEG, matrices as PNG, curves as SVG, and BokehJS, which draws the map. Bokeh
shows pictures under the pointer by itself, and its script (1.3 MB) is a quarter of plotly's. What a page holds is
bounded, so that an output of any size gives one that a browser opens: `limit` videos in detail, `spots` clips on the
map, TABLE rows.
"""

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError, VideoError, needs
from vswin_extract.explore.page import find_video, open_template
from vswin_extract.explore.plot import measure
from vswin_extract.explore.search import Result, nearest_videos
from vswin_extract.explore.similarity import unit, unit_blocks
from vswin_extract.explore.thumbnails import thumbnails
from vswin_extract.files import publish
from vswin_extract.store.features import FeatureFile, VideoFeatures

TEMPLATE = Path(__file__).with_name("report.html")
LIMIT, SPOTS = 50, 1000
"""Videos in detail, and clips on the map, unless more are asked for. Of 10,000 videos that makes less than 25 MB."""
TABLE = 20_000
"""Rows of the table of videos, and of failures, at most: 5 MB."""
PICTURE = (160, 120)
"""Pixels of a picture at most, 3 to 6 kB."""
STRIP = {"wide": 10, "tall": 16}
"""Pictures of a video's strip."""
NEAREST = 5
TOP_CLASSES = 5
MATRIX = 240
"""Pixels of a matrix's side."""
STEPS = 400
"""Steps of a curve at most; of more clips neighbouring ones are averaged."""
BARS = 24
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948",
           "#b07aa1", "#ff9da7", "#9c755f", "#8a8f98", "#2fa4c7", "#a3c14a")  # fmt: skip
"""Of groups on the map."""
Moments = dict[str, set[float]]
"""Seconds of videos that a picture is wanted of."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by video and second; of videos that have none, why."""

    made: dict[tuple[str, float], str]
    missing: dict[str, str]


@dataclass(frozen=True)
class Curve:
    """A class over a video's time. `path`: its probability as SVG, in a box of 1000 x 100."""

    name: str
    mean: float
    most: float
    at: float
    path: str


@dataclass(frozen=True)
class Section:
    """A video in detail. Times in seconds; `begin` and `end` are the ends of its time axis. `shape`: width by height of
    its pictures. `matrix`: a PNG in a data URI, whose colours go from the cosine `lowest` to 1; None where the file has
    no embedding."""

    id: str
    row: int
    info: dict[str, Any]
    begin: float
    end: float
    shape: float
    strip: list[tuple[float, str]]
    missing: str | None
    ticks: list[float]
    matrix: str | None
    lowest: float
    starts: list[float]
    nearest: list[tuple[Result, str | None]]
    curves: list[Curve]

    def percent(self, seconds: float) -> float:
        return round(100 * (seconds - self.begin) / (self.end - self.begin or 1), 3)


def write_report(
    features: FeatureFile,
    output: Path,
    videos: Path | None = None,
    *,
    facts: Sequence[tuple[str, str]] = (),
    limit: int = LIMIT,
    spots: int = SPOTS,
    within: str = "*",
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Pictures:
    """Write the page and return the pictures that are in it. Videos are looked for where they were when they were
    extracted, or by their ids below `videos`; what is not there, or does not decode, is said in its place.

    `facts`: what else to say about the run. `limit`: videos in detail, the first whose ids match `within`. `spots`:
    clips on the map, evenly spaced. `on_video`: called after each video that pictures were made of, with how many are
    done of how many. Raises UsageError.
    """
    if not output.absolute().parent.is_dir():
        raise UsageError(f"no directory {output.absolute().parent} to write into")
    template = open_template(TEMPLATE, "a report needs Jinja")
    with needs("bokeh", "report", "a report needs Bokeh"):
        from bokeh.resources import Resources
    chosen = list(islice((name for name in features if fnmatchcase(name, within)), limit))
    if limit and len(features) and not chosen:
        raise UsageError(f"no id in {features.file.filename} matches {within!r}; vswin inspect lists them")
    embedded = "embedding" in features.names
    near = nearest_videos(features, chosen, NEAREST) if embedded else {}
    count = min(spots, features.clips) if embedded else 0
    rows = np.unique(np.linspace(0, features.clips - 1, count).astype(int)).tolist()
    pictures = take_pictures(features, videos, _moments(features, chosen, near, rows), on_video)
    durations = features.file["videos_table/duration"][:]
    failures = features.failures
    filled = template.generate(
        file=os.path.basename(features.file.filename),
        features=features,
        facts=facts,
        failures=failures[:TABLE],
        failed=Counter(failure["error"] for failure in failures),
        durations=durations,
        bars=histogram(durations),
        table=list_videos(features),
        sections=(_section(features, name, pictures, near.get(name, [])) for name in chosen),
        chosen=set(chosen),
        matching=sum(fnmatchcase(name, within) for name in features),
        within=within,
        embedded=embedded,
        classes=_classes(features),
        map=make_map(features, rows, pictures) if len(rows) else None,
        spots=len(rows),
        unpictured=len(pictures.missing),
        scripts=Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw if len(rows) else [],
        TABLE=TABLE,
    )
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(filled)
        publish(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    return pictures


def _moments(
    features: FeatureFile, chosen: Sequence[str], near: Mapping[str, Sequence[Result]], rows: Sequence[int]
) -> Moments:
    wanted: Moments = {}
    for name in chosen:
        wanted.setdefault(name, set()).update(_strip(features[name]))
        for result in near.get(name, ()):
            wanted.setdefault(result.best.video, set()).add(_middle(result))
    for name, seconds in zip(*_spots(features, rows), strict=True):
        wanted.setdefault(name, set()).add(seconds)
    return wanted


def _strip(video: VideoFeatures) -> list[float]:
    """Seconds of the pictures that stand side by side over a video's time axis."""
    begin, end = _ends(video)
    info = video.info
    count = STRIP["tall" if info["height"] > info["width"] else "wide"]
    return [begin + (k + 0.5) / count * (end - begin) for k in range(count)]


def _ends(video: VideoFeatures) -> tuple[float, float]:
    times = video.times[:]
    return float(times[0, 0]), float(times[:, 1].max())


def _middle(result: Result) -> float:
    return (result.best.start + result.best.end) / 2


def _spots(features: FeatureFile, rows: Sequence[int]) -> tuple[list[str], list[float]]:
    """Of these clips, in ascending order, their videos and the seconds of their middles."""
    ids = list(features)
    numbers = features.file["clips/video"][:][rows] if len(rows) else []
    middles = features.file["clips/times"][:][rows].mean(1).tolist() if len(rows) else []
    return [ids[number] for number in numbers], middles


def take_pictures(
    features: FeatureFile, videos: Path | None, wanted: Moments, on_video: Callable[[int, int], None]
) -> Pictures:
    """Every picture that is wanted, each video opened once."""
    pictures = Pictures({}, {})
    for done, (name, seconds) in enumerate(wanted.items(), 1):
        moments = sorted(seconds)
        try:
            made = thumbnails(find_video(features, name, videos), moments, PICTURE)
            pictures.made.update(zip(((name, second) for second in moments), made, strict=True))
        except VideoError as error:
            pictures.missing[name] = str(error)
        on_video(done, len(wanted))
    return pictures


def histogram(durations: NDArray[np.float64]) -> list[tuple[float, float, int]]:
    """How many videos are from .. to seconds long; in steps of equal ratio where lengths differ much."""
    if not len(durations):
        return []
    lengths = np.maximum(durations, 0.01)  # of a picture, for which there is room on a logarithmic scale
    longest = float(lengths.max())
    if longest > 20 * float(np.median(lengths)):
        edges = np.geomspace(lengths.min(), longest, BARS + 1)
    else:
        edges = np.linspace(0, longest, BARS + 1)
    counts, _ = np.histogram(lengths.clip(edges[0], edges[-1]), edges)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


def list_videos(features: FeatureFile) -> Iterator[tuple[Any, ...]]:
    """id, clips, seconds, frames per second, width, height, status and its reason of the first TABLE videos."""
    table = features.file["videos_table"]
    texts = [table[name].asstr()[:TABLE] for name in ("id", "status", "message")]
    numbers = [table[name][:TABLE].tolist() for name in ("clips", "duration", "fps", "width", "height")]
    for name, status, message, *values in zip(*texts, *numbers, strict=True):
        yield name, *values, f"{status}: {message}" if message else status


def _section(features: FeatureFile, name: str, pictures: Pictures, near: Sequence[Result]) -> Section:
    video = features[name]
    info = video.info
    begin, end = _ends(video)
    step = next((step for step in TICKS if (end - begin) / step <= 8), (end - begin) / 8)
    matrix, lowest, starts = _matrix(features, name) if "embedding" in features.names else (None, 0.0, [])
    return Section(
        id=name,
        row=list(features).index(name),
        info=info,
        begin=begin,
        end=end,
        shape=round(min(3.0, max(0.4, info["width"] / max(1, info["height"]))), 3),
        strip=[(s, pictures.made[name, s]) for s in _strip(video)] if name not in pictures.missing else [],
        missing=pictures.missing.get(name),
        ticks=[float(tick * step) for tick in range(math.ceil(begin / step), math.floor(end / step) + 1)],
        matrix=matrix,
        lowest=lowest,
        starts=starts,
        nearest=[(result, pictures.made.get((result.best.video, _middle(result)))) for result in near],
        curves=_curves(features, video) if "logits" in features.names else [],
    )


def _matrix(features: FeatureFile, name: str) -> tuple[str, float, list[float]]:
    """The cosines of a video's clips, to scale in time on both sides, as a picture; the lowest colour; and where
    segments begin."""
    from bokeh.palettes import Viridis256
    from PIL import Image, ImageColor

    similarity, edges, starts, _ = measure(features, name)
    lowest = min(float(similarity.min()), 0.99)
    middles = edges[0] + (np.arange(MATRIX) + 0.5) / MATRIX * (edges[-1] - edges[0])
    cell = np.clip(np.searchsorted(edges, middles, "right") - 1, 0, len(similarity) - 1)
    shades = np.round((similarity[np.ix_(cell, cell)] - lowest) / (1 - lowest) * 255).clip(0, 255)
    picture = Image.fromarray(shades.astype(np.uint8), "L")
    picture.putpalette([value for colour in Viridis256 for value in ImageColor.getrgb(colour)])
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(), lowest, starts


def _classes(features: FeatureFile) -> list[str]:
    if "logits" not in features.names:
        return []
    names = features.file["classes"].asstr()[:].tolist() if "classes" in features.file else []
    return names or [f"class {k}" for k in range(features.file["logits"].shape[1])]


def _curves(features: FeatureFile, video: VideoFeatures) -> list[Curve]:
    """The classes that are most probable on average, and the probability of each over time."""
    logits = np.asarray(video.logits, np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    shares = odds / odds.sum(1, keepdims=True)
    times = video.times[:]
    begin, end = _ends(video)
    middles = times.mean(1)
    edges = np.concatenate([[begin], (middles[1:] + middles[:-1]) / 2, [end]])
    kept = np.unique(np.linspace(0, len(shares), min(len(shares), STEPS) + 1).astype(int))
    drawn = np.add.reduceat(shares, kept[:-1]) / np.diff(kept)[:, None]
    across = ((edges[kept] - begin) / (end - begin or 1) * 1000).round(1)
    names, curves = _classes(features), []
    for k in np.argsort(-shares.mean(0), kind="stable")[:TOP_CLASSES]:
        heights = (100 - 100 * drawn[:, k]).round(1)
        path = "M0 100" + "".join(f"V{y:g}H{x:g}" for x, y in zip(across[1:], heights, strict=True)) + "V100Z"
        most = int(shares[:, k].argmax())
        curves.append(Curve(names[k], float(shares[:, k].mean()), float(shares[most, k]), float(middles[most]), path))
    return curves


def principal(features: FeatureFile) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Mean (C,) of all embeddings of length 1, the two directions (C, 2) in which they vary most, and the shares of the
    variance that these have: by the covariance, which is summed up a block at a time."""
    channels = features.file["embedding"].shape[1]
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), features.clips
    for _, block in unit_blocks(features):
        exact = block.astype(np.float64)
        total += exact.sum(0)
        products += exact.T @ exact
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    axes = directions[:, :-3:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])  # which eigh leaves open
    whole = float(variances.clip(0).sum()) or 1.0
    return mean, axes, (float(variances[-1]) / whole, float(variances[-2]) / whole)


def make_map(features: FeatureFile, rows: Sequence[int], pictures: Pictures) -> dict[str, Any]:
    """The map of these clips as Bokeh's JSON, the shares of variance of its two axes, and its groups with their
    colours: the videos, or the folders that they are in, if they are few."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    mean, axes, shares = principal(features)
    points = (unit(features.file["embedding"][rows]) - mean) @ axes
    names, seconds = _spots(features, rows)
    folders = [str(PurePosixPath(name).parent) for name in names]
    groups = next((each for each in (names, folders) if len(set(each)) <= len(COLOURS)), ["all videos"] * len(names))
    colours = dict(zip(dict.fromkeys(groups), COLOURS, strict=False))
    shown = [
        f'<img src="{pictures.made[at]}" alt="">' if at in pictures.made else escape(pictures.missing.get(at[0], ""))
        for at in zip(names, seconds, strict=True)
    ]
    source = ColumnDataSource(
        {
            "x": points[:, 0],
            "y": points[:, 1],
            "video": names,
            "second": [f"{second:.2f} s" for second in seconds],
            "colour": [colours[group] for group in groups],
            "picture": shown,
        }
    )
    plot = figure(
        height=460,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        min_border=8,
    )
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.grid_line_color = "#8a8f98"
    plot.grid.grid_line_alpha = 0.25
    dots = plot.scatter("x", "y", size=9, color="colour", alpha=0.75, line_color=None, source=source)
    dots.hover_glyph = dots.glyph.clone(size=14, line_color="#8a8f98", fill_alpha=1)
    tip = '<div style="max-width:170px;overflow-wrap:anywhere">@picture{safe}<div>@video</div><div>@second</div></div>'
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tip, limit=1))
    return {"item": json_item(plot, ID("map")), "shares": shares, "groups": colours}
