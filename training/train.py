"""Train `nano`, the network that ships with the package, in two sittings:

    python -m training.train motion --photographs /usr/share --out motion.safetensors
    python -m training.train appearance --photographs /usr/share --start motion.safetensors

Everything shares the embedding. Appearance: a linear layer on it is to give the features of a pretrained image network
(`teacher`). Motion: the head that is kept names it, and for every token of stage 4 a layer says where the picture
moves. Order: whether a clip slows down, speeds up (which is the same backwards) or is shuffled, and by how much it
slows. Invariance: two views of one scene in one motion are to be nearer than all else, by the cosine that users search
with.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from drawing import MOTIONS, Source, integer
from torch import Generator, Tensor, nn
from tqdm import tqdm

from training.batches import SHUFFLED, Batch, Drawn, draw
from training.photographs import real_source
from training.teacher import WIDTH, Teacher
from vswin_extract.network.swin3d import Block, VideoSwin, WindowAttention
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.load import read_checkpoint
from vswin_extract.weights.recipe import Recipe

RECIPE = Recipe(size=224, resize=224, clip_len=32, frame_interval=2)
TABLE_RATE = 10.0
"""How much faster the position bias tables learn, which alone tell a token where another lies."""
TABLE_EVERY = 26
"""Tables learn in one step of so many: attention that owes its bias no gradient is many times faster on a CPU."""
TEMPERATURE = 0.1
SMALL, LARGE, LONG = Batch(16, 112, 24), Batch(16, 224, 6), Batch(32, 224, 3)
PICTURES = Batch(2, 224, 48)


@dataclass(frozen=True)
class Sitting:
    """`turns`: batches taken in turn, from which part of the steps on. `weights`: of the losses. `later`: the part of
    the steps over which a weight rises from nothing. `rate`: the highest learning rate."""

    steps: int
    rate: float
    turns: Mapping[float, tuple[Batch, ...]]
    weights: Mapping[str, float]
    later: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def batch(self, step: int) -> Batch:
        turns = self.turns[max(start for start in self.turns if step >= start * self.steps)]
        return turns[step % len(turns)]

    def weight(self, name: str, step: int) -> float:
        start, end = self.later.get(name, (-1.0, 0.0))
        return self.weights.get(name, 0.0) * min(1.0, max(0.0, (step / self.steps - start) / (end - start)))

    def learning_rate(self, step: int) -> float:
        """A linear rise over the first twentieth, then half a cosine down to nothing."""
        warm = max(1, self.steps // 20)
        return self.rate * min((step + 1) / warm, (1 + math.cos(math.pi * step / self.steps)) / 2)


SITTINGS = {
    # Appearance is the easy task: learned first, it leaves a network that looks at what stands still, and motion is
    # found late or never. Small clips are cheap, but their 4x4 map in stage 4 shrinks its 7x7 windows, so the large
    # ones, which come later, train its tables as they will be used: TABLE_EVERY falls on these.
    "motion": Sitting(
        steps=1000,
        rate=1.5e-3,
        turns={0.0: (SMALL,), 0.55: (LARGE, SMALL, LARGE, LONG)},
        weights={"motion": 1.0, "flow": 3.0, "order": 0.7, "pairs": 0.5, "teacher": 2.0},
        later={"pairs": (0.05, 0.2), "teacher": (0.02, 0.1)},
    ),
    # Pictures cost a tenth of clips. What they teach holds for clips, since attention to the same picture at other
    # times adds nothing; clips of all sizes between them keep the motion.
    "appearance": Sitting(
        steps=2300,
        rate=2e-3,
        turns={0.0: tuple(replace(batch, recompressed=0.5) for batch in (LARGE, SMALL, LONG, PICTURES))},
        weights={"motion": 1.0, "flow": 2.0, "order": 1.0, "slowing": 1.0, "pairs": 1.0, "teacher": 4.0},
    ),
}
SAMPLED = 16
"""Batches from which the mean of the teacher's features is taken."""


class Student(nn.Module):
    """The network with the layers that only training needs."""

    def __init__(self, net: VideoSwin) -> None:
        super().__init__()
        self.net = net
        width = net.variant.channels(4)
        self.flow = nn.Linear(width, 2)
        self.order = nn.Linear(width, 5)
        self.appearance = nn.Linear(width, WIDTH)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Of normalised `clips` (N, 3, T, H, W): stage 4 (N, T', H', W', C) and the embedding (N, C)."""
        stage4 = self.net(clips)[4]
        return stage4, self.net.embed(stage4)


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

    The embedding takes the lowest cosines in space of the sum and of the difference of a patch's two frames, and two
    colours. What moves makes the difference at one frequency follow the sum at the next, with a sign that tells the
    direction; so the MLP multiplies such pairs, a product being 4ab = (a+b)^2 - (a-b)^2, and a square about
    gelu(x) + gelu(-x).
    """
    grid = sorted(product(range(4), range(4)), key=lambda f: (sum(f), f))[:6]
    cosines = torch.cos(math.pi * torch.arange(4)[:, None] * (torch.arange(4) + 0.5) / 4)  # frequency pixel
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]) / 3
    filters = [
        torch.einsum("c,t,h,w->cthw", colour, torch.tensor(frames), cosines[u], cosines[v]) * (1 + u + v)
        for colour, frequencies in zip(colours, (grid, grid[:1], grid[:1]), strict=True)
        for u, v in frequencies
        for frames in ([1.0, 1.0], [1.0, -1.0])
    ]
    patch.copy_(torch.stack(filters) / 16)
    sums, differences = range(0, 2 * len(grid), 2), range(1, 2 * len(grid), 2)
    pairs = [
        (differences[i], sums[j])
        for (i, (u, v)), (j, (p, q)) in product(enumerate(grid), enumerate(grid))
        if abs(u - p) + abs(v - q) == 1
    ]
    pairs += [(i, i) for i in (*differences[:2], *sums[1:3])]  # and how much there is of each
    mix, _ = torch.linalg.qr(torch.randn(len(fc2), len(fc2), generator=generator))
    fc1.zero_()
    for number, (a, b) in enumerate(pairs):
        corners = ((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1))
        for unit, (plus, minus, sign) in enumerate(corners, 4 * number):
            fc1[unit, a] += plus
            fc1[unit, b] += minus
            fc2[:, unit] = 6 * sign * mix[:, number]


def normalised(pixels: Tensor) -> Tensor:
    """(N, T, H, W, 3) in 0 to 255 -> (N, 3, T, H, W), as the weights' recipe has it."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (RECIPE.mean, RECIPE.std))
    return ((pixels.float() - mean) / std).permute(0, 4, 1, 2, 3)


class Lesson:
    """What a student is shown and asked: draws batches, and keeps what is remembered of earlier ones.

    Drawing costs as much as learning, so every batch is shown twice, mirrored or backwards the second time.
    """

    def __init__(self, source: Source, device: str, generator: Generator) -> None:
        self.source, self.device, self.generator = source, device, generator
        self.teacher = Teacher().to(device)
        self.shown: dict[str, tuple[Drawn, Tensor]] = {}
        self.mean = torch.zeros(())
        self.mean = torch.cat([self.new(SMALL)[1] for _ in range(SAMPLED)]).mean(0)

    def next(self, batch: Batch) -> tuple[Drawn, Tensor]:
        """Clips, and what is to be said of each scene's appearance (pairs, 1280), however it is turned."""
        if (before := self.shown.pop(str(batch), None)) is not None:
            drawn, wanted = before
            backwards = integer(0, 2, self.generator) and not batch.is_picture
            return drawn.backwards() if backwards else drawn.mirrored(), wanted
        self.shown[str(batch)] = self.new(batch)
        return self.shown[str(batch)]

    def new(self, batch: Batch) -> tuple[Drawn, Tensor]:
        drawn = draw(batch, self.source, self.generator)
        while bool((drawn.order == SHUFFLED).all()):  # which say nothing of motion
            drawn = draw(batch, self.source, self.generator)
        return drawn, self.teacher(255 * drawn.frames.to(self.device)) - self.mean

    def losses(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The losses of one batch, and how often motion and order were named and the other view was the nearest."""
        drawn, wanted = self.next(batch)
        motions, order, flow, slowing = (
            x.to(self.device) for x in (drawn.motions, drawn.order, drawn.flow, drawn.slowing)
        )
        whole = order != SHUFFLED
        stage4, embedding = student(normalised(drawn.pixels.to(self.device)))
        unit = F.normalize(embedding, dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        alike = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        other = torch.arange(len(unit), device=unit.device).roll(batch.pairs)
        moved = F.smooth_l1_loss(student.flow(stage4), flow * 50, reduction="none").mean((1, 2, 3, 4))  # 0.02 is much
        appearance = F.cosine_similarity(student.appearance(embedding), wanted.repeat(2, 1), dim=1)
        found = {
            "flow": (moved * whole).sum() / whole.sum(),
            "pairs": F.cross_entropy(alike, other),
            "teacher": 1 - appearance.mean(),
            "found": (alike.argmax(1) == other).float().mean(),
        }
        if batch.is_picture:
            return found
        assert student.net.head is not None
        named, told = student.net.head(embedding), student.order(embedding)
        return found | {
            "motion": F.cross_entropy(named[whole], motions[whole], label_smoothing=0.05),
            "order": F.cross_entropy(told[:, :4], order),
            "slowing": F.smooth_l1_loss(told[whole, 4], slowing[whole] / 2),
            "named": (named.argmax(1) == motions)[whole].float().mean(),
            "ordered": (told[:, :4].argmax(1) == order).float().mean(),
        }


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


@click.command()
@click.argument("sitting", type=click.Choice(list(SITTINGS)))
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Weights to begin with; else random ones.")
@click.option("--photographs", default="/usr/share", show_default=True, type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Steps of training; where not given, the sitting's own.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="The highest learning rate; where not given, the sitting's own.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the weights and of everything drawn.")
@click.option("--out", default="weights/nano.safetensors", show_default=True, type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True, help="CPU threads; sums, and so the result, depend on it.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--state", type=click.Path(path_type=Path), help="Kept in this file every 100 steps; gone on from there.")
def main(
    sitting: str,
    start: Path | None,
    photographs: Path,
    steps: int | None,
    rate: float | None,
    seed: int,
    out: Path,
    threads: int,
    device: str,
    state: Path | None,
) -> None:
    """Train nano on drawn clips, and write its weights and, beside them, a log."""
    plan = SITTINGS[sitting]
    plan = replace(plan, steps=steps or plan.steps, rate=rate or plan.rate)
    steps = plan.steps
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = Student(VideoSwin(VARIANTS["nano"], len(MOTIONS)))
    if start is None:
        initialise(student.net, generator)
    else:
        student.net.load_state_dict(read_checkpoint(start).state)
    student.to(device)
    adam = optimizer(student)
    lesson = Lesson(real_source(photographs), device, generator)
    tables = [p for name, p in student.named_parameters() if "bias_table" in name]
    seen: dict[str, list[dict[str, float]]] = {}
    first, before = 0, 0.0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        student.load_state_dict(kept["student"])
        adam.load_state_dict(kept["adam"])
        generator.set_state(kept["generator"])
        first, before = kept["step"], kept["seconds"]
    started = time.monotonic() - before
    with open(out.with_suffix(".log"), "a" if first else "w", encoding="utf-8") as log:
        for step in tqdm(range(first, steps), initial=first, total=steps, disable=None):
            for group in adam.param_groups:
                group["lr"] = group["rate"] * plan.learning_rate(step)
            for table in tables:
                table.requires_grad_(step % TABLE_EVERY == 0)
            batch = plan.batch(step)
            values = lesson.losses(student, batch)
            adam.zero_grad()
            total = torch.stack([plan.weight(name, step) * value for name, value in values.items()]).sum()
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            adam.step()
            seen.setdefault(str(batch), []).append({name: value.item() for name, value in values.items()})
            if (step + 1) % 20 == 0 or step + 1 == steps:
                for line in report(seen, step + 1, steps, time.monotonic() - started):
                    print(line, file=log, flush=True)
                seen.clear()
            if (step + 1) % 100 == 0 or step + 1 == steps:
                write(student.net, out)
                if state is not None:
                    torch.save(
                        {
                            "student": student.state_dict(),
                            "adam": adam.state_dict(),
                            "generator": generator.get_state(),
                            "step": step + 1,
                            "seconds": time.monotonic() - started,
                        },
                        state,
                    )


def write(net: VideoSwin, out: Path) -> None:
    weights = {name: tensor.half() for name, tensor in net.state_dict().items()}
    source = "trained by training/train.py on clips drawn by training/batches.py"
    save_checkpoint(out, weights, net.variant, RECIPE, MOTIONS, source, license="Apache-2.0")


def report(seen: dict[str, list[dict[str, float]]], step: int, steps: int, seconds: float) -> Iterator[str]:
    """A line for each size of clips: the means of what was seen since the last report."""
    for size, rows in sorted(seen.items()):
        means = " ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.3f}" for name in rows[0])
        yield f"step {step}/{steps} {seconds:.0f} s, {size}: {means}"


if __name__ == "__main__":
    main()
