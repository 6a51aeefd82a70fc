"""Whether `--workers auto` is as good as the best number of decoders: whole commands, in turns."""

import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.commands import command
from benchmarks.machine import Row, run
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL
from benchmarks.videos import draw

SPAN = CLIP_LEN * FRAME_INTERVAL
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
            spent: dict[str, list[float]] = {count: [] for count in [*map(str, counts), "auto"]}
            for _ in range(1 if smoke else 3):
                for count, seconds in spent.items():
                    out = Path(folder) / "out.h5"
                    given = ["--weights", "nano", "--workers", count, "--overwrite", *options]
                    seconds.append(run(command([videos, out, *given])).seconds)
        medians = {count: statistics.median(seconds) for count, seconds in spent.items()}
        best = min(seconds for count, seconds in medians.items() if count != "auto")
        rows.append({"work": name, **medians, "auto / best": medians["auto"] / best})
    return rows
