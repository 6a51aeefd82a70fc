"""A process for each of several devices of this machine."""

import os
import queue
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vswin_extract.job.job import Job
from vswin_extract.pools.silence import Silence
from vswin_extract.processes import Channel, ChildProcess, Ended, Inbox, waited
from vswin_extract.system import usable_cores
from vswin_extract.worker.messages import VIDEOS_PER_DECODER, Heartbeat, Message, Order, Ready, WorkerLost
from vswin_extract.worker.worker import serve


class ProcessPool:
    """A worker process for each device. Workers on one processor share its cores. A worker that sends no heartbeat for
    the job's timeout is lost."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self.names = list(devices)
        self.children: dict[int, ChildProcess] = {}
        self._job = replace(job, videos=())  # each worker is sent its videos one by one
        self._inbox: Inbox = queue.Queue()
        self._silence = Silence(job.timeout)

    def start(self, worker: int) -> None:
        self._end(worker)
        child = ChildProcess("vswin_extract.pools.processes", f"worker {worker}", self._inbox)
        self.children[worker] = child
        self._silence.begin(worker)
        child.send((self._job, self.names[worker], max(1, usable_cores() // len(self.names))))

    def send(self, worker: int, order: Order) -> None:
        if (child := self.children.get(worker)) is not None:
            child.send(order)

    def capacity(self, ready: Ready) -> int | None:
        return VIDEOS_PER_DECODER * ready.decoders

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        if (lost := self._silence.lost()) is not None:
            self._end(lost[0])
            return lost
        begun, most = time.monotonic(), min(seconds, self._silence.step)
        child, message = self._next(most)
        self._silence.wait(waited(begun, most))
        worker = next((number for number, known in self.children.items() if known is child), None)
        if worker is None:  # nothing came, or a message of a worker that was replaced
            return None
        self._silence.hear(worker, message)
        if isinstance(message, Ended):
            self._end(worker)
            return worker, WorkerLost(message.reason)
        return None if isinstance(message, Heartbeat) else (worker, message)

    def close(self) -> None:
        for worker in range(len(self.names)):
            self._end(worker)

    def _next(self, seconds: float) -> tuple[ChildProcess | None, Any]:
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            return None, None

    def _end(self, worker: int) -> None:
        self._silence.end(worker)
        if (child := self.children.pop(worker, None)) is not None:
            child.close()  # its decoders end with it


def main(channel: Channel) -> None:
    """The process of a worker."""
    job, device, cores = channel.receive()
    try:
        serve(job, device, cores, channel.receive, channel.send)
    except BaseException:  # a bug, or a GPU that fails; threads that still compute would keep the process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    channel.close()
    os._exit(0)  # the thread that follows orders still waits for one
