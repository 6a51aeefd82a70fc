"""The bundled `nano` has learned: what it tells of clips it has not seen, random weights of its network do not."""

import pytest

pytest.importorskip("skimage")

from examples.drawing import MOTIONS
from examples.probe_nano import draw, score, untrained
from vswin_extract import Backbone, load_model

CHANCE = 1 / len(MOTIONS)


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return load_model("nano", device="cpu")


def test_classes_are_the_motions(nano: Backbone) -> None:
    assert nano.classes == MOTIONS


def test_a_linear_probe_tells_motions(nano: Backbone) -> None:
    trained, random = score([nano, untrained(nano)], draw(16, 16, 112, seed=2))
    assert trained.probe > random.probe + 0.3


def test_the_head_names_motions_at_full_size(nano: Backbone) -> None:
    (trained,) = score([nano], draw(2, 32, 224, seed=2))
    assert trained.head > 5 * CHANCE
