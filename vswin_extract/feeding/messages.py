"""What a decoder process and its parent send to each other.

parent to child    Setup, then Task after Task, and Grant whenever the child may fill more slots
child to parent    DecoderReady, then for each task DecodedFrames and Progress, and at last VideoEnd or a VideoError
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vswin_extract.errors import VideoError
from vswin_extract.video.fetch import Cache
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.remote import Address
from vswin_extract.video.rows import ClipRow
from vswin_extract.video.sampling import Sampling


@dataclass(frozen=True)
class Setup:
    """The first message: the decoder's name, and the memory for frames, which is the open file `file`."""

    decoder: str
    file: int
    slots: int
    slot_bytes: int


@dataclass(frozen=True)
class Grant:
    """The child may fill these slots of the memory."""

    slots: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A video to decode, or its segment from `start` to `end` seconds; and which of its clips, by `clip_range`.

    `count`: only count its clips, by its packets. `guess`: only estimate how many there are, by its header.
    `moments`: only take pictures of at most `picture_size` at these seconds, see `pictures.pictures_at`. `address`:
    it has to be fetched first, into the cache. `table`: the file where the frame table of the video is kept.
    `sequential`: read it from its beginning, frame after frame. `divided`: if that turns out to be necessary, one
    process may read the whole video in place of all that read clip ranges of it; FrameTableWrong asks for that.
    """

    path: str
    decoder: str
    sampling: Sampling
    geometry: Geometry
    start: float | None = None
    end: float | None = None
    clip_range: ClipRange = WHOLE
    count: bool = False
    guess: bool = False
    moments: tuple[float, ...] = ()
    picture_size: tuple[int, int] = (0, 0)
    address: Address | None = None
    cache: Cache | None = None
    table: str | None = None
    sequential: bool = False
    divided: bool = False

    @classmethod
    def of_pictures(cls, path: Path, moments: Sequence[float], size: tuple[int, int]) -> "Task":
        """Return the task to take pictures of a video, of which no clips are made."""
        return cls(str(path), "pyav", Sampling(1, 1), Geometry(32, 32), moments=tuple(moments), picture_size=size)

    @property
    def makes_clips(self) -> bool:
        return not (self.count or self.guess or self.moments)


@dataclass(frozen=True)
class DecoderReady:
    """The decoder is imported."""


@dataclass(frozen=True)
class Progress:
    """Something was read or fetched, but no clip shows it."""


@dataclass(frozen=True)
class DecodedFrames:
    """New frames, and a clip once all of its frames were sent.

    `slots`: the slot that each frame fills, by source frame number. `oldest`: later clips show no frame before this
    one.
    """

    slots: Mapping[int, int]
    row: ClipRow | None
    oldest: int


@dataclass(frozen=True)
class VideoEnd:
    """A video, or a clip range of it, has ended after `clips` clips.

    `width` x `height`: upright. `frames`: how many source frames it has, in `duration` seconds. `damaged`: packets that
    do not decode. `trouble`: what is odd about it, if anything is. `partial`: something of it is missing. `last`: it
    was read to its end, so that the figures are those of the whole video. `transfer` and `matrix`: see `Stream`. `cpu`:
    seconds of the processor. `file`: its fingerprint, if it was fetched. `pictures`: JPEGs, if the task asked for any.
    `skipped`: how many source frames of the clip range were not decoded, because no clip shows them.
    """

    width: int = 0
    height: int = 0
    clips: int = 0
    frames: int = 0
    fps: float = 0.0
    duration: float = 0.0
    damaged: int = 0
    trouble: str = ""
    partial: bool = False
    last: bool = True
    transfer: str = ""
    matrix: str = ""
    cpu: float = 0.0
    file: tuple[int, float, str] | None = None
    pictures: tuple[bytes, ...] = ()
    skipped: int = 0


FromChild = DecoderReady | Progress | DecodedFrames | VideoEnd | VideoError
