"""Compare the bundled `nano` with other methods:

    python -m training.evaluate --videos DIR --photographs /usr/share

All clips here are new to nano: real videos from DIR, and scenes of held-out photographs and kinds of texture. The other
methods are the same network untrained, colour histograms, and the teacher's features averaged over eight frames.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import click
import drawing
import torch
import torch.nn.functional as F
from drawing import MOTIONS, Scenes, Speeds
from textures import HELD_OUT, Source, uniform
from torch import Generator, Tensor

from training.batches import Batch, draw, recompressed
from training.photographs import real_source
from training.teacher import Teacher
from vswin_extract import Backbone, load_model
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.weights.checkpoints import Checkpoint

Embed = Callable[[Tensor], Tensor]
"""A method: clips (N, T, H, W, 3) uint8 to embeddings (N, D)."""
FRAMES, INTERVAL, SIDE, SHORT = 32, 2, 224, 256
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
CHANGES = ("crop", "colour", "speed", "codec")


def untrained(model: Backbone, seed: int = 0) -> Backbone:
    """Return the same network with the usual random weights."""
    network = VideoSwin(model.variant, model.num_classes)
    network.init_weights(Generator().manual_seed(seed))
    checkpoint = Checkpoint(
        network.state_dict(), model.variant, "untrained", "", model.num_classes, recipe=model.recipe
    )
    return Backbone("untrained", checkpoint, model.device, model.precision)


def by_model(model: Backbone, clips: Tensor) -> Tensor:
    """Return the embeddings of a network."""
    found = [model(some).embedding for some in torch.split(clips, 4)]
    return torch.cat([each for each in found if each is not None])


def by_colour(clips: Tensor) -> Tensor:
    """Return square roots of histograms of 8x8x8 colours over all pixels."""
    codes = [(clip // 32).flatten(0, 2).long() @ torch.tensor([64, 8, 1]) for clip in clips]  # T*H*W
    return torch.stack([torch.bincount(code, minlength=512).float().sqrt() for code in codes])


def by_teacher(teacher: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """Return the mean of the teacher's features over eight frames."""
    frames = clips[:, :: max(1, clips.shape[1] // 8)][:, :8].permute(0, 1, 4, 2, 3)  # N 8 3 H W
    return torch.stack([teacher(clip).mean(0) for clip in frames])


@dataclass(frozen=True)
class Footage:
    """A part of a real video: frames (T, H, W, 3) uint8 with a short side of SHORT."""

    frames: Tensor

    def clip(self, interval: float = INTERVAL, margin: float = 0.0, aside: float = 0.0) -> Tensor:
        """Return a clip (32, 224, 224, 3) around the middle, of frames `interval` apart.

        `margin`: the share of each side that is cut off. `aside`: the distance of its centre from that of the picture,
        as a share of the width.
        """
        count, height, width = self.frames.shape[:3]
        places = count / 2 + (torch.arange(FRAMES) - FRAMES / 2) * interval
        frames = self.frames[places.long().clamp(0, count - 1)]
        side = int(min(height, width) * (SIDE / SHORT) * (1 - margin))
        top = (height - side) // 2
        left = min(max(0, int((width - side) / 2 + aside * width)), width - side)
        piece = frames[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
        resized = F.interpolate(piece, (SIDE, SIDE), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def footage(folder: Path) -> Iterator[Footage]:
    """Yield all videos below a folder in pieces of 64 frames. Shorter videos are one piece."""
    span = FRAMES * INTERVAL
    found = {path.with_suffix(""): path for path in sorted(folder.rglob("*"), reverse=True) if path.suffix in SUFFIXES}
    for path in sorted(found.values()):  # one file of each video
        with av.open(str(path)) as container:
            frames = [shrunk(torch.from_numpy(f.to_ndarray(format="rgb24"))) for f in container.decode(video=0)]
        for start in range(0, max(1, len(frames) - span + 1), span):
            yield Footage(torch.stack(frames[start : start + span]))


def shrunk(frame: Tensor) -> Tensor:
    """Return a frame (H, W, 3) uint8 resized to a short side of SHORT."""
    height, width = frame.shape[:2]
    scale = SHORT / min(height, width)
    pixels = frame.permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (round(height * scale), round(width * scale)), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def recoloured(clip: Tensor) -> Tensor:
    """Return a darker, paler and warmer clip."""
    pixels = clip.float() / 255
    pale = torch.lerp(pixels.mean(-1, keepdim=True), pixels, 0.5) * torch.tensor([0.85, 0.7, 0.6])
    return (pale * 255).round().byte()


def changed(piece: Footage) -> dict[str, Tensor]:
    """Return the clip of a piece after each of CHANGES."""
    return {
        "crop": piece.clip(margin=0.2, aside=0.05),
        "colour": recoloured(piece.clip()),
        "speed": piece.clip(interval=INTERVAL / 1.5),
        "codec": recompressed(piece.clip(), 42),
    }


def recall(queries: Tensor, clips: Tensor) -> float:
    """Return the share of queries (N, D) n for which the nearest of `clips` (N, D) by cosine is clip n."""
    found = (F.normalize(queries, dim=1) @ F.normalize(clips, dim=1).T).argmax(1)
    return (found == torch.arange(len(clips))).float().mean().item()


def held_out_pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw clips, two of each scene in different motions. Return them, and again with all four changes."""
    drawn = [draw(Batch(FRAMES, SIDE, 6), HELD_OUT, Generator().manual_seed(seed + i)) for i in range(count // 6)]
    one, other = zip(*(each.pixels.chunk(2) for each in drawn), strict=True)
    return torch.cat(one), torch.cat(other)


def moving(count: int, seed: int, slowing: bool = False) -> tuple[Tensor, Tensor]:
    """Return clips of held-out scenes and their labels: their motions, or 1 for slowing down and 0 for speeding up."""
    generator = Generator().manual_seed(seed)
    clips, labels = [], []
    for _ in range(count // len(MOTIONS)):
        scenes: Scenes = drawing.draw_scenes(len(MOTIONS), SIDE, HELD_OUT, generator)
        motions = torch.arange(len(MOTIONS))
        sign = torch.randint(2, (len(MOTIONS),), generator=generator)
        ease = uniform((1.5, 4), generator, len(MOTIONS)) * (2 * sign - 1)
        path = drawing.draw_path(motions, FRAMES, INTERVAL, Speeds(), generator, ease if slowing else None)
        shapes = drawing.draw_shapes(motions, generator)
        pixels = drawing.developed(drawing.picture(scenes, path, shapes, (SIDE, SIDE)), generator)
        keep = motions >= (2 if slowing else 0)  # still and shaking clips have no order
        clips.append(pixels[keep])
        labels.append((sign if slowing else motions)[keep])
    return torch.cat(clips), torch.cat(labels)


def probe(x: Tensor, labels: Tensor) -> float:
    """Fit a ridge regression on the first half. Return the share of correct labels on the second half."""
    half, classes = len(x) // 2, int(labels.max()) + 1
    mapped = ridge(x[:half], F.one_hot(labels[:half], classes).double())
    return (mapped(x[half:]).argmax(1) == labels[half:]).float().mean().item()


def ridge(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear map from (N, D) to (N, K), with the penalty that has the smallest leave-one-out error."""
    mean, std, centre = x.double().mean(0), x.double().std(0).clamp_min(1e-9), y.double().mean(0)
    u, s, vt = torch.linalg.svd((x.double() - mean) / std, full_matrices=False)
    best, weights = torch.inf, torch.zeros(())
    for penalty in 10.0 ** torch.arange(-2, 6):
        kept = s**2 / (s**2 + penalty)
        fitted = (u * kept) @ u.T @ (y - centre)
        leverage = (u**2 * kept).sum(1, keepdim=True) + 1 / len(x)
        error = (((y - centre - fitted) / (1 - leverage)) ** 2).sum().item()
        if error < best:
            best, weights = error, (vt.T * (kept / s.clamp_min(1e-12))) @ u.T @ (y - centre)
    return lambda new: (new.double() - mean) / std @ weights + centre


def agreement(model: Embed, teacher: Callable[[Tensor], Tensor], real: Tensor, source: Source) -> tuple[float, float]:
    """Return how well a linear map, fitted on training clips, predicts the teacher's features from nano's embedding.

    The first value is the mean cosine with the features of the middle frames of `real` clips; the second value is
    the same for a constant prediction: the mean of the features that the map was fitted to.
    """
    drawn = [draw(Batch(16, SIDE, 8), source, Generator().manual_seed(1000 + i)) for i in range(40)]
    x = torch.cat([model(each.pixels[: len(each.frames)]) for each in drawn])
    y = torch.cat([teacher(255 * each.frames) for each in drawn])
    wanted = torch.cat([teacher(frames) for frames in torch.split(real[:, FRAMES // 2].permute(0, 3, 1, 2), 8)])
    predicted = ridge(x, y.double())(model(real))
    constant = y.mean(0).expand_as(wanted)
    return tuple(F.cosine_similarity(a, wanted.double(), dim=1).mean().item() for a in (predicted, constant))  # type: ignore[return-value]


@click.command()
@click.option("--weights", default="weights/nano.safetensors", show_default=True, help="A checkpoint.")
@click.option("--videos", required=True, type=click.Path(path_type=Path, exists=True), help="Real videos.")
@click.option(
    "--photographs", type=click.Path(path_type=Path, exists=True), help="Pictures of training, to fit the map."
)
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def main(weights: str, videos: Path, photographs: Path | None, threads: int) -> None:
    """Print the table of weights/README.md."""
    torch.set_num_threads(threads)
    model, teacher = load_model(weights, device="cpu", precision="fp32"), Teacher()
    methods: dict[str, Embed] = {
        "nano": partial(by_model, model),
        "nano, untrained": partial(by_model, untrained(model)),
        "colour histogram": by_colour,
        "teacher, 8 frames": partial(by_teacher, teacher),
    }
    pieces = list(footage(videos))
    real = torch.stack([piece.clip() for piece in pieces])
    queries = [changed(piece) for piece in pieces]
    clips, again = held_out_pairs(120, seed=7)
    motion, order = moving(280, seed=8), moving(280, seed=9, slowing=True)
    table: dict[str, list[str]] = {}

    def note(title: str, figure: str) -> None:
        table.setdefault(title, []).append(figure)

    for embed in methods.values():
        begun = time.monotonic()
        gallery = embed(real)
        seconds = time.monotonic() - begun
        for name in CHANGES:
            found = recall(embed(torch.stack([each[name] for each in queries])), gallery)
            note(f"recall@1, {name}, {len(real)} real clips", f"{found:.1%}")
        note(f"recall@1, all at once, {len(clips)} drawn clips", f"{recall(embed(again), embed(clips)):.1%}")
        note("motion of 14, linear probe, drawn", f"{probe(embed(motion[0]), motion[1]):.1%}")
        note("slowing or speeding, linear probe, drawn", f"{probe(embed(order[0]), order[1]):.1%}")
        note(f"clips of 32x224x224 a second, {threads} threads", f"{len(real) / seconds:.1f}")
    click.echo("| | " + " | ".join(methods) + " |\n|---|" + "---|" * len(methods))
    for title, figures in table.items():
        click.echo(f"| {title} | " + " | ".join(figures) + " |")
    if photographs is not None:
        cosine, constant = agreement(methods["nano"], teacher, real, real_source(photographs))
        click.echo(f"\nCosine with the teacher's features of real frames: {cosine:.3f}; of a constant: {constant:.3f}.")


if __name__ == "__main__":
    main()
