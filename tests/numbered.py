"""Videos whose frames show their own number: sixteen cells in the middle, black or white.

The corner cells tell which way up the picture is (white at the top left, black elsewhere). The others are the bits.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from vswin_extract.video.geometry import Pixels

CORNERS = (0, 3, 12, 15)
BITS = tuple(cell for cell in range(16) if cell not in CORNERS)


def draw(number: int, width: int, height: int) -> Pixels:
    """Return the frame with this number, below 4096: (height, width, 3)."""
    cells = np.full(16, 16, np.uint8)
    cells[0] = 235
    for bit, cell in enumerate(BITS):
        cells[cell] = 235 if number >> bit & 1 else 16
    side = min(width, height) // 4
    frame = np.full((height, width, 3), 90, np.uint8)
    top, left = (height - 4 * side) // 2, (width - 4 * side) // 2
    square = cells.reshape(4, 4).repeat(side, 0).repeat(side, 1)
    frame[top : top + 4 * side, left : left + 4 * side] = square[..., None]
    return frame


def read(picture: Pixels) -> int:
    """Return the number of a square picture, -1 if it is not upright."""
    side = picture.shape[0] // 4
    inner = slice(side // 4, side - side // 4)
    cells = picture.mean(-1).reshape(4, side, 4, side)[:, inner, :, inner].mean((1, 3)).flatten() > 125
    if not cells[0] or cells[[3, 12, 15]].any():
        return -1
    return sum(int(cells[cell]) << bit for bit, cell in enumerate(BITS))


def lay(picture: Pixels, rotation: int, mirrored: bool) -> Pixels:
    """Return what is stored so that it looks like `picture` once it is turned counterclockwise and then mirrored."""
    return np.ascontiguousarray(np.rot90(picture[:, ::-1] if mirrored else picture, -rotation // 90))


def write(
    path: Path,
    count: int,
    rate: Fraction | int = 30,
    ticks: Sequence[int] | None = None,
    clock: Fraction = Fraction(1, 1000),
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    rotation: int = 0,
    options: dict[str, str] | None = None,
    first: int = 0,
    container_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    format: str | None = None,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    wrap: int = 1 << 62,
) -> Path:
    """Write `count` frames with the numbers first, first + 1… (modulo `wrap`), at a constant `rate` or at `ticks` of
    `clock`. The bytes do not depend on the number of cores.

    `rotation` and `mirrored` make the display matrix: the pictures are stored so that it turns them upright.
    """
    pictures: Iterable[Pixels] = (draw((first + number) % wrap, *size) for number in range(count))
    with av.open(f"file:{path}", "w", format=format, options=container_options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # x264 writes other bytes with every other number of threads
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if codec == "libx264":
            stream.codec_context.options = {"crf": "12", "preset": "ultrafast", **(options or {})}
        if ticks is not None:
            stream.codec_context.time_base = clock
            stream.time_base = clock
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
            pictures = [lay(picture, rotation, mirrored) for picture in pictures]
            stream.height, stream.width = pictures[0].shape[:2]
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if ticks is not None:
                frame.time_base = clock
                frame.pts = ticks[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_folder(folder: Path, count: int) -> None:
    """Write `count` videos of different lengths, 00.mp4 and so on, and bad.mp4, which is no video."""
    for number in range(count):
        write(folder / f"{number:02}.mp4", 200 + number, first=100 * number)
    (folder / "bad.mp4").write_text("no video")
