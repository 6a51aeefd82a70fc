"""A stopwatch for a device. Inputs take turns, so that no result is there before it is computed."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

FLUSHED = 256 * 2**20
"""Bytes that are written before each call that is timed: more than the cache of a GPU. They also keep the GPU busy
while the call is queued, so that its time has no gaps."""


def seconds_of(calls: Sequence[Callable[[], object]], device: torch.device, most: float = 1.0, least: int = 5) -> float:
    """Return the median seconds of a call. `calls`: the same call with several inputs, which take turns. It is called
    at least `least` times, and not for much longer than `most` seconds."""
    if device.type != "cuda":
        return on_cpu(calls)
    for call in calls:
        call()
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    calls[0]()
    torch.cuda.synchronize(device)
    once = max(1e-5, time.perf_counter() - begun)
    rounds = max(least, min(100, int(most / once)))
    scratch = torch.empty(FLUSHED // 4, dtype=torch.int32, device=device)
    marks = []
    for number in range(rounds):
        scratch.zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        calls[number % len(calls)]()
        last.record()
        marks.append((first, last))
    torch.cuda.synchronize(device)
    return statistics.median(float(first.elapsed_time(last)) / 1000 for first, last in marks)


def on_cpu(calls: Sequence[Callable[[], object]]) -> float:
    found = []
    for call in calls:
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def peak(device: torch.device, dtype: torch.dtype, small: bool) -> float:
    """Return the FLOP/s of a large matrix product of random numbers."""
    side = 256 if small else 8192
    pairs = [[torch.randn(side, side, device=device).to(dtype) for _ in range(2)] for _ in range(2)]
    calls = [lambda a=a, b=b: torch.mm(a, b) for a, b in pairs]
    return 2.0 * side**3 / seconds_of(calls, device)
