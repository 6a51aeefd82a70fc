"""Python threads that each compute on one core.

PyTorch's thread count is kept per thread, but `torch.set_num_threads` also sets the count with which threads begin
that use PyTorch for the first time later on. So a thread that sets its own count changes that of threads to come.
Here both are kept apart: workers have a count of one, and no other thread's count changes.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_STARTING = threading.Lock()
"""Held while workers start: meanwhile, new threads would begin with a count of one."""


def usable_threads() -> int:
    """Return PyTorch's thread count of the calling thread."""
    with _STARTING:
        return torch.get_num_threads()


@contextmanager
def single_threaded_workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of `count` threads in which each PyTorch operation runs on the thread itself."""
    with ThreadPoolExecutor(count) as workers:
        with _STARTING, ThreadPoolExecutor(1) as starter:
            starter.submit(_start, workers, count).result()
        yield workers


def _start(workers: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of `workers`. Must be called in a new thread: it reads the count that new threads begin with,
    and after the workers have overwritten this count, sets it again."""
    before = torch.get_num_threads()
    all_there = threading.Barrier(count)  # a pool starts another thread only while all others are busy

    def use_one() -> None:
        torch.get_num_threads()  # a thread takes over the process's count when it is first read, even after it was set
        torch.set_num_threads(1)
        all_there.wait()

    try:
        for started in [workers.submit(use_one) for _ in range(count)]:
            started.result()
    except BaseException:
        all_there.abort()  # or the threads that have started would wait for ever
        raise
    finally:
        torch.set_num_threads(before)
