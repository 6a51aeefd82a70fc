"""What one device does with the videos that it is given, wherever it is: in this process, in another, on another host.

    driver ──Begin, Video, Close, Stop──> worker ──Ready, events, WorkerDone──> driver

A worker loads the model, says what it will compute (Ready), and writes what it extracts into a shard directory
of the journal.
"""

import contextlib
import json
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vswin_extract.backbone import Backbone, load_model
from vswin_extract.errors import DeviceError, UsageError
from vswin_extract.job.events import Event, Notice, Profile
from vswin_extract.job.job import Job
from vswin_extract.journal.writer import JournalWriter
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video
from vswin_extract.worker.pipeline import Pipeline, VideoQueue, row_shapes
from vswin_extract.worker.writer import Writer

COMPILE_FROM = 100_000
"""Clips from which on a GPU compiling, which takes about a minute, is expected to pay; still to be measured."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded: what features will be like, and what the output will say of how they were made."""

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
    """Where to write: the journal of this run. About so many `clips` lie ahead of each worker."""

    root: Path
    run: str
    clips: float


@dataclass(frozen=True)
class Close:
    """No more videos will come."""


@dataclass(frozen=True)
class Stop:
    """Begin no further video."""


@dataclass(frozen=True)
class WorkerDone:
    """A worker has nothing left to do."""

    profile: Profile
    compiled: bool


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, with the videos that it had."""

    reason: str


Order = Begin | Video | Close | Stop
Message = Ready | Event | WorkerDone | WorkerLost | Exception
"""An exception ends the run: nothing that another worker or another try would mend."""


class Worker:
    """A model on a device, with so many `cores` of the machine to itself. Raises what `load_model` does."""

    def __init__(self, job: Job, device: str, cores: int) -> None:
        begun = time.monotonic()
        self.job = job
        self.cores = cores
        self.backbone = load(job, device)
        self.sampling, self.geometry = job.sampling(self.backbone.recipe), job.geometry(self.backbone.recipe)
        cuda = self.backbone.device.type == "cuda"
        self.batch_size = job.batch_size or (8 if cuda else 1)
        # On a CPU the network needs the cores, and two decoders keep up with it; beside a GPU decoding needs them.
        usual = max(1, min(8, cores - 1)) if cuda else max(1, min(cores, max(2, cores // 4)))
        self.decoders = job.workers or usual
        self.loaded = time.monotonic() - begun

    def ready(self) -> Ready:
        backbone = self.backbone
        settings = describe(self.job, backbone)
        return Ready(
            settings=settings,
            arrays=row_shapes(self.job, backbone, self.sampling, self.geometry),
            sampling=self.sampling,
            geometry=self.geometry,
            attributes={
                **settings,
                "model": backbone.name,
                "weights_source": backbone.source,
                "weights_license": backbone.license,
                "device": str(backbone.device),
                "batch_size": self.batch_size,
                "compiled": False,
                "workers": self.decoders,
                "versions": versions(),
            },
            classes=tuple(backbone.classes) if self.job.logits else (),
            parameters=backbone.parameter_count,
            notes=backbone.notes,
            decoders=self.decoders,
        )

    def run(
        self, journal: JournalWriter, clips: float, video_queue: VideoQueue, stopping: threading.Event
    ) -> Iterator[Event | WorkerDone]:
        """Extract what is fed into the journal. About so many `clips` lie ahead."""
        job, backbone = self.job, self.backbone
        compiled = job.compile == "on" or (job.compile == "auto" and backbone.compiles and clips > COMPILE_FROM)
        if compiled:
            shape = (self.batch_size, self.sampling.clip_len, self.geometry.size, self.geometry.size, 3)
            try:
                zeros = torch.zeros(shape, dtype=torch.uint8)
                backbone.compile_for(zeros, stages=job.stages, embedding=job.embedding, logits=job.logits)
            except DeviceError as error:
                if job.compile == "on":
                    raise
                compiled = False
                yield Notice(str(error))
        writer = Writer(journal, backbone.precision, job.dtype)
        pipeline = Pipeline(job, backbone, writer, self.sampling, self.geometry, self.batch_size, self.cores)
        yield from pipeline.run(video_queue, self.decoders, stopping)
        pipeline.profile.loaded = self.loaded
        yield WorkerDone(pipeline.profile, compiled)


def load(job: Job, device: str) -> Backbone:
    """The job's model on a device. Raises what `load_model` does, and UsageError for what it cannot do."""
    backbone = load_model(job.weights, variant=job.variant, device=device, precision=job.precision)
    if job.compile == "on" and not backbone.compiles:
        raise UsageError(
            f"--compile on is for CUDA in bf16 or fp16; on {backbone.device.type} in {backbone.precision} the network "
            "is faster as it is"
        )
    if job.logits and not backbone.num_classes:
        why = "".join(f" ({note})" for note in backbone.notes)
        raise UsageError(f"{backbone.name} has no classification head, so --logits has nothing to write{why}")
    return backbone


def describe(job: Job, backbone: Backbone) -> dict[str, Any]:
    """The settings that features depend on: written to the file, and compared when a run is continued."""
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    settings = {
        "weights_sha256": backbone.sha256,
        "variant": asdict(backbone.variant),
        "sampling": {**asdict(sampling), "stride": sampling.step, "fps": sampling.fps and str(sampling.fps)},
        "preprocessing": {**asdict(geometry), "mean": backbone.recipe.mean, "std": backbone.recipe.std},
        "features": {
            "stages": job.stages,
            "pool": job.pool,
            "embedding": job.embedding,
            "logits": job.logits,
            "dtype": job.dtype,
            "compression": job.compression,
        },
        "precision": backbone.precision,
        "decoder": job.decoder,
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]  # as a journal gives it back


def versions() -> dict[str, str]:
    """Versions of this tool and of what it computes with."""
    found = {"python": platform.python_version()}
    for package in ("vswin-extract", "torch", "numpy", "av", "decord2", "h5py"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
