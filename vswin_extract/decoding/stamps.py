"""When a decoded frame is shown: by its pts, or where those are in coding order, by its dts.

A file may give each packet two time stamps: pts, when its frame is shown, and dts, when it is decoded. B-frames are
decoded after a frame that is shown later, so the two differ. Some files have no pts (AVI), or give the packets' dts as
their pts (an AVI copied into MP4). Then the pts of frames, which a decoder gives in the order in which they are shown,
go back and forth, while their dts rise. An example of three frames in the order in which they are shown:

    coded as       I0 P2 B1
    right          pts 0 1 2    dts 1 2 -    a frame has the dts of the packet after which it came out of the decoder
    coding order   pts 0 2 1    dts 1 2 -

This is the rule of libavcodec (`best_effort_timestamp`), except that it looks ahead, so that the first frames are
right, too.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # frame tables use this module, and may be imported without PyAV
    from av.video.frame import VideoFrame

REORDERED = 16
"""Most frames by which a codec moves a frame. So many frames after a wrong pts, one that goes back has come."""


class PacketStamps:
    """What the time stamps of packets tell, which come in coding order.

    `reordered`: True once a pts goes back while the dts rises, in a file that gives every packet a pts. Then the file
    knows when frames are shown. `rising`: True as long as all pts rise. Then they are as good as dts, which FFmpeg
    guesses in some formats. `first`: the pts and the dts of the first packet. `damaged`: a packet did not decode.
    """

    def __init__(self) -> None:
        self.reordered = False
        self.rising = True
        self.first: tuple[int | None, int | None] | None = None
        self.damaged = False
        self._complete = True
        self._latest: int | None = None  # the largest pts so far
        self._dts: int | None = None

    def add(self, pts: int | None, dts: int | None) -> None:
        self.first = self.first or (pts, dts)
        if pts is None:
            self._complete = self.reordered = self.rising = False
        elif self._complete:
            self.rising &= self._latest is None or pts > self._latest
            rises = dts is not None and self._dts is not None and dts > self._dts
            self.reordered |= rises and self._latest is not None and pts < self._latest
            self._latest = pts if self._latest is None else max(pts, self._latest)
        self._dts = dts


@dataclass(frozen=True)
class StampedFrame:
    """A frame with its two time stamps, in ticks; None where the file does not say. Its dts is that of the packet after
    which it came out of the decoder."""

    frame: "VideoFrame"
    pts: int | None
    dts: int | None


class DisplayTimes:
    """Iterate over it once: frames, each with the tick at which it is shown, None where that is not known.

    `frames`: in the order in which they are shown. `packets`: what the packets that were decoded so far tell.
    `tolerance`: ticks by which rounding may move a time stamp.
    """

    def __init__(self, frames: Iterator[StampedFrame], packets: PacketStamps, tolerance: int) -> None:
        self._frames = frames
        self._packets = packets
        self._tolerance = tolerance
        self._ahead: deque[StampedFrame] = deque()
        self._first = True
        self._by_dts = False
        self._lag: int | None = None  # dts - pts, of the last frame whose pts were believed
        self._pts: int | None = None  # of the frame before
        self._step = 0  # from the pts before that to it
        self._dts: int | None = None

    def __iter__(self) -> "Iterator[tuple[VideoFrame, int | None]]":
        while self._look_ahead(1):
            frame = self._ahead.popleft()
            yield frame.frame, self._tick(frame)
            self._first = False
            self._step = frame.pts - self._pts if frame.pts is not None and self._pts is not None else 0
            self._pts = frame.pts if frame.pts is not None else self._pts
            self._dts = frame.dts if frame.dts is not None else self._dts

    def _tick(self, frame: StampedFrame) -> int | None:
        if frame.pts == self._pts and frame.dts == self._dts:  # nothing rises: the stamps are of an earlier frame
            return None
        if not self._by_dts and frame.pts is not None:
            if not self._doubtful(frame) or not self._in_coding_order(frame):
                self._lag = self._lag if frame.dts is None else frame.dts - frame.pts
                return frame.pts
            self._by_dts = True
            if (
                frame.dts is not None
                and self._pts is not None
                and abs(frame.pts - self._pts - self._step) <= self._tolerance
            ):
                self._lag = frame.dts - frame.pts  # this pts is still right, and the decoder waits for more frames now
        if frame.dts is None or (self._dts is not None and frame.dts <= self._dts and not self._by_dts):
            return None
        if self._lag is None:
            self._lag = self._delay(frame.dts) if self._first else 0
        return frame.dts - self._lag

    def _doubtful(self, frame: StampedFrame) -> bool:
        """Return True if the pts of a frame goes back, or moves differently from its dts, in a file whose pts are not
        known to be right."""
        if self._pts is not None and frame.pts is not None and frame.pts <= self._pts:
            return True
        if self._packets.reordered:
            return False
        if frame.pts is None or frame.dts is None:
            return True
        return self._lag is not None and abs(frame.dts - frame.pts - self._lag) > self._tolerance

    def _delay(self, dts: int) -> int:
        """Return by how much the first frame, which has this dts and no pts, came later than its own packet."""
        if self._packets.first is None or self._packets.first[1] is None or self._packets.damaged:
            return 0  # after damage it may be any packet's frame
        return dts - self._packets.first[1]

    def _in_coding_order(self, frame: StampedFrame) -> bool:
        """Return True if the pts of the next frames go back, or are missing, more often than their dts."""
        more = self._look_ahead(REORDERED)
        near = [frame, *self._ahead]
        pts = [self._pts, *(other.pts for other in near)]
        dts = [self._dts, *(other.dts for other in near)]
        # the last frames come without a packet, and so without dts
        while not more and len(dts) > 2 and dts[-1] is None:
            dts.pop()
        return _faults(pts) > _faults(dts)

    def _look_ahead(self, count: int) -> bool:
        """Read until so many frames wait. Return False if there are fewer."""
        while len(self._ahead) < count:
            if (frame := next(self._frames, None)) is None:
                return False
            self._ahead.append(frame)
        return True


def _faults(stamps: list[int | None]) -> int:
    known = [stamp for stamp in stamps if stamp is not None]
    return len(stamps) - len(known) + sum(two <= one for one, two in pairwise(known))
