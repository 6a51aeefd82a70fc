"""Time complete commands on a directory of videos: `vswin-extract`, the usual script, and the roofline, which is the
least time that decoding and the network need."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch

from benchmarks import usual
from benchmarks.decode import GEOMETRY, SAMPLING, ours
from benchmarks.decoders import start_decoder
from benchmarks.forward import moving_clip
from benchmarks.gpu.commands import command
from benchmarks.machine import Row, run, synchronize
from benchmarks.videos import draw
from vswin_extract import extract, load_model

VIDEO = 5 * usual.SPAN
"""The number of frames of a video."""


def end_to_end(device: torch.device, smoke: bool) -> list[Row]:
    """Compare complete runs at several overlaps of clips."""
    rows: list[Row] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        videos = [draw(folder / "videos" / f"{k}.mp4", VIDEO) for k in range(1 if smoke else 2)]
        weights = folder / "weights.pth"
        torch.save(usual.torchvision_model("t").state_dict(), weights)
        for overlap in (2,) if smoke else (1, 2, 4):
            stride = usual.SPAN // overlap
            theirs, mine = folder / f"usual-{overlap}.h5", folder / f"ours-{overlap}.h5"
            script = [sys.executable, "-m", "benchmarks.usual", str(weights), str(theirs), str(stride), str(device)]
            usually = run([*script, *map(str, videos)])
            options = ["--weights", str(weights), "--stride", str(stride), "--tail", "drop", "--device", str(device)]
            tool = run(command([folder / "videos", mine, *options]))
            with h5py.File(theirs) as one, h5py.File(mine) as other:
                a = np.concatenate([one[str(k)][:] for k in range(len(videos))])
                b = other["embedding"][:]
            rows.append(
                {
                    "overlap": overlap,
                    "clips": len(b),
                    "the usual script, s": usually.seconds,
                    "vswin-extract, s": tool.seconds,
                    "ratio": usually.seconds / tool.seconds,
                    "of the roofline": roofline(folder, weights, device, stride),
                    "relative L2": float(np.linalg.norm(a - b) / np.linalg.norm(a)),
                }
            )
    return rows


def start(device: torch.device) -> list[Row]:
    """Time the complete command for a video of one clip, which is mostly the time to start and to end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        video = draw(folder / "video.mp4", usual.SPAN)
        weights = folder / "weights.pth"
        torch.save(usual.torchvision_model("t").state_dict(), weights)
        options = ["--weights", str(weights), "--device", str(device), "--overwrite"]
        seconds = [run(command([video, folder / "out.h5", *options])).seconds for _ in range(5)]
    return [{"what": "one clip by T, the whole command", "seconds": sorted(seconds)[2]}]


def roofline(folder: Path, weights: Path, device: torch.device, stride: int) -> float:
    """Return the least seconds that decoding and the network need, divided by the seconds of a run after loading.

    On a CPU both use the same cores, so their times add up. With a GPU only the slower one counts.
    """
    finished = extract(
        folder / "videos", folder / "roofline.h5", weights=str(weights), stride=stride, tail="drop",
        device=str(device), overwrite=True,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    process = start_decoder(SAMPLING, GEOMETRY)
    decoding = sum(ours(path, [process]) for path in sorted((folder / "videos").iterdir())) / cores
    process.close()
    computing = finished.clips / network_alone(weights, device)
    least = max(decoding, computing) if device.type == "cuda" else decoding + computing
    return least / (finished.seconds - finished.profile.loaded)


def network_alone(weights: Path, device: torch.device) -> float:
    """Return the clips per second of the network alone, called as a run calls it."""
    model = load_model(weights, device=str(device))
    count = 8 if device.type == "cuda" else 1
    threads = 1 if device.type == "cuda" else len(os.sched_getaffinity(0))
    clips = moving_clip(count)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(model, [clips] * threads))
        begun, calls = time.perf_counter(), 4 * threads
        list(pool.map(model, [clips] * calls))
        synchronize(device)
        return calls * count / (time.perf_counter() - begun)
