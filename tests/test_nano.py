"""The bundled `nano` has learned: what it tells of clips it has not seen, random weights of its network do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("skimage")

import drawing
from drawing import HELD_OUT, MOTIONS
from torch import Generator, Tensor

from training import batches, evaluate, photographs, train
from training.batches import SHUFFLED, SLOWING, SPEEDING, Batch
from vswin_extract import Backbone, load_model
from vswin_extract.weights.load import read_checkpoint


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return load_model("nano", device="cpu", precision="fp32")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """What the Debian packages of photographs install, in small."""
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


def test_it_tells_motions_and_finds_clips_again(nano: Backbone) -> None:
    drawn = [batches.draw(Batch(16, 112, 14), HELD_OUT, Generator().manual_seed(seed)) for seed in range(8)]
    first = torch.cat([each.pixels[:14] for each in drawn])
    again = torch.cat([each.pixels[14:] for each in drawn])
    for model, finds in ((nano, True), (evaluate.untrained(nano), False)):
        clips, queries = (evaluate.by_model(model, pixels) for pixels in (first, again))
        assert (evaluate.recall(queries, clips) > 0.5) is finds
    steady = [drawing.draw_clips(*scenes, 16, (112, 112), generator) for scenes, generator in scenes_of(12)]
    motions = torch.cat([each.motions for each in steady])
    embedded = evaluate.by_model(nano, torch.cat([each.pixels for each in steady]))
    assert evaluate.probe(embedded, motions) > 0.75  # chance is 7 %


def scenes_of(count: int) -> list[tuple[tuple[drawing.Scenes, Tensor], Generator]]:
    made = []
    for seed in range(count):
        generator = Generator().manual_seed(100 + seed)
        scenes = drawing.draw_scenes(len(MOTIONS), 112, HELD_OUT, generator)
        made.append(((scenes, torch.arange(len(MOTIONS))), generator))
    return made


def test_backwards_and_mirrored_are_named_as_what_they_show() -> None:
    drawn = batches.draw(Batch(16, 112, 14), HELD_OUT, Generator().manual_seed(3))
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
    assert pans
    for i in pans:  # under "pan left" the picture moves right, under "pan up" down
        axis, sign = (0, 1) if names[i] == "pan left" else (0, -1) if names[i] == "pan right" else (1, 0)
        sign = sign or (1 if names[i] == "pan up" else -1)
        assert sign * drawn.flow[i, ..., axis].median() > 0
        assert sign * back.flow[i, ..., axis].median() < 0


def test_what_slows_down_moves_less_at_the_end() -> None:
    generator = Generator().manual_seed(0)
    motions = torch.full((2,), MOTIONS.index("pan right"))
    path = drawing.draw_path(motions, 16, 2, drawing.Speeds(tremor=(0, 0)), generator, torch.tensor([2.0, -2.0]))
    steps = path.centre[:, :, 0].diff(dim=1)
    assert steps[0, 0] > 3 * steps[0, -1] > 0
    assert steps[1, -1] > 3 * steps[1, 0] > 0
    faster = path.again(torch.tensor([2.0, 2.0]), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    torch.testing.assert_close(faster.centre[:, :, 0].diff(dim=1), 2 * steps)


def test_two_steps_of_each_sitting_write_weights(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = {0.0: (Batch(16, 112, 2), Batch(2, 112, 2))}
    short = {name: replace(sitting, steps=2, turns=turns) for name, sitting in train.SITTINGS.items()}
    monkeypatch.setattr(train, "SITTINGS", short)
    monkeypatch.setattr(train, "SAMPLED", 2)
    threads = torch.get_num_threads()
    motion, appearance = tmp_path / "motion.safetensors", tmp_path / "appearance.safetensors"
    for arguments in (
        ["motion", "--out", motion, "--state", tmp_path / "state"],
        ["appearance", "--start", motion, "--out", appearance, "--seed", 1],
    ):
        words = [*map(str, arguments), "--photographs", str(pictures)]
        assert CliRunner().invoke(train.main, words, catch_exceptions=False).exit_code == 0
    torch.set_num_threads(threads)
    assert "step 2/2" in motion.with_suffix(".log").read_text()
    assert load_model(str(appearance), device="cpu").classes == MOTIONS
    one, other = (read_checkpoint(path).state["stages.3.blocks.1.mlp.fc1.weight"] for path in (motion, appearance))
    assert 0 < (one - other).abs().max() < 3 * short["appearance"].rate  # two steps of Adam from where the first ended


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
