"""How evenly devices are used: the real plan and the real dispatcher, with workers that only let time pass.

A worker is a device and its decoder processes, and each decoder reads one video. A decoder gives a limited number of
clips per second, and the device divides its own rate among the decoders that give clips. The frames between a clip
range and the key frame before it are decoded and dropped first. The rates of decoders are measured on this machine; the
rates of devices are given.
"""

import heapq
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from benchmarks.decoders import start_decoder
from benchmarks.machine import Row
from benchmarks.videos import draw
from vswin_extract.errors import WorkerDied
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.job.events import Profile, VideoDone
from vswin_extract.run.dispatch import Dispatch, piece_key
from vswin_extract.run.schedule import FROM_KEY_FRAME, plan
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video
from vswin_extract.worker.messages import VIDEOS_PER_DECODER, Begin, Close, Message, Order, Ready, Stop, WorkerDone

FPS = 30
SAMPLING = Sampling(clip_len=32, frame_interval=2)
GEOMETRY = Geometry(size=224, resize=256)
DECODERS = 8
STARTS = 20.0
"""Seconds in which all workers become ready, one after another."""


def simulation() -> list[Row]:
    converted, dropped = decoder_rates()
    rows = []
    for what, rate in (("network-bound", 20.0), ("balanced", 70.0), ("decode-bound", 400.0)):
        for devices, videos, films in ((8, 8_000, 0), (64, 64_000, 0), (8, 0, 30), (64, 0, 240)):
            clips = lengths(videos, films)
            pool = Simulated(clips, devices, rate, converted / SAMPLING.step, dropped / SAMPLING.step)
            began = perf_counter()
            pieces = run(pool)
            rows.append(
                {
                    "what": what,
                    "devices": devices,
                    "clips/s each": rate,
                    "videos": videos + films,
                    "longest, clips": max(clips),
                    "pieces": pieces,
                    "hours": pool.end / 3600,
                    "idle tail": pool.idle_tail(),
                    "of the ideal": pool.ideal() / pool.end,
                    "simulated in, s": perf_counter() - began,
                }
            )
    return rows


def lengths(videos: int, films: int) -> list[int]:
    """Return clips per video, for lengths as on the web (log-normal, median a minute, up to 3 hours) and for films."""
    generator = np.random.default_rng(0)
    seconds = [*generator.lognormal(np.log(60), 1.4, videos).clip(2, 3 * 3600), *generator.uniform(1800, 10800, films)]
    return [SAMPLING.count(int(FPS * each)) for each in seconds]


def run(pool: "Simulated") -> int:
    """Extract all videos. Return how many pieces the plan has."""
    hands = len(pool.names) * DECODERS
    pieces = plan([(clips, [WHOLE]) for clips in pool.clips], hands, SAMPLING.step, uneven=True)
    work = [Video(str(piece.video), Path(), clip_range=piece.clip_range) for piece in pieces]

    def give_up(video: Video, error: WorkerDied) -> VideoRecord:
        raise error

    costs = {piece_key(video): piece.cost for video, piece in zip(work, pieces, strict=True)}
    dispatch = Dispatch(pool, work, costs, Begin(Path(), 0), check=lambda ready: None, give_up=give_up)
    for worker in range(len(pool.names)):
        pool.start(worker)
    done = {event.record.id: event.record.clips for event in dispatch.run([], threading.Event()) if
            isinstance(event, VideoDone)}  # fmt: skip
    if done != {str(video): clips for video, clips in enumerate(pool.clips)}:
        raise RuntimeError("some clips were lost, or came twice")
    return len(pieces)


@dataclass
class Stream:
    """A video in a decoder: the clips left to decode and drop, then the clips left to compute."""

    video: Video
    dropping: float
    left: float


@dataclass
class Device:
    """The state of a worker at time `now`. Expected events with another `version` are out of date."""

    now: float = 0.0
    streams: list[Stream] = field(default_factory=list)
    waiting: deque[Video] = field(default_factory=deque)
    version: int = 0
    closed: bool = False


class Simulated:
    """A `WorkerPool` of simulated devices. Its time is the time of the last received event."""

    def __init__(self, clips: Sequence[int], devices: int, rate: float, converted: float, dropped: float) -> None:
        self.clips = clips
        self.names = ["simulated"] * devices
        self.rate = rate
        self.converted = converted
        self.dropped = dropped
        self.devices = [Device() for _ in self.names]
        self.events: list[tuple[float, int, int, Message | None]] = []
        self.end = 0.0
        self.ended = [0.0] * devices

    def start(self, worker: int) -> None:
        ready = Ready({}, Arrays({}), SAMPLING, GEOMETRY, {}, (), 0, (), DECODERS)
        heapq.heappush(self.events, (STARTS * worker / len(self.names), worker, 0, ready))

    def send(self, worker: int, order: Order) -> None:
        device = self.devices[worker]
        self._advance(device, self.end)
        match order:
            case Video():
                device.waiting.append(order)
            case Close() | Stop():
                device.closed = True
        self._expect(worker)

    def capacity(self, ready: Ready) -> int | None:
        return VIDEOS_PER_DECODER * ready.decoders

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        while self.events:
            time, worker, version, message = heapq.heappop(self.events)
            device = self.devices[worker]
            if message is None and version != device.version:
                continue
            self.end = max(self.end, time)
            self._advance(device, time)
            if message is not None:
                return worker, message
            over = next((stream for stream in device.streams if stream.left <= 1e-9), None)
            if over is not None:
                device.streams.remove(over)
                self.ended[worker] = time
            self._expect(worker)
            if over is not None:
                video = over.video
                return worker, VideoDone(
                    VideoRecord(video.id, "", "ok", clips=self._clips(video), clip_range=video.clip_range), 0
                )
        return None

    def close(self) -> None:
        """Do nothing: no process runs."""

    def idle_tail(self) -> float:
        """Return the share of the devices' time after each had finished its last video."""
        return sum(self.end - ended for ended in self.ended) / (len(self.ended) * self.end)

    def ideal(self) -> float:
        """Return the seconds of a run in which all devices are always busy, and nothing is decoded twice."""
        rate = min(self.rate, DECODERS * self.converted)
        return sum(self.clips) / (rate * len(self.names))

    def _clips(self, video: Video) -> int:
        first, end = video.clip_range
        return (self.clips[int(video.id)] if end is None else end) - first

    def _advance(self, device: Device, time: float) -> None:
        passed, device.now = time - device.now, time
        each = self._share(device)
        for stream in device.streams:
            if stream.dropping > 0:
                stream.dropping = max(0.0, stream.dropping - passed * self.dropped)
                if stream.dropping < 1e-9:
                    stream.dropping = 0.0
            else:
                stream.left -= passed * each

    def _share(self, device: Device) -> float:
        computing = sum(stream.dropping == 0 for stream in device.streams)
        return min(self.converted, self.rate / max(1, computing))

    def _expect(self, worker: int) -> None:
        """Begin the videos that have a free decoder, and schedule the next event of this worker."""
        device = self.devices[worker]
        while device.waiting and len(device.streams) < DECODERS:
            video = device.waiting.popleft()
            dropping = FROM_KEY_FRAME / SAMPLING.step if video.clip_range[0] else 0.0
            device.streams.append(Stream(video, dropping, float(self._clips(video))))
        device.version += 1
        each = self._share(device)
        seconds = [
            stream.dropping / self.dropped if stream.dropping else max(0.0, stream.left) / each
            for stream in device.streams
        ]
        if seconds:
            heapq.heappush(self.events, (device.now + min(seconds), worker, device.version, None))
        elif device.closed:
            heapq.heappush(self.events, (device.now, worker, 0, WorkerDone(Profile(), False)))


def decoder_rates() -> tuple[float, float]:
    """Return the frames of 720p per second that a decoder process on this machine turns into clips, and drops."""
    with TemporaryDirectory() as name:
        path, clips = draw(Path(name) / "video.mp4", 20 * SAMPLING.step, 1280, 720), 20
        process = start_decoder(SAMPLING, GEOMETRY)

        def seconds(clip_range: ClipRange) -> float:
            task = Task(str(path), "pyav", SAMPLING, GEOMETRY, clip_range=clip_range)
            begun = perf_counter()
            process.submit(task)
            while not isinstance(process.read(), VideoEnd):
                pass
            return perf_counter() - begun

        try:
            seconds(WHOLE)
            whole, last = min(seconds(WHOLE) for _ in range(3)), min(seconds((clips - 1, None)) for _ in range(3))
        finally:
            process.close()
    converted = clips * SAMPLING.step / whole
    dropped = (clips - 1) * SAMPLING.step / (last - SAMPLING.step / converted)
    return converted, dropped
