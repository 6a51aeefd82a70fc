"""What a run needs of its workers: the protocol of a worker pool, and the pool that a job asks for."""

from typing import Protocol

from vswin_extract.backbone import find_devices
from vswin_extract.errors import DeviceError, needs
from vswin_extract.job.job import Job
from vswin_extract.worker.messages import Message, Order, Ready


class WorkerPool(Protocol):
    """Workers 0, 1, 2… A worker that was started says Ready; after Begin it takes videos.

    `names`: the device of each worker.
    """

    names: list[str]

    def start(self, worker: int) -> None:
        """Start a worker, or start it again if it was lost."""
        ...

    def send(self, worker: int, order: Order) -> None: ...

    def capacity(self, ready: Ready) -> int | None:
        """Return how many videos a worker takes at a time. None: all videos at once, since no worker can be lost, and
        nothing has to be given to another."""
        ...

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        """Return the next message of any worker with its number, or None if none comes within this time."""
        ...

    def close(self) -> None:
        """End all workers at once."""
        ...


def make_pool(job: Job) -> WorkerPool:
    """Return the pool that a job asks for. Raises DeviceError, UsageError."""
    if job.engine == "ray":
        with needs("ray", "ray", "--engine ray needs Ray", DeviceError):
            from vswin_extract.pools.ray_pool import RayPool
        return RayPool(job)
    from vswin_extract.pools.in_process import InProcessPool
    from vswin_extract.pools.processes import ProcessPool

    devices = find_devices(job.device)
    return ProcessPool(job, devices) if len(devices) > 1 else InProcessPool(job, devices[0])
