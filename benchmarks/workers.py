"""Whether `--workers auto` is as good as the best number of decoders: whole commands, in turns."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.commands import command
from benchmarks.machine import Row, median_costs, run
from benchmarks.usual import SPAN
from benchmarks.videos import draw

WORK = {
    "mostly decoding": ((1280, 720), 16 * SPAN, ["--size", "64"]),
    "both": ((640, 360), 12 * SPAN, []),
    "mostly the network": ((320, 240), 6 * SPAN, ["--stride", str(SPAN // 4)]),
}
"""Size and frames of each of the videos, and options."""
VIDEOS = 6


def workers(smoke: bool) -> list[Row]:
    """Return the median seconds of `vswin-extract` by `nano` for each number of decoders, and how much slower `auto` is
    than the best of them."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, 2, 3, max(1, cores // 2), cores, min(32, 2 * cores)})
    rows: list[Row] = []
    for name, ((width, height), frames, options) in WORK.items():
        with TemporaryDirectory() as folder:
            (videos := Path(folder) / "videos").mkdir()
            first = draw(videos / "0.mp4", SPAN if smoke else frames, width, height)
            for number in range(1, VIDEOS):
                os.link(first, videos / f"{number}.mp4")
            ways = {
                count: partial(seconds_of_run, videos, ["--workers", count, *options])
                for count in [*map(str, counts), "auto"]
            }
            medians = median_costs(ways, 1 if smoke else 3, warm_up=False)
        best = min(seconds for count, seconds in medians.items() if count != "auto")
        rows.append({"work": name, **medians, "auto / best": medians["auto"] / best})
    return rows


def seconds_of_run(videos: Path, options: Sequence[str]) -> float:
    return run(command([videos, videos.parent / "out.h5", "--weights", "nano", "--overwrite", *options])).seconds
