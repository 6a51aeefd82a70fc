"""Which frames make which clip: sampling arithmetic on whole numbers, apart from any decoding.

Positions count the frames of a video, or of the video resampled to `fps`. A clip of `clip_len` frames,
`frame_interval` apart, spans L = clip_len * frame_interval positions:

    position   0 1 2 3 4 5 6 7 8 9 10 11      clip_len 3, frame_interval 2 -> L = 6; stride 4; 12 frames
    clip 0     x . x . x .                    frames 0 2 4, covers [0, 6)
    clip 1             x . x . x  .           frames 4 6 8, covers [4, 10)
    clip 2                     x  .  x  . (x) frames 8 10 and 11 again, covers [8, 12), valid 2    (tail "pad")
    clip 2                 x . x  .  x  .     frames 6 8 10, covers [6, 12)                        (tail "shift")
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from vswin_extract.errors import UsageError

Align = Literal["start", "center"]
Tail = Literal["pad", "drop", "shift"]


@dataclass(frozen=True)
class Sampling:
    """How a video is cut into clips.

    `clip_len` frames a clip, `frame_interval` apart; clip k+1 starts `stride` after clip k (default: the clip's span,
    so that clips neither overlap nor leave gaps). `fps`: resample to this rate first; interval and stride then count
    resampled frames. Raises UsageError.
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
        """L: the positions that a clip covers, the gaps between its frames included."""
        return self.clip_len * self.frame_interval

    @property
    def step(self) -> int:
        """The stride in force."""
        return self.span if self.stride is None else self.stride

    @property
    def _half(self) -> int:
        """From the start of a clip to its centre."""
        return self.clip_len // 2 * self.frame_interval

    def start(self, k: int) -> int:
        """Where clip k starts on the regular grid; negative where a centred clip reaches over the beginning."""
        if self.align == "center":  # as mmaction2's UntrimmedSampleFrames
            return self.step // 2 + k * self.step - self._half
        return k * self.step

    def count(self, n: int) -> int:
        """Clips of a video of `n` positions: at least one where n > 0."""
        if n <= 0:
            return 0
        if self.align == "center":
            return max(1, -(-(n - self.step // 2) // self.step))
        if self.tail == "drop":
            return max(0, n - self.span) // self.step + 1
        count = max(0, -(-(n - self.span) // self.step)) + 1
        # Where clips have gaps between them the grid may step over the end: a padded clip starts inside the video.
        return count if self.tail == "shift" else min(count, -(-n // self.step))

    def clip(self, k: int, n: int) -> "Clip":
        """Clip `k` of a video of `n` positions."""
        start = self.start(k)
        if self.align == "center":
            start = min(start, n - 1 - self._half)  # a video that ends before the first centre
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

    def uses(self, position: int, first: int = 0, end: int | None = None) -> bool:
        """Whether one of the clips [first, end) may show this position, the last of the video apart. False saves the
        frame's pixels."""
        if self.tail == "shift" or (self.align == "center" and position <= self.step // 2):
            return True  # where such a clip lies is known with the video's end only
        latest = (position - self.start(0)) // self.step
        offset = position - self.start(latest)
        while offset < self.span and latest >= first:
            if offset % self.frame_interval == 0 and (end is None or latest < end):
                return True
            latest, offset = latest - 1, offset + self.step
        return False


@dataclass(frozen=True)
class Clip:
    """One clip in positions: those it shows (clip_len of them), what it covers, and how many are not repeats."""

    index: int
    positions: tuple[int, ...]
    first: int
    end: int
    valid: int


class ClipCutter:
    """Cuts clips while positions arrive, without knowing the end: the same clips as `Sampling.clip` with it.

    A clip comes out once the position behind its last has arrived, since then its end is known whatever follows.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.seen = 0
        self.next = 0

    @property
    def oldest(self) -> int:
        """The oldest position that a later clip may still show."""
        upcoming = self.sampling.clip(self.next, self.seen).first if self.seen else 0
        if self.sampling.tail == "shift":  # the last clip steps back to end on the last frame
            upcoming = min(upcoming, self.seen - self.sampling.span)
        return max(0, min(upcoming, self.seen - 1))

    def arrived(self) -> Iterator[Clip]:
        """Count one more position; yield the clips that it completes."""
        self.seen += 1
        while self.sampling.start(self.next) + self.sampling.span < self.seen:
            clip = self.sampling.clip(self.next, self.seen)
            self.next += 1
            yield clip

    def ended(self) -> Iterator[Clip]:
        """The video is over: yield the clips that are left."""
        while self.next < self.sampling.count(self.seen):
            clip = self.sampling.clip(self.next, self.seen)
            self.next += 1
            yield clip


class Resampler:
    """Brings frames with time stamps to a constant rate: position k shows the frame shown at second k/fps.

    Containers round time stamps to their clock, so a frame counts as shown half a tick early, half a millisecond at
    the most.
    """

    def __init__(self, fps: Fraction, tick: float) -> None:
        self.fps = fps
        self.tolerance = min(tick / 2, 0.0005)
        self.emitted = 0

    def repeats(self, end: float) -> int:
        """How many positions the frame that is shown until second `end` fills (it may be none)."""
        # positions k with k / fps < end - tolerance, less those that came before
        last = -(-Fraction(end - self.tolerance) * self.fps // 1)
        count = max(0, int(last) - self.emitted)
        self.emitted += count
        return count
