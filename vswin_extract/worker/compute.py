"""Features of batches of clips, by threads beside the caller. A batch that does not fit into memory is halved."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from vswin_extract.backbone import Features
from vswin_extract.errors import is_out_of_memory
from vswin_extract.feeding.process import DecodedClip
from vswin_extract.network.pooling import CropPool
from vswin_extract.worker.device import Device, Timer

Forward = Callable[[Tensor, Tensor], Features]
"""Frames (F, size, size, 3) uint8, and which of them each clip shows, (N, T), to the features that are wanted."""


@dataclass(frozen=True)
class ComputedBatch:
    """Features of N clips, on their way to host memory. `seconds()` waits until they are there, and says how long the
    device was busy. `gathered`: seconds that it took to have their frames where the network reads them. The `clips`
    must be there until then, because the device may still read their frames."""

    clips: Sequence[DecodedClip]
    values: dict[str, Tensor]
    gathered: float
    seconds: Timer


class Computer:
    """Computes batches in the order in which they are submitted. `batch_size` shrinks when memory runs out; then
    `on_shrink` is called with the new size. `crop_pool`: average the features of each clip's crops, or keep them. The
    crops of a batch are computed one after another, so the network takes no more memory for them."""

    def __init__(
        self,
        forward: Forward,
        device: Device,
        batch_size: int,
        on_shrink: Callable[[int], None] = lambda size: None,
        crop_pool: CropPool = "mean",
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self._forward = forward
        self._on_shrink = on_shrink
        self._crop_pool = crop_pool
        self._threads = ThreadPoolExecutor(device.threads, "computing")

    def submit(self, clips: Sequence[DecodedClip]) -> "Future[list[ComputedBatch]]":
        """Compute the features of clips, in one batch, or in several where memory does not suffice for one."""
        return self._threads.submit(self._compute, clips)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self.device.close()

    def _compute(self, clips: Sequence[DecodedClip]) -> list[ComputedBatch]:
        self.device.prepare()
        return self._halve(clips)

    def _halve(self, clips: Sequence[DecodedClip]) -> list[ComputedBatch]:
        try:
            return [self._batch(clips)]
        except Exception as error:  # PyTorch, oneDNN and Python each have their own
            if len(clips) == 1 or not is_out_of_memory(error):
                raise
        self.device.free_memory()  # outside of `except`, because the traceback keeps tensors alive
        half = len(clips) // 2
        self.batch_size = min(self.batch_size, len(clips) - half)
        self._on_shrink(self.batch_size)
        return [*self._halve(clips[:half]), *self._halve(clips[half:])]

    def _batch(self, clips: Sequence[DecodedClip]) -> ComputedBatch:
        """Compute one batch, one crop of its clips after another."""
        begun = time.perf_counter()
        loaded = self.device.load(clips)
        gathered = time.perf_counter() - begun
        stopwatch = self.device.start_timer()
        crops = loaded.frames.unbind(1)
        features = (named(self._forward(frames, loaded.shown)) for frames in crops)
        host = self._average(features, len(crops)) if self._crop_pool == "mean" else self._keep(features, len(crops))
        return ComputedBatch(clips, host, gathered, stopwatch.stop())

    def _average(self, features: Iterable[dict[str, Tensor]], crops: int) -> dict[str, Tensor]:
        """Copy the mean of the features of each clip's crops to the host, (N, ...)."""
        total: dict[str, Tensor] = {}
        for crop in features:
            for name, values in crop.items():
                total[name] = total[name] + values if name in total else values
        later = self.device.asynchronous
        return {name: (values / crops).to("cpu", non_blocking=later) for name, values in total.items()}

    def _keep(self, features: Iterable[dict[str, Tensor]], crops: int) -> dict[str, Tensor]:
        """Copy the features of each clip's crops to the host, (N, crops, ...): crop by crop, so that the device holds
        those of one crop only."""
        later = self.device.asynchronous
        host: dict[str, Tensor] = {}
        for number, crop in enumerate(features):
            for name, values in crop.items():
                if name not in host:  # pinned, where copies do not wait
                    host[name] = torch.empty((crops, *values.shape), dtype=values.dtype, pin_memory=later)
                host[name][number].copy_(values, non_blocking=later)
        return {name: values.transpose(0, 1) for name, values in host.items()}


def named(features: Features) -> dict[str, Tensor]:
    """Return features by the names of their datasets."""
    found = {f"stage{stage}": values for stage, values in features.stages.items()}
    if features.embedding is not None:
        found["embedding"] = features.embedding
    if features.logits is not None:
        found["logits"] = features.logits
    return found
