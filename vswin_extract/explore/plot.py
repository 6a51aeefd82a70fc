"""A video's self-similarity as a picture."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vswin_extract.errors import UsageError, needs
from vswin_extract.explore.similarity import boundaries, embeddings, novelty, self_similarity
from vswin_extract.files import publish
from vswin_extract.store.features import FeatureFile

SIDE = 7.0
"""Inches of the picture's width."""
LONGEST = 60
"""Characters of an id in the title; of longer ones the end."""


def plot_similarity(features: FeatureFile, video_id: str, output: Path, dpi: int = 150) -> list[float]:
    """Draw the cosines of a video's clips with one another, seconds on both axes, and below it the novelty that segment
    boundaries are peaks of; SIDE inches wide, in the format that the output's name ends in. Returns the boundaries.

    A cell of clip k is drawn from half way to the clip before to half way to the clip after, since clips may overlap.
    Raises UsageError for an unknown video or format, and without matplotlib.
    """
    with needs("matplotlib", "report", "a plot needs matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    kinds = FigureCanvasAgg.get_supported_filetypes()
    kind = output.suffix.lstrip(".").lower()
    if kind not in kinds:
        raise UsageError(f"{output} must end in a format that matplotlib writes: {', '.join(sorted(kinds))}")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"no directory {output.absolute().parent} to write into")
    similarity, edges, starts, values = measure(features, video_id)
    figure = Figure(figsize=(SIDE, SIDE + 0.4), layout="constrained")
    matrix, below = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    off = similarity[~np.eye(len(similarity), dtype=bool)]
    lowest = float(off.min()) if len(off) else 0.0
    drawn = matrix.pcolormesh(edges, edges, similarity, cmap="viridis", vmin=min(lowest, 0.99), vmax=1, rasterized=True)
    matrix.set(aspect="equal", xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]), ylabel="seconds")
    for start in starts:
        matrix.axvline(start, color="crimson", linewidth=1, linestyle="--")
        matrix.axhline(start, color="crimson", linewidth=1, linestyle="--")
        below.axvline(start, color="crimson", linewidth=1, linestyle="--")
    below.plot(edges[1:-1], values[1:], color="black", linewidth=1, marker="." if len(values) < 60 else "")
    below.set(
        xlabel="seconds", ylabel="novelty", ylim=(min(0.0, float(values.min())) - 0.01, max(0.1, 1.1 * values.max()))
    )
    figure.colorbar(drawn, ax=matrix, label="cosine of two clips' embeddings")
    clips, found = len(features[video_id]), len(starts) + 1
    name = "".join(c if c.isprintable() else "?" for c in video_id).replace("$", r"\$")  # which begins a formula
    name = name if len(name) <= LONGEST else f"…{name[-LONGEST:]}"
    counts = f"{clips} clip{'s' * (clips != 1)}, {found} segment{'s' * (found != 1)}"
    figure.suptitle(f"{name}\n{counts}", fontsize=11)
    unfinished = output.with_name(f".{output.stem}.{os.getpid()}.{kind}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of an id, which is boxes then
            figure.savefig(unfinished, dpi=dpi)
        publish(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    return starts


def measure(features: FeatureFile, video_id: str) -> tuple[Any, Any, list[float], Any]:
    """Similarity (n, n), the n + 1 edges of its cells in seconds, where segments begin, and novelty (n,)."""
    embeddings(features)
    if video_id not in features:
        raise UsageError(f"{features.file.filename} has no video {video_id!r}; vswin inspect lists them")
    video = features[video_id]
    similarity = self_similarity(np.asarray(video.embedding))
    times = np.asarray(video.times)
    middles = times.mean(1)
    halves = (middles[1:] + middles[:-1]) / 2
    edges = np.concatenate([[times[0, 0]], halves, [times[-1, 1]]])
    kept = np.linspace(0, len(video), len(similarity) + 1).astype(int)  # as self_similarity averages
    edges = edges[kept]
    return similarity, edges, [float(edges[k]) for k in boundaries(similarity)], novelty(similarity)
