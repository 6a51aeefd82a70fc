"""Weights, normalisation and network in one callable: uint8 clips in, features out."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vswin_extract.errors import DeviceError, UsageError, WeightsError, first_line
from vswin_extract.formatting import name_some
from vswin_extract.network.cpu import has_bf16
from vswin_extract.network.inference import as_frames, inference_network
from vswin_extract.network.pooling import Pool, pool_map
from vswin_extract.network.variants import StageNames, parse_stages
from vswin_extract.system import give_back_freed_memory, home_directory
from vswin_extract.video.fetch import cache_directory
from vswin_extract.weights.cache import COMPILED, writable_cache
from vswin_extract.weights.checkpoints import Checkpoint
from vswin_extract.weights.fit import build_network, not_finite
from vswin_extract.weights.load import load_checkpoint
from vswin_extract.weights.part import ProgressCallback
from vswin_extract.weights.pull import obtain_weights
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DEVICES = "auto, cpu, cpu:2, cuda, cuda:0, cuda:0,1, cuda:all or mps"
"""What --device can be, for messages."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Features:
    """Features of a batch of N clips, float32; None or left out if they were not asked for.

    `embedding`: (N, C). `stages`: stage -> (N, T', H', W', C), (N, T', C) or (N, C), by pooling.
    `logits`: (N, classes).

        >>> features.embedding.dtype, list(features.stages), features.logits
        (torch.float32, [4], None)
    """

    embedding: Tensor | None
    stages: dict[int, Tensor]
    logits: Tensor | None


class Backbone:
    """A pretrained Video Swin on a device, with the mean and standard deviation of its pixels: it takes uint8 RGB.

    `name`, `sha256`, `recipe`, `classes` and `variant` describe the weights. `sha256` is that of their file; of
    averaged weights beside usual ones it ends in `+` and their place in the file. `file`: that file as it was read;
    None for drawn weights. `load_model` makes it. On a CPU, any number of threads may call it at once.

        >>> model.variant.name, model.variant.channels(4), model.recipe.size, model.sha256[:8]
        ('nano', 128, 224, 'c33008d7')
    """

    def __init__(self, name: str, checkpoint: Checkpoint, device: torch.device, precision: str) -> None:
        self.name = name
        self.variant = checkpoint.variant
        self.sha256 = checkpoint.sha256
        self.recipe = checkpoint.recipe or Recipe()
        self.num_classes = checkpoint.num_classes
        self.classes = checkpoint.classes
        self.source = checkpoint.source
        self.license = checkpoint.license
        self.file = checkpoint.file
        self.precision = precision
        if device.type == "cuda" and "TRITON_HOME" not in os.environ and not _can_write_home():
            name_compiler_cache("TRITON_CACHE_DIR")  # which is below the home directory by default
        self.parameter_count = sum(value.numel() for value in checkpoint.state.values())
        self.network, notes = inference_network(
            build_network(checkpoint.state, checkpoint.variant, checkpoint.num_classes).requires_grad_(False),
            device,
            DTYPES[precision],
            self.recipe.mean,
            self.recipe.std,
        )
        self.notes = (*checkpoint.notes, *notes)
        self._compiled_for = 0  # clips of a batch; 0: not compiled

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.network.device

    @property
    def compiles(self) -> bool:
        """True if `compile_for` can be called: on CUDA in half precision."""
        return self.network.compile_for is not None

    def compile_for(self, clips: Tensor, **wanted: Any) -> None:
        """Compile the network for batches like `clips` and the features `wanted`, which are arguments of a call.

        This takes a minute, or seconds if it has been done before. Smaller batches will take as long as one like
        `clips`. Raises DeviceError if the network cannot be compiled, or is faster as it is.

            >>> if model.compiles:
            ...     model.compile_for(clips, stages=4)
        """
        if not self.compiles:
            raise DeviceError(
                f"the network is not compiled on {self.device.type} in {self.precision}; use --compile off"
            )
        name_compiler_cache("TORCHINDUCTOR_CACHE_DIR")
        self._compile(len(clips))
        try:
            self(clips, **wanted)
        except Exception as error:  # compilers raise many kinds
            self._compile(0)
            reason = first_line(error)
            raise DeviceError(f"the network cannot be compiled here: {reason}; use --compile off") from error

    def limit_batch(self, clips: int) -> None:
        """Announce that batches will have at most `clips` clips, for example after one of more did not fit in memory.

        A network that is compiled for more is compiled for so many at the next call.

            >>> model.limit_batch(2)
        """
        if clips < self._compiled_for:
            self._compile(clips)

    def _compile(self, batch: int) -> None:
        if self.network.compile_for is not None:
            self.network.compile_for(batch)
            self._compiled_for = batch

    @torch.inference_mode()
    def __call__(
        self,
        clips: Tensor,
        stages: StageNames = (),
        pool: Pool = "none",
        embedding: bool = True,
        logits: bool = False,
    ) -> Features:
        """Return features of a batch of clips. Only the stages that these need are computed.

        `clips`: (N, T, H, W, 3) uint8 RGB, on any device. `stages`: 4, [3, 4], "stage4" or "all". `pool`: leave their
        maps as they are ("none"), or average them over "space" or over time and space ("all"). Raises UsageError for
        other clips or stages, for logits if the weights have no classes, and if there is nothing to compute.

            >>> clips = torch.zeros(2, 8, 64, 64, 3, dtype=torch.uint8)
            >>> features = model(clips, stages=4, pool="space")
            >>> features.embedding.shape, features.stages[4].shape
            (torch.Size([2, 128]), torch.Size([2, 4, 128]))
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8:
            raise UsageError(
                f"clips must be uint8 RGB of shape (N, T, H, W, 3), not {clips.dtype} of {tuple(clips.shape)}"
            )
        return self.of_frames(*as_frames(clips), stages, pool, embedding, logits)

    @torch.inference_mode()
    def of_frames(
        self,
        frames: Tensor,
        index: Tensor,
        stages: StageNames = (),
        pool: Pool = "none",
        embedding: bool = True,
        logits: bool = False,
    ) -> Features:
        """Do the same for clips that share frames. `frames`: (F, H, W, 3) uint8 RGB. `index`: (N, T), which of the
        frames each clip shows.

            >>> frames = torch.zeros(12, 64, 64, 3, dtype=torch.uint8)
            >>> index = torch.stack([torch.arange(0, 8), torch.arange(4, 12)])  # clips that overlap
            >>> model.of_frames(frames, index).embedding.shape
            torch.Size([2, 128])
        """
        stages = parse_stages(stages)
        head = self.network.head
        if logits and head is None:
            raise UsageError(f"{self.name} has no classes, so it gives no logits")
        wanted = sorted({*stages} | ({4} if embedding or logits else set()))
        if not wanted:
            raise UsageError("nothing to compute: name a stage, or leave the embedding on")
        maps = self.network(frames, index, wanted)
        pooled = pool_map(maps[4], "all") if 4 in maps else None
        return Features(
            embedding=pooled if embedding else None,
            stages={stage: pool_map(maps[stage], pool) for stage in stages},
            logits=_apply_head(head, pooled) if logits and head is not None and pooled is not None else None,
        )


def name_compiler_cache(variable: str) -> None:
    """Set TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR, where PyTorch and Triton keep what they compile, unless it is
    set: to a directory in the weights cache. If that cannot be written, or if other users can write there, it is one
    of this user alone, in the directory for temporary files: what is found there is executed. Raises DeviceError."""
    if variable in os.environ:
        return
    try:
        shared = writable_cache()
        directory = shared if shared and _is_written_by_us_alone(shared) else cache_directory(None)
    except UsageError as error:
        raise DeviceError(f"there is no directory for what is compiled; set {variable} to one of your own") from error
    os.environ[variable] = str(directory / COMPILED)


def _is_written_by_us_alone(directory: Path) -> bool:
    """Make a directory if it is missing. Return False where other users may write to it."""
    try:
        directory.mkdir(0o755, parents=True, exist_ok=True)
        compiled = directory / COMPILED
        found = [path.lstat() for path in (directory.resolve(), compiled) if os.path.lexists(path)]
    except OSError:
        return False
    return all(
        stat.S_ISDIR(each.st_mode) and each.st_uid == os.geteuid() and not each.st_mode & 0o022 for each in found
    )


def _can_write_home() -> bool:
    home = home_directory()
    return home is not None and os.access(home, os.W_OK | os.X_OK)


def _apply_head(head: nn.Linear, embeddings: Tensor) -> Tensor:
    """Return the logits of each embedding. They are computed one by one, because the last bits of a matrix product
    depend on how many rows it has."""
    return torch.cat([head(embedding) for embedding in torch.split(embeddings, 1)])


def load_model(
    weights: str | os.PathLike[str] = BUNDLED,
    *,
    variant: str | None = None,
    ema: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    offline: bool = False,
    on_download: ProgressCallback = lambda done, total: None,
    kind: type[Backbone] = Backbone,  # which class is made: the Model of the Python API is one, above this room
) -> Backbone:
    """Load weights by name or file onto a device.

    `weights`: "nano" (bundled), a name that `vswin weights list` shows, or a checkpoint file of any published layout.
    `variant`: replaces the one that follows from the shapes. `ema`: the averaged weights that a training has saved
    beside the usual ones in the same file. `device`: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", "mps"
    (Apple's GPUs, in fp32 only). `precision`: "auto" is bf16 if the device has instructions for it, else fp32 on a CPU
    and mps, fp16 on CUDA. Published weights that are not in the cache are downloaded, unless `offline` or the variable
    VSWIN_OFFLINE is set; `on_download` is called with the bytes that are there and the bytes of the file, 0 if unknown.
    Raises UsageError, WeightsError, DeviceError.

        >>> import torch, vswin_extract
        >>> model = vswin_extract.load_model("nano", device="cpu")
        >>> features = model(torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8), stages=[4])
        >>> features.embedding.shape, features.stages[4].shape
        (torch.Size([1, 128]), torch.Size([1, 16, 7, 7, 128]))
    """
    where = find_device(device)
    how = find_precision(precision, where)
    obtain_weights(os.fspath(weights), offline, on_download)
    name, checkpoint = load_checkpoint(os.fspath(weights), variant, ema)
    if how == "fp16" and (too_large := not_finite(_matrices_in_half(checkpoint))):
        raise WeightsError(
            f"{name_some(too_large)} of {name} have values that fp16 cannot hold; use --precision fp32, or bf16"
        )
    backbone = kind(name, checkpoint, where, how)
    del checkpoint  # a device has copies of most tensors
    give_back_freed_memory()
    return backbone


def _matrices_in_half(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the parameters that a network in fp16 computes with in fp16, in this type."""
    exact = ("patch_embed.", "head.")
    names = [name for name in checkpoint.state if "norm" not in name and not name.startswith(exact)]
    return {name: checkpoint.state[name].half() for name in names}


def find_devices(name: str) -> list[str]:
    """Return the devices that a name stands for: "cuda:0,1" two GPUs, "cuda:all" every GPU, "cpu:2" the CPU twice.

    Raises DeviceError if there is no such GPU, or one is named twice.
    """
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
    """Return the device of a name. "auto" is CUDA if there is one, else the CPU, and never mps, because nobody has
    measured it. Raises DeviceError if this machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; use {DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name} is not supported; use {DEVICES}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        built = "" if torch.backends.mps.is_built() else " (this PyTorch is built without it)"
        raise DeviceError(f"{name} was asked for, but PyTorch sees no Metal device here{built}; use --device cpu")
    if device.type == "mps" and device.index:
        raise DeviceError(f"{name} was asked for, but there is one Metal device, mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        raise DeviceError(f"{name} was asked for, but PyTorch sees no CUDA device here{built}; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name} was asked for, but the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    return device


def find_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16. Raises UsageError for other names, and DeviceError if the device does not compute in
    it."""
    if name not in get_args(Precision):
        raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, not {name!r}")
    if device.type == "cpu":
        return ("bf16" if has_bf16() else "fp32") if name == "auto" else name
    if device.type == "mps":
        if name not in ("auto", "fp32"):
            raise DeviceError(f"mps computes in fp32 only; use --precision fp32, not {name}")
        return "fp32"
    with torch.cuda.device(device):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not bf16:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp16 or fp32")
    return ("bf16" if bf16 else "fp16") if name == "auto" else name
