"""Small pictures of moments of videos, as data URIs that a page can hold."""

import base64
import io
import math
from contextlib import suppress
from pathlib import Path

import av

from vswin_extract.errors import VideoError, needs
from vswin_extract.frames.pyav import PyavDecoder

WIDTH, HEIGHT = 320, 180
"""Pixels that a picture has at most."""
QUALITY = 75


def thumbnail(path: Path, seconds: float) -> str | None:
    """The frame on screen so many seconds after the video's first one, upright, as a JPEG in a data URI; the last one
    where it ends before. None where there is no such video, or nothing of it decodes. Raises UsageError without Pillow.

    In this process, unlike extraction: what is in an output has been decoded before, without harm. It is found by
    seeking, which may be a few frames off where a file's time stamps are odd.
    """
    with needs("PIL", "report", "pictures need Pillow"):
        from PIL import Image
    if not path.is_file():
        return None
    try:
        with PyavDecoder(path, beat=lambda: None) as decoder:
            begin = decoder.video.start_time or 0
            clock = float(decoder.video.time_base or 0)
            if clock and seconds > 1:
                with suppress(av.error.FFmpegError):  # what cannot be sought in is read from its beginning
                    decoder.container.seek(begin + math.floor(seconds / clock), stream=decoder.video)
            frame = None
            for frame in decoder:
                if frame.time is None or frame.time + (frame.duration or 0.01) > begin * clock + seconds:
                    break
            if frame is None:
                return None
            picture = Image.fromarray(frame.rgb())
    except VideoError:
        return None
    picture.thumbnail((WIDTH, HEIGHT))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
