"""When each frame of a video is shown: a decoder's time stamps on one clock that never goes back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vswin_extract.decoding.decoders import Decoder, Frame
from vswin_extract.video.geometry import Picture

JUMP = 0.1
"""Seconds: time stamps that go back by less are taken for jitter, and the frame before lasts until them."""

STEADY = 0.002
"""Seconds by which two frames that last equally long may differ, where a clock is coarse."""


@dataclass(frozen=True)
class Shown:
    """Frame `index` of a video, shown from `start` to `end` seconds after the video's first frame."""

    index: int
    start: float
    end: float
    picture: Callable[[], Picture]


def timeline(decoder: Decoder, frames: Iterable[Frame]) -> Iterator[Shown]:
    """Yield frames with seconds from the first frame, never backwards, each shown until the next one begins.

    A missing time stamp is put one nominal frame after the frame before it. Where stamps jump back, as in joined files,
    the clock goes on from there, and `decoder.trouble` says so. The last frame ends by its own duration, or else lasts
    as long as the one before it.
    """
    nominal = 1 / decoder.stream.fps if decoder.stream.fps else 0.0
    origin: float | None = None
    held: Frame | None = None
    begin, index, lasted, steady = 0.0, 0, nominal, False
    for frame in frames:
        follows = 0.0
        if held is not None:  # a single long frame says nothing about the next one
            follows = begin + ((lasted if steady else held.duration or nominal) or lasted)
        if frame.time is None:
            at = follows
        else:
            if origin is None:
                origin = frame.time - follows
                if held is None and decoder.begins is not None and decoder.begins < origin:
                    decoder.incomplete = True
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
        yield Shown(index, begin, at, held.picture)
        steady = abs(at - begin - lasted) < STEADY
        lasted = at - begin
        held, begin, index = frame, at, index + 1
    if held is not None:
        yield Shown(index, begin, begin + (held.duration or nominal or lasted), held.picture)
