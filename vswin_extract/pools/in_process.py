"""One worker, in this process and this thread."""

import os
import threading
from collections.abc import Iterator

from vswin_extract.job.events import Event
from vswin_extract.job.job import Job
from vswin_extract.worker.messages import Begin, Message, Order, Ready, WorkerDone
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.worker import Worker, follow_order


class InProcessPool:
    """A pool of one worker, which works while its messages are received."""

    single = True

    def __init__(self, job: Job, device: str) -> None:
        self.names = [device]
        self._job = job
        self._queue = VideoQueue()
        self._stopping = threading.Event()
        self._messages: Iterator[Ready | Event | WorkerDone] = iter(())

    def start(self, worker: int) -> None:
        self._worker = Worker(self._job, self.names[worker], len(os.sched_getaffinity(0)))
        self._messages = iter([self._worker.ready()])

    def send(self, worker: int, order: Order) -> None:
        if isinstance(order, Begin):
            self._messages = self._worker.run(order, self._queue, self._stopping)
        else:
            follow_order(order, self._queue, self._stopping)

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        return 0, next(self._messages)

    def close(self) -> None:
        if (close := getattr(self._messages, "close", None)) is not None:  # a generator: ends its decoders
            close()
