"""What runs in an actor of a Ray cluster: a worker, with queues for its orders and messages."""

import os
import queue
import socket
import threading
import time
import traceback
from dataclasses import dataclass

from vswin_extract.errors import DeviceError, VswinError
from vswin_extract.job.job import Job
from vswin_extract.worker.messages import Message, Order, WorkerLost
from vswin_extract.worker.worker import serve


@dataclass(frozen=True)
class Placed:
    """The first message of an actor: it runs, as this process of this host."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Extractor:
    """An actor. Each of its methods has a thread of its own, so orders arrive while `messages` waits."""

    def __init__(self, job: Job, device: str, cores: int, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message | Placed] = queue.SimpleQueue()
        self._here = Placed(socket.gethostname(), os.getpid())
        self._messages.put(self._here)
        threading.Thread(target=self._work, args=(job, device, cores), daemon=True).start()

    def order(self, order: Order) -> None:
        self._orders.put(order)

    def messages(self, linger: float) -> list[Message | Placed]:
        """Wait for a message, then `linger` seconds for more, and return all messages since the last call."""
        found = [self._messages.get()]
        time.sleep(linger)
        while not self._messages.empty():
            found.append(self._messages.get())
        return found

    def _work(self, job: Job, device: str, cores: int) -> None:
        try:
            serve(job, device, cores, self._orders.get, self._send)
        except Exception as error:  # a bug, or a GPU that fails: in a process of its own this would end the process
            traceback.print_exc()
            what = traceback.format_exception_only(error)[-1].strip()
            self._messages.put(WorkerLost(f"{what} ({self._here}; the traceback is in Ray's logs there)"))

    def _send(self, message: Message) -> None:
        """Pass a message on; errors name this host."""
        host = self._here.host
        if isinstance(message, VswinError):
            message = type(message)(f"on {host}: {message}")
        elif isinstance(message, FileNotFoundError | PermissionError):
            message = DeviceError(
                f"on {host}: {message}; videos, weights and storage must be at the same paths on all hosts"
            )
        elif isinstance(message, OSError):
            message = OSError(message.errno, f"{message.strerror or message} on {host}", message.filename)
        self._messages.put(message)
