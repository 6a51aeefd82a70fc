"""Outputs made without a network: random features with times by the sampling's arithmetic, or given embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.store import layouts
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
    """An output of these videos. With `sampling.fps`, frames are those of the resampled video. `jitter`: seconds by
    which time stamps within the second video lie off a constant rate."""
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
    lost = [VideoRecord(name, f"/v/{name}", "failed", error="VideoUnreadable", message="no") for name in failed]
    write_output(path, rows, records + lost, FileDescription(arrays, attributes))
    return path


def make_embedded(
    path: Path,
    videos: Mapping[str, NDArray[Any]],
    run: str = "1",
    layout: layouts.Layout = "single",
    shard_videos: int = layouts.SHARD_LIMIT.videos,
) -> Path:
    """An output of videos by id, with these embeddings (clips, C); clip k covers seconds [k, k + 2)."""
    channels = next(iter(videos.values())).shape[1]
    records = [
        VideoRecord(name, f"/nowhere/{name}", "ok", clips=len(rows), fps=8.0, frames=8 * len(rows) + 8)
        for name, rows in videos.items()
    ]

    def pieces(wanted: Sequence[VideoRecord]) -> Any:
        for record in wanted:
            k = np.arange(record.clips)[:, None]
            yield {
                "embedding": videos[record.id],
                "clips/frames": np.hstack([8 * k, 8 * k + 16]),
                "clips/times": np.hstack([k, k + 2.0]),
                "clips/valid": np.full(record.clips, 8),
            }

    attributes = {
        "model": "mine.pth",
        "weights_sha256": "ab" * 32,
        "variant": {"name": "nano"},
        "sampling": {"clip_len": 8},
        "preprocessing": {},
        "features": {"dtype": "float32", "compression": "none"},
        "precision": "fp32",
        "decoder": "pyav",
        "run": run * 32,
    }
    arrays = Arrays({"embedding": (channels,)})
    layouts.make_output(
        path, path.with_name("unfinished"), layout, pieces, records, FileDescription(arrays, attributes),
        shard_limit=layouts.ShardLimit(videos=shard_videos),
    )  # fmt: skip
    return path


def random_embeddings(seed: int, *counts: int, channels: int = 16) -> dict[str, NDArray[np.float32]]:
    """Normally distributed embeddings of the videos v/0.mp4, v/1.mp4…, each of so many clips."""
    chance = np.random.default_rng(seed)
    return {
        f"v/{number}.mp4": chance.standard_normal((count, channels), np.float32) for number, count in enumerate(counts)
    }


def scenes(*lengths: int, seed: int = 0, noise: float = 0.1) -> NDArray[np.float32]:
    """Embeddings (clips, 64) of a video of scenes of so many clips, whose clips are alike but for noise."""
    chance = np.random.default_rng(seed)
    return np.concatenate(
        [chance.standard_normal(64) + noise * chance.standard_normal((length, 64)) for length in lengths]
    ).astype(np.float32)


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows divided by their lengths, in float64."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]
