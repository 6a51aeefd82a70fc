"""What a network for inference offers, and the choice of one for a device."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.cuda import CudaSwin, kernel_problem
from vswin_extract.network.reference import ReferenceSwin
from vswin_extract.network.swin3d import VideoSwin

UNMEASURED = (
    "neither speed nor features have been measured on mps, Apple's GPUs; vswin doctor compares its features with the "
    "stored ones"
)
"""The note for the user of a device that this package was not tested on."""


class InferenceNetwork(Protocol):
    """A Video Swin on a device, with the mean and standard deviation that normalise its pixels."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    @property
    def head(self) -> nn.Linear | None:
        """The classifier of the embedding, in float32; None if the weights have no classes."""

    @property
    def compile_for(self) -> Callable[[int], None] | None:
        """`compile_for(batch)` makes the next call compile the network for batches of `batch` clips, and
        `compile_for(0)` goes back to computing without compiling. None if this network is not faster compiled."""

    def __call__(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        """Return the maps of the given stages, 1 to 4, and compute no later stage.

        `frames`: (F, H, W, 3) RGB in 0 to 255, uint8 or another type. `index`: (N, T), which of the frames each clip
        shows; see `as_frames`. Both are on any device. Result: stage -> (N, T', H', W', C) float32 on `device`; stages
        1 to 3 before patch merging and without norm, stage 4 after the final norm.
        """


def as_frames(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames of clips (N, T, H, W, 3), and the index that makes these clips of them."""
    n, t = clips.shape[:2]
    return clips.flatten(0, 1), torch.arange(n * t, device=clips.device).view(n, t)


def inference_network(
    network: VideoSwin, device: torch.device, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]
) -> tuple[InferenceNetwork, tuple[str, ...]]:
    """Return the fastest network for `device` and `dtype`, and notes for the user.

    It has the parameters of `network`, which is not changed. `mean` and `std` are of RGB in 0 to 255.
    """
    if device.type == "cpu":
        return CpuSwin(network, dtype, mean, std), ()
    notes: tuple[str, ...] = ()
    if device.type == "mps":
        notes = (UNMEASURED,)
    elif dtype is not torch.float32:
        problem = kernel_problem(device, dtype, groups=False)
        if not problem:
            slower = kernel_problem(device, dtype, groups=True)
            notes = (f"attention is computed by the slower of our kernels: {slower}",) if slower else ()
            return CudaSwin(network, device, dtype, mean, std, groups=not slower), notes
        notes = (f"attention is computed by PyTorch, which is slower than our kernels: {problem}",)
    return ReferenceSwin(network, device, dtype, mean, std), notes
