"""Decoding only some frames of a video, by its frame table. What comes out of the decoder is compared with the table at
every packet and every frame, and FrameTableWrong is raised where they differ.

    packets of the file      . . . . K p b p b p . . . . . . . K p b p . .      K: an entry
    sent to the decoder              K p   p b p               K p b p
                                     ^ seek                    ^ empty the decoder; seek if it is far
"""

import bisect
import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vswin_extract.decoding.frame_table import NO_DTS, FrameTable, plan_packets
from vswin_extract.decoding.stamps import REORDERED
from vswin_extract.errors import FrameTableWrong
from vswin_extract.video.geometry import Picture

SEEK_FROM = 300
"""Packets from which seeking is used. Fewer are read and dropped, which takes some microseconds each."""
BY_PTS = frozenset(("matroska", "webm"))
"""Formats whose index has the pts of packets. Other formats have the dts."""

Opened = tuple[InputContainer, VideoStream]
ChosenFrame = tuple[int, Callable[[], Picture]]


class PyavFrames:
    """Iterate over it once: the frames that are `needed`, in order, each with its number and its picture.

    `opened`: the file and the stream to decode. `at_end`: packets of it were read. `reopen`: opens both again at their
    beginning. `needed`: by frame. `picture`: makes the picture of a frame. `sent`: by frame, which ones are decoded.
    """

    def __init__(
        self,
        opened: Opened,
        at_end: bool,
        reopen: Callable[[], Opened],
        table: FrameTable,
        needed: NDArray[np.bool_],
        picture: Callable[[VideoFrame], Picture],
        on_progress: Callable[[], None],
    ) -> None:
        self._rows = table.rows
        # of packets and of frames: in a view, reading one number takes a fraction of the time that it takes in an array
        self._stamps, self._sizes = (table.rows[name].copy().data for name in ("pts", "size"))
        self._pts = table.pts.data
        self._coding = table.coding
        self._plan = plan_packets(self._coding, needed)
        self._needed = needed
        self._reopen = reopen
        self._on_progress = on_progress
        self._container, self._video = opened
        self._picture = picture
        self._packets: Iterator[av.Packet[Any]] = iter(()) if at_end else self._container.demux(self._video)
        self._next = 0  # the packet that comes next, as long as none is missing
        self._lost = at_end  # it is not known which packet comes next
        self._seeks = True
        self._begun = 0  # the frame of the entry at which decoding has begun
        self._inside: list[int] = []  # a heap of the frames that the decoder has been sent, and has not given
        self.sent = np.zeros(table.frames, bool)
        self.sent[self._coding.frame[self._plan.send]] = True

    def __iter__(self) -> Iterator[ChosenFrame]:
        try:
            for number in np.flatnonzero(self._plan.send).tolist():
                frame = int(self._coding.frame[number])
                begins = bool(self._plan.begin[number])
                if begins:
                    yield from self._drain()
                    self._begun = frame
                yield from self._decode(self._find(number, begins), frame)
            yield from self._drain()
        except (av.error.FFmpegError, IndexError) as error:
            raise FrameTableWrong(f"it does not decode from a key frame: {error}") from error

    def _decode(self, packet: "av.Packet[Any]", frame: int) -> Iterator[ChosenFrame]:
        if frame >= self._begun:
            heapq.heappush(self._inside, frame)
        for decoded in packet.decode():
            yield from self._take(decoded)

    def _drain(self) -> Iterator[ChosenFrame]:
        """Yield what is left in the decoder, and make it ready for an entry."""
        context = self._video.codec_context
        if self._inside:
            for decoded in context.decode(None):
                yield from self._take(decoded)
        if self._inside:
            raise FrameTableWrong(f"frame {self._inside[0]} does not decode from a key frame")
        context.flush_buffers()

    def _take(self, decoded: Any) -> Iterator[ChosenFrame]:
        """Compare a frame with those that were sent: they come in order, and none is missing."""
        if not isinstance(decoded, VideoFrame):
            return
        if decoded.is_corrupt or not self._inside or decoded.pts != self._pts[self._inside[0]]:
            if 0 <= self._frame_of(decoded.pts) < self._begun:  # it refers to frames before the entry
                return
            raise FrameTableWrong(
                f"the decoder gives a frame with time stamp {decoded.pts}, which is not the next one by its packets"
            )
        number = heapq.heappop(self._inside)
        if self._needed[number]:
            yield number, partial(self._picture, decoded)

    def _frame_of(self, pts: int | None) -> int:
        """Return the number of the frame with this time stamp, or -1."""
        at = -1 if pts is None else bisect.bisect_left(self._pts, pts)
        return at if 0 <= at < len(self._pts) and self._pts[at] == pts else -1

    def _find(self, number: int, begins: bool) -> "av.Packet[Any]":
        """Read up to packet `number`, and return it. Seeking also empties the decoder, so only an entry is sought."""
        if begins and (self._lost or number - self._next > SEEK_FROM):
            if self._seeks and (packet := self._seek(number)) is not None:
                return packet
            if self._lost:
                self._rewind()
        while True:
            packet = self._read()
            if not self._is(packet, self._next):
                raise FrameTableWrong(f"packet {self._next} is not where it was when the packets were counted")
            self._next += 1
            if self._next > number:
                return packet

    def _seek(self, number: int) -> "av.Packet[Any] | None":
        """Return packet `number` by seeking. Return None where that leads to a later one."""
        row, frame = self._rows[number], int(self._coding.frame[number])
        self._lost = True
        by_pts = row["dts"] == NO_DTS or BY_PTS & set(self._container.format.name.split(","))
        try:
            self._container.seek(int(row["pts" if by_pts else "dts"]), stream=self._video)
            self._packets = self._container.demux(self._video)
            while True:  # a reader may give packets without time stamps first
                packet = self._read()
                if self._frame_of(packet.pts) > frame + REORDERED:
                    break
                if self._is(packet, number):
                    self._next, self._lost = number + 1, False
                    return packet
        except (av.error.FFmpegError, IndexError, FrameTableWrong):
            pass  # the index of this file leads nowhere; what is read in sequence is compared again
        self._seeks = False
        return None

    def _rewind(self) -> None:
        self._container, self._video = self._reopen()
        self._packets = self._container.demux(self._video)
        self._next, self._lost = 0, False

    def _read(self) -> "av.Packet[Any]":
        """Return the next packet of the stream. Raises FrameTableWrong at the end of the file."""
        for packet in self._packets:
            self._on_progress()
            if packet.size:
                return packet
        raise FrameTableWrong("the file ends before the last of its packets")

    def _is(self, packet: "av.Packet[Any]", number: int) -> bool:
        return not packet.is_corrupt and packet.pts == self._stamps[number] and packet.size == self._sizes[number]
