"""Exports under the published configurations of other projects: each number that they compute times with is ours."""

import json
import os
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT
from downstream.configurations import PUBLISHED, Published, annotations, read_ours
from downstream.exports import CENTRED, FRACTION, MIXED, OVERLAPPING, TWO_SECONDS, Exported
from downstream.table import Row, table
from outputs import MAP, make_output
from pyarrow import parquet

from vswin_extract.errors import UsageError
from vswin_extract.export.export import Format, export
from vswin_extract.export.formulas import FORMULAS, umt
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

CHANNELS = MAP[-1]
SAMPLINGS = {
    "actionformer": OVERLAPPING, "opentad": CENTRED, "moment-detr": TWO_SECONDS, "tvr": FRACTION,
}  # fmt: skip


def worst(made: Exported, format: Format, numbers: dict[str, Any]) -> float:
    """Return the largest difference between what a project computes and the centres of rows."""
    found = annotations(made.folder)
    return max(
        float(np.abs(formula(len(wanted), numbers, found[name]) - wanted).max())
        for name, wanted in made.expected.items()
        if name in found
        for formula in FORMULAS[format]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Makes each export once, as Exported does in a folder."""

    @cache
    def make(format: Format, case: str = "one rate") -> Exported:
        folder = tmp_path_factory.mktemp("made")
        if case == "resized":
            return Exported(folder, format, Sampling(16, 1, 4, tail="shift"), MIXED, length=32)
        return Exported(folder, format, SAMPLINGS[format], MIXED if case == "several rates" else None)

    return make


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda each: f"{each.project} {each.file}")
def test_times_of_published_configurations(made: Callable[..., Exported], published: Published) -> None:
    """With one rate that none of them has. What they have themselves would be wrong."""
    done = made(published.format)
    ours = read_ours(done.folder, published.format)
    assert worst(done, published.format, {**published.numbers, **ours}) < 1e-6
    if published.project not in ("Moment-DETR", "QD-DETR", "lighthouse"):  # whose numbers are of clips of 2 seconds
        needed = {"max_v_l": 75, **published.numbers, "default_fps": published.numbers.get("default_fps") or 30}
        assert worst(done, published.format, needed) > 0.001
    folder = next(ours[name] for name in ("feat_folder", "data_path", "v_feat_dirs", "vid_feat_path") if name in ours)
    assert os.path.isabs(folder)
    assert os.path.exists(folder)


@pytest.mark.parametrize(
    "published",
    [each for each in PUBLISHED if each.format in ("actionformer", "opentad")],
    ids=lambda each: f"{each.project} {each.file}",
)
def test_several_rates_and_resized_rows(made: Callable[..., Exported], published: Published) -> None:
    done = made(published.format, "several rates")
    if published.numbers.get("type", "").startswith("Epic"):
        assert any("Epic" in note for note in done.notes)
    else:
        ours = read_ours(done.folder, published.format)
        assert worst(done, published.format, {**published.numbers, **ours}) < 1e-6
    done = made(published.format, "resized")
    ours = read_ours(done.folder, published.format)
    assert ours.get("dataset_name", "anet") == "anet"
    assert worst(done, published.format, {**published.numbers, **ours}) < 1e-6


def test_opentad_counts_the_frames_of_a_video(tmp_path: Path) -> None:
    """Its sliding windows count int(duration * fps) frames, which must not lose a row."""
    fps = 30000 / 1001
    counts = [count for count in range(1, 5000) if int(count / fps * fps) < count][:5]
    done = Exported(tmp_path, "opentad", CENTRED, [(f"{count}", count, fps) for count in counts])
    assert read_ours(done.folder, "opentad")["fps"] == fps
    for name, entry in annotations(done.folder).items():
        assert int(entry["duration"] * fps) == entry["frame"] == int(name)


def test_a_relative_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_output(tmp_path / "a.h5", [("a", 100, 25.0)], TWO_SECONDS)
    for name, key in (
        ("actionformer", "feat_folder"), ("opentad", "data_path"), ("moment-detr", "v_feat_dirs"),
        ("tvr", "vid_feat_path"),
    ):  # fmt: skip
        export(name, source, f"data/{name}")  # type: ignore[arg-type]
        assert read_ours(tmp_path / "data" / name, name)[key].startswith(str(tmp_path))  # type: ignore[arg-type]


def test_moments(tmp_path: Path) -> None:
    """Labels are divided by rows * clip_length, and predictions multiplied by duration."""
    for sampling, said in ((TWO_SECONDS, 0), (FRACTION, 1)):
        made = Exported(tmp_path, "moment-detr", sampling)
        seconds = sampling.step / 25
        assert len(made.notes) == said
        for name, entry in annotations(made.folder).items():
            assert entry["duration"] == len(made.expected[name]) * seconds
            assert entry["video_duration"] == made.durations[name]
            centres = umt(entry["rows"], {"unit": seconds}, entry)
            assert np.allclose(centres, made.expected[name])
    long = Exported(tmp_path, "moment-detr", TWO_SECONDS, [("long", 25 * 151, 25.0)])
    assert "150 s" in long.notes[0]
    assert "max_ts_val=152" in (long.folder / "moment-detr.txt").read_text()


def segment(source: Path, name: str, start: float) -> None:
    """Make a video of an output a segment of a file that begins `start` seconds later."""
    with h5py.File(source, "r+") as file:
        ids = file["videos_table/id"].asstr()[:].tolist()
        rows = file["clips/video"][:] == ids.index(name)
        times = file["clips/times"][:]
        times[rows] += start
        file["clips/times"][:] = times
        file["videos_table/start"][ids.index(name)] = start - 0.013  # asked for between two frames


@pytest.mark.parametrize("format", ["actionformer", "opentad", "moment-detr", "tvr"])
def test_the_start_of_a_segment_is_known(tmp_path: Path, format: Format) -> None:
    source = make_output(tmp_path / "a.h5", [("a", 203, 25.0), ("b", 131, 25.0)], SAMPLINGS[format])
    segment(source, "b", 12.4)
    done = export(format, source, tmp_path / "made")
    found = annotations(tmp_path / "made")
    assert [entry["start"] for entry in found.values()] == [0, pytest.approx(12.4)]
    assert any("videos.json" in note for note in done.notes)
    numbers = {"type": "Anet", "max_v_l": 99, **read_ours(tmp_path / "made", format)}
    with open_features(source) as features:
        times = features["b"].times[:]
    whole = np.isclose(times[:, 1] - times[:, 0], (times[:, 1] - times[:, 0]).max())
    centres = FORMULAS[format][0](len(times), numbers, found["b"]) + found["b"]["start"]
    assert np.abs(centres - times.mean(1))[whole].max() < 0.001
    if format in ("actionformer", "opentad"):
        export(format, source, tmp_path / "resized", Feature(length=8))
        assert annotations(tmp_path / "resized")["b"]["start"] == pytest.approx(12.387)
    npy = export("npy", source, tmp_path / "npy")
    assert np.load(tmp_path / "npy/times/b.npy")[0, 0] == times[0, 0]
    assert npy.notes == ()


@pytest.mark.parametrize("fps", [None, 12])
@pytest.mark.parametrize("format", ["actionformer", "opentad", "moment-detr", "tvr"])
def test_short_videos_do_not_block_the_others(tmp_path: Path, format: Format, fps: int | None) -> None:
    """They end before the first centre, or have another rate than the others."""
    one_rate = format in ("moment-detr", "tvr")
    sampling = Sampling(4, 1, 4 if one_rate else 32, fps, "center")  # type: ignore[arg-type]
    other = 50.0 if one_rate and not fps else 25.0
    source = make_output(tmp_path / "a.h5", [("cat", 203, 25.0), ("seven", 7, 25.0), ("one.mp4", 1, other)], sampling)
    done = export(format, source, tmp_path / "made", stem=True)
    found = annotations(tmp_path / "made")
    left_out = {"seven", "one"} if not one_rate else ({"one"} if not fps else set())
    assert set(found) == {"cat", "seven", "one"} - left_out
    assert all(repr(name)[:-1] in done.notes[0] for name in left_out)
    assert json.loads((tmp_path / "made/export.json").read_text())["notes"] == list(done.notes)
    if not one_rate:
        assert (tmp_path / "made/missing_files.txt").read_text().split() == ["seven", "one"]
        assert export(format, source, tmp_path / "resized", Feature(length=8)).videos == 3
    alone = make_output(tmp_path / "alone.h5", [("one", 1, 25.0)], Sampling(4, 1, 32, align="center"))
    with pytest.raises(UsageError, match="'one'"):
        export("opentad", alone, tmp_path / "alone")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make_output(tmp_path / "out.h5", [("a/b.mp4", 100, 25.0), ("c.mkv", 40, 20.0)], OVERLAPPING)


def test_layouts_of_arrays(output: Path, tmp_path: Path) -> None:
    with open_features(output) as features:
        values, times = features["a/b.mp4"].embedding[:], features["a/b.mp4"].times[:]
        maps = features["a/b.mp4"].stage4[:].mean((2, 3))
    export("npy", output, tmp_path / "npy", stem=True, suffix="_rgb", transpose=True)
    assert sorted(str(path.relative_to(tmp_path / "npy")) for path in (tmp_path / "npy").rglob("*.npy")) == [
        "a/b_rgb.npy", "c_rgb.npy", "times/a/b.npy", "times/c.npy",
    ]  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "npy/a/b_rgb.npy"), values.T)
    assert np.array_equal(np.load(tmp_path / "npy/times/a/b.npy"), times)
    export("npz", output, tmp_path / "npz", key="feats")
    with np.load(tmp_path / "npz/a/b.mp4.npz") as read:
        assert set(read) == {"feats", "times"}
        assert np.array_equal(read["feats"], values)
        assert np.array_equal(read["times"], times)
    export("npz", output, tmp_path / "maps", Feature("stage4", "space"), transpose=True)
    with np.load(tmp_path / "maps/c.mkv.npz") as read:
        assert read["features"].shape[:1] == (CHANNELS,)
    with np.load(tmp_path / "maps/a/b.mp4.npz") as read:
        assert np.allclose(read["features"], np.moveaxis(maps, -1, 0), atol=1e-6)
    export("actionformer", output, tmp_path / "epic", stem=True, key="feats", suffix="_x")
    assert read_ours(tmp_path / "epic", "actionformer")["file_ext"] == "_x.npz"
    with np.load(tmp_path / "epic/c_x.npz") as read:
        assert set(read) == {"feats"}
    export("opentad", output, tmp_path / "opentad", suffix="_x")
    assert (tmp_path / "opentad/c.mkv_x.npy").is_file()
    assert "suffix='_x'" in (tmp_path / "opentad/opentad.py").read_text()


def test_tables_of_text(output: Path, tmp_path: Path) -> None:
    """As mmaction2 reads them: np.loadtxt after one line."""
    done = export("csv", output, tmp_path / "csv", Feature(length=100), stem=True)
    assert done.notes == ()
    facts = json.loads((tmp_path / "csv/mmaction2.json").read_text())
    with open_features(output) as features:
        for key, video in features.items():
            name, (values, times) = os.path.splitext(key)[0], Feature(length=100).read(video)
            read = np.loadtxt(tmp_path / f"csv/{name}.csv", np.float32, delimiter=",", skiprows=1)
            assert np.array_equal(read, values)
            assert np.array_equal(np.loadtxt(tmp_path / f"csv/times/{name}.csv", delimiter=",", skiprows=1), times)
            for formula in FORMULAS["csv"]:
                assert np.allclose(formula(100, {}, facts[name]), times.mean(1), atol=1e-9)
            assert facts[name]["annotations"] == []
    clips = export("csv", output, tmp_path / "clips")
    assert "--resize-length" in clips.notes[0]
    assert "mmaction2.json" not in clips.files


@pytest.mark.parametrize(
    ("format", "layout", "named"),
    [
        ("tvr", {"suffix": "_rgb"}, "--suffix"),
        ("npy", {"key": "feats"}, "--key"),
        ("csv", {"transpose": True}, "--transpose"),
        ("actionformer", {"key": "features"}, "feats"),
        ("npz", {"key": "times"}, "times"),
        ("npz", {"key": "a/b"}, "a/b"),
        ("npy", {"suffix": "/../x"}, "suffix"),
    ],
)
def test_layouts_that_do_not_go(
    output: Path, tmp_path: Path, format: Format, layout: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        export(format, output, tmp_path / "made", **layout)
    assert not (tmp_path / "made").exists()


def test_what_servers_and_loaders_read(output: Path, tmp_path: Path) -> None:
    """clip-retrieval returns image_path and caption, and opens a file of that name; load_dataset reads the card."""
    export("clip-retrieval", output, tmp_path / "images")
    row = parquet.read_table(tmp_path / "images/metadata/metadata_0.parquet").to_pylist()[0]
    assert (row["video"], row["start"], row["end"]) == ("a/b.mp4", 0, 0.64)
    assert row["image_path"] == "a/b.mp4#t=0.000,0.640"
    assert "0.640" in row["caption"]
    text = (tmp_path / "images/clip-retrieval.txt").read_text()
    assert set(json.loads(shlex.split(text, comments=True)[1])) <= set(row)
    for name, files in (("parquet", "features.parquet"), ("webdataset", "shard-*.tar")):
        export(name, output, tmp_path / name)  # type: ignore[arg-type]
        assert f'data_files: "{files}"' in (tmp_path / name / "README.md").read_text()
        assert list((tmp_path / name).glob(files))
    rows = parquet.read_table(tmp_path / "parquet/features.parquet").to_pylist()
    assert {(each["id"], each["fps"], each["status"]) for each in rows} == {
        ("a/b.mp4", 25.0, "ok"), ("c.mkv", 20.0, "ok"),
    }  # fmt: skip


def test_the_table_of_projects() -> None:
    assert "| a | B | yes | 0.120 ms |" in table([Row("a", "B", "yes", 0.00012)])


def recipes() -> list[str]:
    """Return the code of the cookbook that needs packages of other projects."""
    return re.findall(r"^```py\n(.*?)^```$", (ROOT / "docs/cookbook.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("code", recipes(), ids=lambda code: code.split()[1])
def test_recipes_run_where_their_package_is(
    code: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(code.split()[1])
    export("parquet", output, tmp_path / "data/parquet", Feature(l2=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    try:
        exec(compile(code, "docs/cookbook.md", "exec"), {})
    except Exception as error:
        if type(error).__name__ != "FiftyOneConfigError":
            raise
        pytest.skip("FiftyOne finds no MongoDB here")
