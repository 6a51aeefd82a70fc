"""Train `nano`, the network that ships with the package, in two phases:

    python -m training.train motion --photographs /usr/share --out motion.safetensors
    python -m training.train appearance --photographs /usr/share --start motion.safetensors

All tasks share the embedding. Appearance: a linear layer predicts the features of a pretrained image network (see
`teacher`). Motion: the head of the network names the motion, and a layer predicts for each token of stage 4 how the
picture moves there. Order: a layer tells whether a clip slows down, speeds up (slowing down backwards) or is shuffled,
and how much it slows. Invariance: two views of one scene in one motion are nearer by cosine than all others, because
users search by cosine.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import click
import torch
from drawing import MOTIONS
from torch import Generator, nn
from tqdm import tqdm

from training.batches import Batch
from training.objective import Objective
from training.photographs import real_source
from training.student import RECIPE, Student, initialise
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.load import read_checkpoint

TABLE_RATE = 10.0
"""The learning rate of position bias tables, as a multiple of that of other weights. Only they tell a token the places
of the others."""
TABLE_EVERY = 26
"""Steps between two in which tables learn. On a CPU, attention is many times faster if its bias needs no gradient."""
SMALL, LARGE, LONG = Batch(16, 112, 24), Batch(16, 224, 6), Batch(32, 224, 3)
PICTURES = Batch(2, 224, 48)


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    `turns`: batches to take in turn, by the share of the steps after which they begin. `weights`: of the losses.
    `later`: the shares of the steps between which a weight rises from zero. `rate`: the highest learning rate.
    `samples`: the batches that the mean of the teacher's features is taken from.
    """

    steps: int
    rate: float
    turns: Mapping[float, tuple[Batch, ...]]
    weights: Mapping[str, float]
    later: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: tuple[Batch, ...] = (SMALL,) * 16

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        turns = self.turns[max(start for start in self.turns if step >= start * self.steps)]
        return turns[step % len(turns)]

    def weight(self, name: str, step: int) -> float:
        """Return the weight of a loss at a step, 0 for values that are only reported."""
        start, end = self.later.get(name, (-1.0, 0.0))
        return self.weights.get(name, 0.0) * min(1.0, max(0.0, (step / self.steps - start) / (end - start)))

    def learning_rate(self, step: int) -> float:
        """Return a rate that rises linearly over the first twentieth, then falls to zero over half a cosine."""
        warm = max(1, self.steps // 20)
        return self.rate * min((step + 1) / warm, (1 + math.cos(math.pi * step / self.steps)) / 2)


PHASES = {
    # Appearance is the easier task. If it is learned first, the network looks only at what stands still, and finds
    # motion late or never. Small clips are cheap, but their 4x4 map in stage 4 shrinks its 7x7 windows. So the large
    # clips, which come later, train the tables as users need them: the steps of TABLE_EVERY fall on large clips.
    "motion": Phase(
        steps=1000,
        rate=1.5e-3,
        turns={0.0: (SMALL,), 0.55: (LARGE, SMALL, LARGE, LONG)},
        weights={"motion": 1.0, "flow": 3.0, "order": 0.7, "pairs": 0.5, "teacher": 2.0},
        later={"pairs": (0.05, 0.2), "teacher": (0.02, 0.1)},
    ),
    # A batch of pictures costs a tenth of a batch of clips. What pictures teach is true for clips, too, because
    # attention to the same picture at other times adds nothing. Clips of all sizes in between keep the motion.
    "appearance": Phase(
        steps=2300,
        rate=2e-3,
        turns={0.0: tuple(replace(batch, recompressed=0.5) for batch in (LARGE, SMALL, LONG, PICTURES))},
        weights={"motion": 1.0, "flow": 2.0, "order": 1.0, "slowing": 1.0, "pairs": 1.0, "teacher": 4.0},
    ),
}


@dataclass
class TrainingState:
    """Everything that a run needs to continue after a stop."""

    student: Student
    adam: torch.optim.Optimizer
    generator: Generator
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        content = {
            "student": self.student.state_dict(),
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(content, path)

    def load(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        self.student.load_state_dict(content["student"])
        self.adam.load_state_dict(content["adam"])
        self.generator.set_state(content["generator"])
        self.step, self.seconds = content["step"], content["seconds"]


def train(
    phase: Phase, photographs: Path, out: Path, start: Path | None = None, seed: int = 0, device: str = "cpu",
    state: Path | None = None,
) -> None:  # fmt: skip
    """Train nano for one phase. Write its weights to `out` every 100 steps, and a log beside them.

    `start`: weights to begin with, else random ones. `state`: a file to continue from, if it exists, and to save to.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = Student(VideoSwin(VARIANTS["nano"], len(MOTIONS)))
    if start is None:
        initialise(student.net, generator)
    else:
        student.net.load_state_dict(read_checkpoint(start).state)
    student.to(device)
    training = TrainingState(student, optimizer(student), generator)
    objective = Objective(real_source(photographs), device, generator, list(phase.samples))
    if state is not None and state.exists():
        training.load(state)
    with open(out.with_suffix(".log"), "a" if training.step else "w", encoding="utf-8") as log:
        run_steps(phase, training, objective, log, out, state)


def run_steps(
    phase: Phase, training: TrainingState, objective: Objective, log: TextIO, out: Path, state: Path | None
) -> None:
    """Make all steps of a phase that are left."""
    student, steps = training.student, phase.steps
    tables = [p for name, p in student.named_parameters() if "bias_table" in name]
    seen: dict[str, list[dict[str, float]]] = {}
    started = time.monotonic() - training.seconds
    for step in tqdm(range(training.step, steps), initial=training.step, total=steps, disable=None):
        for table in tables:
            table.requires_grad_(step % TABLE_EVERY == 0)
        batch = phase.batch(step)
        values = objective.losses(student, batch)
        update(phase, step, training, values)
        seen.setdefault(str(batch), []).append({name: value.item() for name, value in values.items()})
        training.step, training.seconds = step + 1, time.monotonic() - started
        if training.step % 20 == 0 or training.step == steps:
            for line in report(seen, training.step, steps, training.seconds):
                print(line, file=log, flush=True)
            seen.clear()
        if training.step % 100 == 0 or training.step == steps:
            write(student.net, out)
            if state is not None:
                training.save(state)


def update(phase: Phase, step: int, training: TrainingState, values: Mapping[str, torch.Tensor]) -> None:
    """Make one step of the optimizer."""
    for group in training.adam.param_groups:
        group["lr"] = group["rate"] * phase.learning_rate(step)
    training.adam.zero_grad()
    total = torch.stack([phase.weight(name, step) * value for name, value in values.items()]).sum()
    torch.autograd.backward(total)
    nn.utils.clip_grad_norm_(training.student.parameters(), 1.0)
    training.adam.step()


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


def write(net: VideoSwin, out: Path) -> None:
    weights = {name: tensor.half() for name, tensor in net.state_dict().items()}
    source = "trained by training/train.py on clips drawn by training/batches.py"
    save_checkpoint(out, weights, net.variant, RECIPE, MOTIONS, source, license="Apache-2.0")


def report(seen: Mapping[str, list[dict[str, float]]], step: int, steps: int, seconds: float) -> Iterator[str]:
    """Yield a line for each size of clips: the means of all values since the last report."""
    for size, rows in sorted(seen.items()):
        means = " ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.3f}" for name in rows[0])
        yield f"step {step}/{steps} {seconds:.0f} s, {size}: {means}"


@click.command()
@click.argument("phase", type=click.Choice(list(PHASES)))
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Weights to begin with, else random ones.")
@click.option("--photographs", default="/usr/share", show_default=True, type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Steps of training, instead of those of the phase.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="The highest learning rate, instead of that of the phase.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the weights and of all clips.")
@click.option("--out", default="weights/nano.safetensors", show_default=True, type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True, help="CPU threads. The result depends on them.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="A file to save the state to every 100 steps, and to continue from.",
)
def main(
    phase: str,
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
    """Train nano on drawn clips. Write its weights and, beside them, a log."""
    torch.set_num_threads(threads)
    plan = PHASES[phase]
    plan = replace(plan, steps=steps or plan.steps, rate=rate or plan.rate)
    train(plan, photographs, out, start, seed, device, state)


if __name__ == "__main__":
    main()
