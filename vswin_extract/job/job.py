"""A job: one frozen value with everything that a run needs to know. Making one reads and writes no file."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from vswin_extract.backbone import Precision
from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.errors import UsageError
from vswin_extract.job.shard import Shard
from vswin_extract.network.pooling import CropPool, Pool
from vswin_extract.store.layouts import Layout
from vswin_extract.store.schema import Compression
from vswin_extract.video.fetch import CACHE_SIZE, Cache, cache_directory
from vswin_extract.video.geometry import Crop, Geometry
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Align, Sampling, Tail
from vswin_extract.video.videos import Video
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import BUNDLED

Dtype = Literal["float32", "float16"]
Partial = Literal["keep", "fail"]
Compile = Literal["auto", "on", "off"]
Engine = Literal["local", "ray"]
AUTO = "auto"
MOST = 16384
"""Pixels of a side, clips of a batch, processes: a larger number is a mistake."""


@dataclass(frozen=True)
class Job:
    """The videos, the output and all settings of a run. None means: as the weights' recipe or the device says.

    `ema`: take the averaged weights of a checkpoint that has both. `offline`: never download weights. `stages`: stages
    whose maps are written, 1 to 4. `pool`: write the maps as they are, or averaged over space or over time and space.
    `embedding`: write the embedding, which needs all four stages. `crop_pool`: average the features of a clip's crops,
    or write each. `layout`: one file, or several files and an index. `partial`: keep the part of a damaged video that
    decodes, or let the video fail. `shard`: extract only this part of the videos into the journal; `merge` makes the
    output. `storage`: directory of the journal, if it is not beside the output. `cache_dir`, `cache_size` (bytes):
    where each host keeps the files of remote videos while it decodes them. `engine`: the devices of this machine, or
    `actors` on the Ray cluster at `ray_address` (default: as many actors as there is room for). Raises UsageError for
    values that cannot work.
    """

    videos: tuple[Video, ...]
    output: Path
    weights: str = BUNDLED
    variant: str | None = None
    ema: bool = False
    offline: bool = False
    stages: tuple[int, ...] = ()
    pool: Pool = "none"
    embedding: bool = True
    logits: bool = False
    dtype: Dtype = "float32"
    compression: Compression = "none"
    layout: Layout = "single"
    clip_len: int | None = None
    frame_interval: int | None = None
    stride: int | None = None
    fps: Fraction | None = None
    align: Align = "start"
    tail: Tail = "pad"
    size: int | None = None
    resize: int | None = None
    crop: Crop = "center"
    crop_pool: CropPool = "mean"
    decoder: DecoderName = "pyav"
    partial: Partial = "keep"
    workers: int | None = None
    timeout: float = 60.0
    cache_dir: str | os.PathLike[str] | None = None
    cache_size: int = CACHE_SIZE
    device: str = "auto"
    storage: Path | None = None
    shard: Shard | None = None
    engine: Engine = "local"
    ray_address: str = AUTO
    actors: int | None = None
    precision: Precision = "auto"
    compile: Compile = "auto"
    batch_size: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not set(self.stages) <= {1, 2, 3, 4} or len(set(self.stages)) < len(self.stages):
            raise UsageError(f"stages are 1 to 4, each once, not {', '.join(map(str, self.stages))}")
        if not (self.stages or self.embedding or self.logits):
            raise UsageError("nothing to write: name a stage, or leave the embedding on")
        for name, kind in (
            ("pool", Pool), ("dtype", Dtype), ("compression", Compression), ("layout", Layout),
            ("precision", Precision), ("decoder", DecoderName), ("partial", Partial), ("compile", Compile),
            ("engine", Engine), ("crop_pool", CropPool),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise UsageError(
                    f"{name.replace('_', '-')} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}"
                )
        for name in ("batch_size", "workers", "size", "resize", "actors"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 1 <= value <= MOST):
                raise UsageError(f"{name.replace('_', '-')} must be a whole number from 1 to {MOST}, not {value!r}")
        if not 0 < self.timeout < float("inf"):
            raise UsageError(f"timeout must be more than 0 seconds, and finite, not {self.timeout:g}")
        if not self.output.name:
            raise UsageError(f"{self.output} is a directory; name the file to write")
        if self.crop != "center" and self.crop_pool == "mean" and self.stages and self.pool == "none":
            raise UsageError(
                f"the features of {self.crop} crops are averaged, which a map in space does not allow; "
                "add --pool space or --pool all, or keep the crops by --crop-pool none"
            )
        if not isinstance(self.cache_size, int) or self.cache_size < 0:
            raise UsageError(f"cache-size must be a whole number of bytes, 0 or more, not {self.cache_size!r}")
        self._check_engine()
        self.sampling(Recipe())
        self.geometry(Recipe())

    def _check_engine(self) -> None:
        if self.engine != "ray":
            for name, given in (("actors", self.actors is not None), ("ray-address", self.ray_address != AUTO)):
                if given:
                    raise UsageError(f"--{name} is for --engine ray")
            return
        if self.shard is not None:
            raise UsageError("--shard and --engine ray both divide the videos; choose one of them")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"with --engine ray, Ray chooses devices: --device cuda or cpu and --actors N, not {self.device}"
            )
        if "://" in self.ray_address:
            raise UsageError(
                f"ray-address is auto, or HOST:PORT of a cluster that has a node on this host, not {self.ray_address}"
            )

    @property
    def decodes_ranges(self) -> bool:
        """True if its decoder can begin at a key frame in the middle of a video."""
        return self.decoder == "pyav"

    def check_directories(self) -> None:
        """Raise UsageError where a directory that the run needs is not there and cannot be made."""
        if self.storage is not None and not self.storage.is_dir():
            raise UsageError(
                f"no directory {self.storage} to store unfinished work in; make it, or name another by --storage"
            )
        if any(isinstance(video.path, Address) for video in self.videos):
            self.cache()

    def cache(self) -> Cache:
        """The cache of this host for the files of remote videos; its directory is made. Raises UsageError."""
        return Cache(str(cache_directory(self.cache_dir)), self.cache_size)

    def sampling(self, recipe: Recipe) -> Sampling:
        """Return the sampling; what the job leaves open is as in the recipe."""
        return Sampling(
            clip_len=recipe.clip_len if self.clip_len is None else self.clip_len,
            frame_interval=recipe.frame_interval if self.frame_interval is None else self.frame_interval,
            stride=self.stride,
            fps=self.fps,
            align=self.align,
            tail=self.tail,
        )

    def geometry(self, recipe: Recipe) -> Geometry:
        """Return the resize and the crop. A new size keeps the proportion of crop to short side of the recipe."""
        size = recipe.size if self.size is None else self.size
        resize = round(recipe.resize * size / recipe.size) if self.resize is None else self.resize
        return Geometry(size=size, resize=resize, crop=self.crop)


def parse_fps(text: str | float | None) -> Fraction | None:
    """Parse a frame rate: 15, 29.97 or 30000/1001. Raises UsageError."""
    if text is None:
        return None
    try:
        if not all(
            0 < float(part) < 1e9 for part in str(text).split("/")
        ):  # a huge exponent would become a huge whole number
            raise ValueError(text)
        return Fraction(str(text))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"fps must be a number above 0, or a fraction like 30000/1001, not {text!r}") from error
