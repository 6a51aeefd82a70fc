"""The metadata of files of our format: class names fit the head, and what was changed later is noticed."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
from conftest import Run
from outputs import make_embedded, random_embeddings
from safetensors import safe_open
from safetensors.torch import save_file

from vswin_extract.checks.output import check_classes
from vswin_extract.checks.weights import verify_weights
from vswin_extract.errors import WeightsError
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.load import read_checkpoint
from vswin_extract.weights.recipe import Recipe


def edit(path: Path, edited: Path, hashed: bool = True, **changed: Any) -> Path:
    """Copy weights with other metadata, as a script with the library of safetensors would. `hashed`: keep the hash of
    the metadata, which the files of earlier versions lack."""
    with safe_open(path, "pt") as stored:
        metadata = dict(stored.metadata())
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for name, value in changed.items():
        new = {**json.loads(metadata[name]), **value} if isinstance(value, dict) else value
        metadata[name] = new if name in ("source", "license") else json.dumps(new)
    if not hashed:
        del metadata["metadata_sha256"]
    save_file(tensors, edited, metadata)
    return edited


CHANGES: list[dict[str, Any]] = [
    {"classes": ["three", "two", "one"]},
    {"recipe": {"mean": [0, 0, 0]}},
    {"variant": {"name": "other"}},
    {"source": "elsewhere"},
    {"license": "none"},
]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda changed: next(iter(changed)))
def test_metadata_that_were_changed_later_are_noticed(
    small_weights: Path, changed: dict[str, Any], tmp_path: Path
) -> None:
    path = edit(small_weights, tmp_path / "w.safetensors", **changed)
    with pytest.raises(WeightsError, match=r"sha256 of its metadata") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert [check.state for check in verify_weights(str(path))] == ["failed"]


def test_files_of_earlier_versions_are_read_and_said_to_have_no_hash_of_their_metadata(
    small_weights: Path, run: Run, tmp_path: Path
) -> None:
    path = edit(small_weights, tmp_path / "w.safetensors", hashed=False)
    assert read_checkpoint(path).classes == ("one", "two", "three")
    first = next(verify_weights(str(path)))
    assert (first.state, "metadata" in first.found, "convert" in first.advice) == ("warning", True, True)
    assert run("vswin", "weights", "convert", path, tmp_path / "new.safetensors").returncode == 0
    assert next(verify_weights(str(tmp_path / "new.safetensors"))).state == "ok"


@pytest.mark.parametrize("names", [["one", "two"], ["one", "two", "three", "four"]])
def test_as_many_class_names_as_the_head_has_classes(small_weights: Path, names: list[str], tmp_path: Path) -> None:
    path = edit(small_weights, tmp_path / "w.safetensors", hashed=False, classes=names)
    with pytest.raises(WeightsError, match=f"{len(names)} class names and a head of 3"):
        read_checkpoint(path)
    assert [check.state for check in verify_weights(str(path))] == ["failed"]
    read = read_checkpoint(small_weights)
    assert read.recipe is not None
    with pytest.raises(WeightsError, match=f"{len(names)} class names and a head of 3"):
        save_checkpoint(path, read.state, read.variant, read.recipe, names)
    headless = {name: value for name, value in read.state.items() if not name.startswith("head.")}
    with pytest.raises(WeightsError, match="no head"):
        save_checkpoint(path, headless, read.variant, read.recipe, names)


DAMAGED: list[dict[str, Any]] = [
    {"classes": ["a", "b\0", "c"]},  # HDF5 stores no NUL; it was a traceback after all work was done
    {"classes": ["a", "\ud800", "c"]},
    {"classes": ["a", 2, None]},
    {"classes": "abc"},
    {"license": "x" * 100_000},  # too long for an attribute of an output
    {"recipe": {"size": "x"}},
    {"recipe": {"clip_len": -3}},
    {"recipe": {"mean": [1.0]}},
    {"variant": {"depths": [10**9, 1, 4, 2]}},
    {"variant": {"depths": [1, 1, 4]}},
    {"variant": {"window": [10**6, 10**6, 10**6]}},
    {"variant": {"embed_dim": 10**9}},
    {"variant": {"embed_dim": None}},
    {"variant": {"heads": [0, 0, 0, 0]}},
    {"variant": {"heads": [3, 3, 3, 3]}},
    {"variant": {"heads": ["a", 1, 1, 1]}},
    {"variant": {"name": ["list"]}},
]


@pytest.mark.parametrize("changed", DAMAGED, ids=str)
def test_metadata_that_cannot_be_are_one_error(small_weights: Path, changed: dict[str, Any], tmp_path: Path) -> None:
    path = edit(small_weights, tmp_path / "w.safetensors", hashed=False, **changed)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_names_that_are_empty_or_the_same_are_said(small_weights: Path, tmp_path: Path) -> None:
    path = edit(small_weights, tmp_path / "w.safetensors", hashed=False, classes=["one", "one", ""])
    found = {check.what: (check.state, check.found) for check in verify_weights(str(path))}
    assert found["classes"][0] == "warning"
    assert "'one', ''" in found["classes"][1]


def test_outputs_with_another_number_of_class_names_are_found(tmp_path: Path) -> None:
    out = make_embedded(tmp_path / "out.h5", random_embeddings(0, 3, 4))
    with h5py.File(out, "a") as file:
        file["classes"] = ["one", "two"]
        file.create_dataset("logits", (len(file["embedding"]), 3), "f4")
        (problem,) = check_classes(file)
        assert problem.where == "/classes"
        assert ("2 names" in problem.what, "3 columns" in problem.what) == (True, True)
        del file["classes"]
        file["classes"] = ["one", "two", "three"]
        assert [*check_classes(file)] == []


def test_a_recipe_says_which_number_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"frame_interval.*0"):
        Recipe(frame_interval=0)
