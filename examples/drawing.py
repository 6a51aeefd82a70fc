"""Draw clips with known motion.

A scene is a background and a foreground texture. In a clip, the camera pans, zooms, rolls, shakes or is still, and a
foreground object may move. Lengths are in frame heights: x to the right, y down, the origin in the middle of the frame.
Times and speeds are in source frames. A clip takes every `interval`-th source frame.

All random numbers come from one `torch.Generator`: the same seed draws the same clips.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from textures import CANVAS, Range, Source, integer, uniform
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
"""The motion of the camera or, with a still camera, of the object. With "pan left" the picture moves right."""

Action = tuple[int, float, float]
"""Number, begin and end in seconds."""


@dataclass(frozen=True)
class Speeds:
    """The ranges of a clip's speeds, per source frame."""

    pan: Range = (0.003, 0.02)  # frame heights
    zoom: Range = (0.003, 0.012)  # natural logarithm of the magnification
    roll: Range = (0.003, 0.02)  # radians
    object: Range = (0.004, 0.015)  # frame heights
    shake: Range = (0.01, 0.03)  # standard deviation in frame heights
    tremor: Range = (0.0, 0.001)  # the same, for all other clips, which are hand-held


@dataclass(frozen=True)
class Scenes:
    """`background`, `foreground`: (N, 3, side, side) in [0, 1], `CANVAS` frame heights wide."""

    background: Tensor
    foreground: Tensor


def draw_scenes(n: int, height: int, source: Source, generator: Generator) -> Scenes:
    """Draw `n` scenes for clips of `height` pixels.

    One pixel of a canvas is one pixel of the frame in the widest view, so bilinear sampling does not alias.
    """
    side = round(CANVAS * height)
    draw = [source.texture(side, generator) for _ in range(2 * n)]
    return Scenes(torch.stack(draw[:n]), torch.stack(draw[n:]))


@dataclass(frozen=True)
class Path:
    """The positions of camera and object in each frame of N clips, (N, T) or (N, T, 2)."""

    centre: Tensor
    zoom: Tensor
    """Natural logarithm of the magnification. It is 0 if a pixel of the canvas is a pixel of the frame."""
    roll: Tensor
    """Radians, clockwise."""
    object: Tensor

    def to_world(self, points: Tensor) -> Tensor:
        """Return points of the frame (points, 2) as points of the scene (N, T, points, 2)."""
        return self.centre[:, :, None] + rotated(points, self.roll) * (-self.zoom).exp()[..., None, None]

    def to_frame(self, points: Tensor) -> Tensor:
        """Return points of the scene as points of the frame, both (N, T, points, 2)."""
        return rotated(points - self.centre[:, :, None], -self.roll) * self.zoom.exp()[..., None, None]

    def part(self, frames: slice) -> "Path":
        return Path(self.centre[:, frames], self.zoom[:, frames], self.roll[:, frames], self.object[:, frames])

    def again(self, factor: Tensor, shift: Tensor, zoom: Tensor, roll: Tensor) -> "Path":
        """Return the same motions, `factor` (N,) times as fast, in another view: moved by `shift` (N, 2), magnified by
        `zoom` (N,) and turned by `roll` (N,). The moment in the middle of a clip stays."""
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
    """Return `points` (..., points, 2) turned clockwise by `angle` (N, T), as (N, T, points, 2)."""
    c, s = angle.cos()[..., None], angle.sin()[..., None]
    x, y = points.unbind(-1)
    return torch.stack((c * x - s * y, s * x + c * y), -1)


def draw_path(
    motions: Tensor, frames: int, interval: int, speeds: Speeds, generator: Generator, slowing: Tensor | None = None
) -> Path:
    """Draw paths of clips. `motions` (N,): numbers of `MOTIONS`. `slowing` (N,): how much each clip slows down, as by
    friction: its speed falls by the factor e to this power. A negative value speeds it up."""
    n = len(motions)
    time = (torch.arange(frames) - (frames - 1) / 2) * interval  # 0 in the middle of the clip
    if slowing is not None:
        span, k = frames * interval, torch.where(slowing.abs() < 1e-3, 1e-3, slowing)[:, None]
        time = (-torch.expm1(-k * (time / span + 0.5)) / -torch.expm1(-k) - 0.5) * span  # N T

    def signed(plus: str, minus: str) -> Tensor:
        """Return 1 or -1 for clips with the first or the second motion, else 0, (N, 1)."""
        return ((motions == MOTIONS.index(plus)).float() - (motions == MOTIONS.index(minus)).float())[:, None]

    def drift(bounds: Range) -> Tensor:
        """Return positions at a constant speed for each clip, (N, T)."""
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
    """The foreground objects of N clips, from ellipses to rectangles. All are (N,), but `half_sides` (N, 2)."""

    visible: Tensor
    half_sides: Tensor
    squareness: Tensor
    angle: Tensor

    def cover(self, points: Tensor, softness: float) -> Tensor:
        """Return 1 inside, 0 outside, and an edge `softness` wide, at `points` (N, T, points, 2) from the centres."""
        own = rotated(points, self.angle[:, None].expand(-1, points.shape[1]))
        x, y = (own.abs() / self.half_sides[:, None, None]).unbind(-1)
        distance = torch.lerp(torch.hypot(x, y), torch.maximum(x, y), self.squareness[:, None, None])
        inside = (1 - distance) * self.half_sides.amin(1)[:, None, None] / softness + 0.5
        return inside.clamp(0, 1) * self.visible[:, None, None]

    def part(self, clips: slice) -> "Shapes":
        return Shapes(self.visible[clips], self.half_sides[clips], self.squareness[clips], self.angle[clips])


def draw_shapes(motions: Tensor, generator: Generator) -> Shapes:
    """Draw an object for all clips in which it moves, and a resting one for half of the other clips."""
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

    `flow`: (N, T // 2, ceil(H / 32), ceil(W / 32), 2), the motion of the picture in the middle of each token of a
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
    """Draw a clip of each of N `scenes`: `frames` frames of `size` (height, width), `interval` source frames apart."""
    path = draw_path(motions, frames, interval, speeds, generator)
    shapes = draw_shapes(motions, generator)
    return Clips(developed(picture(scenes, path, shapes, size), generator), motions, flow(path, shapes, size))


def picture(scenes: Scenes, path: Path, shapes: Shapes, size: tuple[int, int]) -> Tensor:
    """Return the view of the camera on N scenes, (N, 3, T, H, W) in [0, 1]."""
    points = path.to_world(frame_points(size, 1))  # N T H*W 2
    pixels = look_up(scenes.background, points)
    for i in shapes.visible.nonzero()[:, 0].tolist():  # one by one: many clips have none
        one = slice(i, i + 1)
        relative = points[one] - path.object[one, :, None]
        cover = shapes.part(one).cover(relative, 1.5 / size[0])
        pixels[one] = torch.lerp(pixels[one], look_up(scenes.foreground[one], relative), cover[:, None])
    return pixels.view(*pixels.shape[:3], *size)


def frame_points(size: tuple[int, int], spacing: int) -> Tensor:
    """Return centres of squares of `spacing` pixels, row by row, in frame heights from the middle, (squares, 2)."""
    height, width = size
    y, x = ((torch.arange(-(-n // spacing)) + 0.5) * spacing - n / 2 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1) / height


def look_up(canvas: Tensor, points: Tensor) -> Tensor:
    """Return canvases (N, 3, side, side) at `points` (N, T, points, 2) of the scene, (N, 3, T, points)."""
    grid = points * (2 / CANVAS)
    return F.grid_sample(canvas, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def flow(path: Path, shapes: Shapes, size: tuple[int, int]) -> Tensor:
    """Return the motion that `Clips.flow` describes."""
    height, width = size
    rows, columns = -(-height // 32), -(-width // 32)
    now, then = path.part(slice(0, -1, 2)), path.part(slice(1, None, 2))
    points = frame_points(size, 32)
    world = now.to_world(points)
    cover = shapes.cover(world - now.object[:, :, None], 1 / height).round()[..., None]
    world = world + cover * (then.object - now.object)[:, :, None]
    return (then.to_frame(world) - points).reshape(*world.shape[:2], rows, columns, 2)


def developed(pixels: Tensor, generator: Generator) -> Tensor:
    """Return light (N, 3, T, H, W) in [0, 1] as filmed with random colours and noise, (N, T, H, W, 3) uint8."""
    n = len(pixels)
    gain = uniform((0.7, 1.3), generator, n, 1, 1, 1, 1) * uniform((0.9, 1.1), generator, n, 3, 1, 1, 1)
    offset = uniform((-0.15, 0.15), generator, n, 1, 1, 1, 1)
    pixels = (pixels - 0.5) * gain + (0.5 + offset)
    grain = uniform((0, 0.03), generator, n, 1, 1, 1, 1)
    pixels = pixels + grain * torch.randn(pixels.shape[1:], generator=generator)  # one noise for all clips
    return (pixels * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()


def untrimmed(source: Source, actions: Sequence[str], side: int, generator: Generator) -> tuple[Tensor, list[Action]]:
    """Draw a video of 30 frames a second in which some of `actions`, names of MOTIONS, happen between still parts.

    Return its frames (T, side, side, 3) uint8 and its actions.
    """
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
    """Write videos into a folder. Their names may contain folders."""
    for name, frames in videos.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_video(path, frames)


def write_video(
    file: str | os.PathLike[str] | io.BytesIO, frames: Tensor, rate: int = 30, crf: int = 20, preset: str = "veryfast"
) -> None:
    """Write frames (T, H, W, 3) uint8, with even H and W, as H.264. In memory the container is Matroska."""
    where, kind = (file, "matroska") if isinstance(file, io.BytesIO) else (os.fspath(file), None)
    with av.open(where, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate, {"crf": str(crf), "preset": preset, "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        container.mux(stream.encode())
