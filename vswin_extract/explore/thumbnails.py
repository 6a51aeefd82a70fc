"""Small pictures of moments of videos, as data URIs that a page can hold."""

import base64
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import av

from vswin_extract.decoding.decoders import Frame
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.errors import VideoError, VideoMissing, VideoUnreadable, needs

SIZE = (320, 180)
"""Pixels, width and height, that a picture has at most."""
QUALITY = 75
AHEAD = 5.0
"""Seconds up to which the next picture is reached by decoding on; one further away is sought."""


def thumbnail(path: Path, seconds: float) -> str | None:
    """One picture, as `thumbnails` makes it. None where there is no such video, or nothing of it decodes."""
    try:
        return thumbnails(path, [seconds])[0]
    except VideoError:
        return None


def thumbnails(path: Path, moments: Sequence[float], size: tuple[int, int] = SIZE) -> list[str]:
    """The frames on screen so many seconds after the video's first one, in ascending order, upright, as JPEGs in data
    URIs; the last one where it ends before. Raises VideoMissing, VideoUnreadable; UsageError without Pillow.

    In this process, unlike extraction: what is in an output has been decoded before, without harm. They are found by
    seeking, which may be a few frames off where a file's time stamps are odd.
    """
    with needs("PIL", "report", "pictures need Pillow"):
        from PIL import Image
    if not path.is_file():
        raise VideoMissing("the video is not there")
    made = []
    with PyavDecoder(path, on_progress=lambda: None) as decoder:
        begin, clock = decoder.video.start_time or 0, float(decoder.video.time_base or 0)
        frames = iter(decoder)
        shown: Frame | None = None
        coming = next(frames, None)
        for seconds in moments:
            goal = begin * clock + seconds + 1e-6  # times were rounded
            if clock and coming is not None and goal - (coming.time or 0.0) > AHEAD:
                with suppress(av.error.FFmpegError):  # what cannot be sought in is read on
                    decoder.container.seek(begin + math.floor(seconds / clock), stream=decoder.video)
                    frames = iter(decoder)
                    landed = next(frames, None)
                    shown, coming = landed or coming, landed and next(frames, None)
            while coming is not None and (shown is None or _before(coming, goal)):
                shown, coming = coming, next(frames, None)
            if shown is None:
                raise VideoUnreadable("nothing of the video decodes")
            picture = Image.fromarray(shown.rgb())
            picture.thumbnail(size)
            jpeg = io.BytesIO()
            picture.save(jpeg, "JPEG", quality=QUALITY)
            made.append("data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode())
    return made


def _before(frame: Frame, goal: float) -> bool:
    return frame.time is not None and frame.time <= goal
