"""The signals that stop a run, or another command."""

import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self

CLEANUP = 10.0
"""Seconds after which the cleanup that follows Interrupted is interrupted, too, and after which a signal that the main
thread does not answer ends the process."""

AGAIN = 0.05
"""Seconds after which a signal whose exception was dropped is raised again."""


class Interrupted(BaseException):
    """Stop at once: a second signal arrived, or the time to finish is over."""


class Terminated(BaseException):
    """SIGTERM arrived, and nothing else handles it."""


@contextmanager
def termination(cleanup: float = CLEANUP) -> Iterator[None]:
    """Make SIGTERM raise Terminated in the main thread, so that unfinished files are removed as after Ctrl-C. Where
    SIGTERM is ignored, it stays ignored. A signal whose exception cannot be raised within `cleanup` seconds ends the
    process, see `_Watch`.

    Python drops an exception that a signal raises inside a destructor, as of h5py's objects. Such a signal is raised
    again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    report, watch = sys.unraisablehook, _Watch(cleanup)

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type in (KeyboardInterrupt, Terminated):
            number = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else signal.SIGTERM
            threading.Timer(AGAIN, signal.pthread_kill, [threading.main_thread().ident, number]).start()
        else:
            report(unraisable)

    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    with watch, ExitStack() as stack:
        stack.callback(setattr, sys, "unraisablehook", report)
        sys.unraisablehook = dropped
        for number, handler in usual.items():
            if signal.getsignal(number) == handler:
                stack.callback(signal.signal, number, handler)
                signal.signal(number, watch.arrived)
        yield


class _Watch:
    """The handler of SIGTERM and SIGINT, `arrived`, and a thread that ends the process if it does not run within
    `cleanup` seconds after a signal. Python runs a handler between two instructions of its own, thus never while a
    library waits, as HDF5 does for a disk that does not answer. Unfinished files then stay.

    The thread needs Python's lock (the GIL). While a library keeps it, as h5py does where it opens a file, no thread
    runs, and only SIGKILL ends the process.
    """

    def __init__(self, cleanup: float) -> None:
        self.cleanup = cleanup
        self.handled = threading.Event()
        self.ended = False
        self.thread = threading.Thread(target=self._run, name="signals", daemon=True)

    def arrived(self, number: int, frame: FrameType | None) -> None:
        self.handled.set()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def __enter__(self) -> Self:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)
        self.thread.start()
        self.before = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        signal.set_wakeup_fd(self.before)
        self.ended = True
        self.handled.set()
        with suppress(BlockingIOError):  # full of the numbers of signals, which wake the thread, too
            os.write(self.writing, b"\0")
        self.thread.join()
        os.close(self.writing)
        os.close(self.reading)

    def _run(self) -> None:
        waiting = select.poll()
        waiting.register(self.reading, select.POLLIN)
        while not self.ended:
            waiting.poll()
            number = next((number for number in self._read() if self._is_ours(number)), None)
            if number is None:
                continue
            if not self.handled.wait(self.cleanup) and self._is_ours(number):
                os._exit(128 + number)
            self.handled.clear()
            self._read()  # after `clear`: signals that came before the handler ran are answered by it

    def _read(self) -> bytes:
        """Return the numbers of the signals that have arrived."""
        with suppress(BlockingIOError):
            return os.read(self.reading, 1 << 16)
        return b""

    def _is_ours(self, number: int) -> bool:
        """True unless something else, as StopSignals, handles a signal now."""
        return number != 0 and signal.getsignal(number) == self.arrived


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
