"""Many short videos on this machine's CPU: one worker with all cores, compared with one worker per core."""

import os
import shutil
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import Row, take_turns
from benchmarks.videos import draw
from vswin_extract.job.events import ClipsDone
from vswin_extract.job.job import Job
from vswin_extract.run.run import run
from vswin_extract.video.videos import find_videos

VIDEOS = 60
SECONDS = 3
WARM = 10
"""Clips at the beginning of a run that are not counted."""


def devices() -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    names = ["cpu", f"cpu:{cores}"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        drawn = [draw(folder / f"{seconds}.mp4", 30 * seconds) for seconds in range(1, 2 * SECONDS)]
        for number in range(VIDEOS):
            shutil.copy(drawn[number % len(drawn)], folder / "videos" / f"{number}.mp4")
        rates: dict[str, list[float]] = {device: [] for device in names}

        def once(device: str) -> None:
            job = Job(find_videos([folder / "videos"]), folder / "out.h5", device=device, overwrite=True)
            marks = []
            for event in run(job):
                if isinstance(event, ClipsDone):
                    marks += [time.perf_counter()] * event.clips
            # without the start, which takes as long for sixty videos as for a million
            rates[device].append((len(marks) - WARM) / (marks[-1] - marks[WARM - 1]))

        take_turns({device: partial(once, device) for device in names}, 4)
    medians = {device: sorted(found[1:])[len(found[1:]) // 2] for device, found in rates.items()}
    return [
        {
            "device": device,
            "videos": VIDEOS,
            "seconds each, mean": SECONDS,
            "clips/s": rate,
            "x cpu": rate / medians["cpu"],
        }
        for device, rate in medians.items()
    ]
