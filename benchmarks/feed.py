"""What it costs to feed a network: processor time of a decoder, for each frame of the video, beside other decoders."""

import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av

from benchmarks.machine import Row
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, RESIZE, SIZE
from benchmarks.videos import draw
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

SPAN = CLIP_LEN * FRAME_INTERVAL
SIZES = ((320, 240), (768, 432), (640, 480), (1920, 1080), (3840, 2160))
FRAMES = 4 * SPAN
BARE = "PyAV, bare loop"
OURS = "a decoder process"


def feed(smoke: bool) -> list[Row]:
    """Return processor milliseconds for each frame of H.264 videos. Each clip begins where the one before it ends."""
    rows: list[Row] = []
    for width, height in SIZES[1:2] if smoke else SIZES:
        with TemporaryDirectory() as folder:
            path = draw(Path(folder) / "video.mp4", FRAMES, width, height)
            process = DecoderProcess("pyav", 60.0)
            try:
                costs = measure(path, process, 3 if smoke else 7)
            finally:
                process.close()
        for name, seconds in costs.items():
            cost = 1000 * seconds / FRAMES
            against = {f"x {other}": seconds / costs[other] for other in (BARE, "SPDL") if other in costs}
            rows.append({"size": f"{width}x{height}", "what": name, "ms/frame": cost, **against})
    return rows


def measure(path: Path, process: DecoderProcess, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each way to decode the file. They take turns."""
    ways: dict[str, Callable[[], float]] = {
        BARE: partial(own_time, partial(bare, path)),
        OURS: partial(decoder_time, path, process),
    }
    if shutil.which("ffmpeg"):
        ways["ffmpeg, bare"] = partial(command_time, path)
    if importlib.util.find_spec("spdl"):
        ways["SPDL"] = partial(own_time, partial(spdl, path))
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:  # the first turn warms up
                spent[name].append(seconds)
    return {name: statistics.median(each) for name, each in spent.items()}


def own_time(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def command_time(path: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def decoder_time(path: Path, process: DecoderProcess) -> float:
    sampling = Sampling(CLIP_LEN, FRAME_INTERVAL, stride=SPAN)
    process.submit(Task(os.fspath(path), "pyav", sampling, Geometry(SIZE, RESIZE)))
    while not isinstance(arrived := process.read(), VideoEnd):
        pass
    return arrived.cpu


def bare(path: Path) -> None:
    """Decode the file, and convert nothing."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass


def spdl(path: Path) -> None:
    """Decode the file; every second frame is resized, cropped and converted to RGB."""
    import spdl.io  # type: ignore[import-not-found, unused-ignore]

    filters = (
        f"select='not(mod(n,{FRAME_INTERVAL}))',scale=w=-1:h={RESIZE}:flags=bilinear,crop={SIZE}:{SIZE},"
        "format=pix_fmts=rgb24"
    )
    packets = spdl.io.demux_video(str(path))
    spdl.io.to_numpy(spdl.io.convert_frames(spdl.io.decode_packets(packets, filter_desc=filters)))
