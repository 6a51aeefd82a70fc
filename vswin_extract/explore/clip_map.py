"""The map of an output's clips: the two principal components of their embeddings, drawn by Bokeh."""

from collections.abc import Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.explore.page import Links, breakable
from vswin_extract.explore.similarity import BLOCK, unit_blocks, unit_rows
from vswin_extract.explore.thumbnails import Pictures
from vswin_extract.formatting import clock
from vswin_extract.store.features import FeatureFile

COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948",
           "#b07aa1", "#ff9da7", "#9c755f", "#8a8f98", "#2fa4c7", "#a3c14a")  # fmt: skip
"""Colours of groups."""
GREY = "#8a8f98"
TOOLTIP = (
    '<div style="margin:-5px;padding:8px;max-width:176px;background:var(--card);color:var(--ink)">@tip{safe}</div>'
)
"""The page's own colours, which are light or dark."""


def moments_of(features: FeatureFile, rows: Sequence[int]) -> tuple[list[str], list[float]]:
    """Return the videos of these clips, and the seconds of their middles. Rows are in ascending order."""
    ids = list(features)
    numbers = features.video_of_clips[rows].tolist() if len(rows) else []
    middles = features.times[rows].mean(1).tolist() if len(rows) else []
    return [ids[number] for number in numbers], middles


def principal(
    features: FeatureFile, block: int = BLOCK
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Return the mean (C,) of all embeddings divided by their lengths, the two directions (C, 2) in which they vary
    most, and the shares of the variance that these have. The covariance is added up a block at a time."""
    channels = features.file["embedding"].shape[-1]
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), features.clips
    for _, rows in unit_blocks(features, block=block):
        exact = rows.astype(np.float64)
        total += exact.sum(0)
        products += exact.T @ exact
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    axes = directions[:, :-3:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])  # eigh may return either sign
    whole = float(variances.clip(0).sum()) or 1.0
    return mean, axes, (float(variances[-1]) / whole, float(variances[-2]) / whole)


def make_map(features: FeatureFile, rows: Sequence[int], pictures: Pictures, links: Links) -> dict[str, Any]:
    """Return the map of these clips: `item`, the JSON that Bokeh draws, whose column `link` has the links that play
    them; `groups`, their colours. Groups are the videos, or their folders, if there are few enough of them."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource

    mean, axes, shares = principal(features)
    points = (unit_rows(features, features.file["embedding"][rows]) - mean) @ axes
    names, seconds = moments_of(features, rows)
    times = features.times[rows].tolist()
    folders = [str(PurePosixPath(name).parent) for name in names]
    groups = next((each for each in (names, folders) if len(set(each)) <= len(COLOURS)), ["all videos"] * len(names))
    colours = dict(zip(dict.fromkeys(groups), COLOURS, strict=False))
    source = ColumnDataSource(
        {
            "x": points[:, 0],
            "y": points[:, 1],
            "video": names,
            "row": features.video_of_clips[rows],
            "link": [
                links.find(pictures.files.get(name), *span) or "" for name, span in zip(names, times, strict=True)
            ],
            "colour": [colours[group] for group in groups],
            "tip": [_tip(pictures, name, second) for name, second in zip(names, seconds, strict=True)],
        },
        name="clips",
    )
    return {"item": json_item(_scatter(source, shares), ID("map")), "groups": colours}


def _tip(pictures: Pictures, name: str, second: float) -> str:
    """Return the HTML of a clip's picture, or the reason why there is none, with its video and second."""
    picture = escape(pictures.missing.get(name, ""))
    if (name, second) in pictures.made:
        picture = f'<img src="{pictures.made[name, second]}" alt="">'
    return f'{picture}<div style="overflow-wrap:break-word">{breakable(name)}</div><div>{clock(second)}</div>'


def _scatter(source: Any, shares: tuple[float, float]) -> Any:
    """Return the figure of Bokeh that shows a source's points, the same unit on both axes, and a clip's picture under
    the pointer. `shares`: of the variance, of both axes."""
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    plot = figure(
        height=460,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset,tap",
        match_aspect=True,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        min_border=8,
    )
    plot.toolbar.logo = None
    plot.xaxis.axis_label, plot.yaxis.axis_label = (
        f"component {number} ({share:.0%} of the variance)" for number, share in enumerate(shares, 1)
    )
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = GREY
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = GREY
    plot.grid.grid_line_color = GREY
    plot.grid.grid_line_alpha = 0.25
    dots = plot.scatter("x", "y", size=9, color="colour", alpha=0.75, line_color=None, source=source)
    dots.nonselection_glyph = dots.selection_glyph = dots.glyph  # a click follows a link, and selects nothing
    dots.hover_glyph = dots.glyph.clone(size=14, line_color=GREY, fill_alpha=1)
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP, limit=1, show_arrow=False))
    return plot
