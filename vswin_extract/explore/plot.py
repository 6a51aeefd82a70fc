"""The self-similarity of a video as a picture."""

import io
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vswin_extract.errors import UsageError, needs
from vswin_extract.explore.similarity import SelfSimilarity, compare_with_itself
from vswin_extract.files import FileKind, Target
from vswin_extract.formatting import plural
from vswin_extract.store.features import FeatureFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 7.0
"""Width of the picture in inches."""
PICTURE = FileKind(
    "a picture of vswin plot",
    (
        b"Software\0vswin-extract",  # PNG
        b"<dc:title>vswin-extract</dc:title>",  # SVG
        b"/Creator (vswin-extract)",  # PDF
        b"%%Creator: vswin-extract",  # PS, EPS
    ),
)
WRITER = {"png": "Software", "svg": "Creator", "pdf": "Creator", "ps": "Creator", "eps": "Creator"}
"""The fields that say which program wrote a picture, by format. Other formats have none."""
LONGEST = 60
"""Characters of an id in the title; only the end of a longer id is shown."""


def plot_similarity(
    features: FeatureFile, video_id: str, output: Path, dpi: int = 150, overwrite: bool = False
) -> list[float]:
    """Draw the cosines of a video's clips with each other, with seconds on both axes, and below it the novelty, whose
    peaks are where segments begin. The picture is SIDE inches wide, in the format of the output's suffix. `overwrite`:
    replace `output` even if it is no picture of ours.

    Returns the seconds at which segments begin, without the first. Raises UsageError if the video or the format is
    unknown, and without matplotlib.
    """
    with needs("matplotlib", "report", "a plot needs matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    kinds = FigureCanvasAgg.get_supported_filetypes()
    kind = output.suffix.lstrip(".").lower()
    if kind not in kinds:
        raise UsageError(f"{output} must end in a format that matplotlib writes: {', '.join(sorted(kinds))}")
    from vswin_extract.explore.page import files_read  # loads PyAV, which a plot needs for nothing else

    target = Target(output, PICTURE, partial(files_read, features), overwrite)
    target.check()
    found = compare_with_itself(features, video_id)
    figure = _draw(found)
    figure.suptitle(_title(video_id, len(features[video_id]), len(found.starts) + 1), fontsize=11)
    content = io.BytesIO()  # on a full disk, Matplotlib's writers fail in ways of their own
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # characters of an id, drawn as boxes
        written_by = {WRITER[kind]: "vswin-extract"} if kind in WRITER else None
        figure.savefig(content, dpi=dpi, format=kind, metadata=written_by)
    with target.write() as unfinished:
        unfinished.write_bytes(content.getbuffer())
    return found.starts


def _draw(found: SelfSimilarity) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE, SIDE + 0.4), layout="constrained")
    matrix, below = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    edges, values = found.edges, found.novelty
    off_diagonal = found.matrix[~np.eye(len(found.matrix), dtype=bool)]
    lowest = float(off_diagonal.min()) if len(off_diagonal) else 0.0
    colours = {"cmap": "viridis", "vmin": min(lowest, 0.99), "vmax": 1}
    drawn = matrix.pcolormesh(edges, edges, found.matrix, rasterized=True, **colours)
    matrix.set(aspect="equal", xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]), ylabel="seconds")
    for start in found.starts:
        for line in (matrix.axvline, matrix.axhline, below.axvline):
            line(start, color="crimson", linewidth=1, linestyle="--")
    below.plot(edges[1:-1], values[1:], color="black", linewidth=1, marker="." if len(values) < 60 else "")
    limits = (min(0.0, float(values.min())) - 0.01, max(0.1, 1.1 * values.max()))
    below.set(xlabel="seconds", ylabel="novelty", ylim=limits)
    figure.colorbar(drawn, ax=matrix, label="cosine of two clips' embeddings")
    return figure


def _title(video_id: str, clips: int, segments: int) -> str:
    name = "".join(c if c.isprintable() else "?" for c in video_id).replace("$", r"\$")  # $ begins a formula
    name = name if len(name) <= LONGEST else f"…{name[-LONGEST:]}"
    return f"{name}\n{plural(clips, 'clip')}, {plural(segments, 'segment')}"
