"""How long workers have been silent. A worker sends a heartbeat now and then, also while the network computes."""

from vswin_extract.job.events import ClipsDone, VideoDone
from vswin_extract.worker.messages import Message, Ready, WorkerDone, WorkerLost

STARTING = 600.0
"""Seconds that a worker may be silent until it is Ready. While torch is imported from a slow disk, or a GPU is used for
the first time, no thread of it can run."""
FIRST_CLIPS = 60.0
"""Seconds that it may be silent until it has computed something: more libraries may be imported then."""


class Silence:
    """The seconds for which a pool waited and heard nothing of a worker. Seconds for which this process was suspended,
    or busy with something else, do not count: the heartbeats of that time still wait to be received.

    `timeout`: how long a worker that has computed something may be silent. `step`: seconds that the pool should wait at
    a time, so that one wait that does not count makes little difference.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.step = min(1.0, timeout / 4)
        self._seconds: dict[int, float] = {}
        self._most: dict[int, float] = {}  # how long each may be silent now

    def begin(self, worker: int) -> None:
        """A worker was started."""
        self._seconds[worker] = 0.0
        self._most[worker] = max(self.timeout, STARTING)

    def end(self, worker: int) -> None:
        """A worker was ended, or has nothing more to say."""
        self._seconds.pop(worker, None)

    def wait(self, seconds: float) -> None:
        """The pool has waited for so many seconds. `hear` comes after it."""
        for worker in self._seconds:
            self._seconds[worker] += seconds

    def hear(self, worker: int, message: Message) -> None:
        """A message of a worker was received."""
        if worker in self._seconds:
            self._seconds[worker] = 0.0
        match message:
            case Ready():
                self._most[worker] = max(self.timeout, FIRST_CLIPS)
            case ClipsDone() | VideoDone():
                self._most[worker] = self.timeout
            case WorkerDone():
                self.end(worker)

    def lost(self) -> tuple[int, WorkerLost] | None:
        """Return a worker that has been silent for too long, with the message that it is lost; or None."""
        for worker, seconds in self._seconds.items():
            most = self._most[worker]
            if seconds >= most:
                return worker, WorkerLost(f"it gave no sign of life for {most:g} s, and was ended")
        return None
