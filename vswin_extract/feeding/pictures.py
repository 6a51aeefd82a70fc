"""Small pictures of moments of a video: the frames on screen at given seconds, as JPEGs. Runs in a decoder process."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import av

from vswin_extract.decoding.decoders import Frame
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.errors import VideoUnreadable
from vswin_extract.video.file_kinds import other_kind

QUALITY = 75
AHEAD = 5.0
"""The next picture is reached by decoding on if it is at most this many seconds ahead, otherwise by seeking."""


def pictures_at(
    path: Path,
    moments: Sequence[float],
    size: tuple[int, int],
    on_progress: Callable[[], None] = lambda: None,
    ahead: float = AHEAD,
) -> tuple[bytes, ...]:
    """Return the frames on screen at these seconds after the first frame, in ascending order, upright, as JPEGs of at
    most this width and height; after the end of the video, its last frame. Raises VideoUnreadable.

    Frames are found by seeking, which may be a few frames off in files with irregular time stamps.
    """
    from PIL import Image  # only for pages

    if kind := other_kind(path):
        raise VideoUnreadable(f"it is {kind}, not a video")
    made = []
    with PyavDecoder(path, on_progress) as decoder:
        for frame in _frames_at(decoder, moments, ahead):
            picture = Image.fromarray(frame.picture().rgb())
            picture.thumbnail(size)
            content = io.BytesIO()
            picture.save(content, "JPEG", quality=QUALITY)
            made.append(content.getvalue())
    return tuple(made)


def _frames_at(decoder: PyavDecoder, moments: Sequence[float], ahead: float) -> Iterator[Frame]:
    """Yield the frame on screen at each of the moments. Raises VideoUnreadable."""
    begin, clock = decoder.video.start_time or 0, float(decoder.video.time_base or 0)
    frames = iter(decoder)
    shown: Frame | None = None
    coming = next(frames, None)
    for seconds in moments:
        goal = begin * clock + seconds + 1e-6  # times were rounded
        if clock and coming is not None and goal - (coming.time or 0.0) > ahead:
            with suppress(av.error.FFmpegError):  # a file that cannot be sought in is decoded on
                decoder.container.seek(begin + math.floor(seconds / clock), stream=decoder.video)
                frames = iter(decoder)
                landed = next(frames, None)
                shown, coming = landed or coming, landed and next(frames, None)
        while coming is not None and (shown is None or _is_before(coming, goal)):
            shown, coming = coming, next(frames, None)
        if shown is None:
            raise VideoUnreadable("nothing of the video decodes")
        yield shown


def _is_before(frame: Frame, goal: float) -> bool:
    return frame.time is not None and frame.time <= goal
