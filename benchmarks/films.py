"""Long videos: what it saves to decode only what clips show, and how much faster two decoders extract one film."""

import os
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import av

from benchmarks.decoders import start_decoder
from benchmarks.gpu.commands import command
from benchmarks.machine import Row, run
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, RESIZE, SIZE
from benchmarks.videos import draw
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

SPAN = CLIP_LEN * FRAME_INTERVAL
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
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(1 if smoke else 3):
            for workers, spent in seconds.items():
                out = Path(folder) / "out.h5"
                spent.append(run(command([film, out, *OPTIONS, "--overwrite", "--workers", str(workers)])).seconds)
        one, two = (statistics.median(spent) for spent in seconds.values())
        rows.append({"film": "640x480", "what": "command: one decoder, two", "before": one, "now": two, "x": two / one})
    return rows


def decoding(path: Path, sampling: Sampling, rounds: int) -> Row:
    """Return the median processor seconds of a decoder in sequence and by the frame table. They take turns."""
    task = Task(os.fspath(path), "pyav", sampling, GEOMETRY)
    spent: dict[bool, list[float]] = {True: [], False: []}
    process = start_decoder(sampling, GEOMETRY)
    try:
        for turn in range(rounds + 1):
            for sequential, seconds in spent.items():
                cost = processor_time(process, replace(task, sequential=sequential))
                if turn:  # the first turn warms up
                    seconds.append(cost)
    finally:
        process.close()
    before, now = statistics.median(spent[True]), statistics.median(spent[False])
    return {"before": before, "now": now, "x": now / before}


def processor_time(process: DecoderProcess, task: Task) -> float:
    process.submit(task)
    while not isinstance(arrived := process.read(), VideoEnd):
        pass
    return arrived.cpu


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
