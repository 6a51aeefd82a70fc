"""The manifest and the caches. Downloads are in test_download.py."""

from pathlib import Path

import pytest

from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.cache import bundled_file, cached_file, find_weights, recorded_hash_file, standard_name
from vswin_extract.weights.layouts import LAYOUTS
from vswin_extract.weights.load import load_checkpoint
from vswin_extract.weights.registry import NEAREST, find_published, known_name, manifest


def test_the_manifest_names_all_published_weights() -> None:
    rows = manifest()
    assert len(rows) == 16
    for row in rows.values():
        assert row.url.startswith("https://")
        assert row.url.endswith(".pth")
        assert row.variant in VARIANTS
        assert row.layout in LAYOUTS
        assert row.license
        assert row.classes in (174, 400, 600, 700, 710)
        assert 50 < row.accuracy[0] < row.accuracy[1] < 100
        assert len(row.sha256) in (0, 8, 64)
        assert set(row.sha256) <= set("0123456789abcdef")
    assert len({row.filename for row in rows.values()}) == len(rows)
    kinds = {(row.layout, row.variant, row.classes) for row in rows.values()}
    assert {("official", v, 400) for v in "tsb"} | {("official", "b", 600), ("official", "b", 174)} <= kinds
    assert {("torchvision", v, 400) for v in "tsb"} <= kinds
    assert {("mmaction2", v, 400) for v in "tsbl"} | {("mmaction2", "l", 700), ("mmaction2", "s", 710)} <= kinds
    assert {row.resize for row in rows.values() if row.layout == "torchvision"} == {256}


def test_unknown_names(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(cache))
    with pytest.raises(UsageError, match=r"t-k40.*did you mean t-k400"):
        find_weights("t-k40")
    with pytest.raises(UsageError, match="vswin weights list"):
        find_published("zzzzzzzz")
    with pytest.raises(WeightsError, match="vswin weights pull t-k400"):
        find_weights("t-k400")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        find_weights(str(tmp_path / "x.pth"))


NAMES = {
    "t": "t-k400",
    "tiny": "t-k400",
    "T-K400": "t-k400",
    "swint": "t-k400",
    "VideoSwin-T": "t-k400",
    "swin3d_t": "t-k400-torchvision",
    "Swin3D_T_Weights.KINETICS400_V1": "t-k400-torchvision",
    "mmaction2-t": "t-k400-mmaction2",
    "b_k400_in22k": "b-k400-in22k",
    "swin_base_patch244_window877_kinetics400_22k.pth": "b-k400-in22k",
    "k600": "b-k600-in22k",
    "Video Swin-B Something-Something V2": "b-ssv2",
    "swin-b-kinetics-400-imagenet-22k": "b-k400-in22k",
    "t-kinetics400": "t-k400",
    "NANO": "nano",
}
"""What other tools and users call weights, and what the manifest does."""


@pytest.mark.parametrize(("name", "known"), NAMES.items())
def test_names_of_other_tools_are_understood(name: str, known: str) -> None:
    assert known_name(name) == known
    assert standard_name(name) == known


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("video_swin_b", ("b-k400", "b-k400-in22k", "b-k600-in22k", "b-ssv2")),
        ("swin3d_b", ("b-k400-torchvision", "b-k400-in22k-torchvision")),
        ("large", ("l-k400-mmaction2", "l-k700-mmaction2")),
        ("t-k40", ("t-k400",)),
    ],
)
def test_an_unclear_name_is_an_error_with_few_names(name: str, near: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as raised:
        standard_name(name)
    words = str(raised.value).replace(",", " ").replace("?", " ").split()
    assert set(near) <= set(words)
    assert len(set(words) & manifest().keys()) <= NEAREST


def test_a_file_of_the_cache_must_have_its_hash(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    cached_file(manifest()["t-k400-torchvision"]).write_bytes(small_weights.read_bytes())
    with pytest.raises(WeightsError, match="7615ae03"):
        load_checkpoint("t-k400-torchvision")
    record = recorded_hash_file(manifest()["b-k400"])
    record.write_text("")  # as after a write to a full disk
    cached_file(manifest()["b-k400"]).write_bytes(small_weights.read_bytes())
    assert load_checkpoint("b-k400")[0] == "b-k400"


def test_the_name_of_a_file_alone_proves_nothing(small_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / manifest()["t-k400-torchvision"].filename
    path.write_bytes(small_weights.read_bytes())
    assert load_checkpoint(str(path))[0] == path.name
    assert load_checkpoint(str(path))[1].source == ""


def test_the_bundled_weights_are_nano() -> None:
    name, checkpoint = load_checkpoint("nano")
    assert (name, checkpoint.variant) == ("nano", VARIANTS["nano"])
    assert checkpoint.classes
    assert bundled_file().stat().st_size < 6_000_000
