"""From a decoded frame to the pixels that the network sees: resize the short side, then crop.

The rule is torchvision's video preset (transforms/_presets.py, VideoClassification): bilinear interpolation of floats
without antialiasing, rounded to whole grey levels, then a centre crop. Normalisation (mean, std) happens on the
device, see `backbone`. Only the rows and columns that the crops need are computed.
"""

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
    """Resize the short side to `resize`, then crop `size` x `size`: at the centre, or at three places along the long
    side. Raises UsageError."""

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

    @property
    def crops(self) -> int:
        return 1 if self.crop == "center" else 3

    def apply(self, rgb: Pixels) -> Pixels:
        """Return the crops (crops, size, size, 3) of a frame (height, width, 3). Three crops go from the left or the
        top to the other end of the frame."""
        band = self._band(rgb)
        if self.crops == 1:
            return band[None]
        down, right = ((side - self.size) // 2 for side in band.shape[:2])
        return np.stack(
            [band[i * down : i * down + self.size, i * right : i * right + self.size] for i in range(self.crops)]
        )

    def _band(self, rgb: Pixels) -> Pixels:
        """Return the part of the resized frame that the crops lie in, (h, w, 3)."""
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
        band: Pixels = np.rint(pixels, out=pixels).astype(np.uint8)
        return band


@lru_cache(maxsize=32)
def _taps(height: int, width: int, geometry: Geometry) -> tuple[NDArray[Any], ...]:
    """Return, for each row and then each column of the band, its two neighbours in the source and the weight of the
    second one."""
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
