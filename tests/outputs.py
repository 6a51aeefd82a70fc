"""Outputs without a network: random features, with the times and frames that the sampling gives."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vswin_extract.store.schema import Arrays, Compression, FileDescription, VideoRecord
from vswin_extract.store.write import write_output
from vswin_extract.video.sampling import Sampling

MAP = (4, 3, 3, 8)
Made = tuple[str, int, float]
"""A video: id, frames, frames per second."""


def make_output(
    path: Path,
    videos: Sequence[Made],
    sampling: Sampling,
    jitter: float = 0.0,
    compression: Compression = "none",
    failed: Sequence[str] = (),
) -> Path:
    """Write an output of these videos. With `sampling.fps`, frames are those of the resampled video. `jitter`: seconds
    by which time stamps within the second video differ from a constant rate."""
    chance = np.random.default_rng(0)
    records, rows = [], []
    for number, (name, count, rate) in enumerate(videos):
        fps = float(sampling.fps or rate)
        stamps = np.arange(count + 1) / fps
        if number == 1:
            stamps[1:-1] += jitter
        clips = [sampling.clip(k, count) for k in range(sampling.count(count))]
        stage4 = chance.standard_normal((len(clips), *MAP), np.float32)
        rows.append(
            {
                "embedding": stage4.mean((1, 2, 3)),
                "stage4": stage4,
                "clips/frames": np.array([[clip.first, clip.end] for clip in clips]),
                "clips/times": np.array([[stamps[clip.first], stamps[clip.end]] for clip in clips]),
                "clips/valid": np.array([clip.valid for clip in clips]),
            }
        )
        facts = {"fps": rate, "frames": count, "duration": count / fps, "width": 8, "height": 8, "size": 1}
        records.append(VideoRecord(name, f"/v/{name}", "ok", clips=len(clips), **facts))  # type: ignore[arg-type]
    attributes = {
        "model": "none",
        "weights_sha256": "0" * 64,
        "variant": {"name": "nano"},
        "sampling": {**asdict(sampling), "stride": sampling.step, "fps": sampling.fps and str(sampling.fps)},
        "preprocessing": {},
        "features": {"dtype": "float32", "compression": compression},
        "precision": "fp32",
        "decoder": "pyav",
        "run": "0" * 32,
    }
    arrays = Arrays({"embedding": MAP[-1:], "stage4": MAP}, compression=compression)
    description = FileDescription(arrays, attributes)
    lost = [VideoRecord(name, f"/v/{name}", "failed", error="VideoUnreadable", message="no") for name in failed]
    write_output(path, rows, records + lost, description)
    return path
