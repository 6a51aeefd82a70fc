"""Weights, normalisation and network in one callable: uint8 clips in, features out."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vswin_extract.errors import DeviceError, UsageError, first_line
from vswin_extract.network.cpu import CpuSwin, has_bf16
from vswin_extract.network.cuda import CudaSwin, trial
from vswin_extract.network.pooling import Pool, pool_map
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.weights.cache import COMPILED, writable_cache
from vswin_extract.weights.checkpoints import Checkpoint
from vswin_extract.weights.fit import build_network
from vswin_extract.weights.load import load_checkpoint
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Features:
    """What the backbone gives for a batch of N clips, float32; None or left out where it was not asked for.

    `embedding`: (N, C). `stages`: stage -> (N, T', H', W', C), (N, T', C) or (N, C), by pooling.
    `logits`: (N, classes).
    """

    embedding: Tensor | None
    stages: dict[int, Tensor]
    logits: Tensor | None


class Backbone(nn.Module):
    """A pretrained Video Swin that takes pixels: mean and std are buffers of it, so callers hand over uint8 RGB.

    `name`, `sha256`, `recipe`, `classes`, `variant` say what it is. Made by `load_model`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, checkpoint: Checkpoint, device: torch.device, precision: str) -> None:
        super().__init__()
        self.name = name
        self.variant = checkpoint.variant
        self.sha256 = checkpoint.sha256
        self.recipe = checkpoint.recipe or Recipe()
        self.num_classes = checkpoint.num_classes
        self.classes = checkpoint.classes
        self.source = checkpoint.source
        self.license = checkpoint.license
        self.notes = checkpoint.notes
        self.precision = precision
        self.parameter_count = sum(value.numel() for value in checkpoint.state.values())
        network = build_network(checkpoint.state, checkpoint.variant, checkpoint.num_classes)
        network.requires_grad_(False)
        self.network: VideoSwin | CpuSwin | CudaSwin = network
        self.compiled_for = 0
        """Clips of a batch, 0 where it is not compiled; smaller ones are filled up, since each size is compiled."""
        if device.type == "cpu":
            self.network = CpuSwin(network, DTYPES[precision], self.recipe.mean, self.recipe.std)
        elif precision != "fp32":
            if why_not := trial(device, DTYPES[precision]):
                self.notes += (f"attention is computed by PyTorch, which is slower than our kernel: {why_not}",)
            else:
                self.network = CudaSwin(network, DTYPES[precision])
        self.register_buffer("mean", torch.tensor(self.recipe.mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.recipe.std).view(3, 1, 1, 1), persistent=False)
        self.to(device).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @property
    def compiles(self) -> bool:
        """Whether `compile_for` can be called: on CUDA in half precision."""
        return isinstance(self.network, CudaSwin)

    def compile_for(self, clips: Tensor, **wanted: Any) -> None:
        """Compile the network for batches like `clips` and the features `wanted` of them, as `forward` takes them: a
        minute, or seconds where it has been done before.

        Raises DeviceError where that does not work. On a CPU the network is faster as it is.
        """
        if not isinstance(self.network, CudaSwin):
            raise DeviceError(
                f"the network is not compiled on {self.device.type} in {self.precision}; use --compile off"
            )
        if cache := writable_cache():
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / COMPILED))
        plain, self.compiled_for = self.network.compute, len(clips)
        self.network.compute = torch.compile(plain, dynamic=False)
        try:
            self(clips, **wanted)
        except Exception as error:  # whatever a compiler raises
            self.network.compute, self.compiled_for = plain, 0
            said = first_line(error)
            raise DeviceError(f"the network cannot be compiled here: {said}; use --compile off") from error

    @torch.inference_mode()
    def forward(
        self,
        clips: Tensor,
        stages: Collection[int] = (),
        pool: Pool = "none",
        embedding: bool = True,
        logits: bool = False,
    ) -> Features:
        """Features of a batch of clips. Only the stages that these need are computed.

        `clips`: (N, T, H, W, 3) uint8 RGB, on any device. Raises UsageError for anything else, for a stage other than
        1 to 4, and for logits of weights that have no classes.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8:
            raise UsageError(
                f"clips must be uint8 RGB of shape (N, T, H, W, 3), not {clips.dtype} of {tuple(clips.shape)}"
            )
        if not set(stages) <= {1, 2, 3, 4}:
            raise UsageError(f"stages are 1 to 4, not {sorted(set(stages) - {1, 2, 3, 4})}")
        if logits and self.network.head is None:
            raise UsageError(f"{self.name} has no classes, so it gives no logits")
        wanted = sorted({*stages} | ({4} if embedding or logits else set()))
        if not wanted:
            raise UsageError("nothing to compute: name a stage, or leave the embedding on")
        pixels = clips.to(self.device, non_blocking=True).permute(0, 4, 1, 2, 3)  # N 3 T H W
        dtype = DTYPES[self.precision]
        if isinstance(self.network, CpuSwin):
            maps = self.network(pixels, wanted)
        else:
            count = len(pixels)
            if count < self.compiled_for:
                pixels = torch.cat((pixels, pixels[:1].expand(self.compiled_for - count, -1, -1, -1, -1)))
            autocast = isinstance(self.network, VideoSwin) and dtype is not torch.float32
            with torch.autocast(self.device.type, dtype=dtype, enabled=autocast):
                maps = self.network((pixels.float() - self.mean) / self.std, wanted)
            maps = {stage: x[:count].float() for stage, x in maps.items()}
        pooled = VideoSwin.embed(maps[4]) if 4 in maps else None
        return Features(
            embedding=pooled if embedding else None,
            stages={stage: pool_map(maps[stage], pool) for stage in sorted(stages)},
            logits=self.network.head(pooled) if logits and self.network.head is not None else None,
        )


def load_model(
    weights: str | os.PathLike[str] = BUNDLED,
    *,
    variant: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Backbone:
    """Load weights by name or file onto a device.

    `weights`: "nano" (bundled), a name that `vswin weights list` shows, or a checkpoint file of any published layout.
    `variant`: instead of the one read off the shapes. `device`: "auto" (CUDA where there is one), "cpu", "cuda",
    "cuda:1". `precision`: "auto" is bf16 where the device has instructions for it; else fp32 on a CPU, fp16 on CUDA.
    Raises UsageError, WeightsError, DeviceError.

        >>> import torch, vswin_extract
        >>> model = vswin_extract.load_model("nano", device="cpu")
        >>> features = model(torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8), stages=[4])
        >>> features.embedding.shape, features.stages[4].shape
        (torch.Size([1, 128]), torch.Size([1, 16, 7, 7, 128]))
    """
    where = find_device(device)
    how = find_precision(precision, where)
    name, checkpoint = load_checkpoint(os.fspath(weights), variant)
    return Backbone(name, checkpoint, where, how)


def find_devices(name: str) -> list[str]:
    """The devices that a name stands for: cuda:0,1 are two, cuda:all those that there are, cpu:2 two workers on the
    processor. Raises DeviceError where there are none, or one is named twice."""
    kind, _, which = name.partition(":")
    if kind == "cpu" and which.isdecimal() and 1 <= int(which) <= 1024:
        return ["cpu"] * int(which)
    if kind != "cuda" or (which != "all" and "," not in which):
        return [name]
    if which == "all":
        find_device("cuda")
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found = [f"cuda:{index.strip()}" for index in which.split(",")]
    if len(set(found)) < len(found):
        raise DeviceError(f"device {name} names a GPU twice")
    for each in found:
        find_device(each)
    return found


def find_device(name: str) -> torch.device:
    """The device by its name. Raises DeviceError where this machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"unknown device {name!r}; use auto, cpu, cpu:2, cuda, cuda:0, cuda:0,1 or cuda:all"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name} is not supported; use auto, cpu, cpu:2, cuda, cuda:0, cuda:0,1 or cuda:all")
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        raise DeviceError(f"{name} was asked for, but PyTorch sees no CUDA device here{built}; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name} was asked for, but the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    return device


def find_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Raises DeviceError where the device lacks what was asked for."""
    if name not in get_args(Precision):
        raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, not {name!r}")
    if device.type == "cpu":
        return ("bf16" if has_bf16() else "fp32") if name == "auto" else name
    with torch.cuda.device(device):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not bf16:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp16 or fp32")
    return ("bf16" if bf16 else "fp16") if name == "auto" else name
