"""The features of a video in memory, with the attributes that they have in an output."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.store.features import VideoFeatures
from vswin_extract.store.schema import FEATURES, VIDEO_COLUMNS, VideoRecord

if TYPE_CHECKING:
    import torch


class ArrayRows(np.ndarray[Any, np.dtype[Any]]):
    """A video's rows in memory: an array of NumPy, with the `to_torch` that rows of an output have."""

    def to_torch(self) -> "torch.Tensor":
        """Return all rows, in memory of their own."""
        import torch

        return torch.from_numpy(np.array(self))


class VideoInMemory(VideoFeatures):
    """One video's features in memory, with the attributes and methods of `VideoFeatures`. Its rows are arrays of NumPy.
    They have the values, shapes and types that a run with the same options writes.

    Its `output` is None. It can be pickled.

        >>> video.id, len(video), video.names, video.frames.tolist()
        ('shapes.mkv', 2, ['embedding', 'stage4'], [[0, 64], [64, 120]])
        >>> video.embedding.mean(0).shape, video.at(4.5), video.info["fps"] > 23
        ((128,), 1, True)
    """

    output = None  # type: ignore[assignment]  # it is of no file

    def __init__(self, record: VideoRecord, rows: Mapping[str, NDArray[Any]], crops: int = 0) -> None:
        self.id = record.id
        self.crops = crops
        self._record = record
        self._arrays = {name.removeprefix("clips/"): values.view(ArrayRows) for name, values in rows.items()}

    def __len__(self) -> int:
        return self._record.clips

    def __getattr__(self, name: str) -> ArrayRows:  # type: ignore[override]  # with more than VideoRows has
        if name.startswith("_"):  # copy and pickle ask for such names
            raise AttributeError(name)
        if name not in self._arrays:
            raise AttributeError(f"{self.id} was extracted without {name}; it has {', '.join(self.names)}")
        return self._arrays[name]

    @property
    def names(self) -> list[str]:
        """The features that it has: embedding, stage4…"""
        return [name for name in FEATURES if name in self._arrays]

    @property
    def rows(self) -> slice:
        """All of its rows."""
        return slice(0, len(self))

    @property
    def info(self) -> dict[str, Any]:
        """What /videos_table would say: path, fps, duration in seconds, width, height, status…"""
        record = self._record
        start = 0.0 if record.start is None else record.start
        end = np.inf if record.end is None else record.end
        other = {"first_clip": 0, "start": start, "end": end}
        return {name: other[name] if name in other else getattr(record, name) for name in VIDEO_COLUMNS}
