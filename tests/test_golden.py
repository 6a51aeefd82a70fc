"""Golden features, and `vswin weights show` and `verify` for right and wrong weights."""

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run

from vswin_extract.backbone import Backbone
from vswin_extract.checks import golden
from vswin_extract.checks.golden_features import compare_variant, golden_error
from vswin_extract.files import file_sha256
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.cache import cached_file
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.load import load_checkpoint, read_checkpoint
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import class_names, manifest

CPU = torch.device("cpu")
AGAIN = "golden.json belongs to other sizes or another file; record it again: vswin weights verify nano --record"


def test_the_clip_does_not_change() -> None:
    clip = golden.golden_clip()
    assert (clip.shape, clip.dtype) == ((1, 32, 64, 64, 3), torch.uint8)
    assert zlib.crc32(clip.numpy().tobytes()) == 4197348725


@pytest.mark.parametrize(
    "name", ["nano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t", "s", "b", "l"))]
)
def test_every_variant_gives_its_golden_features(name: str) -> None:
    assert golden.of_variant(VARIANTS[name]) is not None, AGAIN
    check = compare_variant(VARIANTS[name], CPU, "fp32")
    assert check.state == "ok", check


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_within_its_tolerance(precision: str) -> None:
    check = compare_variant(VARIANTS["nano"], CPU, precision)
    assert check.state == "ok", check


def test_stored_values_are_those_of_the_reference_implementation() -> None:
    stored = golden.of_variant(VARIANTS["nano"])
    assert stored == pytest.approx(golden.reference_values(golden.drawn_checkpoint(VARIANTS["nano"])), rel=1e-6), AGAIN


@pytest.mark.parametrize(
    "damaged", ["stages.0.blocks.0.attn.relative_position_bias_table", "stages.1.merge.norm.weight"]
)
def test_a_slightly_wrong_network_is_noticed(damaged: str) -> None:
    values = golden.of_variant(VARIANTS["nano"])
    assert values is not None, AGAIN
    drawn = golden.drawn_checkpoint(VARIANTS["nano"])
    state = {**drawn.state, damaged: drawn.state[damaged].flip(0)}
    for precision in ("fp32", "bf16"):
        backbone = Backbone("wrong", replace(drawn, state=state), CPU, precision)
        assert golden_error(backbone, values) > 3 * golden.TOLERANCE[precision]


def test_the_bundled_weights_are_verified(run: Run) -> None:
    done = run("vswin", "weights", "verify", "nano", "--json")
    assert done.returncode == 0, AGAIN
    checks = json.loads(done.stdout)["nano"]
    assert [check["what"] for check in checks] == [
        "sha256", "fit", "finite", "golden features, drawn nano", "golden features",
    ]  # fmt: skip
    assert {check["state"] for check in checks} == {"ok"}, AGAIN


def test_golden_features_of_other_weights_are_recorded_once(
    run: Run, small_weights: Path, cache: Path, tmp_path: Path
) -> None:
    first = run("vswin", "weights", "verify", small_weights)
    assert (first.returncode, "warning" in first.stdout) == (0, True)
    assert not (cache / "golden").exists()
    assert "golden features, recorded" in run("vswin", "weights", "verify", small_weights, "--record").stdout
    [kept] = (cache / "golden").iterdir()
    assert kept.stem == file_sha256(small_weights)
    compared = run("vswin", "weights", "verify", small_weights, "--record")
    assert (compared.returncode, "warning" in compared.stdout, "recorded" in compared.stdout) == (0, False, False)

    stored = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: [value + 1e-3 for value in values] for key, values in stored.items()}))
    wrong = run("vswin", "weights", "verify", small_weights)
    assert (wrong.returncode, bool(re.search("failed +golden features", wrong.stdout))) == (4, True)
    kept.unlink()


def test_the_bundled_weights_are_recorded_in_the_package(tmp_path: Path) -> None:
    kept = {key: values for key, values in stored("variants").items() if not key.startswith("nano ")}
    (tmp_path / "golden.json").write_text(json.dumps({"variants": kept, "weights": {"0" * 64: [1.0]}}))
    name, checkpoint = load_checkpoint("nano")
    assert golden.record_values(name, checkpoint, tmp_path / "golden.json") == tmp_path / "golden.json"
    made = json.loads((tmp_path / "golden.json").read_text())
    assert made["variants"].keys() == stored("variants").keys()
    assert list(made["weights"]) == [checkpoint.sha256]
    assert made["weights"][checkpoint.sha256] == pytest.approx(stored("weights")[checkpoint.sha256], rel=1e-6), AGAIN


def stored(what: str) -> dict[str, list[float]]:
    return json.loads(golden.TABLE.read_text())[what]  # type: ignore[no-any-return]


def test_wrong_weights_are_noticed(run: Run, small_weights: Path, cache: Path, tmp_path: Path) -> None:
    read = read_checkpoint(small_weights)
    broken = {**read.state, "norm.bias": torch.full_like(read.state["norm.bias"], float("nan"))}
    save_checkpoint(tmp_path / "nan.safetensors", broken, read.variant, Recipe())
    done = run("vswin", "weights", "verify", small_weights, tmp_path / "nan.safetensors")
    assert (done.returncode, "norm.bias hold NaN" in done.stdout) == (4, True)
    assert re.search("failed +finite", done.stdout)

    lacking = {name: value for name, value in read.state.items() if name != "norm.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    done = run("vswin", "weights", "verify", tmp_path / "lacking.pth")
    assert (done.returncode, "it lacks norm.bias" in done.stdout) == (4, True)

    row = manifest()["t-k400"]
    there = cache / row.filename
    there.write_bytes(small_weights.read_bytes())
    done = run("vswin", "weights", "verify", "t-k400")
    there.unlink()
    assert (done.returncode, row.sha256 in done.stdout) == (4, True)
    assert run("vswin", "weights", "verify", "t-k400").returncode == 2  # the file is missing


def test_show_of_a_file(run: Run, small_weights: Path) -> None:
    shown = json.loads(run("vswin", "weights", "show", small_weights, "--json").stdout)
    read = read_checkpoint(small_weights)
    assert (shown["variant"], shown["window"], shown["num_classes"]) == ("nano", list(read.variant.window), 3)
    assert shown["classes"] == ["one", "two", "three"]
    assert shown["parameters"] == sum(value.numel() for value in read.state.values())
    assert shown["sha256"] == file_sha256(small_weights)
    assert (shown["recipe"]["clip_len"], shown["accuracy"], shown["licence"]) == (8, None, None)
    text = run("vswin", "weights", "show", small_weights).stdout
    for line in ("3: one, two, three", "8 frames 2 apart, short side 32", "accuracy   not known"):
        assert line in text


def test_show_of_weights_that_are_not_in_the_cache(run: Run) -> None:
    text = run("vswin", "weights", "show", "t-k400").stdout
    for line in ("vswin weights pull t-k400", "top-1 78.8 %", "400: abseiling, air drumming", "MIT", "9950e3be6b0b"):
        assert line in text
    text = run("vswin", "weights", "show", "b-ssv2").stdout
    assert "174; their names are not known" in text
    assert "in the order of the training labels" in text
    assert run("vswin", "weights", "show", "t-k40").returncode == 2


def test_class_names_of_kinetics_400_are_in_the_order_of_the_alphabet() -> None:
    """The label lists of torchvision, mmaction2 and the official repository have the same order."""
    names = class_names("Kinetics-400", 400)
    assert len(set(names)) == 400
    assert list(names) == sorted(names, key=str.lower)
    assert (names[0], names[-1]) == ("abseiling", "zumba")
    assert not any(name.startswith("#") or name != name.strip() for name in names)
    assert class_names("Kinetics-400", 14) == class_names("Kinetics-600", 600) == ()


def test_published_weights_of_kinetics_400_have_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    network = VideoSwin(VARIANTS["nano"], 400)
    network.init_weights(torch.Generator().manual_seed(0))
    row = manifest()["t-k400"]
    save_checkpoint(cached_file(row), network.state_dict(), VARIANTS["nano"], Recipe())
    known = replace(row, sha256=file_sha256(cached_file(row)))
    monkeypatch.setitem(manifest(), row.name, known)
    name, checkpoint = load_checkpoint(str(cached_file(row)))
    assert (name, checkpoint.classes) == (row.name, class_names("Kinetics-400", 400))
    monkeypatch.setitem(manifest(), row.name, replace(known, dataset="Kinetics-600"))
    assert load_checkpoint(row.name)[1].classes == ()
