"""The clips that nano learns from, drawn as they are needed, with all that is known of them.

A batch is made of pairs: one scene and motion seen twice, at other speeds, through other views, cameras and codecs.
Two pairs show each scene, in different motion and elsewhere, so that what is in it does not tell them apart.
"""

import io
from dataclasses import dataclass

import av
import drawing
import numpy as np
import torch
import torch.nn.functional as F
from drawing import MOTIONS, Path, Scenes, Shapes, Source, Speeds, between, integer, uniform
from torch import Generator, Tensor

STEADY, SLOWING, SPEEDING, SHUFFLED = range(4)
TEACHER_SIDE = 224
NO_ORDER = [MOTIONS.index(name) for name in ("still", "shake")]
OPPOSITES = [("left", "right"), ("up", "down"), ("in", "out"), ("clockwise", "anticlockwise")]


@dataclass(frozen=True)
class Batch:
    """`pairs` scenes in motion seen twice each, in clips of `frames` x `side` x `side`; a share of these goes through
    a codec. Two frames are a picture: they tell where it goes, not what kind of motion or order it is."""

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
    """N = 2 * pairs clips, second views behind the first.

    `pixels`: (N, T, H, W, 3) uint8. `motions`: (N,) numbers of MOTIONS. `order`: (N,), steady to shuffled.
    `slowing`: (N,), see `drawing.draw_path`. `flow`: see `drawing.Clips`. `frames`: (pairs, 3, 224, 224) in [0, 1], the
    middle frame of first views in full.
    """

    pixels: Tensor
    motions: Tensor
    order: Tensor
    slowing: Tensor
    flow: Tensor
    frames: Tensor

    def mirrored(self) -> "Drawn":
        """Left and right exchanged."""
        return Drawn(
            self.pixels.flip(3),
            renamed(self.motions, OPPOSITES[0], OPPOSITES[3]),
            self.order,
            self.slowing,
            self.flow.flip(3) * torch.tensor([-1.0, 1.0]),
            self.frames.flip(3),
        )

    def backwards(self) -> "Drawn":
        """From the last frame to the first."""
        order = torch.tensor([STEADY, SPEEDING, SLOWING, SHUFFLED])[self.order]
        motions = renamed(self.motions, *OPPOSITES)
        return Drawn(self.pixels.flip(1), motions, order, -self.slowing, -self.flow.flip(1), self.frames)


def renamed(motions: Tensor, *opposites: tuple[str, str]) -> Tensor:
    """Motions (N,) with words of their names exchanged."""
    words = {**dict(opposites), **{b: a for a, b in opposites}}
    names = [" ".join(words.get(word, word) for word in name.split()) for name in MOTIONS]
    return torch.tensor([MOTIONS.index(name) for name in names])[motions]


def draw(batch: Batch, source: Source, generator: Generator) -> Drawn:
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
    """`drawing.picture` of scenes whose canvases are for 224 pixels, shrunk first where the clips are smaller."""
    shrink = TEACHER_SIDE // size[0]
    if shrink > 1:
        scenes = Scenes(F.avg_pool2d(scenes.background, shrink), F.avg_pool2d(scenes.foreground, shrink))
    return drawing.picture(scenes, path, shapes, size)


def filmed(pixels: Tensor, generator: Generator) -> Tensor:
    """`drawing.developed` behind a lens that may blur, by a camera with its own saturation and white balance."""
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
    """A clip (T, H, W, 3) uint8 through H.264 at a quality from 28 (fair) to 47 (awful)."""
    file = io.BytesIO()
    drawing.write_video(file, clip, 25, crf, "ultrafast")
    file.seek(0)
    with av.open(file, "r") as coded:
        frames = [frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)]
    return torch.from_numpy(np.stack(frames))
