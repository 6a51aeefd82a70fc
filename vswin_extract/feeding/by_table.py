"""Decoding only what clips show: by a table of all frames, which is made of the video's packets."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.bitstreams import UNUSED
from vswin_extract.decoding.decoders import Decoder, Stream
from vswin_extract.decoding.frame_table import FrameTable, load_table
from vswin_extract.errors import FrameTableWrong
from vswin_extract.feeding.frame_memory import GrantedSlots
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.positions import Positions
from vswin_extract.feeding.sender import Send, open_sender
from vswin_extract.video.rows import ClipRow, Position, make_row

log = logging.getLogger(__name__)  # the parent logs what this process prints

FAR = 10.0
"""Seconds before a segment from which reading the packets before it pays."""
APART = 2.0
"""Seconds between frames that clips show, or between clips, from which there may be key frames in between."""
KEPT = 5_000
"""Packets of a video whose table is kept in a file: reading them again would take longer than reading the file."""
SHORT = 24
"""Frames of a video for which reading its packets does not pay."""


class ClipPlan:
    """The clips of a task, all of whose positions are known: `frames`, the source frame that each position shows, and
    `begins`, the second at which it begins; both with the end of the segment behind the last position.

    `clips`: their numbers. `complete`: a pass from the beginning would end before the end of the segment, since it
    knows that a clip is complete by the position behind it.
    """

    def __init__(self, task: Task, frames: NDArray[np.int64], begins: NDArray[np.float64]) -> None:
        self._sampling = sampling = task.sampling
        self._frames, self._begins = frames, begins
        self._seen = len(frames) - 1
        self._first, self._last = task.clip_range
        count = sampling.count(self._seen)
        self.complete = self._last is not None and sampling.start(self._last - 1) + sampling.span < self._seen
        self.clips = range(min(self._first, count), count if self._last is None else min(self._last, count))

    def rows(self) -> Iterator[ClipRow]:
        for clip in self.clips:
            yield make_row(self._sampling.clip(clip, self._seen), self._at)

    def needed(self, count: int) -> NDArray[np.bool_]:
        """Return which of the `count` frames of the video its clips show; the last one of the segment if there is no
        clip, because the size of the video is known by a frame."""
        needed = np.zeros(count, bool)
        for row in self.rows():
            needed[list(row.shown)] = True
        if not self.clips:
            needed[self._frames[-2]] = True
        return needed

    def own(self) -> slice:
        """Return the frames from the first clip up to the clip behind the last, or the end of the segment."""
        begin = self._start(self._first) if self._first else int(self._frames[0])
        end = self._start(self._last) if self.complete and self._last is not None else int(self._frames[-1])
        return slice(begin, end)

    def _start(self, clip: int) -> int:
        return int(self._frames[min(max(0, self._sampling.start(clip)), self._seen)])

    def _at(self, position: int) -> Position:
        return Position(int(self._frames[position]), float(self._begins[position]))


def send_by_table(decoder: Decoder, task: Task, send: Send, granted: GrantedSlots) -> VideoEnd | None:
    """Decode what the clips of a task show, and send all but its end. Return None, and send nothing, where that does
    not pay, or the packets of the video do not prove its frames. Raises FrameTableWrong where they told of other frames
    than are decoded, or one process shall read the whole video."""
    table = find_table(decoder, task)
    if table is None or table.doubt:
        if table is not None and task.divided and task.clip_range[0] > 0:
            raise FrameTableWrong(table.doubt)
        return None
    positions = Positions(decoder, task)
    known = positions.take_table(table)
    if known is None:
        return None
    plan = ClipPlan(task, *known)
    chosen = decoder.choose(table, plan.needed(table.frames))
    rows = plan.rows()
    row = next(rows, None)
    with open_sender(task, send, granted) as sender:
        for number, picture in chosen:
            sender.convert(number, picture)
            while row is not None and row.shown[-1] <= number:
                complete, row = row, next(rows, None)
                sender.send_row(complete, table.frames if row is None else row.shown[0])
            sender.send_frames(0 if row is None else row.shown[0])
        end = positions.video_end(len(plan.clips), sender.size, plan.complete)
    return replace(end, skipped=int((~chosen.sent[plan.own()]).sum()))


def find_table(decoder: Decoder, task: Task) -> FrameTable | None:
    """Read the task's table, or make it of the packets of the video. Return None where that does not pay."""
    if task.sequential:
        return None
    path = None if task.table is None else Path(task.table)
    if path is not None and (table := load_table(path)) is not None:
        return table
    if task.clip_range[0] > 0 or (task.start or 0.0) > FAR or are_apart(task, decoder.stream):
        table = decoder.read_table()
    elif skips_frames(task, decoder.stream):
        table = decoder.read_table(only_if=UNUSED)
    else:
        return None
    if table is not None:
        if table.doubt:
            log.warning("%s is read in sequence: %s", task.path, table.doubt)
        if path is not None and decoder.packets >= KEPT:
            try:
                table.save(path)
            except OSError as error:  # it is made again for the next piece
                log.warning("%s cannot be written: %s", path, error.strerror)
    return table


def are_apart(task: Task, stream: Stream) -> bool:
    """True if there are long gaps between the frames of clips, or between clips."""
    sampling = task.sampling
    rate = float(sampling.fps or stream.fps or 25)
    return max(sampling.step - sampling.span, sampling.frame_interval) / rate >= APART


def skips_frames(task: Task, stream: Stream) -> bool:
    """True if clips do not show all frames of a video that is not short."""
    sampling = task.sampling
    skips = sampling.frame_interval > 1 or sampling.step > sampling.span or 0 < float(sampling.fps or 0) < stream.fps
    return skips and stream.header_seconds * stream.fps >= SHORT
