"""Checking that times of rows follow a formula of two numbers, as other projects compute them."""

from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.store.features import FeatureFile
from vswin_extract.video.sampling import Sampling

TOLERANCE = 0.001
"""Seconds that a stored time may differ from the formula."""


@dataclass(frozen=True)
class Grid:
    """Row k of a video is at (k * stride + offset) / fps seconds from the beginning of the video, or of its segment.

    That is the centre of the clip's window of `span` frames. If the window reaches beyond an end of the video, the
    edge frames repeat and the stored times end with the video, but the row stays at the centre of the window.
    `fps`: of each video, in the order of the file.
    """

    stride: int
    offset: Fraction
    span: int
    fps: NDArray[np.float64]

    @property
    def rate(self) -> float | None:
        """The frame rate, if all videos have the same one, else None."""
        return float(self.fps[0]) if len(self.fps) and np.ptp(self.fps) <= 1e-9 * self.fps[0] else None


def find_grid(features: FeatureFile) -> Grid:
    """Return the grid of an output. Raises UsageError if the formula gives a wrong time: if a stored time differs from
    it by more than a millisecond."""
    stored = features.info.get("sampling", {})
    known = {field.name: stored[field.name] for field in fields(Sampling) if field.name in stored}
    if lacking := {"clip_len", "frame_interval"} - known.keys():
        raise UsageError(f"{features.file.filename} does not say its {min(lacking)}, which times are computed from")
    sampling = Sampling(**{**known, "fps": Fraction(known["fps"]) if known.get("fps") else None})
    if sampling.tail == "shift":
        raise UsageError(
            "tail shift moves the last clip of a video to a time that this format cannot compute; extract with --tail "
            "pad or drop, or give --resize-length"
        )
    table = features.file["videos_table"]
    count, duration, begin = table["clips"][:], table["duration"][:], table["start"][:]
    fps = np.full(len(count), float(sampling.fps)) if sampling.fps else table["fps"][:]
    grid = Grid(sampling.step, sampling.start(0) + Fraction(sampling.span, 2), sampling.span, fps)
    times = features.times
    if not len(times):
        return grid
    first = np.cumsum(count) - count
    end = np.where(begin > 0, times[first + count - 1, 1], duration)
    video = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(times)) - first[video]
    with np.errstate(divide="ignore", invalid="ignore"):  # a video may have no rate
        window = (sampling.start(0) + row[:, None] * sampling.step + [0, sampling.span]) / fps[video, None]
    expected = np.clip(begin[video, None] + window, begin[video, None], end[video, None])
    if len(off := np.flatnonzero(~(np.abs(expected - times) <= TOLERANCE).all(1))):
        k, where = row[off[0]], video[off[0]]
        raise UsageError(
            f"row {k} of {table['id'].asstr()[where]!r} covers {_seconds(times[off[0]])} s, but at a constant "
            f"{fps[where]:.6g} frames a second it is {_seconds(expected[off[0]])} s ({len(np.unique(video[off]))} of "
            f"{len(count)} videos are off); extract with --fps, or give --resize-length"
        )
    return grid


def _seconds(times: NDArray[np.float64]) -> str:
    return f"{times[0]:.3f} to {times[1]:.3f}"
