"""The signals that stop a run, or another command."""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

CLEANUP = 10.0
"""Seconds after which the cleanup that follows Interrupted is interrupted, too."""

AGAIN = 0.05
"""Seconds after which a signal whose exception was dropped is raised again."""


class Interrupted(BaseException):
    """Stop at once: a second signal arrived, or the time to finish is over."""


class Terminated(BaseException):
    """SIGTERM arrived, and nothing else handles it."""


@contextmanager
def termination() -> Iterator[None]:
    """Make SIGTERM raise Terminated in the main thread, so that unfinished files are removed as after Ctrl-C. Where
    SIGTERM is ignored, it stays ignored.

    Python drops an exception that a signal raises inside a destructor, as of h5py's objects. Such a signal is raised
    again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, report = signal.getsignal(signal.SIGTERM), sys.unraisablehook

    def arrived(number: int, frame: FrameType | None) -> None:
        raise Terminated

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type in (KeyboardInterrupt, Terminated):
            number = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else signal.SIGTERM
            threading.Timer(AGAIN, signal.pthread_kill, [threading.main_thread().ident, number]).start()
        else:
            report(unraisable)

    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, arrived)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """While the context is entered, the first SIGINT, SIGTERM or SIGUSR1 sets `stopping` and the exit `code`. A second
    one raises Interrupted, and so does the end of `grace` seconds. `say` tells the user. SIGUSR1 is what Slurm can send
    before it ends a job.

    Interrupted can be raised between any two instructions, also between taking a lock and noting that it is taken. So
    any other error that it causes leaves the context as Interrupted. A thread may then wait for such a lock for ever.
    If the cleanup waits for that thread, it is interrupted after `cleanup` seconds, and `stuck` is true: the process
    must end without waiting for its threads.
    """

    def __init__(self, grace: float, say: Callable[[str], None], cleanup: float = CLEANUP) -> None:
        self.grace = grace
        self.say = say
        self.stopping = threading.Event()
        self.code = 0
        self.raised = False
        self.stuck = False
        self.cleanup = cleanup

    def __enter__(self) -> Self:
        self.previous = {
            number: signal.signal(number, self._arrived)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.raised and isinstance(error, Exception):
            raise Interrupted from error

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM or self.stopping.is_set():
            self.stuck, self.raised = self.raised, True
            signal.setitimer(signal.ITIMER_REAL, self.cleanup)
            raise Interrupted
        self.code = 130 if number == signal.SIGINT else 143
        self.stopping.set()
        if math.isfinite(self.grace):
            signal.setitimer(signal.ITIMER_REAL, max(self.grace, 0.001))
        self.say(f"stopping: finishing the videos in flight, for up to {self.grace:g} s; Ctrl-C again stops at once")
