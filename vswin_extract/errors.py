"""Everything this package raises on purpose.

VswinError                 what the command line turns into one line and an exit code
├── UsageError             an argument that cannot work: a path, a number, a name
├── WeightsError           a checkpoint that is missing, not what it says, or does not fit
├── DeviceError            a device or precision that this machine does not have
├── OutputError            an output that is in the way, not ours, in use, or of other settings
└── VideoError             one video; the run records it under /failures and goes on
    ├── VideoMissing       not there, or not a regular file
    ├── VideoUnreadable    no video stream, or nothing in it decodes
    ├── VideoDamaged       only a part of it decodes, and parts are not wanted
    ├── VideoChanged       its file changed while it was read
    ├── VideoUnreachable   it could not be fetched from where it is
    ├── VideoTimestamps    its time stamps cannot be resampled
    ├── DecoderTimeout     the decoder made no progress
    ├── DecoderCrash       the decoder's process died
    ├── NonFiniteFeatures  the network gave NaN or infinity for it
    └── WorkerDied         the process that extracted it died, again and again
"""

from collections.abc import Iterator
from contextlib import contextmanager


class VswinError(Exception):
    """Base of the family. Its text is one line: what is wrong, which value, what to do."""


class UsageError(VswinError, ValueError):
    """An argument that cannot work."""


class WeightsError(VswinError):
    """A checkpoint that is missing, not what it says, or does not fit."""


class DeviceError(VswinError):
    """A device or precision that this machine does not have."""


class OutputError(VswinError):
    """An output that is in the way, not ours, in use, or of other settings."""


class VideoError(VswinError):
    """One video that could not be extracted. The class name and the text are what /failures keeps."""


class VideoMissing(VideoError):
    """Not there, or not a regular file."""


class VideoUnreadable(VideoError):
    """No video stream, or nothing in it decodes."""


class VideoDamaged(VideoError):
    """Only a part of it decodes, and parts are not wanted."""


class VideoChanged(VideoError):
    """Its file changed while it was read."""


class VideoUnreachable(VideoError):
    """It could not be fetched from where it is."""


class VideoTimestamps(VideoError):
    """Its time stamps cannot be resampled."""


class DecoderTimeout(VideoError):
    """The decoder made no progress for the time allowed."""


class DecoderCrash(VideoError):
    """The decoder's process died."""


class NonFiniteFeatures(VideoError):
    """The network gave NaN or infinity for it."""


class WorkerDied(VideoError):
    """The process that extracted it died, again and again."""


VIDEO_ERRORS = {
    error.__name__: error
    for error in (
        VideoMissing,
        VideoUnreadable,
        VideoDamaged,
        VideoChanged,
        VideoUnreachable,
        VideoTimestamps,
        DecoderTimeout,
        DecoderCrash,
        NonFiniteFeatures,
        WorkerDied,
    )
}
"""By the name that a decoder process sends and /failures keeps."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def needs(package: str, extra: str, who: str, error: type[VswinError] = UsageError) -> Iterator[None]:
    """Around the import of a package that comes with one of our extras: where it is missing, an error that says how to
    get it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name != package:
            raise
        raise error(f"{who}: pip install 'vswin-extract[{extra}]'") from missing
