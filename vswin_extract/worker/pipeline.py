"""The trip of all videos through one device: decode, batch, compute, write. Nobody else joins these stations.

    decoder processes ──clips──> this thread ──batches──> device's threads ──features──> writer's thread ──> journal

Decoder processes work ahead, one video each. Clips are taken from them in an order that depends on clip counts alone,
never on timing, and batches are filled across videos: so the same command makes the same batches, and the same bytes.
Nobody waits for the next station but when it is too far behind: batches in flight are bounded.

On CUDA one thread queues copies and kernels. On a CPU each thread takes a batch of its own: threads that share one
would wait for each other at every operation, as often as a decoder takes a core from one of them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vswin_extract.backbone import Backbone
from vswin_extract.decoding.messages import Task, VideoEnd
from vswin_extract.decoding.process import DecodedClip, DecoderProcess
from vswin_extract.errors import VideoDamaged, VideoError
from vswin_extract.job.events import ClipsDone, Event, Notice, Profile
from vswin_extract.job.job import Job
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry, Pixels
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.writer import InFlightVideo, Writer

MOST_THREADS = 8
"""Batches that a CPU computes at once; more cores share these. More threads would wait for Python's lock."""
IDLE = 0.2
"""Seconds between looks at whether to stop, while there is nothing to do."""


class VideoQueue:
    """The videos that a pipeline is to take, in order: all at once, or one after another until it is closed. Any
    thread may give."""

    def __init__(self, videos: Iterable[Video] = (), closed: bool = False) -> None:
        self.videos = deque(videos)
        self.closed = closed
        self.changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether no more will come."""
        return self.closed and not self.videos

    def give(self, video: Video) -> None:
        with self.changed:
            self.videos.append(video)
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()

    def take(self) -> Video | None:
        """The next video, or None where there is none now."""
        with self.changed:
            return self.videos.popleft() if self.videos else None

    def wait(self, seconds: float) -> None:
        """Until there is a video, or it is closed, but no longer than so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.videos or self.closed, seconds)


@dataclass
class DecoderSlot:
    """A decoder process and the videos it was given, the one that `read` speaks of first."""

    decoder: DecoderProcess
    in_flight_videos: deque[InFlightVideo]


@dataclass(frozen=True)
class Batch:
    """Features of clips in host memory, or on their way there: `wait` before they are read.

    `gathered`: seconds that making the batch took. `begun` and `ended` are marks of the device's queue, or seconds of
    the clock.
    """

    values: dict[str, torch.Tensor]
    gathered: float
    begun: torch.cuda.Event | float
    ended: torch.cuda.Event | float

    def wait(self) -> float:
        """Seconds for which the device was busy with it."""
        if isinstance(self.begun, float) or isinstance(self.ended, float):
            return float(self.ended) - float(self.begun)  # type: ignore[arg-type]
        self.ended.synchronize()
        return float(self.begun.elapsed_time(self.ended)) / 1000


class Pipeline:
    """Takes videos through the backbone to the writer. `profile` says where the time went so far."""

    def __init__(
        self,
        job: Job,
        backbone: Backbone,
        writer: Writer,
        sampling: Sampling,
        geometry: Geometry,
        batch_size: int,
        cores: int,
    ) -> None:
        self.job = job
        self.backbone = backbone
        self.writer = writer
        self.sampling = sampling
        self.geometry = geometry
        self.batch_size = self.announced = batch_size
        self.batch: list[tuple[InFlightVideo, DecodedClip]] = []
        self.cuda = backbone.device.type == "cuda"
        self.threads = 1 if self.cuda else min(cores, MOST_THREADS)
        # The first batch has the machine to itself. How many cores share a clip does not change its features.
        self.cores_each = chain([cores], repeat(max(1, cores // self.threads)))
        self.computing = ThreadPoolExecutor(self.threads, "computing")
        self.writing = ThreadPoolExecutor(1, "writing")
        self.given: deque[Future[list[Event]]] = deque()
        self.copies = torch.cuda.Stream(backbone.device) if self.cuda else None  # type: ignore[no-untyped-call]
        self.profile = Profile()

    def run(self, video_queue: VideoQueue, workers: int, stopping: threading.Event) -> Iterator[Event]:
        """Extract the videos that are fed. Yields ClipsDone and VideoDone; a video that fails does not end it.

        Once `stopping` is set no further video is begun, and it ends when those that are in flight are through.
        """
        count = min(workers, max(1, len(video_queue.videos))) if video_queue.closed else workers
        slots = deque(DecoderSlot(DecoderProcess(self.job.decoder, self.job.timeout), deque()) for _ in range(count))
        before = torch.get_num_threads()
        try:
            # Two videos each, so that a decoder need not wait between them.
            for slot in [*slots, *slots]:
                self._give(slot, video_queue)
            while slots:
                slot = slots[0]
                if stopping.is_set():
                    video_queue.close()
                    video_queue.videos.clear()
                    for other in slots:
                        while len(other.in_flight_videos) > 1:
                            other.in_flight_videos.pop()
                if not slot.in_flight_videos:
                    self._give(slot, video_queue)
                if not slot.in_flight_videos and video_queue.over:
                    slot.decoder.close()
                    slots.popleft()
                    continue
                if not any(other.in_flight_videos for other in slots):  # out of work for now, so nothing is held back
                    yield from self._compute()
                    while self.given:
                        yield from self._written()
                    video_queue.wait(IDLE)
                    continue
                if not slot.in_flight_videos:
                    slots.rotate(-1)
                    continue
                in_flight = slot.in_flight_videos[0]
                arrived = self._read(slot.decoder)
                if isinstance(arrived, VideoError):
                    slot.in_flight_videos.popleft()
                    self._give(slot, video_queue)
                    yield from self._later(partial(self.writer.fail, in_flight, arrived))
                elif isinstance(arrived, DecodedClip):
                    self.batch.append((in_flight, arrived))
                    slots.rotate(-1)  # every decoder in turn, so that all of them work
                    if len(self.batch) >= self.batch_size:
                        yield from self._compute()
                else:
                    slot.in_flight_videos.popleft()
                    self._give(slot, video_queue)
                    self.profile.decoded += arrived.cpu
                    if arrived.partial and self.job.partial == "fail":
                        damaged = VideoDamaged(f"{arrived.trouble}; {arrived.frames} frames decode")
                        yield from self._later(partial(self.writer.fail, in_flight, damaged))
                    else:
                        yield from self._later(partial(self.writer.end, in_flight, arrived))
            yield from self._compute()
            while self.given:
                yield from self._written()
        finally:
            for slot in slots:
                slot.decoder.close()
            self.computing.shutdown(cancel_futures=True)
            self.writing.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # which is the whole process's

    def _give(self, slot: DecoderSlot, video_queue: VideoQueue) -> None:
        video = video_queue.take()
        if video is None:
            return
        slot.in_flight_videos.append(InFlightVideo(video, *fingerprint(video)))
        slot.decoder.submit(decoding(self.job, video, self.sampling, self.geometry))

    def _read(self, decoder: DecoderProcess) -> DecodedClip | VideoEnd | VideoError:
        begun = time.perf_counter()
        try:
            return decoder.read()
        except VideoError as error:
            return error
        finally:
            self.profile.waited += time.perf_counter() - begun

    def _later(self, work: Callable[[], list[Event]]) -> Iterator[Event]:
        """Have the writer do this behind what it was given before; yield what has come of that."""
        self.given.append(self.writing.submit(work))
        while self.given and (self.given[0].done() or len(self.given) > 2 * self.threads + 4):
            yield from self._written()

    def _written(self) -> list[Event]:
        """What came of the oldest that the writer was given; raises what it raised."""
        begun = time.perf_counter()
        events = self.given.popleft().result()
        self.profile.held += time.perf_counter() - begun
        return events

    def _compute(self) -> Iterator[Event]:
        """Send the batch through the network, and its rows to the writer."""
        batch, self.batch = self.batch, []
        if not batch:
            return
        clips = [clip for _, clip in batch]
        places = {
            "clips/frames": np.array([clip.frames for clip in clips]),
            "clips/times": np.array([clip.times for clip in clips]),
            "clips/valid": np.array([clip.valid for clip in clips]),
        }
        features = self.computing.submit(self._features, clips, next(self.cores_each))
        yield from self._later(partial(self._write, [in_flight for in_flight, _ in batch], features, places))

    def _write(
        self,
        in_flight_videos: Sequence[InFlightVideo],
        features: "Future[list[Batch]]",
        places: dict[str, NDArray[Any]],
    ) -> list[Event]:
        """In the writer's thread: wait for a batch's features and write them."""
        parts = features.result()
        events: list[Event] = [ClipsDone(len(in_flight_videos))]
        if self.batch_size < self.announced:
            events.append(
                Notice(f"out of memory with batches of {self.announced} clips; going on with {self.batch_size}")
            )
            self.announced = self.batch_size
        self.profile.computed += sum(part.wait() for part in parts) / self.threads
        self.profile.gathered += sum(part.gathered for part in parts) / self.threads
        begun = time.perf_counter()
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the writer refuses
            rows = {
                name: torch.cat([part.values[name] for part in parts]).numpy().astype(self.job.dtype)
                for name in parts[0].values
            }
        events += self.writer.rows(in_flight_videos, {**rows, **places})
        self.profile.written += time.perf_counter() - begun
        return events

    def _features(self, clips: Sequence[DecodedClip], cores: int) -> list[Batch]:
        """The clips' features. Where memory does not suffice, in two halves, and so from then on."""
        if not self.cuda:
            torch.set_num_threads(cores)
        try:
            return [self._forward(clips)]
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, whose traceback holds on to tensors
        half = len(clips) // 2
        self.batch_size = min(self.batch_size, len(clips) - half)
        self.backbone.compiled_for = min(self.backbone.compiled_for, self.batch_size)
        return [*self._features(clips[:half], cores), *self._features(clips[half:], cores)]

    def _forward(self, clips: Sequence[DecodedClip]) -> Batch:
        """Features of a batch, averaged over the crops of each clip."""
        gathering = time.perf_counter()
        views = [self._pixels([clip.views[view] for clip in clips]) for view in range(len(clips[0].views))]
        gathered = time.perf_counter() - gathering
        total: dict[str, torch.Tensor] = {}
        begun = self._mark()
        for pixels in views:
            features = self.backbone(
                pixels, self.job.stages, self.job.pool, embedding=self.job.embedding, logits=self.job.logits
            )
            named = {f"stage{stage}": values for stage, values in features.stages.items()}
            if features.embedding is not None:
                named["embedding"] = features.embedding
            if features.logits is not None:
                named["logits"] = features.logits
            for name, values in named.items():
                total[name] = total[name] + values if name in total else values
        host = {name: (values / len(views)).to("cpu", non_blocking=True) for name, values in total.items()}
        return Batch(host, gathered, begun, self._mark())

    def _pixels(self, clips: Sequence[Sequence[Pixels]]) -> torch.Tensor:
        """Clips of frames as one batch on the device, (N, T, H, W, 3); on CUDA only on its way there."""
        shape = (len(clips), len(clips[0]), *clips[0][0].shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.cuda)
        for clip, into in zip(clips, pixels.numpy(), strict=True):
            np.stack(clip, out=into)
        if self.copies is not None:  # copied while the batch before is computed
            with torch.cuda.stream(self.copies):
                pixels = pixels.to(self.backbone.device, non_blocking=True)
            now = torch.cuda.current_stream(self.backbone.device)
            now.wait_stream(self.copies)
            pixels.record_stream(now)
        return pixels

    def _mark(self) -> torch.cuda.Event | float:
        if not self.cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self.backbone.device))
        return mark


def decoding(job: Job, video: Video, sampling: Sampling, geometry: Geometry, count: bool = False) -> Task:
    """A video as a decoder's task."""
    address = video.path if isinstance(video.path, Address) else None
    return Task(
        path=video.location,
        decoder=job.decoder,
        sampling=sampling,
        geometry=geometry,
        start=video.start,
        end=video.end,
        clip_range=video.clip_range,
        count=count,
        address=address,
        cache=job.cache() if address else None,
    )


def row_shapes(job: Job, backbone: Backbone, sampling: Sampling, geometry: Geometry) -> Arrays:
    """The feature datasets that a job writes."""
    shapes: dict[str, tuple[int, ...]] = {}
    if job.embedding:
        shapes["embedding"] = (backbone.variant.channels(4),)
    for stage in job.stages:
        frames = -(-sampling.clip_len // 2)
        side = -(-geometry.size // 4)
        for _ in range(stage - 1):
            side = -(-side // 2)  # patch merging pads an odd side
        channels = backbone.variant.channels(stage)
        full = {"none": (frames, side, side, channels), "space": (frames, channels), "all": (channels,)}
        shapes[f"stage{stage}"] = full[job.pool]
    if job.logits:
        shapes["logits"] = (backbone.num_classes,)
    return Arrays(shapes, job.dtype, job.compression)
