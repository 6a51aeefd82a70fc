"""What a job means for a worker: its model, the tasks of its decoders, its datasets, and its settings in words."""

import json
from dataclasses import asdict
from typing import Any

from vswin_extract.backbone import Backbone, load_model
from vswin_extract.errors import UsageError
from vswin_extract.feeding.messages import Task
from vswin_extract.job.job import Job
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video


def load_backbone(job: Job, device: str) -> Backbone:
    """Load the model of a job. Raises what `load_model` does, and UsageError for what the model cannot do."""
    backbone = load_model(
        job.weights, variant=job.variant, ema=job.ema, device=device, precision=job.precision, offline=job.offline
    )
    if job.compile == "on" and not backbone.compiles:
        raise UsageError(
            f"--compile on is for CUDA in bf16 or fp16, not for {backbone.device.type} in {backbone.precision}; "
            "use --compile off"
        )
    if job.logits and not backbone.num_classes:
        why = "".join(f" ({note})" for note in backbone.notes)
        raise UsageError(f"{backbone.name} has no classification head, so --logits has nothing to write{why}")
    return backbone


def describe_settings(job: Job, backbone: Backbone) -> dict[str, Any]:
    """Return the settings that features depend on. They are written to the output, and compared when a run
    continues."""
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
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]  # tuples become lists, as in a journal


def feature_arrays(job: Job, backbone: Backbone) -> Arrays:
    """Return the feature datasets that the job writes."""
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    shapes: dict[str, tuple[int, ...]] = {}
    if job.embedding:
        shapes["embedding"] = (backbone.variant.channels(4),)
    for stage in job.stages:
        frames = -(-sampling.clip_len // 2)
        side = -(-geometry.size // 4)
        for _ in range(stage - 1):
            side = -(-side // 2)  # patch merging pads an odd side
        channels = backbone.variant.channels(stage)
        full = {"none": (frames, side, side, channels), "space": (frames, channels), "all": (channels,)}
        shapes[f"stage{stage}"] = full[job.pool]
    if job.logits:
        shapes["logits"] = (backbone.num_classes,)
    return Arrays(shapes, job.dtype, job.compression)


def make_task(job: Job, video: Video, sampling: Sampling, geometry: Geometry, count: bool = False) -> Task:
    """Return the task of a decoder: decode a video, or only `count` its clips."""
    address = video.path if isinstance(video.path, Address) else None
    return Task(
        path=video.location,
        decoder=job.decoder,
        sampling=sampling,
        geometry=geometry,
        start=video.start,
        end=video.end,
        clip_range=video.clip_range,
        count=count,
        address=address,
        cache=job.cache() if address else None,
    )
