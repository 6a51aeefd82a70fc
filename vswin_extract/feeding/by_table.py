"""Decoding only what clips show: by a table of all frames, which is made of the video's packets."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vswin_extract.decoding.bitstreams import UNUSED
from vswin_extract.decoding.decoders import Decoder, Stream
from vswin_extract.decoding.frame_table import FrameTable, load_table
from vswin_extract.feeding.frame_memory import GrantedSlots
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.positions import Positions
from vswin_extract.feeding.sender import Send, open_sender
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.rows import ClipRow, Position, make_row

FAR = 10.0
"""Seconds before a segment from which reading the packets before it pays."""
APART = 2.0
"""Seconds between frames that clips show, or between clips, from which there may be key frames in between."""
SHORT = 96
"""Frames of a video for which reading its packets does not pay."""


def send_by_table(decoder: Decoder, task: Task, send: Send, granted: GrantedSlots) -> VideoEnd | None:
    """Decode what the clips of a task show, and send all but its end. Return None, and send nothing, where that does
    not pay, or the packets of the video do not prove its frames. Raises FrameTableWrong where they told of other frames
    than are decoded."""
    table = find_table(decoder, task)
    if table is None or table.doubt:
        return None
    positions = Positions(decoder, task)
    known = positions.take_table(table)
    if known is None:
        return None
    frames, begins = known
    count = task.sampling.count(positions.seen)
    first, last = task.clip_range
    clips = range(min(first, count), count if last is None else min(last, count))

    def rows() -> Iterator[ClipRow]:
        for clip in clips:
            yield make_row(
                task.sampling.clip(clip, positions.seen), lambda at: Position(int(frames[at]), float(begins[at]))
            )

    def frame_at(clip: int) -> int:
        """Return the frame at which a clip starts, or else the end of the segment."""
        return int(frames[min(max(0, task.sampling.start(clip)), positions.seen)])

    needed = np.zeros(table.frames, bool)
    for row in rows():
        needed[list(row.shown)] = True
    if not clips:
        needed[positions.frames - 1] = True  # its size is known by that
    # as in a pass from the beginning, which has to see a position behind the last clip to know that it is complete
    complete = (
        last is not None and last <= count and task.sampling.start(last - 1) + task.sampling.span < positions.seen
    )
    own = slice(frame_at(first) if first else int(frames[0]), frame_at(last) if complete and last else positions.frames)
    chosen = decoder.choose(table, needed)
    with open_sender(task, send, granted) as sender:
        waiting = rows()
        row: ClipRow | None = next(waiting, None)
        for number, picture in chosen:
            sender.convert(number, picture)
            while row is not None and row.shown[-1] <= number:
                following = next(waiting, None)
                sender.send_row(row, table.frames if following is None else following.shown[0])
                row = following
            sender.send_frames(0 if row is None else row.shown[0])
        end = positions.video_end(len(clips), sender.size, complete)
    return replace(end, skipped=int((~chosen.sent[own]).sum()))


def find_table(decoder: Decoder, task: Task) -> FrameTable | None:
    """Read the task's table, or make it of the packets of the video. Return None where that does not pay."""
    path = None if task.table is None or task.sequential else Path(task.table)
    if task.sequential:
        return None
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
            print(f"{task.path} is read in sequence: {table.doubt}", file=sys.stderr)
        if path is not None and (task.clip_range != WHOLE or task.start is not None or task.end is not None):
            try:
                table.save(path)
            except OSError as error:  # it is made again for the next piece
                print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
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
