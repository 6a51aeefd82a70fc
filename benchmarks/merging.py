"""Merging many shards, compared with copying their bytes: `vswin merge` and `cp`, each in its own process."""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.machine import Row, run
from vswin_extract.store.schema import Arrays, VideoRecord, row_types
from vswin_extract.store.write import write_output

SHARDS, VIDEOS, CLIPS = 100, 100_000, 10
EMBEDDING = 768
SETTINGS = {
    "weights_sha256": "0" * 64,
    "variant": {"name": "t"},
    "sampling": {"clip_len": 32},
    "preprocessing": {},
    "features": {"dtype": "float32", "compression": "none"},
    "precision": "fp32",
    "decoder": "pyav",
    "model": "t",
}


def merging() -> list[Row]:
    rows: list[Row] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        shards = [shard(folder / "shards" / f"{number:03}.h5", number) for number in range(SHARDS)]
        nbytes = sum(path.stat().st_size for path in shards)
        for turn in range(3):
            copied = copy(shards, folder / "copy")
            command = [sys.executable, "-c", "from vswin_extract.cli import vswin; vswin()", "merge"]
            merged = run([*command, str(folder / "out.h5"), *map(str, shards)])
            (folder / "out.h5").unlink()
            rows.append(
                {
                    "turn": turn,
                    "shards": SHARDS,
                    "videos": VIDEOS,
                    "GB": nbytes / 1e9,
                    "cp, s": copied,
                    "vswin merge, s": merged.seconds,
                    "ratio": merged.seconds / copied,
                    "memory, MB": merged.memory / 1e6,
                }
            )
    return rows


def copy(paths: list[Path], to: Path) -> float:
    """Return the seconds of `cp` and `sync`, until all bytes are on the disk."""
    to.mkdir()
    begun = time.perf_counter()
    run(["cp", *map(str, paths), str(to)])
    run(["sync", *map(str, to.iterdir())])
    seconds = time.perf_counter() - begun
    for path in to.iterdir():
        path.unlink()
    to.rmdir()
    return seconds


def shard(path: Path, number: int) -> Path:
    """Write every hundredth video, like a task of an array: the ids of all shards are interleaved."""
    arrays = Arrays({"embedding": (EMBEDDING,)})
    records = [record_of(video, CLIPS) for video in range(number, VIDEOS, SHARDS)]
    drawn = np.random.default_rng(number).standard_normal((CLIPS, EMBEDDING), np.float32)
    fixed = {name: np.ones((CLIPS, *shape), dtype) for name, (shape, dtype) in row_types(arrays).items()}
    rows = ({**fixed, "embedding": drawn + np.float32(k)} for k in range(len(records)))
    write_output(path, rows, records, [], arrays, SETTINGS, ())
    return path


def record_of(video: int, clips: int) -> VideoRecord:
    name = f"{video // 1000:03}/{video:06}.mp4"
    return VideoRecord(name, f"/videos/{name}", "ok", clips=clips)
