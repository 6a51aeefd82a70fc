"""One worker, in this process and this thread."""

import threading
from collections.abc import Generator

from vswin_extract.job.job import Job
from vswin_extract.system import usable_cores
from vswin_extract.worker.messages import Begin, Message, Order, Ready
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.worker import Worker, follow_order


class InProcessPool:
    """A pool of one worker, which works while its messages are received."""

    def __init__(self, job: Job, device: str) -> None:
        self.names = [device]
        self._job = job
        self._queue = VideoQueue()
        self._stopping = threading.Event()
        self._messages: Generator[Message, None, None] = self._load()

    def start(self, worker: int) -> None:
        self._messages = self._load()

    def send(self, worker: int, order: Order) -> None:
        if isinstance(order, Begin):
            self._messages = self._worker.run(order, self._queue, self._stopping)
        else:
            follow_order(order, self._queue, self._stopping)

    def capacity(self, ready: Ready) -> int | None:
        return None

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        return 0, next(self._messages)

    def close(self) -> None:
        self._messages.close()  # ends the decoders

    def _load(self) -> Generator[Message, None, None]:
        self._worker = Worker(self._job, self.names[0], usable_cores())
        yield self._worker.ready()
