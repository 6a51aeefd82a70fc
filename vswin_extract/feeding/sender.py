"""From positions to frames in shared memory, and messages that name them."""

import contextlib
from collections.abc import Callable

from vswin_extract.decoding.decoders import Decoder
from vswin_extract.decoding.timeline import Shown
from vswin_extract.feeding.frame_memory import GrantedSlots
from vswin_extract.feeding.messages import DecodedFrames, FromChild, Task, VideoEnd
from vswin_extract.feeding.positions import Positions
from vswin_extract.video.geometry import Geometry, Picture
from vswin_extract.video.rows import ClipRow, ClipRows

FRAMES_AT_ONCE = 32
"""New frames are sent as soon as this many wait, even if no clip is finished."""

Send = Callable[[FromChild], None]


class FrameSender:
    """Converts frames into granted slots, and sends which frame is in which slot, and clips.

    `size`: width and height of the video, upright; (0, 0) before the first frame was looked at.
    """

    def __init__(self, geometry: Geometry, send: Send, granted: GrantedSlots) -> None:
        self.size = (0, 0)
        self._geometry = geometry
        self._send = send
        self._granted = granted
        self._unsent: dict[int, int] = {}  # slots of frames
        self._newest = -1  # the source frame that was converted last

    def convert(self, number: int, picture: Callable[[], Picture]) -> None:
        """Convert source frame `number`, unless it was the last one, too."""
        if number == self._newest:
            return
        self._unsent[number] = self._granted.write(self.look_at(picture), self._geometry)
        self._newest = number

    def look_at(self, picture: Callable[[], Picture]) -> Picture:
        """Return the picture of a frame. The first one tells the size of the video."""
        found = picture()
        if not self.size[0]:
            self.size = found.width, found.height
        return found

    def send_row(self, row: ClipRow, oldest: int) -> None:
        """Send a clip all of whose frames are converted. Later clips show no frame before `oldest`."""
        self._send(DecodedFrames(self._unsent, row, oldest))
        self._unsent = {}

    def send_frames(self, oldest: int) -> None:
        """Send converted frames if there are many."""
        if len(self._unsent) >= FRAMES_AT_ONCE:
            self._send(DecodedFrames(self._unsent, None, oldest))
            self._unsent = {}

    def close(self) -> None:
        """Keep the slots of frames that were not sent, for the next video."""
        self._granted.add(self._unsent.values())
        self._unsent = {}


def send_clips(decoder: Decoder, task: Task, send: Send, granted: GrantedSlots) -> VideoEnd:
    """Decode a video, or its clip range, from its beginning, and send all but its end. Raises VideoError."""
    positions = Positions(decoder, task)
    rows = ClipRows(task.sampling, task.clip_range)
    with open_sender(task, send, granted) as sender:
        for frame, begin in positions:
            newest: Shown = frame
            if not sender.size[0]:
                sender.look_at(frame.picture)
            if rows.uses(rows.seen):
                sender.convert(frame.index, frame.picture)
            for row in rows.add(frame.index, begin):
                sender.send_row(row, rows.oldest)
            sender.send_frames(rows.oldest)
            if rows.complete:
                return positions.video_end(rows.clips, sender.size, complete=True)
        sender.convert(newest.index, newest.picture)  # clips that go past the end repeat the last frame
        for row in rows.end(positions.frames, positions.seconds):
            sender.send_row(row, rows.oldest)
        return positions.video_end(rows.clips, sender.size, complete=False)


def open_sender(task: Task, send: Send, granted: GrantedSlots) -> "contextlib.closing[FrameSender]":
    return contextlib.closing(FrameSender(task.geometry, send, granted))
