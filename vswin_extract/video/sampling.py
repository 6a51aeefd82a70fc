"""Which frames make which clip: arithmetic on whole numbers, apart from any decoding.

Positions count the frames of a video, or of the video resampled to `fps`. A clip of `clip_len` frames,
`frame_interval` apart, spans L = clip_len * frame_interval positions:

    position   0 1 2 3 4 5 6 7 8 9 10 11      clip_len 3, frame_interval 2 -> L = 6; stride 4; 12 frames
    clip 0     x . x . x .                    frames 0 2 4, covers [0, 6)
    clip 1             x . x . x  .           frames 4 6 8, covers [4, 10)
    clip 2                     x  .  x  . (x) frames 8 10 and 11 again, covers [8, 12), valid 2    (tail "pad")
    clip 2                 x . x  .  x  .     frames 6 8 10, covers [6, 12)                        (tail "shift")
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError

Align = Literal["start", "center"]
Tail = Literal["pad", "drop", "shift"]


@dataclass(frozen=True)
class Sampling:
    """The rule by which a video becomes clips.

    A clip has `clip_len` frames, `frame_interval` apart; clip k+1 starts `stride` after clip k (default: the clip's
    span, so that clips neither overlap nor leave gaps). `fps`: resample to this rate first; interval and stride then
    count resampled frames. Raises UsageError.
    """

    clip_len: int
    frame_interval: int
    stride: int | None = None
    fps: Fraction | None = None
    align: Align = "start"
    tail: Tail = "pad"

    def __post_init__(self) -> None:
        for name, most in (("clip_len", 10_000), ("frame_interval", 1_000_000), ("stride", 1_000_000_000)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 1 <= value <= most):
                raise UsageError(f"{name.replace('_', '-')} must be a whole number from 1 to {most}, not {value}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UsageError(f"fps must lie between 0 and 1000, not {float(self.fps):g}")
        if self.align not in get_args(Align):
            raise UsageError(f"align must be start or center, not {self.align!r}")
        if self.tail not in get_args(Tail):
            raise UsageError(f"tail must be pad, drop or shift, not {self.tail!r}")
        if self.align == "center" and self.tail != "pad":
            raise UsageError(f"tail {self.tail} goes with align start only: centred clips always repeat the edges")

    @property
    def span(self) -> int:
        """L: how many positions a clip covers, including those between its frames."""
        return self.clip_len * self.frame_interval

    @property
    def step(self) -> int:
        """The stride, by default the span."""
        return self.span if self.stride is None else self.stride

    @property
    def _half(self) -> int:
        """Positions from the start of a clip to its centre."""
        return self.clip_len // 2 * self.frame_interval

    def start(self, k: int) -> int:
        """Return the position at which clip k starts by the stride alone. It is negative where a centred clip reaches
        over the beginning."""
        if self.align == "center":  # as mmaction2's UntrimmedSampleFrames
            return self.step // 2 + k * self.step - self._half
        return k * self.step

    def count(self, n: int) -> int:
        """Return how many clips a video of `n` positions has: at least one if n > 0."""
        if n <= 0:
            return 0
        if self.align == "center":
            return max(1, -(-(n - self.step // 2) // self.step))
        if self.tail == "drop":
            return max(0, n - self.span) // self.step + 1
        count = max(0, -(-(n - self.span) // self.step)) + 1
        # with gaps between clips the last one could start behind the end: a padded clip starts inside the video
        return count if self.tail == "shift" else min(count, -(-n // self.step))

    def clip(self, k: int, n: int) -> "Clip":
        """Return clip `k` of a video of `n` positions."""
        start = self.start(k)
        if self.align == "center":
            start = min(start, n - 1 - self._half)  # in a video that ends before the first centre
        elif self.tail == "shift" and k > 0:
            start = min(start, n - self.span)
        picked = range(start, start + self.span, self.frame_interval)
        return Clip(
            index=k,
            positions=tuple(min(max(p, 0), n - 1) for p in picked),
            first=max(start, 0),
            end=min(start + self.span, n),
            valid=sum(0 <= p < n for p in picked),
        )


@dataclass(frozen=True)
class Clip:
    """One clip of a video, in positions.

    `positions`: the clip_len positions that it shows. It covers [`first`, `end`). `valid`: how many of its frames are
    real, not repeated.
    """

    index: int
    positions: tuple[int, ...]
    first: int
    end: int
    valid: int


def rounding(tick: float) -> float:
    """Return by how many seconds a time stamp may be off, because its container rounds it to `tick` seconds: half a
    tick, but at most half a millisecond."""
    return min(tick / 2, 0.0005)


class Resampler:
    """Brings frames with time stamps to a constant rate: position k shows the frame that is shown at second k/fps.

    A frame counts as shown earlier by the `rounding` of its time stamp.
    """

    def __init__(self, fps: Fraction, tick: float) -> None:
        self.fps = fps
        self.tolerance = rounding(tick)
        self._positions = 0

    def repeats(self, end: float) -> int:
        """Return how many positions show the next frame, which is shown until second `end`. It may be none."""
        # positions k with k / fps < end - tolerance, without those of the frames before
        last = -(-Fraction(end - self.tolerance) * self.fps // 1)
        count = max(0, int(last) - self._positions)
        self._positions += count
        return count

    def all_repeats(self, ends: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the same for the next frames, all at once."""
        shown = (ends - self.tolerance) * float(self.fps)
        last = np.ceil(shown)
        for at in np.flatnonzero(
            np.abs(shown - np.rint(shown)) <= 1e-6 + 1e-12 * np.abs(shown)
        ):  # where rounding matters
            last[at] = -(-Fraction(float(ends[at]) - self.tolerance) * self.fps // 1)
        reached = np.maximum.accumulate(np.append(self._positions, last)).astype(np.int64)
        self._positions = int(reached[-1])
        return np.diff(reached)
