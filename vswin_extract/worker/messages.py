"""What a run and its workers say to each other.

run    ──Begin, Video, Close, Stop───────────────────────> worker
run    <──Ready, events, Dropped, WorkerDone, exceptions── worker
pool   <──Heartbeat─────────────────────────────────────── worker
run    <──WorkerLost────────────────────────────────────── worker pool
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vswin_extract.job.events import Event, Profile
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video

VIDEOS_PER_DECODER = 4
"""Videos that a worker has at a time, for each of its decoders: with fewer, short videos would leave it waiting."""

DECODERS_BESIDE_GPU = 32
"""Decoder processes of a GPU, at most, unless --workers says otherwise. A fast GPU can need more (docs/scale.md), but
each takes about 100 MB."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded. `settings` are what features depend on, `arrays` the datasets that will be written,
    `attributes` and `classes` what the output will say. `decoders`: how many decoder processes the worker has."""

    settings: dict[str, Any]
    arrays: Arrays
    sampling: Sampling
    geometry: Geometry
    attributes: dict[str, Any]
    classes: tuple[str, ...]
    parameters: int
    notes: tuple[str, ...]
    decoders: int


@dataclass(frozen=True)
class Begin:
    """Write into the journal at `root`. Each worker has about this many `clips` to compute."""

    root: Path
    clips: float


@dataclass(frozen=True)
class Close:
    """No more videos will come."""


@dataclass(frozen=True)
class Stop:
    """Begin no further video; finish those in flight."""


@dataclass(frozen=True)
class Dropped:
    """The worker has dropped the rows of a piece, because its frames are not those of the frame table. The whole video
    has to be read, from its beginning."""

    piece: Video
    reason: str


@dataclass(frozen=True)
class WorkerDone:
    """The worker has finished all its videos, or was stopped. It writes nothing more into the journal. `notes` are for
    the user."""

    profile: Profile
    compiled: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """The worker lives. A thread of it sends this while the network computes."""


@dataclass(frozen=True)
class WorkerLost:
    """The worker died. The videos that it had are not done."""

    reason: str


Order = Begin | Video | Close | Stop
Message = Ready | Event | Dropped | Heartbeat | WorkerDone | WorkerLost | Exception
"""An exception ends the run: another try would not help."""
