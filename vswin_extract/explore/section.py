"""One video of a report in detail: pictures over its time axis, its segments, classes over time, and similar clips of
other videos."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vswin_extract.errors import UsageError
from vswin_extract.explore.page import Links
from vswin_extract.explore.search import SearchResult
from vswin_extract.explore.similarity import SelfSimilarity, average_crops, compare_with_itself
from vswin_extract.explore.thumbnails import Pictures, data_uri
from vswin_extract.store.features import FeatureFile, VideoFeatures

WIDE, TALL = 10, 16
"""Pictures side by side over the time axis of a video that is wider than high, or higher than wide."""
TOP_CLASSES = 5
MATRIX = 240
"""Pixels of the matrix's side."""
STEPS = 400
"""Steps of a curve at most; of more clips neighbouring ones are averaged."""
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
"""Seconds between the marks of a time axis."""
MOST_TICKS = 8


@dataclass(frozen=True)
class Curve:
    """The probability of a class over a video's time: the `mean`, and the `most`, which is `at` a second. `path`: SVG
    in a box of 1000 x 100."""

    name: str
    mean: float
    most: float
    at: float
    path: str


@dataclass(frozen=True)
class Section:
    """A video in detail. `begin` and `end`: the ends of its time axis in seconds. `shape`: width by height of its
    pictures. `strip`: seconds and pictures, each with a link that plays the video from there, or None; `missing`: why
    there are none. `matrix`: a PNG in a data URI, None if the file has no embedding. `starts`: the seconds at which
    segments begin. `nearest`: clips of other videos, with picture and link, if there are any."""

    id: str
    row: int
    info: dict[str, Any]
    begin: float
    end: float
    shape: float
    strip: list[tuple[float, str, str | None]]
    missing: str | None
    ticks: list[float]
    matrix: str | None
    starts: list[float]
    nearest: list[tuple[SearchResult, str | None, str | None]]
    curves: list[Curve]

    def percent(self, seconds: float) -> float:
        """Return where on the time axis a second is, from 0 to 100."""
        return round(100 * (seconds - self.begin) / (self.end - self.begin or 1), 3)


def describe_video(
    features: FeatureFile, name: str, pictures: Pictures, near: Sequence[SearchResult], links: Links, lowest: float
) -> Section:
    """Return the section of a video. `near`: the clips of other videos that are most like one of its own. `lowest`: the
    cosine of the lowest colour of its matrix."""
    video = features[name]
    info = video.info
    begin, end = _ends(video)
    matrix, starts = None, list[float]()
    if "embedding" in features.names:
        found = compare_with_itself(features, name)
        matrix, starts = _draw_matrix(found, lowest), found.starts
    file = pictures.files.get(name)
    strip = [] if file is None else [(s, pictures.made[name, s], links.find(file, s)) for s in strip_seconds(video)]
    return Section(
        id=name,
        row=list(features).index(name),
        info=info,
        begin=begin,
        end=end,
        shape=round(min(3.0, max(0.4, info["width"] / max(1, info["height"]))), 3),
        strip=strip,
        missing=pictures.missing.get(name),
        ticks=_ticks(begin, end),
        matrix=matrix,
        starts=starts,
        nearest=[
            (
                result,
                pictures.made.get((result.best.video, middle(result))),
                links.find(pictures.files.get(result.best.video), result.best.start, result.best.end),
            )
            for result in near
        ],
        curves=_curves(features, video) if "logits" in features.names else [],
    )


def strip_seconds(video: VideoFeatures) -> list[float]:
    """Return the seconds of the pictures that stand side by side over a video's time axis."""
    begin, end = _ends(video)
    count = TALL if video.info["height"] > video.info["width"] else WIDE
    return [begin + (k + 0.5) / count * (end - begin) for k in range(count)]


def middle(result: SearchResult) -> float:
    """Return the second of a result's picture."""
    return (result.best.start + result.best.end) / 2


def _ends(video: VideoFeatures) -> tuple[float, float]:
    times = video.times[:]
    return float(times[0, 0]), float(times[:, 1].max())


def _ticks(begin: float, end: float) -> list[float]:
    step = next((step for step in TICKS if (end - begin) / step <= MOST_TICKS), (end - begin) / MOST_TICKS)
    return [float(tick * step) for tick in range(math.ceil(begin / step), math.floor(end / step) + 1)]


def _draw_matrix(found: SelfSimilarity, lowest: float) -> str:
    """Return the cosines as a picture, to scale in time on both sides. Its colours go from the cosine `lowest` to 1."""
    from bokeh.palettes import Viridis256
    from PIL import Image, ImageColor

    edges = found.edges
    middles = edges[0] + (np.arange(MATRIX) + 0.5) / MATRIX * (edges[-1] - edges[0])
    cell = np.clip(np.searchsorted(edges, middles, "right") - 1, 0, len(found.matrix) - 1)
    shades = np.round((found.matrix[np.ix_(cell, cell)] - lowest) / (1 - lowest) * 255).clip(0, 255)
    picture = Image.fromarray(shades.astype(np.uint8), "L")
    picture.putpalette([value for colour in Viridis256 for value in ImageColor.getrgb(colour)])
    return data_uri(picture, "PNG", optimize=True)


def _class_names(features: FeatureFile) -> list[str]:
    """Return the names of the columns of /logits, numbered if they are not known."""
    names = features.file["classes"].asstr()[:].tolist() if "classes" in features.file else []
    columns = features.file["logits"].shape[-1]
    return names if len(names) == columns else [f"class {k}" for k in range(columns)]


def _curves(features: FeatureFile, video: VideoFeatures) -> list[Curve]:
    """Return the curves of the classes with the highest mean probability."""
    logits = average_crops(features, np.asarray(video.logits)).astype(np.float64)
    if not np.isfinite(logits).all():
        raise UsageError(f"{features.file.filename}: /logits has NaN or infinite values; vswin check says more")
    odds = np.exp(logits - logits.max(1, keepdims=True))
    shares = odds / odds.sum(1, keepdims=True)
    begin, end = _ends(video)
    middles = video.times[:].mean(1)
    edges = np.concatenate([[begin], (middles[1:] + middles[:-1]) / 2, [end]])
    kept = np.unique(np.linspace(0, len(shares), min(len(shares), STEPS) + 1).astype(int))
    drawn = np.add.reduceat(shares, kept[:-1]) / np.diff(kept)[:, None]
    across = ((edges[kept] - begin) / (end - begin or 1) * 1000).round(1)
    names, curves = _class_names(features), []
    for k in np.argsort(-shares.mean(0), kind="stable")[:TOP_CLASSES]:
        heights = (100 - 100 * drawn[:, k]).round(1)
        path = "M0 100" + "".join(f"V{y:g}H{x:g}" for x, y in zip(across[1:], heights, strict=True)) + "V100Z"
        most = int(shares[:, k].argmax())
        curves.append(Curve(names[k], float(shares[:, k].mean()), float(shares[most, k]), float(middles[most]), path))
    return curves
