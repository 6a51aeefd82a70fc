"""The bundled `nano` recognises motions and scenes in new clips; its network with random weights does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("skimage")

import drawing
from drawing import MOTIONS
from textures import HELD_OUT
from torch import Generator, nn

from training import batches, evaluate, photographs, train
from training.batches import SHUFFLED, SLOWING, SPEEDING, Batch, Drawn
from vswin_extract import Backbone, load_model
from vswin_extract.weights.load import read_checkpoint

PAIRS = 8


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return load_model("nano", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    """Batches of clips of held-out scenes."""
    return [batches.draw(Batch(16, 112, PAIRS), HELD_OUT, Generator().manual_seed(seed)) for seed in range(2)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with small pictures at the places where the Debian packages have theirs."""
    files = [(f"{folder}/a.jpg", "RGB") for folder in photographs.BACKGROUNDS]
    files += [(f"{folder}/b/c.png", "RGBA") for folder in photographs.STAMPS]
    for name, mode in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (64, 80, len(mode)), generator=Generator().manual_seed(0), dtype=torch.uint8)
        Image.fromarray(noise.numpy(), mode).save(path)
    return tmp_path


def test_classes_are_the_motions(nano: Backbone) -> None:
    assert nano.classes == MOTIONS


@pytest.mark.parametrize("trained", [True, False])
def test_it_names_motions_and_finds_clips_again(nano: Backbone, drawn: list[Drawn], trained: bool) -> None:
    model = nano if trained else evaluate.untrained(nano)
    embedded = [evaluate.by_model(model, each.pixels) for each in drawn]
    clips, queries = (torch.cat([each[half] for each in embedded]) for half in (slice(PAIRS), slice(PAIRS, None)))
    assert (evaluate.recall(queries, clips) > 0.5) is trained  # by chance 1 of 16
    assert isinstance(model.network.head, nn.Module)
    named = model.network.head(torch.cat(embedded)).argmax(1)
    whole = torch.cat([each.order != SHUFFLED for each in drawn])
    correct = (named == torch.cat([each.motions for each in drawn]))[whole].float().mean()
    assert (float(correct) > 0.7) is trained  # by chance 1 of 14


def test_labels_of_backwards_and_mirrored_clips(drawn: list[Drawn]) -> None:
    for batch in drawn:
        check_labels(batch)
    names = {MOTIONS[i] for batch in drawn for i in batch.motions}
    assert any(name.startswith("pan") for name in names)


def check_labels(drawn: Drawn) -> None:
    back, mirror = drawn.backwards(), drawn.mirrored()
    for other in (back, mirror):
        twice = other.backwards() if other is back else other.mirrored()
        assert torch.equal(twice.pixels, drawn.pixels)
        assert torch.equal(twice.motions, drawn.motions)
        assert torch.equal(twice.order, drawn.order)
    names = [MOTIONS[i] for i in drawn.motions]
    assert [MOTIONS[i] for i in mirror.motions][: len(names)] == [
        name.replace("left", "?")
        .replace("right", "left")
        .replace("?", "right")
        .replace("anticlockwise", "?")
        .replace("clockwise", "anticlockwise")
        .replace("?", "clockwise")
        for name in names
    ]
    assert torch.equal(back.order == SPEEDING, drawn.order == SLOWING)
    pans = [i for i, name in enumerate(names) if name.startswith("pan") and drawn.order[i] != SHUFFLED]
    for i in pans:  # under "pan left" the picture moves right, under "pan up" down
        axis, sign = (0, 1) if names[i] == "pan left" else (0, -1) if names[i] == "pan right" else (1, 0)
        sign = sign or (1 if names[i] == "pan up" else -1)
        assert sign * drawn.flow[i, ..., axis].median() > 0
        assert sign * back.flow[i, ..., axis].median() < 0


def test_slowing_clips_move_less_at_the_end() -> None:
    generator = Generator().manual_seed(0)
    motions = torch.full((2,), MOTIONS.index("pan right"))
    path = drawing.draw_path(motions, 16, 2, drawing.Speeds(tremor=(0, 0)), generator, torch.tensor([2.0, -2.0]))
    steps = path.centre[:, :, 0].diff(dim=1)
    assert steps[0, 0] > 3 * steps[0, -1] > 0
    assert steps[1, -1] > 3 * steps[1, 0] > 0
    faster = path.again(torch.tensor([2.0, 2.0]), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    torch.testing.assert_close(faster.centre[:, :, 0].diff(dim=1), 2 * steps)


@pytest.mark.slow
def test_two_steps_of_each_phase_write_weights(pictures: Path, tmp_path: Path) -> None:
    turns = {0.0: (Batch(8, 56, 2), Batch(2, 56, 2))}
    short = {
        name: replace(phase, steps=2, turns=turns, samples=(Batch(2, 56, 2),)) for name, phase in train.PHASES.items()
    }
    motion, appearance = tmp_path / "motion.safetensors", tmp_path / "appearance.safetensors"
    train.train(replace(short["motion"], steps=1), pictures, motion, state=tmp_path / "state")
    train.train(short["motion"], pictures, motion, state=tmp_path / "state")
    train.train(short["appearance"], pictures, appearance, motion, seed=1)
    log = motion.with_suffix(".log").read_text().splitlines()
    assert [line.split()[1] for line in log] == ["1/1", "2/2"]
    assert load_model(str(appearance), device="cpu").classes == MOTIONS
    one, other = (read_checkpoint(path).state["stages.3.blocks.1.mlp.fc1.weight"] for path in (motion, appearance))
    assert 0 < (one - other).abs().max() < 3 * short["appearance"].rate  # two steps of Adam from the first weights
    options = {option.name for option in train.main.params}
    assert options >= {"phase", "start", "state", "seed"}


def test_scores_of_the_evaluation(tmp_path: Path) -> None:
    x = torch.randn(40, 5, generator=Generator().manual_seed(0))
    assert evaluate.recall(2 * x, x) == 1
    assert evaluate.recall(x.roll(1, 0), x) == 0
    assert evaluate.probe(x, (x[:, 0] > 0).long()) > 0.8
    mapped = evaluate.ridge(x, x[:, :2].double() * 3 + 1)(x)
    torch.testing.assert_close(mapped, x[:, :2].double() * 3 + 1, atol=0.02, rtol=0)
    drawing.write_video(tmp_path / "a.mp4", torch.randint(256, (70, 96, 128, 3), dtype=torch.uint8))
    (piece,) = evaluate.footage(tmp_path)
    assert piece.frames.shape == (64, 256, 341, 3)
    for name, clip in {"whole": piece.clip(), **evaluate.changed(piece)}.items():
        assert clip.shape == (32, 224, 224, 3), name
