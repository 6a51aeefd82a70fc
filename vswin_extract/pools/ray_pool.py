"""Actors on a Ray cluster: one for each device, on whichever host Ray places it. Rows go through the shared storage;
only orders and events go through Ray.

    driver: Dispatch, RayPool ──Extractor.order────> actor: a worker ──shard directory──> journal, on the storage
                              <─Extractor.messages──

An actor that dies, alone or with its node, or that sends no heartbeat any more, is reported as WorkerLost. Dispatch
starts it again, and Ray places it where there is room. Where there is none it waits, and the other actors take its
videos.
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from vswin_extract.errors import DeviceError
from vswin_extract.job.events import Notice, VideoDone
from vswin_extract.job.job import AUTO, Job
from vswin_extract.pools.ray_actor import Extractor, Placed
from vswin_extract.pools.silence import Silence
from vswin_extract.processes import waited
from vswin_extract.video.videos import Video
from vswin_extract.weights.registry import BUNDLED
from vswin_extract.worker.messages import (
    DECODERS_BESIDE_GPU,
    VIDEOS_PER_DECODER,
    Begin,
    Heartbeat,
    Message,
    Order,
    Ready,
    WorkerLost,
)

log = logging.getLogger(__name__)

MOST_CORES = {"cpu": 8, "cuda": DECODERS_BESIDE_GPU + 1}
"""Processor cores of an actor: as many as the batches that are computed at a time; beside a GPU, its decoders and
one."""
IDLE_CORES = 0.1
"""Share of the cluster's cores that may stay unused so that all actors have the same size."""
MESSAGES_A_SECOND = 1000
"""Calls of the driver, at most, by all actors together. With more actors, each collects its messages for longer."""
NOTICE_AFTER = 15.0
"""Seconds after which the user is told that an actor has not started."""
PATIENCE = 900.0
"""Seconds after which the run ends with an error, where no actor has found room."""
ENVIRONMENT = ("VSWIN_WEIGHTS_DIR",)
"""Variables that an actor takes over from the driver."""


@dataclass(frozen=True)
class Share:
    """What an actor gets of a cluster, and how many such parts the cluster has, free or not."""

    gpus: int
    cpus: int
    total: int

    def __str__(self) -> str:
        gpus = "1 GPU and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPU{'' if self.cpus == 1 else 's'}"


Divide = Callable[[list[tuple[int, int]], str, int], Share]
"""As `divide_nodes`."""


class RayPool:
    """Actors on a running Ray cluster. This process must run on a node of the cluster, and the job's paths must mean
    the same on all hosts. Raises DeviceError.

    `places`: where the actors that have started run. `notice_after`, `patience` in seconds, see the constants.
    `divide`: chooses the share of each actor.
    """

    def __init__(
        self,
        job: Job,
        notice_after: float = NOTICE_AFTER,
        patience: float = PATIENCE,
        divide: Divide | None = None,
    ) -> None:
        self.notice_after = notice_after
        self.patience = patience
        self.actors: dict[int, Any] = {}
        self.connected = _connect(job.ray_address)
        try:
            self.device, self.share, count = _divide(job.device, job.actors, divide or divide_nodes)
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
            max_restarts=0,  # Dispatch starts it again
            scheduling_strategy="SPREAD",
        )(Extractor)
        self.places: dict[int, Placed] = {}
        self.pending: dict[int, float] = {}
        """Actors that have not started yet, and since when."""
        self.reported: set[int] = set()
        """Actors that have not started yet, and the user was told."""
        self._arrivals: queue.SimpleQueue[tuple[int, Any, Future[list[Message | Placed]]]] = queue.SimpleQueue()
        self.received: deque[tuple[int, Message]] = deque()
        self._silence = Silence(job.timeout)

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

    def capacity(self, ready: Ready) -> int | None:
        return VIDEOS_PER_DECODER * ready.decoders

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        if self.received:
            return self.received.popleft()
        if (notice := self._waiting()) is not None:
            return notice
        if (lost := self._silence.lost()) is not None:
            worker, place = lost[0], self.places.get(lost[0])
            self._end(worker)
            return worker, WorkerLost(lost[1].reason + (f" ({place})" if place else ""))
        # ray.wait would swallow what signal handlers raise
        begun, most = time.monotonic(), min(seconds, self._silence.step)
        try:
            worker, actor, future = self._arrivals.get(timeout=most)
        except queue.Empty:
            self._silence.wait(waited(begun, most))
            return None
        self._silence.wait(waited(begun, most))
        if self.actors.get(worker) is not actor:  # an actor that was replaced
            return None
        try:
            messages = future.result()
        except RayError as error:  # ActorUnavailableError too: its next messages are lost
            place = self.places.get(worker)
            self._end(worker)
            return worker, WorkerLost(describe(error, place))
        self._listen(worker, actor)
        for message in messages:
            if not isinstance(message, Placed):
                self._silence.hear(worker, message)
            if isinstance(message, Heartbeat):
                continue
            if isinstance(message, WorkerLost):
                self._end(worker)
            if isinstance(message, Placed):
                self.places[worker] = message
                self._silence.begin(worker)
                self.pending.pop(worker, None)
                self.reported.discard(worker)
            else:
                self.received.append((worker, check_seen(message, self.places[worker])))
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
        reference.future().add_done_callback(lambda future: self._arrivals.put((worker, actor, future)))

    def _end(self, worker: int) -> None:
        self._silence.end(worker)
        self.pending.pop(worker, None)
        self.reported.discard(worker)
        if (actor := self.actors.pop(worker, None)) is not None:
            ray.kill(actor)  # ends its decoders too

    def _waiting(self) -> tuple[int, Message] | None:
        """Return a message about actors that have found no room, if there is something new to say."""
        if not self.pending:
            return None
        now, worker = time.monotonic(), next(iter(self.pending))
        if len(self.pending) == len(self.actors) and now - max(self.pending.values()) > self.patience:
            return worker, DeviceError(
                f"Ray found no room for an actor of {self.share} in {self.patience / 60:.0f} minutes; {_resources()}; "
                "finished videos are kept, and the same command continues"
            )
        late = {worker for worker, since in self.pending.items() if now - since > self.notice_after}
        if late <= self.reported:
            return None
        self.reported |= late
        return worker, Notice(
            f"{len(late)} of {len(self.names)} actors have not started yet; each needs a node with {self.share}; "
            f"{_resources()}"
        )


def check_seen(message: Message, place: Placed) -> Message:
    """Return the message, or an error where the actor's host misses a video that is here: on such a host all videos
    would fail, faster than other hosts extract them."""
    if isinstance(message, VideoDone) and message.record.error == "VideoMissing":
        path = message.record.path
        if os.path.isfile(path):
            return DeviceError(
                f"{place.host} does not see {path}, which is there on {socket.gethostname()}; "
                "videos must be at the same paths on all hosts"
            )
    return message


def describe(error: RayError, place: Placed | None) -> str:
    """Say in one line why an actor died, and where its output is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    if getattr(error, "actor_init_failed", False):  # a traceback
        return lines[-1]
    reason = ". ".join(" ".join(lines[1:] or lines).split(". ")[:2])
    return reason + (f" ({place}; its output is in Ray's logs there)" if place else "")


def _connect(address: str) -> bool:
    """Join a running cluster. Return False if this process has joined before. Raises DeviceError."""
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
    # Raylets print to standard output when workers die, and Ray has no option against it. `WorkerLost` reports the
    # same.
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


def _divide(device: str, actors: int | None, divide: Divide) -> tuple[str, Share, int]:
    """Return the device of each actor, its share of the cluster, and the number of actors. Raises DeviceError."""
    nodes = [
        (int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    free = ray.available_resources()
    if device == "auto":
        device = "cuda" if any(gpus for gpus, _ in nodes) else "cpu"
    share = divide(nodes, device, actors or 1)
    if not share.total:
        other = "; add nodes that have some, or --device cpu" if device == "cuda" else ""
        raise DeviceError(f"the Ray cluster has no {'GPUs' if device == 'cuda' else 'CPUs'}{other}")
    room = free.get("GPU", 0.0) if share.gpus else free.get("CPU", 0.0) / share.cpus
    return device, share, actors or min(share.total, int(room)) or share.total


def divide_nodes(nodes: list[tuple[int, int]], device: str, actors: int = 1) -> Share:
    """Return the share of each actor, of nodes with these numbers of GPUs and CPUs: a GPU and its part of the cores, or
    as many cores as possible while few stay unused and there is room for this many actors."""
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
    """Say what is free now."""
    free, there = ray.available_resources(), ray.cluster_resources()
    kinds = [f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in ("GPU", "CPU") if kind in there]
    return f"free now: {', '.join(kinds) or 'nothing'}"
