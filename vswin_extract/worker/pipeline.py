"""The trip of all videos of a worker: decode, compute, write.

    decoder slots ──clips──> this thread ──batches──> computer ──features──> writer's thread ──> journal

Batches are filled across videos, in the order in which decoder slots give clips. That order never depends on timing, so
the same videos make the same batches; but timing decides which of several workers gets a video. The work that is under
way is bounded: this thread waits when the computer and the writer are too far behind.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vswin_extract.errors import DecoderCrash, FrameTableWrong, VideoDamaged, VideoError
from vswin_extract.feeding.messages import VideoEnd
from vswin_extract.feeding.process import DecodedClip
from vswin_extract.formatting import plural
from vswin_extract.job.events import ClipsDone, Event, Notice, Profile
from vswin_extract.worker.compute import ComputedBatch, Computer
from vswin_extract.worker.decoder_slots import DecoderSlots
from vswin_extract.worker.messages import Dropped
from vswin_extract.worker.writer import InFlightVideo, Writer


def most_submitted(threads: int) -> int:
    """Return for how many batches, and other work, the writer's thread may lag behind."""
    return 2 * threads + 4


def clips_in_use(threads: int, batch_size: int) -> int:
    """Return how many clips, at most, a pipeline has read of its decoders and still refers to: those of submitted work,
    of the batch that is being filled, of the one before it, and the clip read last."""
    return (most_submitted(threads) + 3) * batch_size + 1


class Pipeline:
    """Takes what decoder slots give through the computer to the writer.

    `dtype`: type of the features in the journal. `keep_partial`: keep damaged videos, or let them fail. `profile` says
    where the time went so far. The pipeline closes slots and computer when it ends.
    """

    def __init__(
        self, slots: DecoderSlots, computer: Computer, writer: Writer, dtype: str = "float32", keep_partial: bool = True
    ) -> None:
        self.profile = Profile()
        self._slots = slots
        self._computer = computer
        self._writer = writer
        self._dtype = dtype
        self._keep_partial = keep_partial
        self._batch: list[tuple[InFlightVideo, DecodedClip]] = []
        self._announced = computer.batch_size
        self._writing = ThreadPoolExecutor(1, "writing")
        self._submitted: deque[Future[list[Event]]] = deque()
        self._most = most_submitted(computer.device.threads)

    def run(self, stopping: threading.Event) -> Generator[Event | Dropped, None, None]:
        """Yield ClipsDone, VideoDone, Dropped and Notice until all videos are done. A video that fails does not end the
        run. What is put into the queue while this waits after Dropped is extracted, even if the queue was closed. Once
        `stopping` is set, the pipeline ends with the videos in flight."""
        begun = time.process_time()
        try:
            for read in self._slots.read(stopping):
                if read is None:
                    yield from self._flush()
                else:
                    yield from self._take(*read)
            yield from self._flush()
        finally:
            try:
                self._slots.close()
            finally:  # also if the user presses Ctrl-C again
                self._computer.close()
                self._writing.shutdown(cancel_futures=True)
            self.profile.waited = self._slots.waited
            self.profile.decoders = self._slots.decoders
            self.profile.processor = time.process_time() - begun

    def _take(self, video: InFlightVideo, read: DecodedClip | VideoEnd | VideoError) -> Iterator[Event | Dropped]:
        match read:
            case DecodedClip():
                self._batch.append((video, read))
                if len(self._batch) >= self._computer.batch_size:
                    yield from self._compute()
            case FrameTableWrong() if not video.video.sequential:
                yield from self._submit(partial(self._writer.drop, video, read))
                yield Dropped(video.video, str(read))
            case FrameTableWrong():
                error = DecoderCrash(f"the decoder failed: it was told to use no frame table, and says: {read}")
                yield from self._submit(partial(self._writer.fail, video, error))
            case VideoError():
                yield from self._submit(partial(self._writer.fail, video, read))
            case VideoEnd():
                self.profile.decoded += read.cpu
                if read.partial and not self._keep_partial:
                    damaged = VideoDamaged(f"{read.trouble}; {plural(read.frames, 'frame')} can be decoded")
                    yield from self._submit(partial(self._writer.fail, video, damaged))
                else:
                    yield from self._submit(partial(self._writer.end, video, read))

    def _flush(self) -> Iterator[Event]:
        """Compute the clips that wait for a full batch, and wait until everything is written."""
        yield from self._compute()
        while self._submitted:
            yield from self._next_result()

    def _compute(self) -> Iterator[Event]:
        """Send the batch to the computer, and its rows from there to the writer."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        clips = [clip for _, clip in batch]
        facts = {
            "clips/frames": np.array([clip.frames for clip in clips]),
            "clips/times": np.array([clip.times for clip in clips]),
            "clips/valid": np.array([clip.valid for clip in clips]),
        }
        features = self._computer.submit(clips)
        yield from self._submit(partial(self._write, [video for video, _ in batch], features, facts))

    def _submit(self, work: Callable[[], Sequence[Event]]) -> Iterator[Event]:
        """Give work to the writer's thread; yield the events of work that is done."""
        self._submitted.append(self._writing.submit(lambda: list(work())))
        while self._submitted and (self._submitted[0].done() or len(self._submitted) > self._most):
            yield from self._next_result()

    def _next_result(self) -> list[Event]:
        """Wait for the oldest work of the writer's thread. Raises what it raised."""
        begun = time.perf_counter()
        events = self._submitted.popleft().result()
        self.profile.held += time.perf_counter() - begun
        return events

    def _write(
        self,
        videos: Sequence[InFlightVideo],
        features: "Future[list[ComputedBatch]]",
        facts: dict[str, NDArray[Any]],
    ) -> list[Event]:
        """In the writer's thread: wait for the features of a batch and write them."""
        parts = features.result()
        events: list[Event] = [ClipsDone(len(videos))]
        size = self._computer.batch_size
        if size < self._announced:
            events.append(Notice(f"out of memory with batches of {self._announced} clips; going on with {size}"))
            self._announced = size
        threads = self._computer.device.threads
        self.profile.computed += sum(part.seconds() for part in parts) / threads
        self.profile.gathered += sum(part.gathered for part in parts) / threads
        begun = time.perf_counter()
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the writer refuses it
            rows = {
                name: torch.cat([part.values[name] for part in parts]).numpy().astype(self._dtype)
                for name in parts[0].values
            }
        events += self._writer.rows(videos, {**rows, **facts})
        self.profile.written += time.perf_counter() - begun
        return events
