"""Devices of a Ray cluster: an actor for each, wherever Ray places it. Rows go through the shared storage, and only
orders and events through Ray.

    driver: Dispatch, RayPool ──Extractor.order──> actor: a worker ──shard directory──> journal, on the storage
                                <─Extractor.messages─

An actor that dies, with its node or alone, is WorkerLost: Dispatch has it started again, and Ray places it where there is
room. Where there is none it waits, and holds nobody up: the others take its videos.
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from vswin_extract.errors import DeviceError, VswinError
from vswin_extract.job.events import Notice, VideoDone
from vswin_extract.job.job import AUTO, Job
from vswin_extract.run.processes import serve
from vswin_extract.video.videos import Video
from vswin_extract.weights.registry import BUNDLED
from vswin_extract.worker.worker import Begin, Message, Order, WorkerLost

log = logging.getLogger(__name__)

MOST_CORES = {"cpu": 8, "cuda": 9}
"""Processor cores of an actor: as many as batches are computed at once; beside a GPU, eight decoders and one."""
IDLE_CORES = 0.1
"""So much of the cluster's cores may be left over when it is cut into actors of one size."""
MESSAGES_A_SECOND = 1000
"""So often the driver is called at most, by all actors together: the more there are, the more each has to say."""
SAY_AFTER = 15.0
"""Seconds after which the user is told that an actor has not started."""
PATIENCE = 900.0
"""Seconds after which the run is given up where no actor has found room, or none is left and none comes back."""
ENVIRONMENT = ("VSWIN_WEIGHTS_DIR",)
"""What an actor's environment takes over from the driver's."""


@dataclass(frozen=True)
class Placed:
    """An actor runs, as this process of this host."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Share:
    """What of a cluster an actor gets, and how many such there are in it, free or not."""

    gpus: int
    cpus: int
    total: int

    def __str__(self) -> str:
        gpus = "1 GPU and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPU{'' if self.cpus == 1 else 's'}"


class Extractor:
    """An actor. Its methods have a thread each, so orders arrive in order while `messages` waits."""

    def __init__(self, job: Job, device: str, cores: int, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.said: queue.SimpleQueue[Message | Placed] = queue.SimpleQueue()
        self.host = socket.gethostname()
        self.said.put(Placed(self.host, os.getpid()))
        threading.Thread(target=self._work, args=(job, device, cores), daemon=True).start()

    def order(self, order: Order) -> None:
        self.orders.put(order)

    def messages(self, linger: float) -> list[Message | Placed]:
        """What was said since the last call; waits for something, and then for so many seconds for more."""
        found = [self.said.get()]
        time.sleep(linger)
        while not self.said.empty():
            found.append(self.said.get())
        return found

    def _work(self, job: Job, device: str, cores: int) -> None:
        try:
            serve(job, device, cores, self.orders.get, self._say)
        except Exception as error:  # what ends a process elsewhere, as a bug or a GPU that fails
            traceback.print_exc()
            what = traceback.format_exception_only(error)[-1].strip()
            self.said.put(
                WorkerLost(f"{what} ({Placed(self.host, os.getpid())}; the traceback is in Ray's logs there)")
            )

    def _say(self, message: Message) -> None:
        if isinstance(message, VswinError):
            message = type(message)(f"on {self.host}: {message}")
        elif isinstance(message, FileNotFoundError | PermissionError):
            message = DeviceError(
                f"on {self.host}: {message}; videos, weights and storage must be at the same paths on all hosts"
            )
        elif isinstance(message, OSError):
            message = OSError(message.errno, f"{message.strerror or message} on {self.host}", message.filename)
        self.said.put(message)


class RayPool:
    """Actors on a running Ray cluster, which this process must be on a node of. Raises DeviceError.

    The job's paths must mean the same on all hosts. `places`: where the actors are that have started.
    """

    single = False

    def __init__(self, job: Job) -> None:
        self.actors: dict[int, Any] = {}
        self.connected = _connect(job.ray_address)
        try:
            self.device, self.share, count = _share_out(job.device, job.actors)
        except BaseException:
            self.close()
            raise
        file = job.weights != BUNDLED and Path(job.weights).is_file()
        self.job = replace(
            job,
            videos=(),
            output=Path(os.path.abspath(job.output)),
            cache_dir=job.cache_dir and Path(os.path.abspath(job.cache_dir)),
            weights=os.path.abspath(job.weights) if file else job.weights,
        )
        self.names = [self.device] * count
        self.environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self.extractor = ray.remote(
            concurrency_groups={"orders": 1, "messages": 1},
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_restarts=0,  # Dispatch starts another
            scheduling_strategy="SPREAD",
        )(Extractor)
        self.places: dict[int, Placed] = {}
        self.pending: dict[int, float] = {}
        """Actors that have not started yet, as far as is known, and since when."""
        self.told: set[int] = set()
        """Those of them that the user knows of."""
        self.arrivals: queue.SimpleQueue[tuple[int, Any, Future[list[Message | Placed]]]] = queue.SimpleQueue()
        self.heard: deque[tuple[int, Message]] = deque()

    def start(self, worker: int) -> None:
        self._end(worker)
        self.places.pop(worker, None)
        actor = self.extractor.remote(self.job, self.device, max(1, self.share.cpus), self.environment)
        self.actors[worker] = actor
        self.pending[worker] = time.monotonic()
        self._listen(worker, actor)

    def send(self, worker: int, order: Order) -> None:
        match order:
            case Begin():
                order = replace(order, root=Path(os.path.abspath(order.root)))
            case Video(path=Path() as path):
                order = replace(order, path=Path(os.path.abspath(path)))
        if (actor := self.actors.get(worker)) is not None:
            actor.order.options(concurrency_group="orders").remote(order)  # if it is dead `receive` finds out

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        if self.heard:
            return self.heard.popleft()
        if (notice := self._waiting()) is not None:
            return notice
        # Not by ray.wait, which swallows what signal handlers raise.
        try:
            worker, actor, future = self.arrivals.get(timeout=seconds)
        except queue.Empty:
            return None
        if self.actors.get(worker) is not actor:  # one that was replaced
            return None
        try:
            messages = future.result()
        except RayError as error:  # ActorUnavailableError, too: what it was about to say is lost
            place = self.places.get(worker)
            self._end(worker)
            return worker, WorkerLost(describe(error, place))
        self._listen(worker, actor)
        for message in messages:
            if isinstance(message, Placed):
                self.places[worker] = message
                self.pending.pop(worker, None)
                self.told.discard(worker)
            else:
                self.heard.append((worker, check_seen(message, self.places[worker])))
        return None

    def close(self) -> None:
        for worker in list(self.actors):
            self._end(worker)
        if self.connected:
            self.connected = False
            ray.shutdown()

    def _listen(self, worker: int, actor: Any) -> None:
        asked = actor.messages.options(concurrency_group="messages")
        reference = asked.remote(len(self.names) / MESSAGES_A_SECOND)
        reference.future().add_done_callback(lambda future: self.arrivals.put((worker, actor, future)))

    def _end(self, worker: int) -> None:
        self.pending.pop(worker, None)
        self.told.discard(worker)
        if (actor := self.actors.pop(worker, None)) is not None:
            ray.kill(actor)  # its decoders end with it

    def _waiting(self) -> tuple[int, Message] | None:
        """What is to be said of actors that have found no room."""
        if not self.pending:
            return None
        now, worker = time.monotonic(), next(iter(self.pending))
        if len(self.pending) == len(self.actors) and now - max(self.pending.values()) > PATIENCE:
            return worker, DeviceError(
                f"Ray found no room for an actor of {self.share} in {PATIENCE / 60:.0f} minutes; {_resources()}; "
                "what is finished is kept, and the same command continues"
            )
        late = {worker for worker, since in self.pending.items() if now - since > SAY_AFTER}
        if late <= self.told:
            return None
        self.told |= late
        return worker, Notice(
            f"{len(late)} of {len(self.names)} actors have not started yet; each needs a node with {self.share}; "
            f"{_resources()}"
        )


def check_seen(message: Message, place: Placed) -> Message:
    """The message, but an error where a video is missing there that is here: such a host would have all videos fail,
    and be through with them before any other."""
    if isinstance(message, VideoDone) and message.record.error == "VideoMissing":
        path = message.record.path
        if os.path.isfile(path):
            return DeviceError(
                f"{place.host} does not see {path}, which is there on {socket.gethostname()}; "
                "videos must be at the same paths on all hosts"
            )
    return message


def describe(error: RayError, place: Placed | None) -> str:
    """Why an actor died, in a line, and where its last words are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    if getattr(error, "actor_init_failed", False):  # a traceback
        return lines[-1]
    reason = ". ".join(" ".join(lines[1:] or lines).split(". ")[:2])
    return reason + (f" ({place}; its last words are in Ray's logs there)" if place else "")


def _connect(address: str) -> bool:
    """Join a running cluster; False where this process has before. Raises DeviceError."""
    if ray.is_initialized():
        return False
    how = "start one (ray start --head), or name it by --ray-address HOST:PORT"
    try:
        found = services.canonicalize_bootstrap_address_or_die(address)
    except ConnectionError as error:
        raise DeviceError(f"no Ray cluster runs here; {how}") from error
    host, _, port = found.rpartition(":")
    try:  # Ray would try for minutes
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        named = found if address == AUTO else address
        raise DeviceError(f"no Ray cluster answers at {named}: {error}; {how}") from error
    # What raylets say of workers that die goes to standard output; Ray has no option for it. `WorkerLost` says it.
    ray_worker.print_to_stdstream = _log
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DeviceError(f"cannot join the Ray cluster at {found}: {' '.join(str(error).split())}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    return True


def _log(data: dict[str, Any], **_: object) -> None:
    log.debug("%s: %s", data.get("pid"), " ".join(data.get("lines", ())))


def _share_out(device: str, actors: int | None) -> tuple[str, Share, int]:
    """The device of each actor, what it gets of the cluster, and how many actors there are to be.

    Raises DeviceError.
    """
    nodes = [
        (int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    free = ray.available_resources()
    if device == "auto":
        device = "cuda" if any(gpus for gpus, _ in nodes) else "cpu"
    share = cut(nodes, device, actors or 1)
    if not share.total:
        other = "; add nodes that have some, or --device cpu" if device == "cuda" else ""
        raise DeviceError(f"the Ray cluster has no {'GPUs' if device == 'cuda' else 'CPUs'}{other}")
    room = free.get("GPU", 0.0) if share.gpus else free.get("CPU", 0.0) / share.cpus
    return device, share, actors or min(share.total, int(room)) or share.total


def cut(nodes: list[tuple[int, int]], device: str, actors: int = 1) -> Share:
    """What each actor gets of nodes with so many GPUs and CPUs: a GPU and its part of the cores, or the most cores by
    which hardly any are left over, and there is room for so many actors."""
    most = MOST_CORES[device]
    if device == "cuda":
        cores = min((cpus // gpus for gpus, cpus in nodes if gpus), default=0)
        return Share(1, min(cores, most), sum(gpus for gpus, _ in nodes))
    total = sum(cpus for _, cpus in nodes)
    for cores in range(most, 0, -1):
        count = sum(cpus // cores for _, cpus in nodes)
        if count >= actors and count * cores >= (1 - IDLE_CORES) * total:
            return Share(0, cores, count)
    return Share(0, 1, total)


def _resources() -> str:
    """What is free now, of what there is."""
    free, there = ray.available_resources(), ray.cluster_resources()
    kinds = [f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in ("GPU", "CPU") if kind in there]
    return f"free now: {', '.join(kinds) or 'nothing'}"
