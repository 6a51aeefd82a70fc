"""The recipe of weights. It travels with the weights."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The clips and pixels that weights were trained on.

    `size`: side of the square crop in pixels. `resize`: short side before the crop in pixels. `mean` and `std`: of
    R, G, B, on the scale 0 to 255. `clip_len`: frames of a clip. `frame_interval`: distance of these frames in frames.
    Raises ValueError for a mean or std that would make pixels infinite or NaN.
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
