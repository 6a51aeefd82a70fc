"""Find a video again after it was cropped, sped up or made darker: `python examples/retrieval.py`.

Scenes are drawn of photographs and textures that are new to nano, two videos of each scene in different motions. Every
video is also written cropped, at 1.5 times the speed, and darker with changed colours. Each of the four is a query
among all others. The three that come from the same video are the correct answers.
"""

from collections.abc import Callable
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from drawing import MOTIONS, Scenes, Speeds, draw_path, draw_scenes, draw_shapes, picture, write_videos
from textures import HELD_OUT
from torch import Generator, Tensor
from torch.nn.functional import interpolate

import vswin_extract

FRAMES, SIDE, BATCH = 32, 112, 10


def draw(count: int, seed: int) -> dict[str, Tensor]:
    """Draw `count` videos and three changed copies of each: name -> (T, H, W, 3) uint8."""
    generator = Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for first in range(0, count, BATCH):
        scenes = draw_scenes(BATCH // 2, SIDE, HELD_OUT, generator)
        scenes = Scenes(scenes.background.repeat(2, 1, 1, 1), scenes.foreground.repeat(2, 1, 1, 1))
        motions = torch.randperm(len(MOTIONS), generator=generator)[:BATCH]
        path, shapes = draw_path(motions, FRAMES, 1, Speeds(), generator), draw_shapes(motions, generator)
        one, zero, here = torch.ones(BATCH), torch.zeros(BATCH), torch.zeros(BATCH, 2)
        aside = here + torch.tensor([0.05, -0.04])
        views = path, path.again(one, aside, zero + 0.25, zero), path.again(1.5 * one, here, zero, zero)
        light = [picture(scenes, view, shapes, (SIDE, SIDE)) for view in views]
        light.append(light[0] * torch.tensor([0.6, 0.55, 0.45]).view(3, 1, 1, 1))
        for copy, clips in zip(("original", "cropped", "fast", "darker"), light, strict=True):
            pixels = (clips * 255).byte().permute(0, 2, 3, 4, 1)  # N T H W 3
            drawn |= {f"{first + i:03}/{copy}.mp4": pixels[i] for i in range(BATCH)}
    return drawn


def embeddings(videos: dict[str, Tensor]) -> Tensor:
    """Extract features with nano. Return the mean embedding of each video."""
    with TemporaryDirectory() as folder:
        write_videos(folder, videos)
        vswin_extract.extract(folder, f"{folder}/out.h5", clip_len=16, size=SIDE, resize=SIDE)
        with vswin_extract.open_features(f"{folder}/out.h5") as features:
            return torch.stack([torch.from_numpy(features[name].embedding[:]).mean(0) for name in videos])


def raw_pixels(videos: dict[str, Tensor]) -> Tensor:
    """Return eight frames of 16 x 16 pixels of each video."""
    return torch.stack([
        interpolate(frames[::4].permute(0, 3, 1, 2).float() - 128, (16, 16), mode="area").flatten()
        for frames in videos.values()
    ])  # fmt: skip


def colour_histogram(videos: dict[str, Tensor]) -> Tensor:
    """Return square roots of histograms of 8 x 8 x 8 colours."""
    codes = [(frames.long() // 32 * torch.tensor([64, 8, 1])).sum(-1).flatten() for frames in videos.values()]
    return torch.stack([torch.bincount(code, minlength=512).float().sqrt() for code in codes])


def scores(vectors: Tensor, names: list[str]) -> tuple[float, float]:
    """Return recall@1 and mean average precision, with every video as a query for its three copies."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    group = np.array([name.split("/")[0] for name in names])
    order = (unit @ unit.T).fill_diagonal_(-2).argsort(1, descending=True)[:, :-1].numpy()
    correct = group[order] == group[:, None]
    precision = correct.cumsum(1) / np.arange(1, len(names))
    averages = (precision * correct).sum(1) / 3
    return round(float(correct[:, 0].mean()), 3), round(float(averages.mean()), 3)


@click.command()
@click.option("--videos", default=40, show_default=True, help="Videos, each with three copies.")
@click.option("--seeds", default=1, show_default=True, help="Draws. Their scores are averaged.")
def main(videos: int, seeds: int) -> None:
    """Print recall@1 and mAP of nano and of two baselines."""
    methods: tuple[Callable[[dict[str, Tensor]], Tensor], ...] = (embeddings, colour_histogram, raw_pixels)
    drawn = [draw(videos, seed) for seed in range(seeds)]
    for method in methods:
        each = [scores(method(some), list(some)) for some in drawn]
        recall, precision = zip(*each, strict=True)
        click.echo(
            f"{method.__name__:16} recall@1 {np.mean(recall):.3f} {recall} mAP {np.mean(precision):.3f} {precision}"
        )


if __name__ == "__main__":
    main()
