"""Pictures of decoded frames: upright, in RGB. Only the part of a frame that is read is converted."""

from dataclasses import dataclass
from typing import cast

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from vswin_extract.video.geometry import Box, Picture, Pixels

EDGE = 8
"""Rows and columns that are converted around a part of a frame, so that colors at its edge are the same."""


@dataclass(frozen=True)
class Turn:
    """How a picture is shown: its rows and columns are exchanged if `transposed`; then they count backwards where
    `down` and `across` are -1."""

    transposed: bool = False
    down: int = 1
    across: int = 1

    def stored(self, box: Box, height: int, width: int) -> Box:
        """Return where the pixels of a box are stored. `height` x `width`: as shown."""
        top, bottom, left, right = box
        if self.down < 0:
            top, bottom = height - bottom, height - top
        if self.across < 0:
            left, right = width - right, width - left
        return Box(left, right, top, bottom) if self.transposed else Box(top, bottom, left, right)

    def apply(self, stored: Pixels) -> Pixels:
        """Return pixels (rows, columns, 3) as they are shown."""
        turned = cv2.transpose(stored) if self.transposed else stored
        axes = {(-1, 1): 0, (1, -1): 1, (-1, -1): -1}
        if (flipped := (self.down, self.across)) in axes:
            turned = cv2.flip(turned, axes[flipped])
        return turned  # type: ignore[return-value]


def find_turn(frame: VideoFrame) -> Turn:
    """Return how the display matrix turns and mirrors a frame, which decoders do not do.

    The matrix maps stored x, y to shown x', y': x' = a x + c y, y' = b x + d y. It begins with the 16.16 integers
    a b u c d v. Only quarter turns and mirrors are applied.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn()
    a, b, _, c, d, _ = np.frombuffer(cast(bytes, matrix), np.int32)[:6].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(False, -1 if d < 0 else 1, -1 if a < 0 else 1)
    return Turn(True, -1 if b < 0 else 1, -1 if c < 0 else 1)


class FrameConverter:
    """Makes pictures of the frames of a video. Only the part of a frame that is read is converted to RGB."""

    def __init__(self) -> None:
        self._filter: av.filter.Graph | None = None
        self._filters: object = None  # which frames it crops, and to which box

    def picture(self, frame: VideoFrame) -> Picture:
        turn = find_turn(frame)
        height, width = (frame.width, frame.height) if turn.transposed else (frame.height, frame.width)

        def read(box: Box) -> Pixels:
            return turn.apply(self._read(frame, turn.stored(box, height, width)))

        return Picture(height, width, read)

    def _read(self, frame: VideoFrame, box: Box) -> Pixels:
        """Return the pixels of a stored frame in a box, (rows, columns, 3)."""
        top = left = 0
        part = frame
        if _can_crop(frame):
            top, left = (max(0, begin // EDGE * EDGE - EDGE) for begin in (box.top, box.left))
            bottom, right = (
                min(side, -(-end // EDGE) * EDGE + EDGE)
                for side, end in ((frame.height, box.bottom), (frame.width, box.right))
            )
            part = self._crop(frame, Box(top, bottom, left, right))
        rgb: Pixels = part.to_ndarray(format="rgb24", threads=1)  # type: ignore[assignment]
        return rgb[box.top - top : box.bottom - top, box.left - left : box.right - left]

    def _crop(self, frame: VideoFrame, box: Box) -> VideoFrame:
        """Return a part of a frame. Its pixels are not copied."""
        if box == (0, frame.height, 0, frame.width):
            return frame
        kind = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:colorspace={int(frame.colorspace)}"
            f":range={int(frame.color_range)}:time_base=1/25"
        )
        if self._filter is None or self._filters != (kind, box):
            self._filter, self._filters = av.filter.Graph(), (kind, box)
            size = f"{box.right - box.left}:{box.bottom - box.top}:{box.left}:{box.top}"
            nodes = [self._filter.add("buffer", kind), self._filter.add("crop", size), self._filter.add("buffersink")]
            self._filter.link_nodes(*nodes).configure()
        self._filter.vpush(frame)
        return self._filter.vpull()


def _can_crop(frame: VideoFrame) -> bool:
    """True if a part of a frame gives the same RGB as the whole frame. FFmpeg stretches the colors of a frame if its
    sides are not whole numbers of color samples, and converts packed YUV in blocks from the left."""
    layout = frame.format
    columns, rows = layout.chroma_width(frame.width), layout.chroma_height(frame.height)
    whole = frame.height % 2 == 0 == frame.width % 2 and frame.width % columns == 0 == frame.height % rows
    return whole and (layout.is_planar or layout.is_rgb) and not layout.is_bit_stream and not layout.has_palette
