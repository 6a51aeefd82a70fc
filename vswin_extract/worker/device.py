"""How batches get to a device and how its time is measured: a class each for the CPU, for CUDA and for mps."""

import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vswin_extract.feeding.process import DecodedClip
from vswin_extract.worker.frame_ring import FrameRing

MOST_THREADS = 8
"""Batches that a CPU computes at a time. With more threads they would wait for Python's lock; more cores share a
batch."""

Timer = Callable[[], float]
"""Made by `Stopwatch.stop`. A call waits for the device and returns the measured seconds."""


class LoadedClips(NamedTuple):
    """N clips where the network reads them: frames (F, crops, size, size, 3) uint8, and which of them each clip shows,
    (N, T)."""

    frames: Tensor
    shown: Tensor


class Device(Protocol):
    """`threads`: how many batches are computed at a time. `asynchronous`: features may be copied to the host while the
    next batch is computed; a timer then waits until they are there."""

    threads: int
    asynchronous: bool

    def prepare(self) -> None:
        """Called by the thread that computes a batch, before it does."""
        ...

    def load(self, clips: Sequence[DecodedClip]) -> LoadedClips:
        """Bring the frames of clips of one shape, in one memory, to where the network reads them."""
        ...

    def start_timer(self) -> "Stopwatch": ...

    def free_memory(self) -> None:
        """Give memory back that is reserved and not used, after there was too little."""
        ...

    def close(self) -> None: ...


class Stopwatch(Protocol):
    def stop(self) -> Timer:
        """Mark the end. The returned call waits for it and gives the seconds in between."""
        ...


class CpuDevice:
    """Each thread takes a batch of its own: threads that share one would wait for each other at every operation, as
    often as a decoder takes a core from one of them."""

    asynchronous = False

    def __init__(self, cores: int) -> None:
        self.threads = min(cores, MOST_THREADS)
        # The first batch has the machine to itself. How many cores share a clip does not change its features.
        self._cores = chain([cores], repeat(max(1, cores // self.threads)))
        self._before = torch.get_num_threads()

    def prepare(self) -> None:
        torch.set_num_threads(next(self._cores))

    def load(self, clips: Sequence[DecodedClip]) -> LoadedClips:
        return shared_clips(clips)

    def start_timer(self) -> "Stopwatch":
        return _WallClock()

    def free_memory(self) -> None:
        """Nothing is reserved."""

    def close(self) -> None:
        torch.set_num_threads(self._before)  # a setting of the whole process


class CudaDevice:
    """One thread queues copies and kernels. The frames of the next batch are copied while one is computed."""

    threads = 1
    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ring = FrameRing(device)

    def prepare(self) -> None:
        """Nothing to do."""

    def load(self, clips: Sequence[DecodedClip]) -> LoadedClips:
        return LoadedClips(*self._ring.load(clips))

    def start_timer(self) -> "Stopwatch":
        return _CudaClock(self._device)

    def free_memory(self) -> None:
        self._ring.clear()
        torch.cuda.empty_cache()

    def close(self) -> None:
        self._ring.close()


class MpsDevice:
    """Apple's GPUs. Each copy waits until it is done, since a copy that does not wait may give wrong values there."""

    threads = 1
    asynchronous = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(self) -> None:
        """Nothing to do."""

    def load(self, clips: Sequence[DecodedClip]) -> LoadedClips:
        frames, shown = shared_clips(clips)
        numbers, places = torch.unique(shown, return_inverse=True)
        return LoadedClips(frames.index_select(0, numbers).to(self._device), places.to(self._device))

    def start_timer(self) -> "Stopwatch":
        return _WallClock()  # the features have been copied when it is stopped

    def free_memory(self) -> None:
        torch.mps.empty_cache()

    def close(self) -> None:
        """Nothing to do."""


def make_device(device: torch.device, cores: int) -> Device:
    match device.type:
        case "cuda":
            return CudaDevice(device)
        case "mps":
            return MpsDevice(device)
    return CpuDevice(cores)


class _WallClock:
    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def stop(self) -> Timer:
        seconds = time.perf_counter() - self._begun
        return lambda: seconds


class _CudaClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = self._mark()

    def stop(self) -> Timer:
        ended = self._mark()

        def seconds() -> float:
            ended.synchronize()
            return float(self._begun.elapsed_time(ended)) / 1000

        return seconds

    def _mark(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        return mark


def shared_clips(clips: Sequence[DecodedClip]) -> LoadedClips:
    """Return clips as they lie in the memory that decoders share. Nothing is copied."""
    frames = torch.from_numpy(clips[0].memory.frames(clips[0].shape))
    return LoadedClips(frames, torch.from_numpy(np.array([[slot.number for slot in clip.slots] for clip in clips])))
