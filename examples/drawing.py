"""Clips with known motion, drawn from procedural textures and from the photographs inside scikit-image's wheel.

A scene is a background and a foreground texture. A clip looks at a scene through a camera that pans, zooms, rolls,
shakes or holds still, while a foreground object may move. Lengths are in frame heights, x to the right, y down, the
origin in the middle of the frame; times and speeds count source frames, of which a clip takes every `interval`-th.

Everything random comes from one `torch.Generator`: the same seed draws the same clips.
"""

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MOTIONS = (
    "still",
    "shake",
    "pan left",
    "pan right",
    "pan up",
    "pan down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll anticlockwise",
    "object left",
    "object right",
    "object up",
    "object down",
)
"""What the camera does or, with a still camera, where the object goes. Under "pan left" the picture moves right."""

CANVAS = 2.0
"""Side of a scene's textures in frame heights; beyond it they go on mirrored, so a pan never ends."""

Range = tuple[float, float]
Action = tuple[int, float, float]
"""Number, begin and end in seconds."""
Texture = Callable[[int, Generator], Tensor]


@dataclass(frozen=True)
class Speeds:
    """Ranges that a clip's speed is drawn from, per source frame."""

    pan: Range = (0.003, 0.02)  # frame heights
    zoom: Range = (0.003, 0.012)  # natural logarithm of the magnification
    roll: Range = (0.003, 0.02)  # radians
    object: Range = (0.004, 0.015)  # frame heights
    shake: Range = (0.01, 0.03)  # standard deviation in frame heights
    tremor: Range = (0.0, 0.001)  # the same, of the hand that holds every camera


def uniform(bounds: Range, generator: Generator, *shape: int) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def between(bounds: Range, generator: Generator) -> float:
    return float(uniform(bounds, generator))


def integer(low: int, high: int, generator: Generator) -> int:
    """A whole number from [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))


# Textures: (side, generator) -> (3, side, side) in [0, 1]. Each is broken up by noise, for a texture that repeats
# exactly, or that does not change along a line, would hide its motion.


def octave_noise(side: int, generator: Generator) -> Tensor:
    """Smooth noise at several octaves in random colours."""
    field = noise(side, 3, between((0.45, 0.85), generator), integer(2, 6, generator), generator)
    return stretch(torch.einsum("oc,chw->ohw", torch.randn(3, 3, generator=generator), field))


def checkers(side: int, generator: Generator) -> Tensor:
    x, y = turned(side, generator)
    period = between((0.15, 0.4), generator)
    field = torch.sin(2 * math.pi * x / period) * torch.sin(2 * math.pi * y / period)
    return painted((field * side * period / 6).clamp(-1, 1) / 2 + 0.5, generator)


def blobs(side: int, generator: Generator) -> Tensor:
    """Islands: noise cut at a level."""
    field = noise(side, 1, between((0.3, 0.6), generator), integer(5, 12, generator), generator)[0]
    return painted(((field - between((-0.4, 0.4), generator)) * side / 12).clamp(-1, 1) / 2 + 0.5, generator)


def plaid(side: int, generator: Generator) -> Tensor:
    """Waves that cross."""
    field = torch.zeros(side, side)
    for _ in range(3):
        x, _ = turned(side, generator)
        field += torch.sin(2 * math.pi * x / between((0.1, 0.4), generator))
    return painted(field / 6 + 0.5, generator)


def cells(side: int, generator: Generator) -> Tensor:
    """Flat patches around scattered points (a Voronoi diagram) with dark borders."""
    points = torch.rand(integer(30, 120, generator), 2, generator=generator)
    axis = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    nearest, owner = torch.cdist(grid, points).topk(2, largest=False)
    border = ((nearest[:, 1] - nearest[:, 0]) * side / 4).clamp(0, 1)
    colours = torch.rand(len(points), 3, generator=generator)[owner[:, 0]]
    return (colours * border[:, None]).T.reshape(3, side, side)


def marble(side: int, generator: Generator) -> Tensor:
    """Stripes bent by noise."""
    x, _ = turned(side, generator)
    bend = noise(side, 1, 0.5, integer(3, 6, generator), generator)[0]
    period = between((0.2, 0.5), generator)
    return painted(torch.sin(2 * math.pi * x / period + between((2, 4), generator) * bend) / 2 + 0.5, generator)


def rings(side: int, generator: Generator) -> Tensor:
    """Ripples around a few points."""
    field = torch.zeros(side, side)
    for _ in range(4):
        x, y = turned(side, generator)
        centre = uniform((-1, 1), generator, 2)
        field += torch.sin(2 * math.pi * torch.hypot(x - centre[0], y - centre[1]) / between((0.15, 0.35), generator))
    return painted(field / 5 + 0.5, generator)


def noise(side: int, channels: int, decay: float, coarsest: int, generator: Generator) -> Tensor:
    """Noise of standard deviation 1, each octave `decay` times the one before: (channels, side, side)."""
    field = torch.zeros(1, channels, side, side)
    cells_across, weight = coarsest, 1.0
    while cells_across < side / 2:
        octave = torch.randn(1, channels, cells_across, cells_across, generator=generator)
        field += weight * F.interpolate(octave, (side, side), mode="bilinear")
        cells_across, weight = 2 * cells_across, decay * weight
    return (field / field.std().clamp_min(1e-6))[0]


def turned(side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """x and y of a canvas's pixels in frame heights, turned and moved at random: two of (side, side)."""
    axis = ((torch.arange(side) + 0.5) / side - 0.5) * CANVAS
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = between((0, 2 * math.pi), generator)
    moved = uniform((-1, 1), generator, 2)
    c, s = math.cos(angle), math.sin(angle)
    return c * x - s * y + moved[0], s * x + c * y + moved[1]


def painted(field: Tensor, generator: Generator) -> Tensor:
    """Two random colours mixed by `field` (side, side) in [0, 1], with a little noise on top: (3, side, side)."""
    low, high = torch.rand(2, 3, 1, 1, generator=generator)
    field = torch.lerp(low, high, field)
    return stretch(field + between((0.05, 0.15), generator) * noise(field.shape[1], 1, 0.7, 4, generator))


def stretch(x: Tensor) -> Tensor:
    """`x` brought to [0, 1]."""
    low, high = x.amin(), x.amax()
    return (x - low) / (high - low).clamp_min(1e-6)


@lru_cache(maxsize=32)
def photograph(name: str) -> Tensor:
    """A photograph from scikit-image's wheel: (3, height, width) in [0, 1]."""
    pixels = torch.from_numpy(getattr(skimage.data, name)().copy()).float() / 255
    return pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def photo_texture(name: str) -> Texture:
    """A square piece of a photograph, sometimes mirrored, with its colours exchanged."""

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
    """What scenes are made of: a share of them of photographs, the others of procedural textures."""

    photos: tuple[Texture, ...]
    textures: tuple[Texture, ...]
    share: float = 0.5

    def texture(self, side: int, generator: Generator) -> Tensor:
        """(3, side, side) in [0, 1]"""
        choices = self.photos if between((0, 1), generator) < self.share else self.textures
        return choices[integer(0, len(choices), generator)](side, generator)


# Only photographs that scikit-image states to be CC0 or in the public domain; none is in both sets.
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


@dataclass(frozen=True)
class Scenes:
    """`background`, `foreground`: (N, 3, side, side) in [0, 1], `CANVAS` frame heights wide."""

    background: Tensor
    foreground: Tensor


def draw_scenes(n: int, height: int, source: Source, generator: Generator) -> Scenes:
    """`n` scenes for clips of `height` pixels.

    One pixel of a canvas is one pixel of the frame in the widest view, so a bilinear look-up does not alias.
    """
    side = round(CANVAS * height)
    draw = [source.texture(side, generator) for _ in range(2 * n)]
    return Scenes(torch.stack(draw[:n]), torch.stack(draw[n:]))


@dataclass(frozen=True)
class Path:
    """Where camera and object are in each frame of N clips: (N, T) or (N, T, 2)."""

    centre: Tensor
    zoom: Tensor
    """Natural logarithm of the magnification, 0 where a pixel of the canvas is one of the frame."""
    roll: Tensor
    """Radians, clockwise."""
    object: Tensor

    def to_world(self, points: Tensor) -> Tensor:
        """Points of the frame (points, 2) as points of the scene (N, T, points, 2)."""
        return self.centre[:, :, None] + rotated(points, self.roll) * (-self.zoom).exp()[..., None, None]

    def to_frame(self, points: Tensor) -> Tensor:
        """Points of the scene as points of the frame, both (N, T, points, 2)."""
        return rotated(points - self.centre[:, :, None], -self.roll) * self.zoom.exp()[..., None, None]

    def part(self, frames: slice) -> "Path":
        return Path(self.centre[:, frames], self.zoom[:, frames], self.roll[:, frames], self.object[:, frames])

    def again(self, factor: Tensor, shift: Tensor, zoom: Tensor, roll: Tensor) -> "Path":
        """The same motions `factor` (N,) times as fast through another view, `shift` (N, 2) aside, `zoom` (N,) nearer
        and turned by `roll` (N,). Clips keep what they show in the middle of their time."""
        middle = self.zoom.shape[1] // 2

        def paced(x: Tensor) -> Tensor:
            start = x[:, middle : middle + 1]
            return start + (x - start) * factor.view(-1, *[1] * (x.ndim - 1))

        return Path(
            paced(self.centre) + shift[:, None],
            paced(self.zoom) + zoom[:, None],
            paced(self.roll) + roll[:, None],
            paced(self.object),
        )


def rotated(points: Tensor, angle: Tensor) -> Tensor:
    """`points` (..., points, 2) turned clockwise by `angle` (N, T): (N, T, points, 2)."""
    c, s = angle.cos()[..., None], angle.sin()[..., None]
    x, y = points.unbind(-1)
    return torch.stack((c * x - s * y, s * x + c * y), -1)


def draw_path(
    motions: Tensor, frames: int, interval: int, speeds: Speeds, generator: Generator, slowing: Tensor | None = None
) -> Path:
    """Paths of clips whose `motions` (N,) are numbers of `MOTIONS`. `slowing` (N,): how much each slows down, as by
    friction; its speed falls by e to the power of this. Backwards in time, it is negative."""
    n = len(motions)
    time = (torch.arange(frames) - (frames - 1) / 2) * interval  # 0 in the middle of the clip
    if slowing is not None:
        span, k = frames * interval, torch.where(slowing.abs() < 1e-3, 1e-3, slowing)[:, None]
        time = (-torch.expm1(-k * (time / span + 0.5)) / -torch.expm1(-k) - 0.5) * span  # N T

    def signed(plus: str, minus: str) -> Tensor:
        """1 or -1 for clips that move one way or the other, else 0: (N, 1)."""
        return ((motions == MOTIONS.index(plus)).float() - (motions == MOTIONS.index(minus)).float())[:, None]

    def drift(bounds: Range) -> Tensor:
        """A constant speed each: (N, T)."""
        return uniform(bounds, generator, n, 1) * time

    pan, turn, grow, go = drift(speeds.pan), drift(speeds.roll), drift(speeds.zoom), drift(speeds.object)
    shaken = (motions == MOTIONS.index("shake"))[:, None]
    shake = torch.where(shaken, uniform(speeds.shake, generator, n, 1), uniform(speeds.tremor, generator, n, 1))
    trembling = shake[..., None] * torch.randn(n, frames, 3, generator=generator)
    zoom = signed("zoom in", "zoom out") * grow
    zoom = zoom - zoom.amin(1, keepdim=True) + uniform((0, 0.3), generator, n, 1)
    start = uniform((-0.4, 0.4), generator, n, 1, 2)
    centre = torch.stack((signed("pan right", "pan left") * pan, signed("pan down", "pan up") * pan), -1)
    moved = torch.stack((signed("object right", "object left") * go, signed("object down", "object up") * go), -1)
    return Path(
        centre=start + centre + trembling[..., :2],
        zoom=zoom,
        roll=signed("roll clockwise", "roll anticlockwise") * turn + trembling[..., 2] / 2,
        object=start + uniform((-0.25, 0.25), generator, n, 1, 2) + moved,
    )


@dataclass(frozen=True)
class Shapes:
    """The foreground objects of N clips, from ellipses to rectangles; all (N,) but `half_sides` (N, 2)."""

    visible: Tensor
    half_sides: Tensor
    squareness: Tensor
    angle: Tensor

    def cover(self, points: Tensor, softness: float) -> Tensor:
        """1 inside, 0 outside, over an edge `softness` wide, at `points` (N, T, points, 2) from the centres."""
        own = rotated(points, self.angle[:, None].expand(-1, points.shape[1]))
        x, y = (own.abs() / self.half_sides[:, None, None]).unbind(-1)
        distance = torch.lerp(torch.hypot(x, y), torch.maximum(x, y), self.squareness[:, None, None])
        inside = (1 - distance) * self.half_sides.amin(1)[:, None, None] / softness + 0.5
        return inside.clamp(0, 1) * self.visible[:, None, None]

    def part(self, clips: slice) -> "Shapes":
        return Shapes(self.visible[clips], self.half_sides[clips], self.squareness[clips], self.angle[clips])


def draw_shapes(motions: Tensor, generator: Generator) -> Shapes:
    """Always an object where it is what moves, and in half of the other clips one that rests in the scene."""
    n = len(motions)
    moves = torch.tensor([name.startswith("object") for name in MOTIONS])[motions]
    return Shapes(
        visible=(moves | (torch.rand(n, generator=generator) < 0.5)).float(),
        half_sides=uniform((0.12, 0.3), generator, n, 2),
        squareness=torch.rand(n, generator=generator),
        angle=uniform((0, math.pi), generator, n),
    )


@dataclass(frozen=True)
class Clips:
    """`pixels`: (N, T, H, W, 3) uint8 RGB. `motions`: (N,) numbers of `MOTIONS`.

    `flow`: (N, T // 2, ceil(H / 32), ceil(W / 32), 2), how the picture moves in the middle of each token of a
    network's last stage, x then y, in frame heights from one sampled frame to the next.
    """

    pixels: Tensor
    motions: Tensor
    flow: Tensor


def draw_clips(
    scenes: Scenes,
    motions: Tensor,
    frames: int,
    size: tuple[int, int],
    generator: Generator,
    interval: int = 2,
    speeds: Speeds = Speeds(),
) -> Clips:
    """One clip of each of N `scenes`: `frames` frames of `size` (height, width), `interval` source frames apart."""
    path = draw_path(motions, frames, interval, speeds, generator)
    shapes = draw_shapes(motions, generator)
    return Clips(developed(picture(scenes, path, shapes, size), generator), motions, flow(path, shapes, size))


def picture(scenes: Scenes, path: Path, shapes: Shapes, size: tuple[int, int]) -> Tensor:
    """What the camera sees of N scenes: (N, 3, T, H, W) in [0, 1]."""
    points = path.to_world(frame_points(size, 1))  # N T H*W 2
    pixels = look_up(scenes.background, points)
    for i in shapes.visible.nonzero()[:, 0].tolist():  # one by one, for often there is none
        one = slice(i, i + 1)
        relative = points[one] - path.object[one, :, None]
        cover = shapes.part(one).cover(relative, 1.5 / size[0])
        pixels[one] = torch.lerp(pixels[one], look_up(scenes.foreground[one], relative), cover[:, None])
    return pixels.view(*pixels.shape[:3], *size)


def frame_points(size: tuple[int, int], spacing: int) -> Tensor:
    """Centres of squares of `spacing` pixels, row by row, in frame heights from the middle: (squares, 2)."""
    height, width = size
    y, x = ((torch.arange(-(-n // spacing)) + 0.5) * spacing - n / 2 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1) / height


def look_up(canvas: Tensor, points: Tensor) -> Tensor:
    """The canvases (N, 3, side, side) at `points` (N, T, points, 2) of the scene: (N, 3, T, points)."""
    grid = points * (2 / CANVAS)
    return F.grid_sample(canvas, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def flow(path: Path, shapes: Shapes, size: tuple[int, int]) -> Tensor:
    """See `Clips.flow`."""
    height, width = size
    rows, columns = -(-height // 32), -(-width // 32)
    now, then = path.part(slice(0, -1, 2)), path.part(slice(1, None, 2))
    points = frame_points(size, 32)
    world = now.to_world(points)
    cover = shapes.cover(world - now.object[:, :, None], 1 / height).round()[..., None]
    world = world + cover * (then.object - now.object)[:, :, None]
    return (then.to_frame(world) - points).reshape(*world.shape[:2], rows, columns, 2)


def developed(pixels: Tensor, generator: Generator) -> Tensor:
    """What a camera makes of light (N, 3, T, H, W) in [0, 1]: its own colours and noise; (N, T, H, W, 3) uint8."""
    n = len(pixels)
    gain = uniform((0.7, 1.3), generator, n, 1, 1, 1, 1) * uniform((0.9, 1.1), generator, n, 3, 1, 1, 1)
    offset = uniform((-0.15, 0.15), generator, n, 1, 1, 1, 1)
    pixels = (pixels - 0.5) * gain + (0.5 + offset)
    grain = uniform((0, 0.03), generator, n, 1, 1, 1, 1)
    pixels = pixels + grain * torch.randn(pixels.shape[1:], generator=generator)  # one film for all: grain is dear
    return (pixels * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()


def untrimmed(source: Source, actions: Sequence[str], side: int, generator: Generator) -> tuple[Tensor, list[Action]]:
    """A video of 30 frames a second in which now and then one of `actions`, names of MOTIONS, happens, and otherwise
    nothing: frames (T, side, side, 3) uint8, and what happens in it."""
    scenes = draw_scenes(1, side, source, generator)
    parts, happened, frame = [], [], 0
    for turn in range(7):  # nothing, an action, nothing, ...
        length, number = integer(45, 100, generator), integer(0, len(actions), generator)
        motion = torch.tensor([MOTIONS.index(actions[number] if turn % 2 else "still")])
        path, shapes = draw_path(motion, length, 1, Speeds(), generator), draw_shapes(motion, generator)
        parts.append(picture(scenes, path, shapes, (side, side)))
        if turn % 2:
            happened.append((number, frame / 30, (frame + length) / 30))
        frame += length
    return developed(torch.cat(parts, 2), generator)[0], happened


def write_videos(folder: str, videos: Mapping[str, Tensor]) -> None:
    """Write videos by their names, which may begin with a folder's."""
    for name, frames in videos.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_video(path, frames)


def write_video(
    file: str | os.PathLike[str] | io.BytesIO, frames: Tensor, rate: int = 30, crf: int = 20, preset: str = "veryfast"
) -> None:
    """Write frames (T, H, W, 3) uint8, H and W even, as H.264; into memory as Matroska."""
    where, kind = (file, "matroska") if isinstance(file, io.BytesIO) else (os.fspath(file), None)
    with av.open(where, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate, {"crf": str(crf), "preset": preset, "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        container.mux(stream.encode())
