"""Train `nano`, the network that ships with the package, on clips it draws itself: `python examples/train_nano.py`.

Three tasks share the embedding: name the motion (the head that is kept), say for every token of stage 4 where the
picture moves, and recognise a scene again under another camera, colours and motion. The last two have small layers of
their own that are thrown away.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from drawing import MOTIONS, TRAIN, Clips, Scenes, draw_clips, draw_scenes
from torch import Generator, Tensor, nn
from tqdm import tqdm

from vswin_extract import checkpoints
from vswin_extract.preprocess import Recipe
from vswin_extract.swin3d import Block, VideoSwin, WindowAttention
from vswin_extract.variants import VARIANTS

RECIPE = Recipe(size=224, resize=224, clip_len=32, frame_interval=2)
LEARNING_RATE = 1e-3
TABLE_RATE = 10.0
"""How much faster the position bias tables learn, which alone tell a token where another lies."""
TABLE_EVERY = 4
"""Tables learn in one step of so many: attention that owes its bias no gradient is twice as fast on a CPU."""
SCENE_WEIGHT = 0.25
SCENE_PART = (0.15, 0.3)
"""The part of the steps over which the scene task's weight rises from nothing. It is the easy one: colours will do.
Learned first, it leaves a network that looks at what stands still, and motion is found late or never."""
SMALL_PART = 0.5
"""The part of the steps after which clips of 224 pixels join in."""


@dataclass(frozen=True)
class Batch:
    """`scenes` scenes seen twice each, in clips of `frames` x `side` x `side`."""

    frames: int
    side: int
    scenes: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.side}"


SMALL, LARGE, LONG = Batch(16, 112, 8), Batch(16, 224, 4), Batch(32, 224, 2)
EARLY, LATE = (SMALL,), (LARGE, SMALL, LARGE, LONG)
"""Batches taken in turn. Small clips are cheap, but their 4x4 map in stage 4 shrinks its 7x7 windows, so only the
others train its tables as they will be used: `TABLE_EVERY` falls on the first late turn, a large one."""


class Student(nn.Module):
    """The network with the layers that only training needs."""

    def __init__(self, net: VideoSwin) -> None:
        super().__init__()
        self.net = net
        width = net.variant.channels(4)
        self.flow = nn.Linear(width, 2)
        self.projector = nn.Sequential(  # normed over the batch, else all scenes soon look the same to it
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 128, bias=False),
            nn.BatchNorm1d(128, affine=False),
        )

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of normalised `clips` (N, 3, T, H, W): logits (N, classes), flow (N, T', H', W', 2), projection (N, 128)."""
        with torch.autocast("cpu", torch.bfloat16):
            stage4 = self.net(clips)[4]
        stage4 = stage4.float()
        embedding = self.net.embed(stage4)
        assert self.net.head is not None
        return self.net.head(embedding), self.flow(stage4), F.normalize(self.projector(embedding), dim=1)


@torch.no_grad()
def initialise(net: VideoSwin, generator: Generator) -> None:
    """A start from which so small a network finds motion in minutes; from the published one it does not.

    Weights are scaled to their width (0.02 is for wide networks), residual branches start small, each head's bias
    prefers tokens near in space and a frame before, at or after its own, and stage 1 starts as `motion_energy`.
    """
    net.init_weights(generator)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
        elif isinstance(module, WindowAttention):
            t, h, w = (torch.arange(1.0 - side, side) for side in module.window)
            near = -0.15 * (h[:, None] ** 2 + w**2)  # rows columns
            for head, table in enumerate(module.relative_position_bias_table.T):
                step = (0, 1, -1)[(head + 1) % 3]
                table += (near - 0.5 * (t[:, None, None] - step).abs()).flatten()
    for module in net.modules():
        if isinstance(module, Block):
            module.attn.proj.weight *= 0.2
            module.mlp.fc2.weight *= 0.2
    first = next(module for module in net.modules() if isinstance(module, Block))
    motion_energy(net.patch_embed.proj.weight, first.mlp.fc1.weight, first.mlp.fc2.weight, generator)


def motion_energy(patch: Tensor, fc1: Tensor, fc2: Tensor, generator: Generator) -> None:
    """Fill the patch embedding and the first MLP with a motion detector (Adelson and Bergen, 1985).

    The embedding takes the lowest cosines in space of the sum and of the difference of a patch's two frames. What
    moves makes the difference at one frequency follow the sum at the next, with a sign that tells the direction; so
    the MLP multiplies such pairs, a product being 4ab = (a+b)^2 - (a-b)^2, and a square about gelu(x) + gelu(-x).
    """
    grid = sorted(product(range(4), range(4)), key=lambda f: (sum(f), f))[:10]
    cosines = torch.cos(math.pi * torch.arange(4)[:, None] * (torch.arange(4) + 0.5) / 4)  # frequency pixel
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]) / 3
    filters = [
        torch.einsum("c,t,h,w->cthw", colour, torch.tensor(frames), cosines[u], cosines[v]) * (1 + u + v)
        for colour, frequencies in zip(colours, (grid, grid[:3], grid[:3]), strict=True)
        for u, v in frequencies
        for frames in ([1.0, 1.0], [1.0, -1.0])
    ]
    patch.copy_(torch.stack(filters) / 16)
    sums, differences = range(0, 20, 2), range(1, 20, 2)
    pairs = [
        (differences[i], sums[j])
        for (i, (u, v)), (j, (p, q)) in product(enumerate(grid), enumerate(grid))
        if abs(u - p) + abs(v - q) == 1
    ]
    pairs += [(i, i) for i in (*differences[:4], *sums[1:5])]  # and how much there is of each
    mix, _ = torch.linalg.qr(torch.randn(len(fc2), len(fc2), generator=generator))
    fc1.zero_()
    for number, (a, b) in enumerate(pairs):
        corners = ((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1))
        for unit, (plus, minus, sign) in enumerate(corners, 4 * number):
            fc1[unit, a] += plus
            fc1[unit, b] += minus
            fc2[:, unit] = 6 * sign * mix[:, number]


def draw_batch(batch: Batch, generator: Generator) -> Clips:
    """Two clips of each scene, the second views behind the first, each with its own random motion."""
    scenes = draw_scenes(batch.scenes, batch.side, TRAIN, generator)
    twice = Scenes(scenes.background.repeat(2, 1, 1, 1), scenes.foreground.repeat(2, 1, 1, 1))
    motions = torch.randint(len(MOTIONS), (2 * batch.scenes,), generator=generator)
    return draw_clips(twice, motions, batch.frames, (batch.side, batch.side), generator)


def normalised(pixels: Tensor) -> Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W), as the weights' recipe has it."""
    mean, std = torch.tensor(RECIPE.mean), torch.tensor(RECIPE.std)
    return ((pixels.float() - mean) / std).permute(0, 4, 1, 2, 3)


def losses(student: Student, clips: Clips) -> dict[str, Tensor]:
    """The three losses, and how often the motion was named and the scene recognised."""
    logits, flow, projection = student(normalised(clips.pixels))
    one, other = projection.chunk(2)
    alike = one @ other.T / 0.1  # InfoNCE at temperature 0.1
    same = torch.arange(len(one))
    return {
        "motion": F.cross_entropy(logits, clips.motions, label_smoothing=0.05),
        "flow": F.smooth_l1_loss(flow, clips.flow * 50),  # 0.02 frame heights a frame are much
        "scene": (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2,
        "named": (logits.argmax(1) == clips.motions).float().mean(),
        "recognised": (alike.argmax(1) == same).float().mean(),
    }


def batches(steps: int) -> Iterator[Batch]:
    for step in range(steps):
        turns = EARLY if step < SMALL_PART * steps else LATE
        yield turns[step % len(turns)]


def optimizer(student: Student) -> torch.optim.Optimizer:
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "vectors": [], "tables": []}
    for name, parameter in student.named_parameters():
        kind = "tables" if "bias_table" in name else "weights" if parameter.ndim > 1 else "vectors"
        groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["weights"], "weight_decay": 0.05, "rate": 1.0},
            {"params": groups["vectors"], "weight_decay": 0.0, "rate": 1.0},
            {"params": groups["tables"], "weight_decay": 0.0, "rate": TABLE_RATE},
        ],
        betas=(0.9, 0.98),
    )


def learning_rate(step: int, steps: int) -> float:
    """A linear rise over the first twentieth, then half a cosine down to nothing."""
    warm = max(1, steps // 20)
    return LEARNING_RATE * min((step + 1) / warm, (1 + math.cos(math.pi * step / steps)) / 2)


def scene_weight(step: int, steps: int) -> float:
    start, end = SCENE_PART
    return SCENE_WEIGHT * min(1.0, max(0.0, (step / steps - start) / (end - start)))


@click.command()
@click.option("--steps", default=1500, show_default=True, help="Steps of training.")
@click.option("--stop-after", type=int, help="End after this step of a schedule that is made for --steps.")
@click.option("--seed", default=0, show_default=True, help="Seed of the weights and of everything drawn.")
@click.option("--out", default="weights/nano.safetensors", show_default=True, type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True, help="CPU threads; sums, and so the result, depend on it.")
def main(steps: int, stop_after: int | None, seed: int, out: Path, threads: int) -> None:
    """Train nano on drawn clips, and write its weights and, beside them, a log."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = Student(VideoSwin(VARIANTS["nano"], len(MOTIONS)))
    initialise(student.net, generator)
    adam = optimizer(student)
    tables = [p for name, p in student.named_parameters() if "bias_table" in name]
    seen: dict[str, list[dict[str, float]]] = {}
    last = min(stop_after or steps, steps) - 1
    started = time.monotonic()
    with open(out.with_suffix(".log"), "w", encoding="utf-8") as log, tqdm(total=last + 1, disable=None) as bar:
        for step, batch in enumerate(islice(batches(steps), last + 1)):
            for group in adam.param_groups:
                group["lr"] = group["rate"] * learning_rate(step, steps)
            for table in tables:
                table.requires_grad_(step % TABLE_EVERY == 0)
            values = losses(student, draw_batch(batch, generator))
            total = values["motion"] + 3 * values["flow"] + scene_weight(step, steps) * values["scene"]
            adam.zero_grad()
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            adam.step()
            bar.update()
            seen.setdefault(str(batch), []).append({name: value.item() for name, value in values.items()})
            if (step + 1) % 20 == 0 or step == last:
                for line in report(seen, step + 1, steps, time.monotonic() - started):
                    print(line, file=log, flush=True)
                    if bar.disable:
                        print(line, flush=True)
                seen.clear()
            if (step + 1) % 200 == 0 or step == last:
                write(student.net, out)


def write(net: VideoSwin, out: Path) -> None:
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    source = "trained by examples/train_nano.py on clips drawn by examples/drawing.py"
    checkpoints.save(out, state, net.variant, RECIPE, MOTIONS, source, license="Apache-2.0")


def report(seen: dict[str, list[dict[str, float]]], step: int, steps: int, seconds: float) -> Iterator[str]:
    """A line for each size of clips: the means of what was seen since the last report."""
    for size, rows in sorted(seen.items()):
        means = " ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.3f}" for name in rows[0])
        yield f"step {step}/{steps} {seconds:.0f} s, {size}: {means}"


if __name__ == "__main__":
    main()
