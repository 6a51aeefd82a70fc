"""The seam between a run and whoever works for it: the protocol, and the simplest pool, this process alone."""

import os
import threading
from collections.abc import Iterator
from typing import Protocol

from vswin_extract.job.events import Event
from vswin_extract.job.job import Job
from vswin_extract.journal.journal import Journal
from vswin_extract.video.videos import Video
from vswin_extract.worker.pipeline import VideoQueue
from vswin_extract.worker.worker import Begin, Close, Message, Order, Ready, Stop, Worker, WorkerDone


class WorkerPool(Protocol):
    """Workers 0, 1, 2… by name. Once started, a worker says Ready; after Begin it takes videos.

    `single`: one worker that cannot be lost, and so may be given everything at once.
    """

    names: list[str]
    single: bool

    def start(self, worker: int) -> None:
        """Start a worker; again, if it was lost."""
        ...

    def send(self, worker: int, order: Order) -> None: ...

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        """The next message of any worker, or None if none comes within so many seconds."""
        ...

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        ...


class InProcessPool:
    """One worker, in this process and this thread."""

    def __init__(self, job: Job, device: str) -> None:
        self.job = job
        self.names = [device]
        self.single = True
        self.video_queue = VideoQueue()
        self.stopping = threading.Event()
        self.messages: Iterator[Ready | Event | WorkerDone] = iter(())
        self.journal: Journal | None = None

    def start(self, worker: int) -> None:
        self.worker = Worker(self.job, self.names[0], len(os.sched_getaffinity(0)))
        self.messages = iter([self.worker.ready()])

    def send(self, worker: int, order: Order) -> None:
        match order:
            case Begin() if self.journal is not None:
                self.messages = self.worker.run(self.journal.writer(), order.clips, self.video_queue, self.stopping)
            case Video():
                self.video_queue.give(order)
            case Close():
                self.video_queue.close()
            case Stop():
                self.stopping.set()

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        return 0, next(self.messages)

    def close(self) -> None:
        if (close := getattr(self.messages, "close", None)) is not None:
            close()
