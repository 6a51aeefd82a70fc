"""Decoded frames to the pixels that the network sees: resize the short side, crop. Frame by frame, no torch.

The rule is torchvision's video preset (transforms/_presets.py, VideoClassification): bilinear without antialiasing on
floats, rounded back to whole grey levels; centre crop. Normalisation (mean, std) happens on the device, see `backbone`.
Only the rows and columns that the crop needs are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError

Pixels = NDArray[np.uint8]
Crop = Literal["center", "three"]


@dataclass(frozen=True)
class Geometry:
    """Short side to `resize`, then crop `size` x `size`: at the centre, or at three places along the long side."""

    size: int
    resize: int
    crop: Crop = "center"

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise UsageError(f"crop must be center or three, not {self.crop!r}")
        if self.size < 32:
            raise UsageError(f"size must be at least 32 pixels, the side of one stage 4 token, not {self.size}")
        if self.resize < self.size:
            raise UsageError(f"resize {self.resize} is smaller than the crop, size {self.size}; make it at least that")

    def apply(self, rgb: Pixels) -> Pixels:
        """One frame (height, width, 3) of RGB to the (h, w, 3) that its crops need; h = w = size with one crop."""
        height, width = rgb.shape[:2]
        y0, y1, wy, x0, x1, wx = _taps(height, width, self)
        left, right = x0[0], x1[-1] + 1
        rgb, x0, x1 = rgb[:, left:right], x0 - left, x1 - left
        rows = np.empty((len(y0), right - left, 3), np.float32)
        np.multiply(rgb[y0], 1 - wy, out=rows)
        rows += rgb[y1] * wy
        pixels = rows.take(x0, axis=1)
        pixels *= 1 - wx
        pixels += rows.take(x1, axis=1) * wx
        grey: Pixels = np.rint(pixels, out=pixels).astype(np.uint8)
        return grey

    def views(self, clip: Sequence[Pixels]) -> list[list[Pixels]]:
        """The crops of a clip of T applied frames, each T times (size, size, 3): one, or three from end to end."""
        return [[self._cut(frame, i) for frame in clip] for i in range(1 if self.crop == "center" else 3)]

    def _cut(self, frame: Pixels, i: int) -> Pixels:
        height, width = frame.shape[:2]
        top, left = i * ((height - self.size) // 2), i * ((width - self.size) // 2)
        return frame[top : top + self.size, left : left + self.size]


@lru_cache(maxsize=32)
def _taps(height: int, width: int, geometry: Geometry) -> tuple[NDArray[Any], ...]:
    """For each row and column wanted, its two neighbours in the source and the weight of the second."""
    if height < width:
        resized = (geometry.resize, geometry.resize * width // height)
    else:
        resized = (geometry.resize * height // width, geometry.resize)
    taps: list[NDArray[Any]] = []
    for axis, (source, target) in enumerate(zip((height, width), resized, strict=True)):
        long_side = (axis == 1) == (width >= height)
        if geometry.crop == "three" and long_side:
            # three crops reach from end to end, and the middle one must lie on whole pixels
            first, count = 0, target - (target - geometry.size) % 2
        else:
            first, count = round((target - geometry.size) / 2), geometry.size
        wanted = np.arange(first, first + count, dtype=np.float32)
        at = np.maximum((wanted + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5), np.float32(0))
        low = np.minimum(at.astype(np.int64), source - 1)
        high = np.minimum(low + 1, source - 1)
        weight = (at - low).astype(np.float32)
        taps += [low, high, weight.reshape((-1, 1, 1) if axis == 0 else (-1, 1))]
    return tuple(taps)
