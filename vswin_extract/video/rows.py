"""From positions that arrive one after another to finished clip rows, without knowing where the video ends.

A position is a frame of the video or, with fps, of the resampled video. It is a source frame number and the second at
which it begins. An example with clip_len 2, frame_interval 2 and stride 3, so that a clip spans L = 4 positions:

    position      0    1    2    3    4    5    6    end
    source frame  0    2    2    3    7    8    9    10     frame 2 fills two positions; 1, 4, 5 and 6 fill none
    begins at     0.0  0.1  0.2  0.3  0.4  0.5  0.6  0.7 s
    clip 0        x    .    x    .                          shows frames 0 2, frames [0, 7), times [0.0, 0.4)
    clip 1                       x    .    x    .           shows frames 3 8, frames [3, 10), times [0.3, 0.7)

A clip that covers the positions [first, end) begins with position `first` and ends where position `end` begins, both in
source frames and in seconds. So frames that are on screen between two positions, as 4, 5 and 6, belong to it too. It is
finished once position `end` has arrived. Clips that reach the end of the video are finished by that end.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.sampling import Clip, Sampling


@dataclass(frozen=True)
class ClipRow:
    """What is known of a clip besides its pixels.

    `shown`: the source frame numbers of its clip_len frames. `frames`: [first, end) in source frames. `times`: [start,
    end) in seconds. `valid`: how many of its frames are real, not repeated.
    """

    index: int
    shown: tuple[int, ...]
    frames: tuple[int, int]
    times: tuple[float, float]
    valid: int


@dataclass(frozen=True)
class Position:
    """Where a position is: the source frame that it shows, and the second at which it begins."""

    frame: int
    begin: float


def make_row(clip: Clip, at: Callable[[int], Position]) -> ClipRow:
    """Return the row of a clip. `at` returns its positions, and the one behind the last, which may be the end."""
    first, last, behind = (at(position) for position in (clip.first, clip.end - 1, clip.end))
    return ClipRow(
        index=clip.index,
        shown=tuple(at(position).frame for position in clip.positions),
        frames=(first.frame, max(last.frame + 1, behind.frame)),  # the position behind may repeat the last frame
        times=(first.begin, behind.begin),
        valid=clip.valid,
    )


def most_kept(sampling: Sampling) -> int:
    """Return how many converted frames of a video, at most, later clips may show at a time."""
    if sampling.tail == "shift" or sampling.align == "center":
        return sampling.span + 2
    overlapping = -(-sampling.span // sampling.step)
    return min(sampling.span, overlapping * sampling.clip_len) + 2


class ClipRows:
    """Makes the rows of the clips of a clip range, while positions arrive by `add` and then the end by `end`.

    `seen`: how many positions have arrived.
    """

    def __init__(self, sampling: Sampling, clip_range: ClipRange = WHOLE) -> None:
        self.sampling = sampling
        self.first, self.last = clip_range
        self.seen = 0
        self._next = self.first
        self._track: deque[Position] = deque()  # positions that later clips may show; at last the end
        self._base = 0  # the number of the first position in the track

    @property
    def clips(self) -> int:
        """How many rows were made so far."""
        return self._next - self.first

    @property
    def complete(self) -> bool:
        """True once the last clip of a range with an end is finished."""
        return self.last is not None and self._next >= self.last

    @property
    def oldest(self) -> int:
        """The first source frame that later clips may show."""
        return self._track[0].frame if self._track else 0

    def add(self, frame: int, begin: float) -> list[ClipRow]:
        """Take the next position: source frame `frame` from second `begin` on. Return the rows that this finishes."""
        self.seen += 1
        self._track.append(Position(frame, begin))
        rows = []
        while not self.complete and self.sampling.start(self._next) + self.sampling.span < self.seen:
            rows.append(self._row())
        self._forget()
        return rows

    def end(self, frames: int, second: float) -> list[ClipRow]:
        """Return the rows of the clips that are left. The video has so many source frames and ends at this second."""
        self._track.append(Position(frames, second))
        rows = []
        while not self.complete and self._next < self.sampling.count(self.seen):
            rows.append(self._row())
        return rows

    def uses(self, position: int) -> bool:
        """Return False where no clip of the range can show this position, except as the last one of the video, which
        clips repeat. Its pixels need not be converted then."""
        sampling = self.sampling
        if sampling.tail == "shift":  # the last clip starts behind the clip before it, and ends on the last position
            return self.first == 0 or position > sampling.start(self.first - 1)
        # centred clips that begin before the video repeat position 0; clip 0 moves if the video ends before its centre
        if sampling.align == "center" and (position == 0 or (self.first == 0 and position <= sampling.step // 2)):
            return True
        clip = (position - sampling.start(0)) // sampling.step  # the last to start at or before it
        if self.last is not None:
            clip = min(clip, self.last - 1)
        while clip >= self.first and (offset := position - sampling.start(clip)) < sampling.span:
            if offset % sampling.frame_interval == 0:
                return True
            clip -= 1
        return False

    def _row(self) -> ClipRow:
        """Return the row of the next clip."""
        clip = self.sampling.clip(self._next, self.seen)
        self._next += 1
        return make_row(clip, self._at)

    def _at(self, position: int) -> Position:
        """Return a position that was kept. Position `seen` is the end of the video."""
        return self._track[position - self._base]

    def _forget(self) -> None:
        """Keep what the next clip, and so every later one, may show, and always the last position."""
        earliest = self.sampling.start(self._next)
        if self.sampling.tail == "shift" and self._next > 0:  # it may be the last clip, see `uses`
            earliest = min(earliest, max(self.seen - self.sampling.span, self.sampling.start(self._next - 1) + 1))
        elif self.sampling.align == "center" and self._next == 0:  # it may lie where the video ends, as now
            earliest = self.sampling.clip(0, self.seen).first
        while self._base < min(earliest, self.seen - 1):
            self._track.popleft()
            self._base += 1
