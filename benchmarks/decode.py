"""Decoding alone, compared with plain loops over the same file."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import decord

from benchmarks.decoders import start_decoder
from benchmarks.machine import Row, take_turns
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, RESIZE, SIZE, SPAN
from benchmarks.videos import draw
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

SAMPLING, GEOMETRY = Sampling(CLIP_LEN, FRAME_INTERVAL, stride=SPAN // 2), Geometry(SIZE, RESIZE)
SIZES = {"340x256": (340, 256), "720p": (1280, 720), "1080p": (1920, 1080)}


def decode(smoke: bool) -> list[Row]:
    """Return frames of video per second. Clips use every second frame, and their overlap is 2."""
    rows: list[Row] = []
    cores = len(os.sched_getaffinity(0))
    for size, (width, height) in SIZES.items():
        if smoke and size != "720p":
            continue
        with TemporaryDirectory() as folder:
            path = draw(Path(folder) / "video.mp4", SPAN * (2 if smoke else 5), width, height)
            processes = [start_decoder(SAMPLING, GEOMETRY) for _ in range(cores)]
            calls: dict[str, tuple[int, Callable[[], object]]] = {
                "PyAV loop": (1, partial(pyav_loop, path)),
                "decord loop": (1, partial(decord_loop, path)),
                "decord, clip by clip": (1, partial(decord_clips, path)),
                "ours, 1 worker": (1, partial(ours, path, processes[:1])),
                f"ours, {cores} workers": (cores, partial(ours, path, processes)),
            }
            try:
                seconds = take_turns({name: call for name, (_, call) in calls.items()}, 1 if smoke else 5)
            finally:
                for process in processes:
                    process.close()
            frames = len(decord.VideoReader(str(path)))
        for name, (videos, _) in calls.items():
            rate = videos * frames / seconds[name]
            clipwise = frames / seconds["decord, clip by clip"]
            rows.append({"size": size, "what": name, "frames/s": rate, "x decord, clip by clip": rate / clipwise})
    return rows


def pyav_loop(path: Path) -> None:
    """Decode the file, and convert every second frame to RGB without resizing."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number % FRAME_INTERVAL == 0:
                frame.to_ndarray(format="rgb24")


def decord_loop(path: Path) -> None:
    reader = decord.VideoReader(str(path), num_threads=1)
    for number in range(0, len(reader), FRAME_INTERVAL):
        reader[number].asnumpy()


def decord_clips(path: Path) -> None:
    reader = decord.VideoReader(str(path), num_threads=1)
    for start in range(0, len(reader) - SPAN + 1, SPAN // 2):
        reader.get_batch(range(start, start + SPAN, FRAME_INTERVAL)).asnumpy()


def ours(path: Path, processes: Sequence[DecoderProcess]) -> float:
    """Decode the same video in each process, and receive its clips here. Return the CPU seconds of all processes."""
    for process in processes:
        process.submit(Task(str(path), "pyav", SAMPLING, GEOMETRY))
    cpu = 0.0
    for process in processes:
        while not isinstance(arrived := process.read(), VideoEnd):
            pass
        cpu += arrived.cpu
    return cpu
