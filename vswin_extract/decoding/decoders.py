"""What a decoder is: one pass over a video, which gives its frames with their times, upright, in RGB.

A decoder is opened on a path, says what stream it found, and yields every frame once, in order. Pixels are converted
only for frames that are looked at.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.frame_table import FrameTable
from vswin_extract.errors import UsageError
from vswin_extract.video.geometry import Picture

DecoderName = Literal["pyav", "decord"]


@dataclass(frozen=True)
class Stream:
    """The video stream.

    `fps`: the nominal rate, 0 where it is unknown. `tick`: seconds between two ticks of its clock. `declared`: seconds
    that it lasts unless it was cut off, 0 where the format cannot end early without an error. `header_seconds`: seconds
    that the header says, right or wrong, 0 where it says nothing. `transfer` and `matrix`: how its colors are coded, by
    the names of `video.color`, empty where unknown.
    """

    fps: float
    tick: float
    declared: float = 0.0
    header_seconds: float = 0.0
    transfer: str = ""
    matrix: str = ""


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `time`: when it is shown, in the stream's own seconds; None where the file does not say.
    `duration` in seconds, 0 where unknown. `picture()`: what it shows, upright."""

    time: float | None
    duration: float
    picture: Callable[[], Picture]


class ChosenFrames(Protocol):
    """Some frames of a video. Iterate over it once: each frame's number and its picture, in order. `sent`: by frame,
    which ones are decoded for that."""

    sent: NDArray[np.bool_]

    def __iter__(self) -> Iterator[tuple[int, Callable[[], Picture]]]: ...


class Decoder(AbstractContextManager["Decoder"], Protocol):
    """Opened by its constructor, which raises VideoUnreadable, and closed by `with`. It calls `on_progress` whenever
    something was read, whether frames came of it or not.

    Iteration raises VideoUnreadable where the video is encrypted, and nothing else: what cannot be decoded is skipped
    or ends it, and is counted in `damaged`.
    """

    stream: Stream
    packets: int
    """Packets so far."""
    damaged: int
    """How many of them are damaged, or could not be decoded."""
    incomplete: bool
    """True once it is known that frames are missing although all packets that were read may be sound."""
    trouble: str
    """What was wrong last."""

    @property
    def begins(self) -> float | None:
        """When the video begins by its first packet, whether that can be decoded or not, in the stream's own
        seconds."""
        ...

    def __init__(self, path: Path, on_progress: Callable[[], None]) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def scan(self) -> Iterable[Frame]:
        """Return the same frames as far as packets tell, in order, without decoding any. They have no pixels."""
        ...

    def read_table(self, only_if: int = 0) -> FrameTable | None:
        """Read all packets, decode none of them, and return which frames they tell of. Return None where a decoder
        only reads in sequence; and, where `only_if` is given, if none of the first packets says that (see
        `bitstreams`).

        Afterwards only `choose` can be used. Raises VideoUnreadable as iteration does.
        """
        ...

    def choose(self, table: FrameTable, needed: NDArray[np.bool_]) -> ChosenFrames:
        """Decode the frames that are `needed`, by number. Its iteration raises FrameTableWrong."""
        ...

    @staticmethod
    def set_up_process() -> None:
        """Called once in a process that decodes, before the first video."""


def not_decoded() -> Picture:
    """The `picture` of frames that were only scanned."""
    raise TypeError("this frame was scanned, not decoded")


def decoder_class(name: str) -> type[Decoder]:
    """Import a decoder by its name. Raises UsageError for an unknown name, and ImportError."""
    if name == "pyav":
        from vswin_extract.decoding.pyav import PyavDecoder

        return PyavDecoder
    if name == "decord":
        from vswin_extract.decoding.decord import DecordDecoder

        return DecordDecoder
    raise UsageError(f"decoder must be one of {', '.join(get_args(DecoderName))}, not {name!r}")


def open_decoder(name: str, path: Path, on_progress: Callable[[], None] = lambda: None) -> Decoder:
    """Open `path` with a decoder by its name. Raises VideoUnreadable, and UsageError for an unknown decoder."""
    return decoder_class(name)(path, on_progress)
