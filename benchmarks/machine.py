"""The machine, its peak, and a stopwatch: candidates take turns, so that a busy minute slows all of them."""

import contextlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from vswin_extract.network.cpu import packed_linear

Row = dict[str, Any]


def describe(device: torch.device) -> Row:
    """Return the facts that figures depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    facts = {"cpu": model, "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}
    return {**facts, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else facts


def take_turns(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each candidate, after one call that does not count."""
    return median_costs({name: partial(wall_seconds, call) for name, call in candidates.items()}, rounds)


def median_costs(ways: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Return the median of what each way says it costs. They take turns. `warm_up`: the first turn does not count."""
    if warm_up:
        for way in ways.values():
            way()
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            costs[name].append(way())
    return {name: statistics.median(each) for name, each in costs.items()}


def wall_seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product, the best of ten with each library."""
    side = 8192 if device.type == "cuda" else 4096
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[Tensor], Tensor]] = [lambda x: torch.mm(x, b)]
    if device.type == "cpu":
        products.append(packed_linear(b, None, dtype))
    best = float("inf")
    for product in products * 10:
        begun = time.perf_counter()
        product(a)
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * side**3 / best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Ran:
    """A finished command: seconds, and the peak memory of its main process in bytes."""

    seconds: float
    memory: int


def run(command: list[str]) -> Ran:
    """Run a command to its end. Raises RuntimeError if it fails."""
    begun, memory = time.perf_counter(), 0
    with TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
        while process.poll() is None:  # `wait4` would count the memory that this process had when it forked
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                memory = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {errors.read().decode()[-2000:]}")
    return Ran(seconds, memory)
