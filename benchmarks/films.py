"""Long videos: what it saves to decode only what clips show, and how much faster two decoders extract one film."""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av

from benchmarks.decoders import processor_time, start_decoder
from benchmarks.gpu.commands import command
from benchmarks.machine import Row, median_costs, run
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, RESIZE, SIZE, SPAN
from benchmarks.videos import draw
from vswin_extract.feeding.messages import Task
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

GEOMETRY = Geometry(SIZE, RESIZE)
SAMPLINGS = {
    "every second frame": Sampling(CLIP_LEN, FRAME_INTERVAL, SPAN),
    "clips eight spans apart": Sampling(CLIP_LEN, FRAME_INTERVAL, 8 * SPAN),
}
SIZES = ((640, 360), (1280, 720))
RATE = 25
OPTIONS = ("--weights", "nano", "--size", "32", "--frame-interval", "32")
"""Of a command that does little but decode."""


def films(smoke: bool) -> list[Row]:
    """Return seconds without and with the frame table: of a decoder's processor for x264's default streams, and of
    whole commands for a film of an hour, by one decoder and by two."""
    rows: list[Row] = []
    for width, height in SIZES[:1] if smoke else SIZES:
        with TemporaryDirectory() as folder:
            path = draw(Path(folder) / "film.mp4", (20 if smoke else 120) * RATE, width, height, RATE, preset="medium")
            for name, sampling in SAMPLINGS.items():
                costs = decoding(path, sampling, 1 if smoke else 5)
                rows.append({"film": f"{width}x{height}", "what": f"processor: {name}", **costs})
    with TemporaryDirectory() as folder:
        minute = draw(Path(folder) / "minute.mp4", 60 * RATE, 640, 480, RATE)
        film = repeat(minute, Path(folder) / "film.mp4", 2 if smoke else 60)

        def extract(workers: int) -> float:
            given = [film, Path(folder) / "out.h5", *OPTIONS, "--overwrite", "--workers", workers]
            return run(command(given)).seconds

        costs = compared(partial(extract, 1), partial(extract, 2), 1 if smoke else 3, warm_up=False)
        rows.append({"film": "640x480", "what": "command: one decoder, two", **costs})
    return rows


def decoding(path: Path, sampling: Sampling, rounds: int) -> Row:
    """Return the median processor seconds of a decoder in sequence and by the frame table. They take turns."""
    task = Task(os.fspath(path), "pyav", sampling, GEOMETRY)
    with closing(start_decoder(sampling, GEOMETRY)) as process:
        before = partial(processor_time, process, replace(task, sequential=True))
        return compared(before, partial(processor_time, process, task), rounds)


def compared(before: Callable[[], float], now: Callable[[], float], rounds: int, warm_up: bool = True) -> Row:
    costs = median_costs({"before": before, "now": now}, rounds, warm_up)
    return {**costs, "x": costs["now"] / costs["before"]}


def repeat(piece: Path, path: Path, times: int) -> Path:
    """Write a film of a video that is shown so many times, without coding it again."""
    with av.open(str(path), "w") as film:
        stream = None
        for turn in range(times):
            with av.open(str(piece)) as source:
                video = source.streams.video[0]
                stream = stream or film.add_stream_from_template(video)
                later = turn * (video.duration or 0)
                for packet in source.demux(video):
                    if packet.size:
                        packet.pts, packet.dts = (packet.pts or 0) + later, (packet.dts or 0) + later
                        packet.stream = stream
                        film.mux(packet)
    return path
