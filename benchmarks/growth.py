"""Time and memory as a job grows: more videos, longer videos, more overlap, more workers. `nano`, small frames."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.commands import command
from benchmarks.machine import Row, run
from benchmarks.videos import draw

START = {"videos": 4, "frames": 256, "overlap": 1, "workers": 1}
GROWN = {"videos": (16,), "frames": (1024,), "overlap": (4,), "workers": (2, 4)}


def growth(device: torch.device) -> list[Row]:
    rows: list[Row] = []
    jobs = [START, *({**START, what: value} for what, values in GROWN.items() for value in values)]
    with TemporaryDirectory() as name:
        for job in jobs:
            folder = Path(name) / f"{job['videos']}-{job['frames']}"
            if not folder.is_dir():
                folder.mkdir()
                for k in range(job["videos"]):
                    draw(folder / f"{k}.mp4", job["frames"])
            options = ["--size", "112", "--stride", str(64 // job["overlap"]), "--workers", str(job["workers"])]
            ran = run(command([folder, f"{name}/out.h5", "--overwrite", "--device", device, *options]))
            rows.append({**job, "seconds": ran.seconds, "memory, MB": ran.memory / 1e6})
    return rows
