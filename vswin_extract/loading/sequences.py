"""A video's rows as a sequence for another model: averaged, resampled to a length, normalised."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.store.features import FeatureFile, VideoFeatures
from vswin_extract.store.schema import block_rows

if TYPE_CHECKING:
    from vswin_extract.network.pooling import CropPool, Pool

MOST_AXES = {"none": 5, "space": 3, "all": 2}
"""The most axes that rows have after pooling, apart from crops: (T, T', H', W', C), (T, T', C), (T, C)."""


@dataclass(frozen=True)
class Feature:
    """Which feature of a video to read, and how.

    `name`: embedding, stage1 to stage4 or logits. `pool`: average a stage's map over "space" or "all" (T', H', W'),
    unless the file has it averaged already. `length`: resample to so many rows, see `resample`. `l2`: divide each
    vector of channels by its length. `crop_pool`: average the crops of a clip, where the file has them, or return each
    ("none"). Raises UsageError.
    """

    name: str = "embedding"
    pool: "Pool" = "all"
    length: int | None = None
    l2: bool = False
    crop_pool: "CropPool" = "mean"

    def __post_init__(self) -> None:
        if self.pool not in MOST_AXES:
            raise UsageError(f"pool must be none, space or all, not {self.pool!r}")
        if self.crop_pool not in ("mean", "none"):
            raise UsageError(f"crop-pool must be mean or none, not {self.crop_pool!r}")
        if self.length is not None and self.length < 1:
            raise UsageError(f"a length must be 1 or more rows, not {self.length}")

    def shape(self, features: FeatureFile) -> tuple[int, ...]:
        """Return the shape of a row: (C,), (T', C) or (T', H', W', C), each with the crops before it if they are kept.
        Raises UsageError if the file has no such rows."""
        if self.name not in features.names:
            raise UsageError(f"{features.file.filename} has no {self.name}; it has {', '.join(features.names)}")
        if self.crop_pool == "none" and not features.crops:
            raise UsageError(
                f"{features.file.filename} has no crops of its clips, only their mean; extract with --crop-pool none"
            )
        kept = (features.crops,) if self.crop_pool == "none" else ()
        *axes, channels = features.file[self.name].shape[1 + bool(features.crops) :]
        if self.pool == "space" and not axes:
            raise UsageError(f"{self.name} in {features.file.filename} is averaged over time too; use pool all")
        return (*kept, *axes[: MOST_AXES[self.pool] - 2], channels)

    def read(self, video: VideoFeatures) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the rows (T, …) in float32, and the seconds [begin, end) of each (T, 2)."""
        values, times = np.concatenate(list(self._averaged(video))), video.times[:]
        if self.length is not None:
            values, times = resample(values, times, *extent(video, times), self.length)
        if self.l2:
            values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        return values, times

    def _averaged(self, video: VideoFeatures) -> Iterator[NDArray[np.float32]]:
        rows = getattr(video, self.name)
        step = block_rows(len(rows), int(np.prod(rows.shape)) * rows.dtype.itemsize)
        crops = 1 if video.crops else 0
        last = len(rows.shape) - 1
        over = tuple(range(MOST_AXES[self.pool] - 1 + crops, last))
        if crops and self.crop_pool == "mean":
            over = (1, *over)
        for first in range(0, len(rows), step):
            values = rows[first : first + step].astype(np.float32)
            yield values.mean(over) if over else values


def extent(video: VideoFeatures, times: NDArray[np.float64]) -> tuple[float, float]:
    """Return the seconds that the video covers, or its segment. Clips may end before it."""
    info = video.info
    begin = min(float(times[0, 0]), info["start"]) if info["start"] else 0.0
    return begin, begin + info["duration"]


def resample(
    values: NDArray[np.float32], times: NDArray[np.float64], begin: float, end: float, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return `length` rows for equal parts of [begin, end) seconds, and the times of these parts (length, 2).

    A row is interpolated linearly between the two clips whose centres are before and after the centre of its part.
    Before the first centre and after the last it is the row of that clip.
    """
    edges = np.linspace(begin, end, length + 1)
    centres, wanted = times.mean(1), (edges[:-1] + edges[1:]) / 2
    right = np.clip(np.searchsorted(centres, wanted), 1, max(1, len(centres) - 1))
    left, right = right - 1, np.minimum(right, len(centres) - 1)
    gap = centres[right] - centres[left]
    share = np.clip((wanted - centres[left]) / np.where(gap > 0, gap, 1), 0, 1)
    share = share.astype(np.float32).reshape(-1, *(1 for _ in values.shape[1:]))
    mixed: NDArray[Any] = values[left] * (1 - share) + values[right] * share
    return mixed, np.stack([edges[:-1], edges[1:]], 1)
