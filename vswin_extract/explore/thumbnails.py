"""Small pictures of moments of videos, as data URIs for a page."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vswin_extract.errors import VideoError, VideoMissing, needs
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.store.features import FeatureFile
from vswin_extract.video.videos import EXTENSIONS

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (320, 180)
"""Width and height of a picture in pixels, at most."""
TIMEOUT = 20.0
"""Seconds without progress after which a video gets no pictures."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by video and second; for each video that has none, the reason; the files of those that have some."""

    made: dict[tuple[str, float], str]
    missing: dict[str, str]
    files: dict[str, Path]


def take_pictures(
    features: FeatureFile,
    videos: Path | None,
    wanted: Mapping[str, set[float]],
    size: tuple[int, int],
    on_video: Callable[[int, int], None],
) -> Pictures:
    """Make the pictures that are wanted, by video id and seconds; each video is opened once. `on_video`: called after
    each video, with how many of how many are done."""
    pictures = Pictures({}, {}, {})
    with PictureProcess(size) as process:
        for done, (name, seconds) in enumerate(wanted.items(), 1):
            path, moments = find_video(features, name, videos), sorted(seconds)
            try:
                made = process.take(path, moments)
                pictures.made.update(zip(((name, second) for second in moments), made, strict=True))
                if path is not None:
                    pictures.files[name] = path
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


class PictureProcess(AbstractContextManager["PictureProcess"]):
    """Takes pictures of videos in a decoder process, which starts with the first video. A video that hangs or ends it
    gets no pictures. `size`: width and height of a picture, at most. Raises UsageError without Pillow."""

    def __init__(self, size: tuple[int, int] = SIZE) -> None:
        with needs("PIL", "report", "pictures need Pillow"):
            import PIL  # noqa: F401
        self._size = size
        self._process: DecoderProcess | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close()

    def take(self, path: Path | None, moments: Sequence[float]) -> list[str]:
        """Return the frames on screen at these seconds, in ascending order, as JPEGs in data URIs. Raises VideoError,
        and VswinError where the process cannot be started."""
        if path is None or not path.is_file():
            raise VideoMissing("the video is not there")
        self._process = self._process or DecoderProcess("pyav", TIMEOUT)
        self._process.submit(Task.of_pictures(path, moments, self._size))
        end = self._process.read()
        return [_uri(picture, "JPEG") for picture in end.pictures] if isinstance(end, VideoEnd) else []


def data_uri(picture: "Image", kind: str, **options: Any) -> str:
    """Return a picture as a data URI; `kind` is JPEG or PNG, `options` are those of Pillow."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return _uri(content.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
