"""What the bundled `nano` knows of motion, on clips that it has not seen: `python examples/probe_nano.py`.

A linear probe (ridge regression to one of 14 motions) is fitted on the frozen embeddings of half of the scenes and
tried on the other half, for the trained network and for the same network with random weights. All scenes are made of
photographs and textures of which none was drawn in training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click
import torch
import torch.nn.functional as F
from drawing import HELD_OUT, MOTIONS, Clips, Scenes, draw_clips, draw_scenes
from torch import Generator, Tensor

from vswin_extract import Backbone, load_model
from vswin_extract.checkpoints import Checkpoint
from vswin_extract.swin3d import VideoSwin


@dataclass(frozen=True)
class Scores:
    """Shares of clips of the second half of the scenes, from 0 to 1.

    `probe`: motions that a linear probe on the embedding tells, `head`: that the network's own head names, without any
    fitting here, `scene`: first views whose nearest embedding among the second views shows the same scene.
    """

    probe: float
    head: float
    scene: float


def draw(batches: int, frames: int, side: int, seed: int) -> Iterator[Clips]:
    """Batches of two views of each of 14 held-out scenes, the second behind the first, in other colours and motion."""
    generator = Generator().manual_seed(seed)
    for _ in range(batches):
        scenes = draw_scenes(len(MOTIONS), side, HELD_OUT, generator)
        twice = Scenes(scenes.background.repeat(2, 1, 1, 1), scenes.foreground.repeat(2, 1, 1, 1))
        motions = torch.cat([torch.randperm(len(MOTIONS), generator=generator) for _ in range(2)])
        yield draw_clips(twice, motions, frames, (side, side), generator)


def untrained(model: Backbone, seed: int = 0) -> Backbone:
    """The same network with the random weights that training commonly starts from."""
    network = VideoSwin(model.variant, model.num_classes)
    network.init_weights(Generator().manual_seed(seed))
    checkpoint = Checkpoint(
        network.state_dict(), model.variant, "untrained", "", model.num_classes, recipe=model.recipe
    )
    return Backbone("untrained", checkpoint, model.device, model.precision)


def score(models: list[Backbone], batches: Iterable[Clips], at_once: int = 7) -> list[Scores]:
    """The scores of each model on the same clips, `at_once` of them in the network at a time."""
    motions: list[Tensor] = []
    outputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in models]
    for clips in batches:
        motions.append(clips.motions)
        for model, rows in zip(models, outputs, strict=True):
            rows.append(embed(model, torch.split(clips.pixels, at_once)))
    return [judge(torch.stack(motions), *map(torch.stack, zip(*rows, strict=True))) for rows in outputs]


def embed(model: Backbone, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings (N, C) and logits (N, classes) of clips that come in `batches` (n, T, H, W, 3)."""
    features = [model(pixels, logits=True) for pixels in batches]
    return torch.cat([one.embedding for one in features]), torch.cat([one.logits for one in features])


def judge(motions: Tensor, embeddings: Tensor, logits: Tensor) -> Scores:
    """From `motions` (batches, clips), `embeddings` (batches, clips, C), `logits` (batches, clips, classes)."""
    half = len(motions) // 2
    fit, tried = embeddings[:half].flatten(0, 1), embeddings[half:]
    true = motions[half:].flatten()
    first, second = (views.flatten(0, 1) for views in tried.chunk(2, 1))
    return Scores(
        probe=share(ridge(fit, motions[:half].flatten(), tried.flatten(0, 1)), true),
        head=share(logits[half:].flatten(0, 1).argmax(1), true),
        scene=share(nearest(first, second), torch.arange(len(first))),
    )


def share(found: Tensor, true: Tensor) -> float:
    return (found == true).float().mean().item()


def ridge(fit: Tensor, motions: Tensor, tried: Tensor) -> Tensor:
    """Motions of `tried` (M, C) by ridge regression from `fit` (N, C) to one-hot `motions` (N,): (M,).

    The penalty is the one with the least leave-one-out error on `fit`, which a linear fit gives in closed form.
    """
    mean, std = fit.double().mean(0), fit.double().std(0).clamp_min(1e-9)
    x, y = (fit.double() - mean) / std, F.one_hot(motions, len(MOTIONS)).double()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    centre = y.mean(0)
    best, weights = torch.inf, torch.zeros(x.shape[1], len(MOTIONS), dtype=x.dtype)
    for penalty in 10.0 ** torch.arange(-2, 5):
        shrunk = s**2 / (s**2 + penalty)
        fitted = (u * shrunk) @ u.T @ (y - centre)
        leverage = (u**2 * shrunk).sum(1, keepdim=True) + 1 / len(x)
        error = (((y - centre - fitted) / (1 - leverage)) ** 2).sum().item()
        if error < best:
            best, weights = error, (vt.T * (shrunk / s.clamp_min(1e-12))) @ u.T @ (y - centre)
    return ((tried.double() - mean) / std @ weights + centre).argmax(1)


def nearest(first: Tensor, second: Tensor) -> Tensor:
    """For each of `first` (N, C) the row of `second` (N, C) in the most similar direction from the mean: (N,)."""
    mean = torch.cat((first, second)).mean(0)
    return (F.normalize(first - mean, dim=1) @ F.normalize(second - mean, dim=1).T).argmax(1)


@click.command()
@click.option("--weights", default="weights/nano.safetensors", show_default=True, help="A checkpoint with its head.")
@click.option("--seed", default=1, show_default=True, help="Seed of the clips.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def main(weights: str, seed: int, threads: int) -> None:
    """Print what trained and random weights tell of held-out clips."""
    torch.set_num_threads(threads)
    model = load_model(weights, device="cpu")
    models = {"trained": model, "random": untrained(model)}
    click.echo("| clips | scenes | weights | probe | head | scene |\n|---|---|---|---|---|---|")
    for frames, side, batches in ((16, 112, 30), (16, 224, 12), (32, 224, 12)):
        scores = score(list(models.values()), draw(batches, frames, side, seed))
        for name, one in zip(models, scores, strict=True):
            row = " | ".join(f"{100 * value:.1f} %" for value in (one.probe, one.head, one.scene))
            click.echo(f"| {frames}x{side} | {batches * len(MOTIONS)} | {name} | {row} |")
    click.echo(f"chance: probe and head {100 / len(MOTIONS):.1f} %, scene one in half the scenes")


if __name__ == "__main__":
    main()
