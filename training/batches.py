"""Draw the clips that nano learns from, with their labels.

A batch consists of pairs: one scene in one motion, seen twice, at different speeds, in different views, by different
cameras and codecs. Two pairs show each scene, in different motions and at different places. So the contents of a scene
are not enough to find the other view.
"""

import io
from dataclasses import dataclass

import av
import drawing
import numpy as np
import torch
import torch.nn.functional as F
from drawing import MOTIONS, Path, Scenes, Shapes, Speeds
from textures import Source, between, integer, uniform
from torch import Generator, Tensor

STEADY, SLOWING, SPEEDING, SHUFFLED = range(4)
TEACHER_SIDE = 224
NO_ORDER = [MOTIONS.index(name) for name in ("still", "shake")]
OPPOSITES = [("left", "right"), ("up", "down"), ("in", "out"), ("clockwise", "anticlockwise")]


@dataclass(frozen=True)
class Batch:
    """The size of a batch: `pairs` scenes in motion, each seen in two clips of `frames` x `side` x `side` pixels.

    `recompressed`: the share of clips that is compressed by a codec. A clip of two frames is called a picture: it shows
    the direction of a motion, but neither its kind nor its order.
    """

    frames: int
    side: int
    pairs: int
    recompressed: float = 0.25

    def __str__(self) -> str:
        return f"{self.frames}x{self.side}"

    @property
    def is_picture(self) -> bool:
        return self.frames == 2


@dataclass(frozen=True)
class Drawn:
    """N = 2 * pairs clips, second views behind the first, and their labels.

    `pixels`: (N, T, H, W, 3) uint8. `motions`: (N,) numbers of MOTIONS. `order`: (N,), STEADY to SHUFFLED.
    `slowing`: (N,), see `drawing.draw_path`. `flow`: see `drawing.Clips`. `frames`: (pairs, 3, 224, 224) in [0, 1], the
    middle frames of the first views at the teacher's size.
    """

    pixels: Tensor
    motions: Tensor
    order: Tensor
    slowing: Tensor
    flow: Tensor
    frames: Tensor

    def mirrored(self) -> "Drawn":
        """Return the clips with left and right exchanged."""
        return Drawn(
            self.pixels.flip(3),
            renamed(self.motions, OPPOSITES[0], OPPOSITES[3]),
            self.order,
            self.slowing,
            self.flow.flip(3) * torch.tensor([-1.0, 1.0]),
            self.frames.flip(3),
        )

    def backwards(self) -> "Drawn":
        """Return the clips from the last frame to the first."""
        order = torch.tensor([STEADY, SPEEDING, SLOWING, SHUFFLED])[self.order]
        motions = renamed(self.motions, *OPPOSITES)
        return Drawn(self.pixels.flip(1), motions, order, -self.slowing, -self.flow.flip(1), self.frames)


def renamed(motions: Tensor, *opposites: tuple[str, str]) -> Tensor:
    """Return motions (N,) with opposite words of their names exchanged."""
    words = {**dict(opposites), **{b: a for a, b in opposites}}
    names = [" ".join(words.get(word, word) for word in name.split()) for name in MOTIONS]
    return torch.tensor([MOTIONS.index(name) for name in names])[motions]


def draw(batch: Batch, source: Source, generator: Generator) -> Drawn:
    """Draw a batch."""
    n = batch.pairs
    scenes = drawing.draw_scenes(-(-n // 2), TEACHER_SIDE, source, generator)
    scenes = Scenes(*(x.repeat_interleave(2, 0)[:n] for x in (scenes.background, scenes.foreground)))
    motions = torch.randint(len(MOTIONS), (n,), generator=generator)
    order = torch.multinomial(torch.tensor([0.35, 0.26, 0.26, 0.13]), n, True, generator=generator)
    order = torch.where(torch.isin(motions, torch.tensor(NO_ORDER)) & (order != SHUFFLED), STEADY, order)
    slowing = uniform((1.5, 4), generator, n) * ((order == SLOWING).float() - (order == SPEEDING).float())
    path = drawing.draw_path(motions, batch.frames, 2, Speeds(), generator, slowing)
    again = path.again(
        factor=uniform((-0.5, 0.5), generator, n).exp(),
        shift=uniform((-0.15, 0.15), generator, n, 2),
        zoom=uniform((-0.1, 0.35), generator, n),
        roll=uniform((-0.1, 0.1), generator, n),
    )
    shapes = drawing.draw_shapes(motions, generator)
    size = (batch.side, batch.side)
    pixels = torch.cat([seen(scenes, view, shapes, size) for view in (path, again)])
    flow = torch.cat([drawing.flow(view, shapes, size) for view in (path, again)])
    middle = path.part(slice(batch.frames // 2, batch.frames // 2 + 1))
    pixels = filmed(pixels, generator)
    order, slowing = order.repeat(2), slowing.repeat(2)
    for i in (order == SHUFFLED).nonzero()[:, 0].tolist():
        pixels[i] = pixels[i, torch.randperm(batch.frames, generator=generator)]
    for i in range(2 * n):
        if between((0, 1), generator) < batch.recompressed:
            pixels[i] = recompressed(pixels[i], integer(28, 48, generator))
    frames = seen(scenes, middle, shapes, (TEACHER_SIDE,) * 2)[:, :, 0]
    return Drawn(pixels, motions.repeat(2), order, slowing, flow, frames)


def seen(scenes: Scenes, path: Path, shapes: Shapes, size: tuple[int, int]) -> Tensor:
    """Return `drawing.picture` of scenes with canvases for 224 pixels, which are shrunk first for smaller clips."""
    shrink = TEACHER_SIDE // size[0]
    if shrink > 1:
        scenes = Scenes(F.avg_pool2d(scenes.background, shrink), F.avg_pool2d(scenes.foreground, shrink))
    return drawing.picture(scenes, path, shapes, size)


def filmed(pixels: Tensor, generator: Generator) -> Tensor:
    """Return `drawing.developed` by cameras with different blur, saturation and white balance."""
    n = len(pixels)
    for i in range(n):
        if integer(0, 3, generator) == 0:
            frames = pixels[i].transpose(0, 1)
            small = F.interpolate(frames, scale_factor=between((0.35, 0.8), generator), mode="bilinear", antialias=True)
            pixels[i] = F.interpolate(small, frames.shape[2:], mode="bilinear").transpose(0, 1)
    saturation = uniform((0.2, 1.6), generator, n, 1, 1, 1, 1)
    gamma = uniform((-0.4, 0.4), generator, n, 1, 1, 1, 1).exp()
    balance = uniform((-0.5, 0.2), generator, n, 3, 1, 1, 1).exp()
    pixels = torch.lerp(pixels.mean(1, keepdim=True), pixels, saturation).clamp(1e-4, 1) ** gamma
    return drawing.developed(pixels * balance, generator)


def recompressed(clip: Tensor, crf: int) -> Tensor:
    """Return a clip (T, H, W, 3) uint8 after H.264 coding with a CRF of 28 (fair) to 47 (very bad)."""
    file = io.BytesIO()
    drawing.write_video(file, clip, 25, crf, "ultrafast")
    file.seek(0)
    with av.open(file, "r") as coded:
        frames = [frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)]
    return torch.from_numpy(np.stack(frames))
