"""One sequential pass over a video: its frames with their times, upright, in RGB. The seam between decoders.

A decoder is opened on a path, says what stream it found, and yields every frame once, in order. Pixels are converted
only for frames that are looked at. Decoders run in a process of their own, `frames.worker`, which `frames.process`
talks to.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from vswin_extract.errors import UsageError
from vswin_extract.video.geometry import Pixels

DecoderName = Literal["pyav", "decord"]


@dataclass(frozen=True)
class Stream:
    """The video stream. `fps`: nominal, 0 where unknown. `tick`: seconds between two ticks of its clock. `declared`:
    seconds that it should last, 0 where nothing can be relied on to say so. `about`: seconds by the header, right or
    wrong, 0 where it says nothing."""

    fps: float
    tick: float
    declared: float = 0.0
    about: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `time`: when it is shown, in the stream's own seconds; None where the file does not say.
    `duration` in seconds, 0 where unknown. `rgb()`: (height, width, 3), upright."""

    time: float | None
    duration: float
    rgb: Callable[[], Pixels]


class Decoder(AbstractContextManager["Decoder"], Protocol):
    """Opened by its constructor, which raises VideoUnreadable, and closed by `with`.

    Iteration never raises: what cannot be decoded is skipped or ends it, and counts.
    """

    stream: Stream
    damaged: int
    """Packets that could not be decoded so far."""
    trouble: str
    """What was wrong with the last of them."""
    begins: float | None
    """When the video begins by its first packet, whether that can be decoded or not, in the stream's own seconds."""

    def __iter__(self) -> Iterator[Frame]: ...

    def scan(self) -> Iterable[Frame]:
        """The same frames as far as packets tell, in order, without decoding any: their pixels cannot be had."""
        ...


@dataclass(frozen=True)
class Shown:
    """Frame `index` of a video, shown from `start` to `end` seconds after the video's first frame."""

    index: int
    start: float
    end: float
    rgb: Callable[[], Pixels]


JUMP = 0.1
"""Seconds: time stamps that go back by less are taken for jitter, and the frame before lasts until them."""


def not_decoded() -> Pixels:
    """The `rgb` of frames that were only scanned."""
    raise TypeError("this frame was scanned, not decoded")


def open_decoder(name: str, path: Path, on_progress: Callable[[], None] = lambda: None) -> Decoder:
    """Open `path` with a decoder by its name; `on_progress` is called whenever it makes progress, frames or not.

    Raises VideoUnreadable; UsageError for an unknown decoder.
    """
    if name == "pyav":
        from vswin_extract.decoding.pyav import PyavDecoder

        return PyavDecoder(path, on_progress)
    if name == "decord":
        from vswin_extract.decoding.decord import DecordDecoder

        return DecordDecoder(path, on_progress)
    raise UsageError(f"decoder must be one of {', '.join(get_args(DecoderName))}, not {name!r}")


def timeline(decoder: Decoder, frames: Iterable[Frame]) -> Iterator[Shown]:
    """Frames on one clock: seconds from the first frame, never backwards, each shown until the next begins.

    A missing time stamp is put one nominal frame after the frame before it. Where stamps jump back, as in joined files,
    the clock goes on from there, and `decoder.trouble` says so. The last frame ends by its own duration, or else lasts
    as long as the one before it.
    """
    nominal = 1 / decoder.stream.fps if decoder.stream.fps else 0.0
    origin: float | None = None
    held: Frame | None = None
    begin, index, lasted = 0.0, 0, nominal
    for frame in frames:
        follows = 0.0 if held is None else begin + (lasted or nominal)
        if frame.time is None:
            at = follows
        else:
            if origin is None:
                origin = frame.time - follows
                if held is None and decoder.begins is not None and decoder.begins < origin:
                    decoder.damaged += 1
                    decoder.trouble = f"its first {origin - decoder.begins:.3f} s do not decode"
                    origin = decoder.begins
            at = frame.time - origin
            if at < begin - JUMP:
                decoder.trouble = (
                    f"time stamps jump back by {begin - at:.2f} s at frame {index + 1}; counted on from there"
                )
                origin, at = frame.time - follows, follows
            at = max(at, begin)
        if held is None:
            held, begin = frame, at
            continue
        yield Shown(index, begin, at, held.rgb)
        lasted = at - begin
        held, begin, index = frame, at, index + 1
    if held is not None:
        yield Shown(index, begin, begin + (held.duration or nominal or lasted), held.rgb)
