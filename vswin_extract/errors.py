"""The errors of this package.

VswinError                 the command line prints it as one line and ends with an exit code
├── UsageError             an argument that cannot work: a path, a number, a name
├── WeightsError           a checkpoint that is missing, has a wrong hash, or does not fit
├── DeviceError            a device or a precision that this machine does not have
├── OutputError            an output that exists, is in use, has other settings, or is not ours
└── VideoError             one video; the run records it under /failures and goes on
    ├── VideoMissing       not there, or not a regular file
    ├── VideoUnreadable    no video stream, or it is encrypted, or of an unknown codec, or nothing in it decodes
    ├── VideoDamaged       most of it does not decode, or a part does not and parts are not wanted
    ├── VideoChanged       its file changed while it was read
    ├── VideoUnreachable   its file could not be fetched
    ├── VideoTimestamps    its time stamps cannot be resampled
    ├── FrameTableWrong    its frames are not those that its packets tell of
    ├── DecoderTimeout     the decoder made no progress
    ├── DecoderCrash       the decoder failed, or its process died
    ├── NonFiniteFeatures  the network gave NaN or infinity for it
    └── WorkerDied         the worker that extracted it died several times
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class VswinError(Exception):
    """Base of all errors. The text is one line: what is wrong, which value, what to do.

    >>> try:
    ...     vswin_extract.open_features("nowhere.h5")
    ... except vswin_extract.VswinError as error:
    ...     print(error)
    cannot read nowhere.h5: no such file
    """


class UsageError(VswinError, ValueError):
    """An argument that cannot work."""


class WeightsError(VswinError):
    """A checkpoint that is missing, has a wrong hash, or does not fit."""


class DeviceError(VswinError):
    """A device or precision that this machine does not have."""


class OutputError(VswinError):
    """An output that exists, is in use, has other settings, or is not ours."""


class VideoError(VswinError):
    """A video that could not be extracted. /failures keeps the name of the class and the text.

    >>> try:
    ...     model.video("nowhere.mp4")
    ... except vswin_extract.VideoError as error:
    ...     print(type(error).__name__)
    VideoMissing
    """


class VideoMissing(VideoError):
    """Not there, or not a regular file."""


class VideoUnreadable(VideoError):
    """No video stream, or it is encrypted, or of an unknown codec, or nothing in it decodes."""


class VideoDamaged(VideoError):
    """Most of it does not decode, or a part does not and parts are not wanted."""


class VideoChanged(VideoError):
    """Its file changed while it was read."""


class VideoUnreachable(VideoError):
    """Its file could not be fetched."""


class VideoTimestamps(VideoError):
    """Its time stamps cannot be resampled."""


class FrameTableWrong(VideoError):
    """Its frames are not those that its packets tell of. Such a video is extracted again, from its beginning."""


class DecoderTimeout(VideoError):
    """The decoder made no progress for the time allowed."""


class DecoderCrash(VideoError):
    """The decoder failed, or its process died."""


class NonFiniteFeatures(VideoError):
    """The network gave NaN or infinity for it."""


class WorkerDied(VideoError):
    """The worker that extracted it died several times."""


VIDEO_ERRORS = {
    error.__name__: error
    for error in (
        VideoMissing,
        VideoUnreadable,
        VideoDamaged,
        VideoChanged,
        VideoUnreachable,
        VideoTimestamps,
        FrameTableWrong,
        DecoderTimeout,
        DecoderCrash,
        NonFiniteFeatures,
        WorkerDied,
    )
}
"""Errors of videos by the name of their class."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",  # of the system, and of PyTorch's allocator: can't, cannot
    "not enough memory",
    "memory allocation failed",
    "bad_alloc",
    "could not create a primitive",  # oneDNN says no more
    "could not create a memory",
    "failed to map segment",  # of a library that is loaded
    "can't start new thread",  # which needs 8 MB of address space
)
"""Words of errors that come when there is no memory left, or no address space."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory is short. PyTorch, oneDNN and the loader of libraries each have their own."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, VswinError):
        return False
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def needs(package: str, extra: str, who: str, error: type[VswinError] = UsageError) -> Iterator[None]:
    """Use this around the import of an optional package. If the package is missing, the error says how to install
    it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name != package:
            raise
        raise error(f"{who}: pip install 'vswin-extract[{extra}]'") from missing
