"""What a worker computes, in words: for the attributes of the output, and to compare runs and workers."""

import json
from dataclasses import asdict
from typing import Any

from vswin_extract.backbone import Backbone
from vswin_extract.job.job import Job
from vswin_extract.store.schema import Arrays


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
