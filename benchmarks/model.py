"""The computed cost of runs of many videos, from rates that the other benchmarks measure; see docs/scale.md."""

import numpy as np

from benchmarks.machine import Row
from benchmarks.simulation import FPS, SAMPLING, lengths
from vswin_extract.store.layouts import SHARD_LIMIT

DECODER = 590
"""Frames of 720p per second that one decoder process on one core turns into clips: `python -m benchmarks decode`."""
DEVICE = {"T": 1000 / 1.08, "B": 1000 / 2.17}
"""Clips per second of the compiled network in bf16 on an H100; see docs/speed.md."""
FRAME = {"320x240": 0.66, "640x480": 1.02, "768x432": 0.94, "1920x1080": 3.89, "3840x2160": 18.1}
"""Processor milliseconds of a decoder process for a frame of the video: `python -m benchmarks feed`."""
PROCESSOR = {"T": 1.97, "B": 0.76}
"""Clips per second on two cores that have bf16 instructions: `python -m benchmarks forward`."""
ROW = {"embedding": 768 * 4 + 44, "stage4, space": 16 * 768 * 4, "stage4": 16 * 7 * 7 * 768 * 4}
"""Bytes per clip of T. The embedding includes frames, times and video."""
OPERATIONS = 25
"""Calls per video that look up, open, make, sync, rename or remove a file, counted by strace."""
MERGING = 0.3e9
"""Bytes per second that are merged: `python -m benchmarks merging`."""


def model() -> list[Row]:
    clips = float(np.mean(lengths(100_000, 0)))
    rows: list[Row] = []
    for videos, devices in ((10_000, 1), (1_000_000, 16), (100_000_000, 512)):
        frames = videos * clips * SAMPLING.step
        row: Row = {
            "videos": f"{videos:,}",
            "hours of video": frames / FPS / 3600,
            "M clips": videos * clips / 1e6,
            "core-hours, decoding": frames / DECODER / 3600,
            "GPUs, of 16 cores each": devices,
        }
        for variant, rate in PROCESSOR.items():
            seconds = videos * clips / DEVICE[variant]
            row[f"GPU-hours, {variant}"] = seconds / 3600
            row[f"cores a GPU, {variant}"] = frames / DECODER / seconds
            row[f"hours on 2 cores, {variant}"] = videos * clips / rate / 3600
            row[f"hours, {variant}"] = max(seconds, frames / DECODER / 16) / devices / 3600
        for name, nbytes in ROW.items():
            row[f"GB, {name}"] = videos * clips * nbytes / 1e9
        row["hours, merge of embeddings"] = videos * clips * ROW["embedding"] / MERGING / 3600
        row["M file operations"] = videos * OPERATIONS / 1e6
        row["shards"] = -(-videos // SHARD_LIMIT.videos)
        rows.append(row)
    return [{"what": what, **{row["videos"]: row[what] for row in rows}} for what in list(rows[0])[1:]]


def cores() -> list[Row]:
    """Return how many cores that only decode keep one GPU busy, by resolution and stride."""
    return [
        {"what": f"{variant}, stride {stride}"}
        | {size: rate * stride * milliseconds / 1000 for size, milliseconds in FRAME.items()}
        for variant, rate in DEVICE.items()
        for stride in (SAMPLING.span, SAMPLING.span // 2, SAMPLING.span // 4)
    ]
