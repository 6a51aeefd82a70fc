"""The manifest, and the caches; downloads are in test_download.py."""

from pathlib import Path

import pytest

from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights import checkpoints
from vswin_extract.weights import registry as weights
from vswin_extract.weights.registry import find, load, manifest, published


def test_the_manifest_names_all_published_weights() -> None:
    rows = manifest()
    assert len(rows) == 16
    for row in rows.values():
        assert row.url.startswith("https://")
        assert row.url.endswith(".pth")
        assert row.variant in VARIANTS
        assert row.layout in checkpoints.LAYOUTS
        assert row.license
        assert row.classes in (174, 400, 600, 700, 710)
        assert 50 < row.accuracy[0] < row.accuracy[1] < 100
        assert len(row.sha256) in (0, 8, 64)
        assert set(row.sha256) <= set("0123456789abcdef")
    assert len({row.file.name for row in rows.values()}) == len(rows)
    kinds = {(row.layout, row.variant, row.classes) for row in rows.values()}
    assert {("official", v, 400) for v in "tsb"} | {("official", "b", 600), ("official", "b", 174)} <= kinds
    assert {("torchvision", v, 400) for v in "tsb"} <= kinds
    assert {("mmaction2", v, 400) for v in "tsbl"} | {("mmaction2", "l", 700), ("mmaction2", "s", 710)} <= kinds
    assert {row.resize for row in rows.values() if row.layout == "torchvision"} == {256}


def test_names_that_are_not_known(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(cache))
    with pytest.raises(UsageError, match=r"unknown model 't-k40'.*did you mean t-k400"):
        find("t-k40")
    with pytest.raises(UsageError, match="there are nano, t-k400"):
        published("zzzzzzzz")
    with pytest.raises(WeightsError, match="vswin weights pull t-k400"):
        find("t-k400")
    with pytest.raises(WeightsError, match="no weights at"):
        find(str(tmp_path / "x.pth"))


def test_a_file_of_the_cache_must_have_its_hash(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    manifest()["t-k400-torchvision"].file.write_bytes(small_weights.read_bytes())
    with pytest.raises(WeightsError, match="7615ae03"):
        load("t-k400-torchvision")
    record = manifest()["b-k400"].record
    record.write_text("")  # as a full disk leaves it
    manifest()["b-k400"].file.write_bytes(small_weights.read_bytes())
    assert load("b-k400")[0] == "b-k400"


def test_a_name_alone_proves_nothing(small_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / manifest()["t-k400-torchvision"].file.name
    path.write_bytes(small_weights.read_bytes())
    assert load(str(path))[0] == path.name
    assert load(str(path))[1].source == ""


def test_the_bundled_weights_are_nano() -> None:
    name, checkpoint = load("nano")
    assert (name, checkpoint.variant) == ("nano", VARIANTS["nano"])
    assert checkpoint.classes
    assert weights.bundled_file().stat().st_size < 6_000_000
