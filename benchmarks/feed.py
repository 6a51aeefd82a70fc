"""What it costs to feed a network: processor time of a decoder, for each frame of the video, beside other decoders; and
of the worker, for each clip, with a network that costs nothing."""

import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch

from benchmarks.decoders import processor_time, start_decoder
from benchmarks.machine import Row, median_costs
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, RESIZE, SIZE, SPAN
from benchmarks.videos import draw
from vswin_extract.backbone import Features
from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.messages import Task
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.job.events import ClipsDone
from vswin_extract.journal.writer import open_writer
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video
from vswin_extract.worker.compute import Computer
from vswin_extract.worker.decoder_slots import DecoderSlots
from vswin_extract.worker.device import CpuDevice
from vswin_extract.worker.pipeline import Pipeline, clips_in_use
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.writer import Writer

SAMPLING, GEOMETRY = Sampling(CLIP_LEN, FRAME_INTERVAL, stride=SPAN), Geometry(SIZE, RESIZE)
SIZES = ((320, 240), (768, 432), (640, 480), (1920, 1080), (3840, 2160))
FRAMES = 4 * SPAN
BARE = "PyAV, bare loop"
OURS = "a decoder process"
PARENT = "the worker, a clip"


def feed(smoke: bool) -> list[Row]:
    """Return processor milliseconds for each frame of H.264 videos. Each clip begins where the one before it ends."""
    rows: list[Row] = []
    for width, height in SIZES[1:2] if smoke else SIZES:
        with TemporaryDirectory() as folder:
            path = draw(Path(folder) / "video.mp4", FRAMES, width, height)
            process = start_decoder(SAMPLING, GEOMETRY)
            try:
                costs = measure(path, process, 3 if smoke else 7)
            finally:
                process.close()
        for name, seconds in costs.items():
            cost = 1000 * seconds / FRAMES
            against = {f"x {other}": seconds / costs[other] for other in (BARE, "SPDL") if other in costs}
            rows.append({"size": f"{width}x{height}", "what": name, "ms/frame": cost, **against})
    return rows + parent(smoke)


def parent(smoke: bool) -> list[Row]:
    """Return the processor milliseconds of a worker for each clip, of all its threads, without those of its decoders.
    The network returns zeros. Rows are written to a journal as in a run."""
    rows: list[Row] = []
    for stride in (SPAN, SPAN // 4):
        sampling = Sampling(CLIP_LEN, FRAME_INTERVAL, stride)
        with TemporaryDirectory() as folder:
            video = draw(Path(folder) / "video.mp4", (24 if smoke else 64) * SPAN, 320, 240)
            for batch in (8,) if smoke else (1, 8):
                rounds = 1 if smoke else 3
                costs = [worker_time(Path(folder), video, sampling, 2, batch) for _ in range(rounds)]
                what = f"{PARENT}: stride {stride}, batches of {batch}"
                rows.append({"size": "320x240", "what": what, "ms/clip": 1000 * statistics.median(costs)})
    return rows


def worker_time(folder: Path, path: Path, sampling: Sampling, decoders: int, batch: int) -> float:
    """Return the processor seconds of a pipeline over 2 * `decoders` videos, divided by their clips."""
    device = CpuDevice(len(os.sched_getaffinity(0)))
    memory = FrameMemory.for_clips(sampling, GEOMETRY, decoders, clips_in_use(device.threads, batch))
    videos = [Video(f"{number}.mp4", path) for number in range(2 * decoders)]
    task = Task(os.fspath(path), "pyav", sampling, GEOMETRY)
    with (
        TemporaryDirectory(dir=folder) as root,
        closing(open_writer(Path(root), Arrays({"embedding": (768,)}))) as rows,
    ):
        slots = DecoderSlots(
            VideoQueue(videos, closed=True), decoders, lambda: DecoderProcess("pyav", 60.0, memory), lambda _: task
        )
        computer = Computer(lambda _, index: Features(torch.zeros(len(index), 768), {}, None), device, batch)
        begun = time.process_time()
        events = Pipeline(slots, computer, Writer(rows, "fp32", "float32")).run(threading.Event())
        clips = sum(event.clips for event in events if isinstance(event, ClipsDone))
        return (time.process_time() - begun) / clips


def measure(path: Path, process: DecoderProcess, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each way to decode the file. They take turns."""
    ways: dict[str, Callable[[], float]] = {
        BARE: partial(own_time, partial(bare, path)),
        OURS: partial(processor_time, process, Task(os.fspath(path), "pyav", SAMPLING, GEOMETRY)),
    }
    if shutil.which("ffmpeg"):
        ways["ffmpeg, bare"] = partial(command_time, path)
    if importlib.util.find_spec("spdl"):
        ways["SPDL"] = partial(own_time, partial(spdl, path))
    if importlib.util.find_spec("torchcodec"):
        ways["torchcodec, not resized"] = partial(own_time, partial(torchcodec, path))
    return median_costs(ways, rounds)


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


def torchcodec(path: Path) -> None:
    """Decode every second frame to RGB by torchcodec, clip after clip."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), seek_mode="approximate", num_ffmpeg_threads=1)
    for begin in range(0, len(decoder), SPAN):
        decoder.get_frames_in_range(begin, min(begin + SPAN, len(decoder)), FRAME_INTERVAL)
