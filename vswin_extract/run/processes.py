"""Several devices of this machine: a process for each, which takes orders and sends messages through a socket."""

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from vswin_extract.errors import VswinError
from vswin_extract.job.job import Job
from vswin_extract.journal.journal import branch
from vswin_extract.processes import describe_exit
from vswin_extract.video.videos import Video
from vswin_extract.worker.pipeline import VideoQueue
from vswin_extract.worker.worker import Begin, Close, Message, Order, Stop, Worker, WorkerDone, WorkerLost

log = logging.getLogger(__name__)


class ProcessPool:
    """A process a device. Those of one processor share its cores."""

    single = False

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self.job = replace(job, videos=())
        self.names = list(devices)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.connections: dict[int, Connection[Any, Any]] = {}
        self.last_words: dict[int, deque[str]] = {}
        self.listeners: dict[int, threading.Thread] = {}

    def start(self, worker: int) -> None:
        self._end(worker)
        ours, theirs = socket.socketpair()
        with theirs:
            # its own process group, so that Ctrl-C reaches us alone
            process = subprocess.Popen(
                python_command("vswin_extract.run.processes", theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self.processes[worker] = process
        self.connections[worker] = Connection(ours.detach())
        self.last_words[worker] = deque(maxlen=1)
        self.listeners[worker] = threading.Thread(
            target=log_lines, args=(process.stderr, self.last_words[worker], f"worker {worker}"), daemon=True
        )
        self.listeners[worker].start()
        cores = max(1, len(os.sched_getaffinity(0)) // len(self.names))
        self._send(worker, (self.job, self.names[worker], cores))

    def send(self, worker: int, order: Order) -> None:
        self._send(worker, order)

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        workers = {id(connection): worker for worker, connection in self.connections.items()}
        for ready in wait(list(self.connections.values()), seconds):
            worker = workers[id(ready)]
            try:
                return worker, self.connections[worker].recv()
            except (EOFError, OSError, pickle.UnpicklingError):  # the last when it died while it was sending
                how = describe_exit(self.processes[worker].wait())
                self.listeners[worker].join(1)
                self._end(worker)
                return worker, WorkerLost("; ".join([how, *self.last_words[worker]]))
        return None

    def close(self) -> None:
        for worker in range(len(self.names)):
            self._end(worker)

    def _send(self, worker: int, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, KeyError):  # `receive` finds out
            self.connections[worker].send(message)

    def _end(self, worker: int) -> None:
        if (connection := self.connections.pop(worker, None)) is None:
            return
        process = self.processes[worker]
        process.kill()  # its decoders end with it
        process.wait()
        connection.close()
        self.listeners[worker].join()
        if process.stderr is not None:
            process.stderr.close()


def main(descriptor: int) -> None:
    """A worker's process: orders come, and messages go, through the socket of this number."""
    connection: Connection[Any, Any] = Connection(descriptor)
    job, device, cores = connection.recv()
    serve(job, device, cores, connection.recv, connection.send)
    connection.close()
    os._exit(0)  # `listen` still waits for orders


def serve(job: Job, device: str, cores: int, receive: Callable[[], Order], send: Callable[[Message], None]) -> None:
    """Load the model, say so, wait for Begin, and extract what comes."""
    try:
        worker = Worker(job, device, cores)
        ready = worker.ready()
        send(ready)
        begin = receive()
        if not isinstance(begin, Begin):
            return
        video_queue, stopping = VideoQueue(), threading.Event()
        threading.Thread(target=listen, args=(receive, video_queue, stopping), daemon=True).start()
        with branch(job.output, begin.root, ready.arrays, begin.run) as journal:
            for event in worker.run(journal, begin.clips, video_queue, stopping):
                if isinstance(event, WorkerDone):
                    through = event
                else:
                    send(event)
            if not stopping.is_set():
                journal.singles = []  # which are not packed any more: the output is about to be made of them
        send(through)  # from here on the branch is left alone
    except (VswinError, OSError) as error:
        send(error)


def listen(receive: Callable[[], Order], video_queue: VideoQueue, stopping: threading.Event) -> None:
    while True:
        try:
            order = receive()
        except (EOFError, OSError):
            os._exit(0)  # the run is gone
        match order:
            case Video():
                video_queue.give(order)
            case Close():
                video_queue.close()
            case Stop():
                stopping.set()


def log_lines(pipe: IO[bytes], last_words: deque[str], who: str) -> None:
    """Log the lines that a worker prints."""
    for line in pipe:
        if text := line.decode(errors="replace").strip():
            last_words.append(text)
            log.debug("%s: %s", who, text)


def python_command(module: str, argument: object) -> list[str]:
    """The command line of a process that runs `main(argument)` of a module of this package."""
    home = str(Path(__file__).parents[2])
    program = (
        "import signal, sys; "
        "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]; "
        f"sys.path.append({home!r}); from {module} import main; main({argument!r})"
    )
    return [sys.executable, "-P", "-c", program]
