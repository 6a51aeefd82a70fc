"""Draw textures: procedural ones, and pieces of the photographs in scikit-image's wheel.

A texture is a function (side, generator) -> (3, side, side) in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import skimage.data
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

CANVAS = 2.0
"""Side of a scene's textures in frame heights. Beyond it they are mirrored, so a pan never reaches an end."""

Range = tuple[float, float]
Texture = Callable[[int, Generator], Tensor]


def uniform(bounds: Range, generator: Generator, *shape: int) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def between(bounds: Range, generator: Generator) -> float:
    return float(uniform(bounds, generator))


def integer(low: int, high: int, generator: Generator) -> int:
    """Return a random whole number from [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))


# Each texture has noise, because the motion of a texture that repeats exactly, or that is constant along a line, cannot
# be seen.


def octave_noise(side: int, generator: Generator) -> Tensor:
    """Draw smooth noise of several octaves in random colours."""
    field = noise(side, 3, between((0.45, 0.85), generator), integer(2, 6, generator), generator)
    return stretch(torch.einsum("oc,chw->ohw", torch.randn(3, 3, generator=generator), field))


def checkers(side: int, generator: Generator) -> Tensor:
    x, y = turned(side, generator)
    period = between((0.15, 0.4), generator)
    field = torch.sin(2 * math.pi * x / period) * torch.sin(2 * math.pi * y / period)
    return painted((field * side * period / 6).clamp(-1, 1) / 2 + 0.5, generator)


def blobs(side: int, generator: Generator) -> Tensor:
    """Draw islands: noise above a threshold."""
    field = noise(side, 1, between((0.3, 0.6), generator), integer(5, 12, generator), generator)[0]
    return painted(((field - between((-0.4, 0.4), generator)) * side / 12).clamp(-1, 1) / 2 + 0.5, generator)


def plaid(side: int, generator: Generator) -> Tensor:
    """Draw crossing waves."""
    field = torch.zeros(side, side)
    for _ in range(3):
        x, _ = turned(side, generator)
        field += torch.sin(2 * math.pi * x / between((0.1, 0.4), generator))
    return painted(field / 6 + 0.5, generator)


def cells(side: int, generator: Generator) -> Tensor:
    """Draw flat patches around random points (a Voronoi diagram) with dark borders."""
    points = torch.rand(integer(30, 120, generator), 2, generator=generator)
    axis = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    nearest, owner = torch.cdist(grid, points).topk(2, largest=False)
    border = ((nearest[:, 1] - nearest[:, 0]) * side / 4).clamp(0, 1)
    colours = torch.rand(len(points), 3, generator=generator)[owner[:, 0]]
    return (colours * border[:, None]).T.reshape(3, side, side)


def marble(side: int, generator: Generator) -> Tensor:
    """Draw stripes that noise bends."""
    x, _ = turned(side, generator)
    bend = noise(side, 1, 0.5, integer(3, 6, generator), generator)[0]
    period = between((0.2, 0.5), generator)
    return painted(torch.sin(2 * math.pi * x / period + between((2, 4), generator) * bend) / 2 + 0.5, generator)


def rings(side: int, generator: Generator) -> Tensor:
    """Draw ripples around a few points."""
    field = torch.zeros(side, side)
    for _ in range(4):
        x, y = turned(side, generator)
        centre = uniform((-1, 1), generator, 2)
        field += torch.sin(2 * math.pi * torch.hypot(x - centre[0], y - centre[1]) / between((0.15, 0.35), generator))
    return painted(field / 5 + 0.5, generator)


def noise(side: int, channels: int, decay: float, coarsest: int, generator: Generator) -> Tensor:
    """Return noise of standard deviation 1, (channels, side, side). Each octave is `decay` times the one before."""
    field = torch.zeros(1, channels, side, side)
    cells_across, weight = coarsest, 1.0
    while cells_across < side / 2:
        octave = torch.randn(1, channels, cells_across, cells_across, generator=generator)
        field += weight * F.interpolate(octave, (side, side), mode="bilinear")
        cells_across, weight = 2 * cells_across, decay * weight
    return (field / field.std().clamp_min(1e-6))[0]


def turned(side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return x and y of a canvas's pixels in frame heights, randomly turned and moved, each (side, side)."""
    axis = ((torch.arange(side) + 0.5) / side - 0.5) * CANVAS
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = between((0, 2 * math.pi), generator)
    moved = uniform((-1, 1), generator, 2)
    c, s = math.cos(angle), math.sin(angle)
    return c * x - s * y + moved[0], s * x + c * y + moved[1]


def painted(field: Tensor, generator: Generator) -> Tensor:
    """Return two random colours mixed by `field` (side, side) in [0, 1], with a little noise, (3, side, side)."""
    low, high = torch.rand(2, 3, 1, 1, generator=generator)
    field = torch.lerp(low, high, field)
    return stretch(field + between((0.05, 0.15), generator) * noise(field.shape[1], 1, 0.7, 4, generator))


def stretch(x: Tensor) -> Tensor:
    """Return `x` scaled to [0, 1]."""
    low, high = x.amin(), x.amax()
    return (x - low) / (high - low).clamp_min(1e-6)


@lru_cache(maxsize=32)
def photograph(name: str) -> Tensor:
    """Return a photograph of scikit-image's wheel, (3, height, width) in [0, 1]."""
    pixels = torch.from_numpy(getattr(skimage.data, name)().copy()).float() / 255
    return pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def photo_texture(name: str) -> Texture:
    """Return a texture: a square piece of a photograph, sometimes mirrored, with exchanged colours."""

    def texture(side: int, generator: Generator) -> Tensor:
        photo = photograph(name)
        height, width = photo.shape[1:]
        cut = int(min(height, width) * between((0.5, 1), generator))
        top, left = integer(0, height - cut + 1, generator), integer(0, width - cut + 1, generator)
        piece = photo[torch.randperm(3, generator=generator), top : top + cut, left : left + cut]
        if integer(0, 2, generator):
            piece = piece.flip(-1)
        return F.interpolate(piece[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)

    return texture


@dataclass(frozen=True)
class Source:
    """The textures of scenes: a share of them are photographs, the others are procedural."""

    photos: tuple[Texture, ...]
    textures: tuple[Texture, ...]
    share: float = 0.5

    def texture(self, side: int, generator: Generator) -> Tensor:
        """Draw a texture, (3, side, side) in [0, 1]."""
        choices = self.photos if between((0, 1), generator) < self.share else self.textures
        return choices[integer(0, len(choices), generator)](side, generator)


# All photographs are CC0 or in the public domain, as scikit-image states. None is in both sets.
TRAIN = Source(
    tuple(
        map(
            photo_texture,
            ("astronaut", "brick", "camera", "cell", "gravel", "hubble_deep_field", "retina", "rocket"),
        )
    ),
    (octave_noise, checkers, blobs, plaid),
)
HELD_OUT = Source(tuple(map(photo_texture, ("chelsea", "coffee", "grass"))), (cells, marble, rings))
