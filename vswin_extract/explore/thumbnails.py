"""Small pictures of moments of videos, as data URIs for a page."""

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import av

from vswin_extract.decoding.decoders import Frame
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.errors import VideoError, VideoMissing, VideoUnreadable, needs
from vswin_extract.store.features import FeatureFile
from vswin_extract.video.file_kinds import other_kind
from vswin_extract.video.videos import EXTENSIONS

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (320, 180)
"""Width and height of a picture in pixels, at most."""
QUALITY = 75
AHEAD = 5.0
"""The next picture is reached by decoding on if it is at most this many seconds ahead, otherwise by seeking."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by video and second; for each video that has none, the reason."""

    made: dict[tuple[str, float], str]
    missing: dict[str, str]


def take_pictures(
    features: FeatureFile,
    videos: Path | None,
    wanted: Mapping[str, set[float]],
    size: tuple[int, int],
    on_video: Callable[[int, int], None],
) -> Pictures:
    """Make the pictures that are wanted, by video id and seconds; each video is opened once. `on_video`: called after
    each video, with how many of how many are done."""
    pictures = Pictures({}, {})
    for done, (name, seconds) in enumerate(wanted.items(), 1):
        moments = sorted(seconds)
        try:
            made = thumbnails(find_video(features, name, videos), moments, size)
            pictures.made.update(zip(((name, second) for second in moments), made, strict=True))
        except VideoError as error:
            pictures.missing[name] = str(error)
        on_video(done, len(wanted))
    return pictures


def find_video(features: FeatureFile, video_id: str, videos: Path | None) -> Path | None:
    """Return the path that a video was extracted from, or its path below `videos`; None if there is no such video.

    An output may come from a stranger, and name any file of the user. So a path in it counts only if it is
    absolute, as all that are written, and ends as videos do, and if the file there has the size that the video had. An
    address is never fetched.
    """
    if videos is not None:
        inside = PurePosixPath(video_id)
        return None if inside.is_absolute() or ".." in inside.parts else videos / video_id
    info = features[video_id].info
    path = Path(info["path"])
    if not path.is_absolute() or path.suffix.lower() not in EXTENSIONS or not path.is_file():
        return None
    return path if info["size"] in (-1, path.stat().st_size) else None


def thumbnail(path: Path | None, seconds: float) -> str | None:
    """Return one picture as `thumbnails` makes it, None if there is no such video or nothing of it decodes."""
    try:
        return thumbnails(path, [seconds])[0]
    except VideoError:
        return None


def thumbnails(
    path: Path | None, moments: Sequence[float], size: tuple[int, int] = SIZE, *, ahead: float = AHEAD
) -> list[str]:
    """Return the frames on screen at these seconds after the first frame, in ascending order, upright, as JPEGs in data
    URIs; after the end of the video, its last frame. Raises VideoMissing, VideoUnreadable; UsageError without Pillow.

    Decodes in this process, unlike extraction: what is in an output was decoded before without harm. Frames are found
    by seeking, which may be a few frames off in files with irregular time stamps.
    """
    with needs("PIL", "report", "pictures need Pillow"):
        from PIL import Image
    if path is None or not path.is_file():
        raise VideoMissing("the video is not there")
    if kind := other_kind(path):
        raise VideoUnreadable(f"it is {kind}, not a video")
    made = []
    with PyavDecoder(path, on_progress=lambda: None) as decoder:
        for frame in _frames_at(decoder, moments, ahead):
            picture = Image.fromarray(frame.picture().rgb())
            picture.thumbnail(size)
            made.append(data_uri(picture, "JPEG", quality=QUALITY))
    return made


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


def data_uri(picture: "Image", kind: str, **options: Any) -> str:
    """Return a picture as a data URI; `kind` is JPEG or PNG, `options` are those of Pillow."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
