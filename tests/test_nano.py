"""The bundled `nano` has learned: what it tells of clips it has not seen, random weights of its network do not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("skimage")

from drawing import MOTIONS
from probe_nano import draw, embed, score, share, untrained

from vswin_extract import Backbone, load_model


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return load_model("nano", device="cpu")


def test_classes_are_the_motions(nano: Backbone) -> None:
    assert nano.classes == MOTIONS


def test_a_linear_probe_tells_motions(nano: Backbone) -> None:
    trained, random = score([nano, untrained(nano)], draw(10, 16, 112, seed=2))
    assert trained.probe > random.probe + 0.6  # 98 % and 9 % when this was written


def test_the_head_names_motions_at_full_size(nano: Backbone) -> None:
    clips = next(draw(1, 32, 224, seed=2))
    _, logits = embed(nano, torch.split(clips.pixels, 7))
    assert share(logits.argmax(1), clips.motions) > 0.75  # 91 % of more clips; chance is 7 %


def test_two_steps_of_training_write_weights(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "train_nano.py"
    out = tmp_path / "nano.safetensors"
    run = subprocess.run(
        [sys.executable, script, "--steps", "2", "--out", out], check=True, capture_output=True, text=True
    )
    assert run.stdout == out.with_suffix(".log").read_text()
    assert "step 2/2" in run.stdout
    assert load_model(str(out), device="cpu").classes == MOTIONS
