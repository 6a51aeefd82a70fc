"""In the examples, features of nano give better results than simpler methods."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def printed(name: str, *arguments: object) -> dict[str, list[float]]:
    """Run an example. Return the numbers of each line that it prints, by the beginning of the line."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    lines = [re.split(r"\s{2,}|\s(?=recall|mAP|k-NN)", line, maxsplit=1) for line in done.stdout.splitlines()]
    return {title: [float(number) for number in re.findall(r"(?<![\w@-])\d+(?:\.\d+)?", rest)] for title, rest in lines}


def test_retrieval() -> None:
    found = printed("retrieval", "--videos", 20)
    recall, precision = ({name: numbers[i] for name, numbers in found.items()} for i in (0, 2))
    for scores in (recall, precision):
        assert scores["embeddings"] > max(scores["colour_histogram"], scores["raw_pixels"]) + 0.05


def test_localize() -> None:
    found = printed("localize", "--videos", 9)
    nano, baseline = (found[name][-1] for name in ("nano", "frame differences"))  # there is one draw
    assert nano > baseline + 30


def test_linear_probe() -> None:
    found = printed("linear_probe", "--scenes", 10)
    for i in (0, 1):
        assert found["embeddings"][i] > max(found["colour histogram"][i], found["raw pixels"][i]) + 0.5


def test_examples_are_short() -> None:
    for name in ("retrieval", "localize", "linear_probe"):
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 100
