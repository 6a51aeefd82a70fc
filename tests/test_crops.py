"""Crops of a clip: their places, and their features, averaged or kept, from a run to the reader, merge and search."""

import json
from pathlib import Path

import h5py
import numbered
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import vswin_extract
from vswin_extract.decoding.decoders import open_decoder
from vswin_extract.errors import UsageError
from vswin_extract.explore.query import find_query
from vswin_extract.explore.search import nearest
from vswin_extract.explore.similarity import lowest_cosine, variety
from vswin_extract.export.export import export
from vswin_extract.loading.dataset import FeatureDataset, collate
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import open_features
from vswin_extract.video.geometry import Geometry, Pixels, picture_of
from vswin_extract.video.sampling import Sampling


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    numbered.write(folder / "a.mp4", 20)
    numbered.write(folder / "b.mp4", 36, size=(64, 80))
    return folder


@pytest.fixture(scope="module")
def arguments(small_weights: Path) -> list[str]:
    pixels = ["--size", "32", "--resize", "36", "--crop", "ten"]
    return ["--weights", str(small_weights), "--precision", "fp32", "--logits", *pixels]


@pytest.fixture(scope="module")
def mean(run: Run, videos: Path, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mean") / "mean.h5"
    done = run("vswin-extract", videos, out, *arguments, "--stage", 3, "--pool", "space")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def kept(run: Run, videos: Path, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "kept.h5"
    done = run("vswin-extract", videos, out, *arguments, "--stage", 3, "--crop-pool", "none", "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    return out


def ten_crops(picture: Pixels, size: int) -> Pixels:
    """Return the crops that torchvision's ten_crop takes (torchvision/transforms/functional.py, five_crop, ten_crop,
    center_crop)."""
    crops = []
    for each in (picture, picture[:, ::-1]):
        height, width = each.shape[:2]
        top, left = round((height - size) / 2), round((width - size) / 2)
        crops += [
            each[:size, :size], each[:size, width - size :], each[height - size :, :size],
            each[height - size :, width - size :], each[top : top + size, left : left + size],
        ]  # fmt: skip
    return np.stack(crops)


@settings(max_examples=30)
@given(st.integers(40, 200), st.integers(40, 200), st.integers(32, 48), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_ten_crops_are_those_of_torchvision(height: int, width: int, size: int, more: int, seed: int) -> None:
    """The centre is rounded in the mirrored picture too. So on odd sides it is not the centre crop mirrored."""
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    geometry = Geometry(size, size + more, "ten")
    found = geometry.apply(picture_of(frame))
    short, long = size + more, (size + more) * max(height, width) // min(height, width)
    sides = (short, long) if height < width else (long, short)
    difference = np.abs(found.astype(int) - ten_crops(resized(frame, sides), size))
    assert found.shape == (10, size, size, 3)
    assert difference.max() <= 1  # half-way between two grey levels, either
    assert (difference > 0).mean() < 2e-3
    centre = Geometry(size, size + more).apply(picture_of(frame))[0]
    assert np.abs(found[4].astype(int) - centre).max() <= 1


def resized(frame: Pixels, sides: tuple[int, int]) -> Pixels:
    """Return a picture, resized bilinearly without antialiasing."""
    whole = F.interpolate(torch.from_numpy(frame).permute(2, 0, 1)[None].float(), sides, mode="bilinear")
    return np.rint(whole[0].permute(1, 2, 0).numpy()).astype(np.uint8)  # type: ignore[no-any-return]


def test_kept_crops_are_in_the_file_and_their_mean_is_the_other_run(kept: Path, mean: Path) -> None:
    with h5py.File(kept) as file, h5py.File(mean) as other:
        clips = len(other["embedding"])
        assert file["embedding"].shape == (clips, 10, 128)
        assert file["logits"].shape == (clips, 10, 3)
        assert file["stage3"].shape == (clips, 10, 4, 2, 2, 64)
        assert file["videos/b.mp4/stage3"].shape[1:] == (10, 4, 2, 2, 64)
        assert (file.attrs["schema"], other.attrs["schema"]) == ("vswin-extract/2", "vswin-extract/1")
        assert np.ptp(file["embedding"][:], axis=1).max() > 0.01
        for name in ("embedding", "logits"):
            assert_close(file[name][:].mean(1), other[name][:])
        assert_close(file["stage3"][:].mean((1, 3, 4)), other["stage3"][:])


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_each_crop_has_the_features_of_its_own_pixels(kept: Path, videos: Path, small_weights: Path) -> None:
    model = vswin_extract.load_model(str(small_weights), device="cpu", precision="fp32")
    with open_decoder("pyav", videos / "b.mp4") as decoder:
        frames = [ten_crops(resized(frame.picture().rgb(), (45, 36)), 32) for frame in decoder]
    shown = np.stack([frames[p] for p in Sampling(8, 2).clip(1, 36).positions], 1)
    expected = model(torch.from_numpy(shown)).embedding
    assert expected is not None
    with open_features(kept) as features:
        found = torch.from_numpy(features["b.mp4"].embedding[1])
    assert torch.cosine_similarity(found, expected).min() > 0.9999
    assert torch.cosine_similarity(found, expected.roll(1, 0)).min() < 0.999


def test_one_crop_can_be_kept(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    options = ["--weights", small_weights, "--crop-pool", "none", "--stage", 4]
    assert run("vswin-extract", videos / "a.mp4", tmp_path / "out.h5", *options).returncode == 0
    with open_features(tmp_path / "out.h5") as features:
        assert features.crops == 1
        assert features["a.mp4"].stage4.shape == (2, 1, 4, 1, 1, 128)


def test_readers(kept: Path, mean: Path) -> None:
    with open_features(kept) as features, open_features(mean) as averaged:
        video, other = features["b.mp4"], averaged["b.mp4"]
        assert (features.crops, averaged.crops) == (10, 0)
        assert video.to_torch()["embedding"].shape == (3, 10, 128)
        for feature in (Feature(), Feature("logits"), Feature("stage3"), Feature("stage3", "space"), Feature(length=5)):
            values, times = feature.read(video)
            assert values.shape[1:] == feature.shape(features)
            assert_close(values, feature.read(other)[0])
            assert np.array_equal(times, feature.read(other)[1])
        every = Feature("stage3", "all", crop_pool="none")
        assert every.shape(features) == (10, 64)
        assert np.allclose(every.read(video)[0], video.stage3[:].mean((2, 3, 4)), atol=1e-6)
        whole = Feature("stage3", "none", length=2, l2=True, crop_pool="none")
        assert whole.read(video)[0].shape == (2, *whole.shape(features)) == (2, 10, 4, 2, 2, 64)
        with pytest.raises(UsageError, match="--crop-pool none"):
            Feature(crop_pool="none").shape(averaged)
    assert FeatureDataset(kept)[0]["features"].shape == (2, 128)
    crops = FeatureDataset(kept, crop_pool="none", length=4, fit="pad")
    assert crops.shape == (10, 128)
    assert crops[1]["features"].shape == (4, 10, 128)
    with pytest.raises(UsageError, match="crop-pool"):
        collate(list(crops))


def test_search_compares_the_means_of_crops(kept: Path, mean: Path, run: Run) -> None:
    found = []
    for path in (kept, mean):
        with open_features(path) as features:
            found.append(nearest(features, find_query(features, "a.mp4@0.1")))
    assert [result.best for result in found[0]] == [result.best for result in found[1]]
    scores, expected = ([result.score for result in each] for each in found)
    assert np.allclose(scores, expected, atol=2e-6)
    assert run("vswin", "search", kept, "--duplicates").returncode == 0


def test_inspect_and_check(kept: Path, videos: Path, run: Run) -> None:
    assert "ten crop 32, 10 crops a clip kept" in run("vswin", "inspect", kept).stdout
    facts = json.loads(run("vswin", "inspect", kept, "--json").stdout)
    assert facts["datasets"]["logits"]["shape"] == [5, 10, 3]
    assert facts["attributes"]["features"]["crop_pool"] == "none"
    done = run("vswin", "check", kept, "--against", videos)
    assert done.returncode == 0, done.stdout


def test_a_file_with_other_crops_than_it_says_is_not_read(kept: Path, tmp_path: Path, run: Run) -> None:
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(kept.read_bytes())
    with h5py.File(damaged, "r+") as file:
        pixels = json.loads(file.attrs["preprocessing"])
        file.attrs["preprocessing"] = json.dumps({**pixels, "crop": "three"})
    with pytest.raises(UsageError, match="shape"):
        open_features(damaged)
    assert run("vswin", "check", damaged).returncode == 4


@pytest.mark.slow
def test_shards_merge_and_a_resume_with_other_crops(
    run: Run, videos: Path, arguments: list[str], kept: Path, mean: Path, tmp_path: Path
) -> None:
    options = [*arguments, "--stage", "3", "--crop-pool", "none"]
    out = tmp_path / "out.h5"
    assert run("vswin-extract", videos, out, *options, "--shard", "0/2").returncode == 0
    for other, difference in (
        ([*arguments, "--stage", "3", "--pool", "space"], "features.crop_pool was none, is mean"),
        ([*options, "--crop", "three"], "preprocessing.crop was ten, is three"),
    ):
        refused = run("vswin-extract", videos, out, *other, "--shard", "1/2")
        assert (refused.returncode, difference in refused.stderr) == (2, True), refused.stderr
    assert run("vswin-extract", videos, out, *options, "--shard", "1/2").returncode == 0
    for command in (["merge", out], ["merge", "-o", tmp_path / "sharded.h5", out, "--layout", "sharded"]):
        done = run("vswin", *command)
        assert done.returncode == 0, done.stderr
    for path in (out, tmp_path / "sharded.h5"):
        assert run("vswin", "check", path).returncode == 0
        with open_features(path) as features, open_features(kept) as expected:
            assert features.info["schema"] == "vswin-extract/2"
            for name in features.names:
                assert np.array_equal(features.file[name][:], expected.file[name][:])
    assert run("vswin", "merge", "-o", tmp_path / "both.h5", kept, mean).returncode == 2


@pytest.mark.slow
def test_a_run_of_an_earlier_version_continues(
    run: Run, videos: Path, arguments: list[str], mean: Path, tmp_path: Path
) -> None:
    """Its journal does not say how crops were pooled: it averaged them."""
    options = [*arguments, "--stage", "3", "--pool", "space"]
    out = tmp_path / "out.h5"
    assert run("vswin-extract", videos, out, *options, "--shard", "0/1").returncode == 0
    (path,) = tmp_path.glob("*.parts/job.json")
    job = json.loads(path.read_text())
    del job["settings"]["features"]["crop_pool"]
    path.write_text(json.dumps(job))
    assert run("vswin-extract", videos, out, *options, "--shard", "0/1").returncode == 0
    assert run("vswin", "merge", out).returncode == 0
    with h5py.File(out) as file, h5py.File(mean) as expected:
        assert np.array_equal(file["embedding"][:], expected["embedding"][:])


def test_averaged_maps_in_space_are_refused(run: Run, videos: Path, arguments: list[str], tmp_path: Path) -> None:
    done = run("vswin-extract", videos, tmp_path / "out.h5", *arguments, "--stage", 3)
    assert (done.returncode, "--crop-pool none" in done.stderr) == (2, True)


def test_export_for_mgfn(kept: Path, mean: Path, run: Run, tmp_path: Path) -> None:
    """Loaded as MGFN's and RTFM's datasets do: a path from each line of the list, and the axes T, crop, C."""
    made = tmp_path / "made"
    done = run("vswin", "export", "ten-crop", kept, made, "--stem")
    assert done.returncode == 0, done.stderr
    listed = (made / "ten-crop.list").read_text().splitlines()
    assert listed == [str(made / "a.npy"), str(made / "b.npy")]
    with open_features(kept) as features:
        for path, video in zip(listed, features.values(), strict=True):
            values = np.load(path)
            assert (values.dtype, values.shape) == (np.float32, (len(video), 10, 128))
            assert np.array_equal(values, video.embedding[:])
    assert "--feature_size 128" in (made / "ten-crop.txt").read_text()
    refused = run("vswin", "export", "ten-crop", mean, tmp_path / "none")
    assert (refused.returncode, "--crop ten --crop-pool none" in refused.stderr) == (2, True)
    refused = run("vswin", "export", "ten-crop", kept, tmp_path / "none", "--stage", 3, "--pool", "space")
    assert (refused.returncode, "--pool all" in refused.stderr) == (2, True)


def test_an_export_names_the_first_frames_of_segments(
    run: Run, videos: Path, arguments: list[str], tmp_path: Path
) -> None:
    """b.mp4 has 30 frames a second."""
    (tmp_path / "list.csv").write_text(f"path,id,start,end\n{videos}/b.mp4,whole,,\n{videos}/b.mp4,later,0.4,1.0\n")
    out = tmp_path / "out.h5"
    done = run("vswin-extract", "--manifest", tmp_path / "list.csv", out, *arguments, "--crop-pool", "none")
    assert done.returncode == 0, done.stderr
    with open_features(out) as features:
        first = int(features["later"].frames[0, 0])
    assert first > 0
    for kind in ("ten-crop", "summary"):
        (note,) = export(kind, out, tmp_path / kind, Feature(crop_pool="mean")).notes
        assert ("1 segment of" in note, "'later'" in note, "'whole'" in note) == (True, True, False)
    text = (tmp_path / "ten-crop/ten-crop.txt").read_text()
    assert (f"# later: frame {first}\n" in text, "# whole:" in text) == (True, False)


def test_other_exports_average_crops(kept: Path, mean: Path, run: Run, tmp_path: Path) -> None:
    for name in ("npy", "tvr", "parquet"):
        found, expected = tmp_path / f"{name}.kept", tmp_path / f"{name}.mean"
        for source, made in ((kept, found), (mean, expected)):
            assert run("vswin", "export", name, source, made).returncode == 0
    assert_close(np.load(tmp_path / "npy.kept/b.mp4.npy"), np.load(tmp_path / "npy.mean/b.mp4.npy"))
    with h5py.File(tmp_path / "tvr.kept/features.h5") as file, h5py.File(tmp_path / "tvr.mean/features.h5") as other:
        assert_close(file["a.mp4"][:], other["a.mp4"][:])
    assert run("vswin", "export", "npy", kept, tmp_path / "crops", "--crop-pool", "none").returncode == 0
    assert np.load(tmp_path / "crops/b.mp4.npy").shape == (3, 10, 128)
    for name in ("parquet", "clip-retrieval"):
        refused = run("vswin", "export", name, kept, tmp_path / "none", "--crop-pool", "none")
        assert (refused.returncode, "--crop-pool mean" in refused.stderr) == (2, True)


def test_rows_that_are_not_centred_where_they_count_are_refused(kept: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_bytes(kept.read_bytes())
    with h5py.File(out, "r+") as file:
        stored = json.loads(file.attrs["sampling"])
        file.attrs["sampling"] = json.dumps({**stored, "stride": 6, "align": "center"})
    assert run("vswin", "export", "ten-crop", out, tmp_path / "made").returncode == 0
    text = (tmp_path / "made/ten-crop.txt").read_text()
    assert "[k, k + 1) * 6" in text
    assert "make it 6" in text
    with h5py.File(out, "r+") as file:
        file.attrs["sampling"] = json.dumps({**stored, "stride": 6})
    refused = run("vswin", "export", "ten-crop", out, tmp_path / "again")
    assert (refused.returncode, "--align center" in refused.stderr) == (2, True)
    assert run("vswin", "export", "ten-crop", out, tmp_path / "again", "--resize-length", 4).returncode == 0
    assert np.load(tmp_path / "again/a.mp4.npy").shape == (4, 10, 128)


def test_similarity_of_kept_crops_is_that_of_their_means(kept: Path, mean: Path) -> None:
    with open_features(kept) as found, open_features(mean) as expected:
        assert variety(found) == pytest.approx(variety(expected), abs=1e-3)
        assert lowest_cosine(found, list(found)) == lowest_cosine(expected, list(expected))
