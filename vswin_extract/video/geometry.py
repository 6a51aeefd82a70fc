"""From a decoded frame to the pixels that the network sees: resize the short side, then crop.

The rule is torchvision's video preset (transforms/_presets.py, VideoClassification): bilinear interpolation of floats
without antialiasing, rounded to whole grey levels, then a centre crop. Normalisation (mean, std) happens on the
device, see `backbone`. Only the pixels that the crops need are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError

Pixels = NDArray[np.uint8]
Crop = Literal["center", "three", "ten"]
CROPS: dict[str, int] = {"center": 1, "three": 3, "ten": 10}
"""How many crops of a picture each has."""


class Box(NamedTuple):
    """The rows [top, bottom) and columns [left, right) of a picture."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Picture:
    """A frame of a video, upright. `read(box)`: its pixels in a box, (rows, columns, 3)."""

    height: int
    width: int
    read: Callable[[Box], Pixels]

    def rgb(self) -> Pixels:
        """Return all of its pixels, (height, width, 3)."""
        return self.read(Box(0, self.height, 0, self.width))


def picture_of(rgb: Pixels) -> Picture:
    """Return the picture of pixels (height, width, 3)."""
    height, width, _ = rgb.shape
    return Picture(height, width, lambda box: rgb[box.top : box.bottom, box.left : box.right])


@dataclass(frozen=True)
class Geometry:
    """Resize the short side to `resize`, then crop `size` x `size`: at the centre, at three places along the long side,
    or ten times, at the corners and the centre of the picture and of the same picture mirrored. Raises UsageError."""

    size: int
    resize: int
    crop: Crop = "center"

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise UsageError(f"crop must be center, three or ten, not {self.crop!r}")
        if self.size < 32:
            raise UsageError(f"size must be at least 32 pixels, the side of one stage 4 token, not {self.size}")
        if self.resize < self.size:
            raise UsageError(f"resize {self.resize} is smaller than the crop, size {self.size}; make it at least that")

    @property
    def crops(self) -> int:
        return CROPS[self.crop]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the crops of a picture: (crops, size, size, 3)."""
        return self.crops, self.size, self.size, 3

    def apply(self, picture: Picture, out: Pixels | None = None) -> Pixels:
        """Return the crops of a picture, in `out` if it is given, of `shape`. Three crops go from the left or the top
        to the other end of the picture. Ten are in the order of torchvision's TenCrop: top left, top right, bottom
        left, bottom right, centre, and the same of the picture mirrored from left to right."""
        import cv2  # here, since it is not needed to check sizes

        out = np.empty(self.shape, np.uint8) if out is None else out
        band = self._band(picture)
        bands = [band, cv2.flip(band, 1)] if self.crop == "ten" else [band]
        places = self._places(*band.shape[:2])
        for crop, (source, (top, left)) in zip(out, product(bands, places), strict=True):
            crop[:] = source[top : top + self.size, left : left + self.size]
        return out

    def _places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the top and the left of each crop in a band of this size, which may be mirrored."""
        down, right = height - self.size, width - self.size
        if self.crop == "ten":  # the centre is rounded as torchvision does
            return [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
        return [(i * (down // 2), i * (right // 2)) for i in range(self.crops)]

    def _band(self, picture: Picture) -> Pixels:
        """Return the part of the resized picture that the crops lie in, (h, w, 3)."""
        import cv2

        box, x, y = _source(picture.height, picture.width, self)
        four = cv2.cvtColor(picture.read(box), cv2.COLOR_RGB2RGBA)  # resized in a quarter of the time of three bytes
        band = cv2.remap(four, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.cvtColor(band, cv2.COLOR_RGBA2RGB)  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _source(height: int, width: int, geometry: Geometry) -> tuple[Box, NDArray[np.float32], NDArray[np.float32]]:
    """Return the box of a picture that the band is made of, and for each pixel of the band its x and y in the box."""
    if height < width:
        resized = (geometry.resize, geometry.resize * width // height)
    else:
        resized = (geometry.resize * height // width, geometry.resize)
    places: list[NDArray[np.float32]] = []
    ends: list[int] = []
    for axis, (source, target) in enumerate(zip((height, width), resized, strict=True)):
        long_side = (axis == 1) == (width >= height)
        if geometry.crop == "ten":
            first, count = 0, target
        elif geometry.crop == "three" and long_side:
            # three crops reach from end to end, and the middle one must lie on whole pixels
            first, count = 0, target - (target - geometry.size) % 2
        else:
            first, count = round((target - geometry.size) / 2), geometry.size
        wanted = np.arange(first, first + count, dtype=np.float32)
        at = (wanted + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
        at = at.clip(0, source - 1)
        begin = int(at[0])
        ends += [begin, min(int(at[-1]) + 2, source)]
        places.append(at - np.float32(begin))  # exact: the fraction is what it was
    y, x = np.meshgrid(*places, indexing="ij")
    return Box(*ends), x, y
