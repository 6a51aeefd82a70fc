"""The events that a run yields, in the order in which they come. Importing them needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vswin_extract.job.shard import Shard
from vswin_extract.store.schema import VideoRecord


@dataclass(frozen=True)
class Started:
    """The model is loaded. `notes` are for the user; `resumed` of `videos` were done by an earlier run."""

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
    """Something that the user should know, said once."""

    text: str


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop; `remaining` videos are not done. The same job again continues it."""

    remaining: int


@dataclass(frozen=True)
class ClipsDone:
    """So many more clips went through the network."""

    clips: int


@dataclass(frozen=True)
class VideoDone:
    """A video is through and kept, or failed: see `record.status`. `bytes` is the size of its file."""

    record: VideoRecord
    bytes: int


@dataclass
class Profile:
    """Where a run's time went, in seconds.

    The run's own thread `loaded` the model, `waited` for decoders, was `held` up by the device and the writer, and
    `published` the output. Beside it, features were `computed`, the device's part of which was making batches of clips
    (`gathered`), and `written`; `decoded` is the processor time of all decoders together.
    """

    loaded: float = 0.0
    waited: float = 0.0
    held: float = 0.0
    published: float = 0.0
    gathered: float = 0.0
    computed: float = 0.0
    written: float = 0.0
    decoded: float = 0.0

    @classmethod
    def together(cls, profiles: "Sequence[Profile]") -> "Profile":
        """Of workers that ran beside each other: their mean, but for processor time, which adds up."""
        count = max(1, len(profiles))
        total = {field.name: sum(getattr(profile, field.name) for profile in profiles) for field in fields(cls)}
        return cls(**{name: value if name == "decoded" else value / count for name, value in total.items()})

    def verdict(self, seconds: float) -> str:
        """What the run spent most of its `seconds` on, and what would make it faster."""
        reasons = {
            "compute-bound: the network takes longest; a faster device, fewer clips or smaller weights help":
                self.computed,
            "decode-bound: the device waits for frames; add --workers, or processor cores": self.waited,
            "write-bound: features leave faster than they are stored; use --pool, --dtype float16 or a faster disk":
                self.written + self.published,
            "start-up: loading the model took longer than anything else; give it more videos at once": self.loaded,
        }  # fmt: skip
        reason, most = max(reasons.items(), key=lambda item: item[1])
        return f"{reason} ({most / seconds:.0%} of the time)" if seconds else reason


@dataclass(frozen=True)
class Finished:
    """The output is complete. The counts are of all its videos; `new_clips` of them this run computed."""

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
    """This shard's `videos` are through, `failed` of them; the output is made of all shards by `merge`. `merged`: it
    has been."""

    output: Path
    journal: Path
    shard: Shard
    videos: int
    new_clips: int
    failed: int
    seconds: float
    merged: bool
    profile: Profile


Event = Started | Notice | ClipsDone | VideoDone | Stopped | ShardDone | Finished
