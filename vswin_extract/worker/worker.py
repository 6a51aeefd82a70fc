"""A worker: a model on a device that extracts the videos it is given. It runs in this process, in a child process or on
another host; `serve` is the same everywhere."""

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from vswin_extract.backbone import Backbone
from vswin_extract.errors import DeviceError, VswinError
from vswin_extract.feeding.frame_memory import FrameMemory, most_decoders
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.job.events import Notice
from vswin_extract.job.job import Job
from vswin_extract.job.versions import installed_versions
from vswin_extract.journal.directory import tables_directory
from vswin_extract.journal.writer import open_writer
from vswin_extract.system import container_memory, memory, require_address_space
from vswin_extract.video.videos import Video
from vswin_extract.worker.batch_size import clip_bytes, fitting_batch
from vswin_extract.worker.compute import Computer
from vswin_extract.worker.decoder_slots import DecoderSlots
from vswin_extract.worker.device import CudaDevice, make_device
from vswin_extract.worker.messages import (
    DECODERS_BESIDE_GPU,
    Begin,
    Close,
    Heartbeat,
    Message,
    Order,
    Ready,
    Stop,
    WorkerDone,
)
from vswin_extract.worker.pipeline import Pipeline, clips_in_use
from vswin_extract.worker.settings import check_backbone, describe_settings, feature_arrays, load_backbone, make_task
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.writer import Writer

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a worker, or an eighth of the job's timeout if that is less."""
FOR_VIDEOS, FOR_CORE = 512 << 20, 64 << 20
"""Bytes of address space that a worker needs once its model is loaded, and more for each core: threads have stacks and
heaps of their own. Measured on two cores, with small clips."""
COMPILE_FROM = 50_000
"""Clips from which compiling on a GPU pays. On an H100 with 16 cores it took 20 s, and saved 0.8 ms (T) to 1.1 ms (B) a
clip; with few cores it takes two or three times as long."""


class Worker:
    """A model on a device, with this many `cores` of the machine to itself. `backbone`: the model, if it is loaded
    already. Raises what `load_model` does."""

    def __init__(self, job: Job, device: str, cores: int, backbone: Backbone | None = None) -> None:
        begun = time.monotonic()
        self.job = job
        self.cores = cores
        if backbone is not None:
            check_backbone(job, backbone)
        self.backbone = backbone or load_backbone(job, device)
        self.sampling, self.geometry = job.sampling(self.backbone.recipe), job.geometry(self.backbone.recipe)
        kind = self.backbone.device.type
        self.batch_size = job.batch_size or self._fitting_batch()
        # On a CPU the network needs the cores, and few decoders keep up with it; more are started where they do not.
        # Beside a GPU, decoding needs the cores.
        beside_gpu = max(1, min(DECODERS_BESIDE_GPU, cores - 1))
        usual = max(1, min(cores, max(2, cores // 4))) if kind == "cpu" else beside_gpu
        self.decoders = job.workers or usual
        # timing must not decide which clips share a batch
        grows = job.workers is None and kind == "cpu" and self.batch_size == 1
        self.most_decoders = min(DECODERS_BESIDE_GPU, cores) if grows else self.decoders
        require_address_space(FOR_VIDEOS + cores * FOR_CORE, "extracting with these weights")
        self.loaded = time.monotonic() - begun

    def ready(self) -> Ready:
        """Describe what this worker will compute."""
        backbone = self.backbone
        settings = describe_settings(self.job, backbone)
        return Ready(
            settings=settings,
            arrays=feature_arrays(self.job, backbone),
            sampling=self.sampling,
            geometry=self.geometry,
            attributes={
                **settings,
                "model": backbone.name,
                "weights_source": backbone.source,
                "weights_license": backbone.license,
                "device": str(backbone.device),
                "batch_size": self.batch_size,
                "compiled": False,
                "workers": self.decoders,
                "versions": installed_versions(),
            },
            classes=tuple(backbone.classes) if self.job.logits else (),
            parameters=backbone.parameter_count,
            notes=backbone.notes,
            decoders=self.decoders,
        )

    def run(self, begin: Begin, queue: VideoQueue, stopping: threading.Event) -> Generator[Message, None, None]:
        """Extract the videos of a queue into the journal."""
        compiled = False
        if self._should_compile(begin.clips):
            try:
                self._compile()
                compiled = True
            except DeviceError as error:
                if self.job.compile == "on":
                    raise
                yield Notice(str(error))
        with open_writer(begin.root, feature_arrays(self.job, self.backbone)) as journal:
            tables = tables_directory(begin.root)
            pipeline = self.pipeline(queue, Writer(journal, self.backbone.precision, self.job.dtype), tables)
            yield from pipeline.run(stopping)
            journal.close(pack=stopping.is_set())  # otherwise the output is made next
        pipeline.profile.loaded = self.loaded
        change = self.backbone.file.describe_change() if self.backbone.file else ""
        yield WorkerDone(pipeline.profile, compiled, (change,) if change else ())

    def _fitting_batch(self) -> int:
        """Return the clips of a batch where the job does not say it: on CUDA as many as fit into memory, else 1."""
        device, sampling, geometry = self.backbone.device, self.sampling, self.geometry
        if device.type != "cuda":
            return 1
        free, _ = torch.cuda.mem_get_info(device)
        of_clip = clip_bytes(self.backbone.variant, self.backbone.precision, sampling, geometry, self.job.stages)
        of_frames = sampling.clip_len * math.prod(geometry.shape)
        limits = [limit for limit in (memory()[1], (container_memory() or (0, 0))[1]) if limit]
        return fitting_batch(free, of_clip, min(limits, default=None), of_frames, CudaDevice.threads)

    def pipeline(self, queue: VideoQueue, writer: Writer, tables: Path | None = None) -> Pipeline:
        """Start decoder processes, and return the pipeline that takes the videos of a queue through this worker.
        `tables`: the directory where frame tables are kept."""
        job, backbone = self.job, self.backbone
        device = make_device(backbone.device, self.cores)
        clips = clips_in_use(device.threads, self.batch_size)
        most = min(self.most_decoders, most_decoders(self.sampling, self.geometry, clips))
        most = max(most, self.decoders)
        frames = FrameMemory.for_clips(self.sampling, self.geometry, most, clips)
        slots = DecoderSlots(
            queue,
            self.decoders,
            open_decoder=lambda: DecoderProcess(job.decoder, job.timeout, frames),
            make_task=lambda video: make_task(job, video, self.sampling, self.geometry, tables=tables),
            most=most,
        )
        computer = Computer(
            lambda frames, index: backbone.of_frames(
                frames, index, job.stages, job.pool, embedding=job.embedding, logits=job.logits
            ),
            device,
            self.batch_size,
            on_shrink=backbone.limit_batch,
            crop_pool=job.crop_pool,
        )
        return Pipeline(slots, computer, writer, job.dtype, keep_partial=job.partial == "keep")

    def _should_compile(self, clips: float) -> bool:
        if self.job.compile == "auto":
            return self.backbone.compiles and clips > COMPILE_FROM
        return self.job.compile == "on"

    def _compile(self) -> None:
        job = self.job
        shape = (self.batch_size, self.sampling.clip_len, self.geometry.size, self.geometry.size, 3)
        zeros = torch.zeros(shape, dtype=torch.uint8)
        self.backbone.compile_for(zeros, stages=job.stages, embedding=job.embedding, logits=job.logits)


def serve(job: Job, device: str, cores: int, receive: Callable[[], Order], send: Callable[[Message], None]) -> None:
    """Be a worker that takes orders by `receive` and answers by `send`: load the model, say Ready, wait for Begin,
    extract what comes. Send a Heartbeat now and then meanwhile. Errors of this package and of the file system are sent
    as messages. When `receive` raises EOFError or OSError, the run is gone, and this process exits."""
    with heartbeats(send, min(HEARTBEAT, job.timeout / 8)):
        _serve(job, device, cores, receive, send)


@contextmanager
def heartbeats(send: Callable[[Message], None], interval: float) -> Iterator[None]:
    """Send a Heartbeat every `interval` seconds while the block runs, by a thread."""
    over = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the run is gone
            while not over.wait(interval):
                send(Heartbeat())

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _serve(job: Job, device: str, cores: int, receive: Callable[[], Order], send: Callable[[Message], None]) -> None:
    try:
        worker = Worker(job, device, cores)
        send(worker.ready())
        begin = receive()
        if not isinstance(begin, Begin):
            return
        queue, stopping = VideoQueue(), threading.Event()
        threading.Thread(target=_follow_orders, args=(receive, queue, stopping), daemon=True).start()
        for message in worker.run(begin, queue, stopping):
            send(message)
    except (VswinError, OSError) as error:
        send(error)


def follow_order(order: Order, queue: VideoQueue, stopping: threading.Event) -> None:
    """Do what an order says, once the worker runs."""
    match order:
        case Video():
            queue.put(order)
        case Close():
            queue.close()
        case Stop():
            stopping.set()


def _follow_orders(receive: Callable[[], Order], queue: VideoQueue, stopping: threading.Event) -> None:
    while True:
        try:
            order = receive()
        except (EOFError, OSError):
            os._exit(0)  # the run is gone
        except BaseException:  # without orders the worker would wait for ever
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        follow_order(order, queue, stopping)
