"""Classify the motion in videos by their features: `python examples/linear_probe.py`.

Videos of 14 motions are drawn, a folder for each. `FeatureDataset` reads their embeddings. The second half is
classified by the five nearest of the first half (k-NN), and by a linear layer that is fitted on the first half. No
single frame shows the motion, so colours and pixels help little.
"""

from tempfile import TemporaryDirectory

import click
import torch
import torch.nn.functional as F
from drawing import MOTIONS, draw_clips, draw_scenes, write_videos
from retrieval import colour_histogram, raw_pixels
from textures import HELD_OUT
from torch import Generator, Tensor, nn

import vswin_extract

SIDE = 112


def draw(scenes: int, seed: int) -> dict[str, Tensor]:
    """Draw a video of each motion in each scene: name -> (T, H, W, 3) uint8, scene by scene."""
    generator = Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for scene in range(scenes):
        textures = draw_scenes(len(MOTIONS), SIDE, HELD_OUT, generator)
        motions = torch.arange(len(MOTIONS))
        clips = draw_clips(textures, motions, 32, (SIDE, SIDE), generator, interval=1)
        drawn |= {f"{motion}/{scene:03}.mp4": clips.pixels[i] for i, motion in enumerate(MOTIONS)}
    return drawn


def embeddings(videos: dict[str, Tensor]) -> Tensor:
    """Extract features. Return the embedding of each video, (N, C)."""
    with TemporaryDirectory() as folder:
        write_videos(folder, videos)
        vswin_extract.extract(folder, f"{folder}/out.h5", clip_len=16, size=SIDE, resize=SIDE)
        dataset = vswin_extract.FeatureDataset(f"{folder}/out.h5", ids=videos)
        return torch.stack([item["features"].mean(0) for item in dataset])


def nearest(x: Tensor, labels: Tensor, half: int, k: int = 5) -> float:
    """Return the share of the second half with the label of most of its k nearest in the first half, by cosine."""
    unit = F.normalize(x - x[:half].mean(0), dim=1)
    neighbours = (unit[half:] @ unit[:half].T).topk(k).indices
    return (labels[neighbours].mode(1).values == labels[half:]).float().mean().item()


def linear(x: Tensor, labels: Tensor, half: int) -> float:
    """Return the share of correct labels on the second half by a linear layer that is fitted on the first half."""
    x = (x - x[:half].mean(0)) / (x[:half].std(0) + 1e-6)
    layer = nn.Linear(x.shape[1], len(MOTIONS))
    nn.init.zeros_(layer.weight)
    adam = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=1.0)
    for _ in range(300):
        adam.zero_grad()
        torch.autograd.backward(F.cross_entropy(layer(x[:half]), labels[:half]))
        adam.step()
    named: Tensor = layer(x[half:]).argmax(1)
    return (named == labels[half:]).float().mean().item()


@click.command()
@click.option("--scenes", default=12, show_default=True, help="Scenes, with a video of each of 14 motions.")
@click.option("--seeds", default=1, show_default=True, help="Draws. Their scores are averaged.")
def main(scenes: int, seeds: int) -> None:
    """Print the accuracy of both probes, for nano and two baselines; chance is 0.071."""
    drawn = [draw(scenes, seed) for seed in range(seeds)]
    labels = torch.arange(len(MOTIONS)).repeat(scenes)
    half = scenes // 2 * len(MOTIONS)
    for method in (embeddings, colour_histogram, raw_pixels):
        vectors = [method(some) for some in drawn]
        knn, probe = (torch.tensor([f(x, labels, half) for x in vectors]) for f in (nearest, linear))
        click.echo(f"{method.__name__.replace('_', ' '):17} k-NN {knn.mean():.3f}  linear probe {probe.mean():.3f}")


if __name__ == "__main__":
    main()
