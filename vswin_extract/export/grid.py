"""Checking that times of rows follow a formula of two numbers, as other projects compute them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.formatting import plural
from vswin_extract.store.features import FeatureFile

TOLERANCE = 0.001
"""Seconds that a stored time may differ from the formula."""


class TimeBase(NamedTuple):
    """What the rows of a video are counted from: frames per second, and the second of the file at which they begin. It
    is 0, or that of the first frame of a segment."""

    fps: float
    start: float


@dataclass(frozen=True)
class Grid:
    """Row k of a video is at (k * stride + offset) / fps seconds from the beginning of the video, or of its segment.

    That is the centre of the clip's window of `span` frames. If the window reaches beyond an end of the video, the
    edge frames repeat and the stored times end with the video, but the row stays at the centre of the window.
    `videos`: by id, those that follow the formula.
    """

    stride: int
    offset: Fraction
    span: int
    videos: Mapping[str, TimeBase]

    @property
    def rate(self) -> float | None:
        """The frame rate, if all videos have the same one, else None."""
        rates = np.array([fps for fps, _ in self.videos.values()])
        return float(rates[0]) if len(rates) and np.ptp(rates) <= 1e-9 * rates[0] else None

    def centres(self, rows: int, fps: float) -> NDArray[np.float64]:
        """Return the seconds of a video's rows (rows,), from its beginning or that of its segment."""
        return np.asarray((np.arange(rows) * self.stride + float(self.offset)) / fps)

    def without(self, ids: Collection[str]) -> "Grid":
        """Return the grid of the other videos."""
        return replace(self, videos={name: base for name, base in self.videos.items() if name not in ids})


def find_grid(features: FeatureFile) -> Grid:
    """Return the grid of an output. A video of one clip that does not follow the formula is left out of it: it may end
    before the first centre. Raises UsageError if another video does not: if a stored time differs from the formula by
    more than a millisecond, or if all videos are left out."""
    sampling = features.sampling
    if sampling.tail == "shift":
        raise UsageError(
            "tail shift moves the last clip of a video to a time that this format cannot compute; extract with --tail "
            "pad or drop, or give --resize-length"
        )
    table = features.file["videos_table"]
    count, duration, begin = table["clips"][:], table["duration"][:], table["start"][:]
    fps = np.full(len(count), float(sampling.fps)) if sampling.fps else table["fps"][:]
    times = features.times
    first = np.cumsum(count) - count
    with np.errstate(divide="ignore", invalid="ignore"):  # a video may have no rate
        if len(times):
            segment, ends = begin > 0, times[np.maximum(first + count - 1, 0), 1]
            # a segment may be asked for between two frames, and begins with the next one
            begin = np.where(segment, times[first, 0] - max(0, sampling.start(0)) / fps, 0.0)
            duration = np.where(segment, ends, duration)
        video = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(times)) - first[video]
        window = (sampling.start(0) + row[:, None] * sampling.step + [0, sampling.span]) / fps[video, None]
    expected = np.clip(begin[video, None] + window, begin[video, None], duration[video, None])
    off = np.flatnonzero(~(np.abs(expected - times) <= TOLERANCE).all(1))
    alone = off[count[video[off]] == 1]
    if len(rest := off[count[video[off]] > 1]) or (len(alone) and len(alone) == len(count)):
        k, where = row[(rest if len(rest) else alone)[0]], video[(rest if len(rest) else alone)[0]]
        at = first[where] + k
        raise UsageError(
            f"row {k} of {table['id'].asstr()[where]!r} covers {_seconds(times[at])} s, but at a constant "
            f"{fps[where]:.6g} frames a second it is {_seconds(expected[at])} s (wrong in "
            f"{len(np.unique(video[off]))} of {plural(len(count), 'video')}); "
            f"{'' if sampling.fps else 'extract with --fps, or '}give --resize-length"
        )
    bases = zip(features, fps.tolist(), begin.tolist(), strict=True)
    left_out = set(video[alone].tolist())
    videos = {name: TimeBase(rate, start) for k, (name, rate, start) in enumerate(bases) if k not in left_out}
    return Grid(sampling.step, sampling.start(0) + Fraction(sampling.span, 2), sampling.span, videos)


def _seconds(times: NDArray[np.float64]) -> str:
    return f"{times[0]:.3f} to {times[1]:.3f}"
