"""What a set of weights was trained to see; it travels with the weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What a set of weights was trained to see; travels with the weights.

    `size`: side of the square crop, `resize`: short side before the crop, both in pixels; `mean` and `std` of RGB on
    0-255; `clip_len` frames a clip, `frame_interval` apart.
    """

    size: int = 224
    resize: int = 224
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    clip_len: int = 32
    frame_interval: int = 2
