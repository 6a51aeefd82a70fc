"""What a job means for a worker: its model, the tasks of its decoders, its datasets, and its settings in words."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vswin_extract.backbone import Backbone, load_model
from vswin_extract.errors import UsageError
from vswin_extract.feeding.messages import Task
from vswin_extract.job.job import Job
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, fingerprint


def load_backbone(job: Job, device: str) -> Backbone:
    """Load the model of a job. Raises what `load_model` does, and UsageError for what the model cannot do."""
    backbone = load_model(
        job.weights, variant=job.variant, ema=job.ema, device=device, precision=job.precision, offline=job.offline
    )
    check_backbone(job, backbone)
    return backbone


def check_backbone(job: Job, backbone: Backbone) -> None:
    """Raise UsageError if the model cannot do what the job asks for."""
    if job.compile == "on" and not backbone.compiles:
        raise UsageError(
            f"--compile on is for CUDA in bf16 or fp16, not for {backbone.device.type} in {backbone.precision}; "
            "use --compile off"
        )
    if job.logits and not backbone.num_classes:
        why = "".join(f" ({note})" for note in backbone.notes)
        raise UsageError(f"{backbone.name} has no classification head, so --logits has nothing to write{why}")


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
            "crop_pool": job.crop_pool,
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
        whole = backbone.variant.map_shape(stage, sampling.clip_len, geometry.size)
        shapes[f"stage{stage}"] = {"none": whole, "space": (whole[0], whole[3]), "all": whole[3:]}[job.pool]
    if job.logits:
        shapes["logits"] = (backbone.num_classes,)
    if job.crop_pool == "none":
        shapes = {name: (geometry.crops, *shape) for name, shape in shapes.items()}
    return Arrays(shapes, job.dtype, job.compression)


def make_task(
    job: Job, video: Video, sampling: Sampling, geometry: Geometry, count: bool = False, tables: Path | None = None
) -> Task:
    """Return the task of a decoder: decode a video, or only `count` its clips. `tables`: the directory of frame
    tables."""
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
        table=None if tables is None or not job.decodes_ranges else table_path(tables, video),
        sequential=video.sequential,
        divided=job.shard is None,
    )


def table_path(tables: Path, video: Video) -> str | None:
    """Return the file of a video's frame table, which all segments of its file share. None if it is not known which
    version of a file at an address will be fetched."""
    size, mtime, etag = fingerprint(video)
    if size < 0:
        return None
    name = json.dumps([video.location, size, mtime, etag])  # pure ASCII, whatever the name of the file
    return os.path.join(os.path.abspath(tables), f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy")
