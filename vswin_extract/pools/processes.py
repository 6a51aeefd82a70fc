"""A process for each of several devices of this machine."""

import os
import queue
from collections.abc import Sequence
from dataclasses import replace

from vswin_extract.job.job import Job
from vswin_extract.processes import Channel, ChildProcess, Ended, Inbox
from vswin_extract.system import usable_cores
from vswin_extract.worker.messages import VIDEOS_PER_DECODER, Message, Order, Ready, WorkerLost
from vswin_extract.worker.worker import serve


class ProcessPool:
    """A worker process for each device. Workers on one processor share its cores."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self.names = list(devices)
        self.children: dict[int, ChildProcess] = {}
        self._job = replace(job, videos=())  # each worker is sent its videos one by one
        self._inbox: Inbox = queue.Queue()

    def start(self, worker: int) -> None:
        self._end(worker)
        child = ChildProcess("vswin_extract.pools.processes", f"worker {worker}", self._inbox)
        self.children[worker] = child
        child.send((self._job, self.names[worker], max(1, usable_cores() // len(self.names))))

    def send(self, worker: int, order: Order) -> None:
        if (child := self.children.get(worker)) is not None:
            child.send(order)

    def capacity(self, ready: Ready) -> int | None:
        return VIDEOS_PER_DECODER * ready.decoders

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        try:
            child, message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return None
        worker = next((number for number, known in self.children.items() if known is child), None)
        if worker is None:  # a message of a worker that was replaced
            return None
        if isinstance(message, Ended):
            self._end(worker)
            return worker, WorkerLost(message.reason)
        return worker, message

    def close(self) -> None:
        for worker in range(len(self.names)):
            self._end(worker)

    def _end(self, worker: int) -> None:
        if (child := self.children.pop(worker, None)) is not None:
            child.close()  # its decoders end with it


def main(channel: Channel) -> None:
    """The process of a worker."""
    job, device, cores = channel.receive()
    serve(job, device, cores, channel.receive, channel.send)
    channel.close()
    os._exit(0)  # the thread that follows orders still waits for one
