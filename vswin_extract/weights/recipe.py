"""The recipe of weights. It travels with the weights."""

import math
from dataclasses import dataclass

MOST = 1_000_000
"""Pixels or frames at most. Other checks have lower bounds."""


@dataclass(frozen=True)
class Recipe:
    """The clips and pixels that weights were trained on.

    `size`: side of the square crop in pixels. `resize`: short side before the crop in pixels. `mean` and `std`: of
    R, G, B, on the scale 0 to 255. `clip_len`: frames of a clip. `frame_interval`: distance of these frames in frames.
    Raises ValueError for a mean or std that would make pixels infinite or NaN, and for sizes that cannot be.
    """

    size: int = 224
    resize: int = 224
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    clip_len: int = 32
    frame_interval: int = 2

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(self.std):
            raise ValueError(f"mean and std must be finite, and std not 0, not {self.mean} and {self.std}")
        if not len(self.mean) == len(self.std) == 3:
            raise ValueError(f"mean and std have a number for each of R, G and B, not {self.mean} and {self.std}")
        for name in ("size", "resize", "clip_len", "frame_interval"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= MOST:
                raise ValueError(f"{name} of a recipe must be a whole number from 1 to {MOST}, not {value!r}")
