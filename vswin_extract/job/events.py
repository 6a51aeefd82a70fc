"""The events that a run yields. Importing them needs neither torch nor h5py.

Started, then Notice, ClipsExpected, ClipsDone and VideoDone in any order, then one of Stopped, ShardDone and Finished
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vswin_extract.job.shard import Shard
from vswin_extract.store.schema import VideoRecord

BOTTLENECK = 0.3
"""The share of a run's time from which on a part of it counts as what holds it up."""


@dataclass(frozen=True)
class Started:
    """The model is loaded and work begins. An earlier run finished `resumed` of the `videos`; `bytes` is the size of
    the files of the others. `notes` are for the user."""

    model: str
    parameters: int
    device: str
    precision: str
    videos: int
    resumed: int
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Notice:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class ClipsDone:
    """The features of this many more clips are computed."""

    clips: int


@dataclass(frozen=True)
class ClipsExpected:
    """About how many clips this run computes in all, with those that are done. It comes again when more is known."""

    clips: int


@dataclass(frozen=True)
class VideoDone:
    """A video is finished or failed: see `record.status`. `bytes` is the size of its file."""

    record: VideoRecord
    bytes: int


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop. `remaining` videos are not done; the same job continues."""

    remaining: int


@dataclass
class Profile:
    """Where the time of a run went, in seconds.

    The thread of the run `loaded` the model, `waited` for decoders, was `held` up by the device and the writer, and
    `published` the output. At the same time other threads `gathered` clips into batches, `computed` features and
    `written` is the time of writing rows. `decoded` is the processor time of all decoders together, and
    `processor` that of the workers, with the network where it computes on the processor. `decoders` is no time: how
    many decoder processes there were at the end.
    """

    loaded: float = 0.0
    waited: float = 0.0
    held: float = 0.0
    published: float = 0.0
    gathered: float = 0.0
    computed: float = 0.0
    written: float = 0.0
    decoded: float = 0.0
    processor: float = 0.0
    decoders: int = 0

    @classmethod
    def combine(cls, profiles: "Sequence[Profile]") -> "Profile":
        """Combine the profiles of workers that ran at the same time: mean of the times, sum of the rest."""
        count = max(1, len(profiles))
        total = {field.name: sum(getattr(profile, field.name) for profile in profiles) for field in fields(cls)}
        sums = ("decoded", "processor", "decoders")
        return cls(**{name: value if name in sums else value / count for name, value in total.items()})

    def verdict(self, seconds: float) -> str:
        """Say what most of the run's `seconds` went into, and what would make the run faster."""
        frames = "decode-bound: the device waits for frames; more processor cores, or more --workers, help"
        if self.decoded < self.waited / 2:
            frames = "waiting: decoders start or read, and hardly compute; a faster disk or more videos at once help"
        reasons = {
            "compute-bound: the network takes longest; a faster device, fewer clips or smaller weights help":
                self.computed,
            frames: self.waited,
            "write-bound: features leave faster than they are stored; use --pool, --dtype float16 or a faster disk":
                self.written + self.published,
            "start-up: loading the model took longer than anything else; give it more videos at once": self.loaded,
        }  # fmt: skip
        reason, most = max(reasons.items(), key=lambda item: item[1])
        if most < BOTTLENECK * seconds:
            return f"balanced: the longest part, {reason.partition(':')[0]}, took only {most / seconds:.0%} of the time"
        return f"{reason} ({most / seconds:.0%} of the time)" if seconds else reason


@dataclass(frozen=True)
class Finished:
    """The output is complete. The counts are of all its videos; this run computed `new_clips` of the clips.

    >>> done.output.name, done.new_clips, done.partial, done.bytes > 1000
    ('out.h5', 3, 0, True)
    """

    output: Path
    videos: int
    clips: int
    new_clips: int
    partial: int
    failed: int
    seconds: float
    bytes: int
    profile: Profile


@dataclass(frozen=True)
class ShardDone:
    """The videos of this shard are done; `failed` of them failed. `vswin merge` makes the output of all shards.
    `merged` is True where that was done before."""

    output: Path
    journal: Path
    shard: Shard
    videos: int
    new_clips: int
    failed: int
    seconds: float
    merged: bool
    profile: Profile


Event = Started | Notice | ClipsExpected | ClipsDone | VideoDone | Stopped | ShardDone | Finished
