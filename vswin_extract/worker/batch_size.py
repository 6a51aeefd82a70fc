"""How many clips a GPU computes at once, where nobody says it: as many as surely fit into memory."""

import math
from collections.abc import Collection

from vswin_extract.network.variants import Variant
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.worker.pipeline import clips_in_use

MOST_CLIPS = 32
"""The largest batch that was measured, on an H100. It was the fastest."""
OF_DEVICE, OF_HOST = 2, 8
"""A batch may take one of so many parts of the device's free memory, and the frames of all clips that are read ahead
one of so many parts of the host's memory."""
OF_CHANNEL = 32
"""Bytes for each channel of each token of stage 1, where memory is the most: residual and norm in float32, and the two
maps of the MLP, which have four times the channels, in half precision (28 bytes), and copies of padded maps."""
OF_PIXEL = 12
"""Bytes for each value of a pixel: as it is stored, as a float, normalised, and in patches."""


def clip_bytes(
    variant: Variant, precision: str, sampling: Sampling, geometry: Geometry, stages: Collection[int]
) -> int:
    """Estimate the memory of a device that one more clip of a batch takes, in bytes. `stages`: maps that are kept."""
    sides = list(zip(variant.map_shape(1, sampling.clip_len, geometry.size)[:3], variant.window, strict=True))
    # a map is padded to whole windows
    size = math.prod(side if side <= window else -(-side // window) * window for side, window in sides)
    within = math.prod(min(side, window) for side, window in sides)
    needed = sampling.clip_len * geometry.size**2 * 3 * OF_PIXEL + size * variant.embed_dim * OF_CHANNEL
    if precision == "fp32":  # everything in float32, and PyTorch's attention stores scores, biases and weights
        needed += size * variant.embed_dim * OF_CHANNEL + 3 * 4 * variant.heads[0] * size * within
    for stage in stages:
        # the map, and what is pooled or copied of it
        needed += 2 * 4 * math.prod(variant.map_shape(stage, sampling.clip_len, geometry.size))
    return needed


def fitting_batch(free: int, of_clip: int, memory: int | None, of_frames: int, threads: int) -> int:
    """Return a power of two of clips, 1 to `MOST_CLIPS`, so that a little more or less memory seldom changes it.

    `free`: bytes of the device; `of_clip`: of them for a clip. `memory`: of the host, or None; `of_frames`: of it for
    the frames of a clip. `threads`: batches that the device computes at a time.
    """
    batch = MOST_CLIPS
    while batch > 1 and (
        batch * of_clip > free // OF_DEVICE
        or (memory is not None and clips_in_use(threads, batch) * of_frames > memory // OF_HOST)
    ):
        batch //= 2
    return batch
