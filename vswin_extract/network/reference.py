"""The network of `swin3d` as it stands, for inference: on a GPU in float32, on Apple's GPUs (mps), or if
the Triton kernel cannot be used."""

from collections.abc import Collection, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from vswin_extract.network.swin3d import VideoSwin, gathered_clips


class ReferenceSwin:
    """An `InferenceNetwork` that calls a copy of a `VideoSwin`, in half precision under autocast."""

    compile_for = None

    def __init__(
        self,
        network: VideoSwin,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.network = deepcopy(network).to(device).eval()
        self.head = self.network.head
        self.dtype = dtype
        self.mean, self.std = (torch.tensor(of_rgb, device=device) for of_rgb in (mean, std))
        self.device = self.mean.device  # with its number, "cuda:0" for "cuda"

    @torch.inference_mode()
    def __call__(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        clips = gathered_clips(frames, index, self.device)
        clips = ((clips.float() - self.mean) / self.std).permute(0, 4, 1, 2, 3)  # N 3 T H W
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            maps = self.network(clips, stages)
        return {stage: x.float() for stage, x in maps.items()}
