"""Exports, loaded as other projects load them: shapes, types, and times to a millisecond."""

import io
import json
import os
import re
import shlex
import sys
import tarfile
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import yaml
from conftest import ROOT, Run
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from outputs import MAP, Made, make_output
from pyarrow import parquet

from vswin_extract.cli.export import FORMATS
from vswin_extract.cli.export import export as command
from vswin_extract.errors import OutputError, UsageError
from vswin_extract.export import formats
from vswin_extract.export.export import Format, export, read_items
from vswin_extract.export.names import file_names
from vswin_extract.loading.sequences import Feature
from vswin_extract.network.pooling import Pool
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

Array = NDArray[Any]
SAMPLING = Sampling(16, 2, stride=16)
VIDEOS: list[Made] = [("a/b.mp4", 100, 25.0), ("a/c.mkv", 40, 20.0), ("d.mp4", 9, 30000 / 1001)]
EVEN = [(name, count, 25.0) for name, count, _ in VIDEOS]
CHANNELS = MAP[-1]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make_output(tmp_path / "out.h5", VIDEOS, SAMPLING, failed=["lost.mp4"])


def annotations(folder: Path) -> dict[str, dict[str, float]]:
    """Return what a user's annotations take over."""
    return json.loads((folder / "videos.json").read_text())["database"]  # type: ignore[no-any-return]


def actionformer(folder: Path, key: str) -> tuple[Array, Array]:
    """Load features (T, C) and seconds of rows like ActionFormer's THUMOS dataset; if resampled, like ActivityNet's."""
    section = yaml.safe_load((folder / "actionformer.yaml").read_text())["dataset"]
    path = os.path.join(section["feat_folder"], (section["file_prefix"] or "") + key + section["file_ext"])
    features = np.load(path)
    assert features.shape[1] == section["input_dim"]
    fact = annotations(folder)[key]
    fps = section["default_fps"] or fact["fps"]
    stride, frames = section["feat_stride"], section["num_frames"]
    if stride <= 0:
        assert len(features) <= section["max_seq_len"]
        stride = fact["duration"] * fps / len(features)
        frames = stride * section["num_frames"]
    return features, (np.arange(len(features)) * stride + 0.5 * frames) / fps


def opentad(folder: Path, key: str) -> tuple[Array, Array]:
    """Load the same like OpenTAD's LoadFeats, PaddingDataset (whole frames) and convert_to_seconds."""
    config: dict[str, Any] = {}
    exec((folder / "opentad.py").read_text(), config)
    test, load, fact = config["dataset"]["test"], config["load"], annotations(folder)[key]
    blocked = Path(test["block_list"]).read_text().splitlines()
    assert blocked == ["lost.mp4"]
    assert key not in blocked
    features = np.load(os.path.join(test["data_path"], f"{key}.{load['feat_format']}"))
    assert features.shape[1] == config["in_channels"]
    if "resize_length" in test:
        return features, (np.arange(len(features)) + 0.5) / test["resize_length"] * fact["duration"]
    stride = int(test["feature_stride"] * test["sample_stride"])
    return features, (np.arange(len(features)) * stride + int(test["offset_frames"])) / (
        fact["frame"] / fact["duration"]
    )


LOADERS = {"actionformer": actionformer, "opentad": opentad}


def expect_times(source: Path, key: str, centres: Array) -> None:
    """Centres are the stored ones. If a clip reaches beyond an end, its stored times are cut off there."""
    with open_features(source) as features:
        video, sampling = features[key], features.info["sampling"]
        times, duration = video.times[:], video.info["duration"]
        fps = float(Fraction(sampling["fps"])) if sampling["fps"] else video.info["fps"]
        half = sampling["clip_len"] * sampling["frame_interval"] / fps / 2
    whole = np.isclose(times[:, 1] - times[:, 0], 2 * half, atol=1e-6)
    assert np.abs(times.mean(1) - centres)[whole].max(initial=0) < 1e-3
    window = np.clip(np.stack([centres - half, centres + half], 1), 0, duration)
    assert np.abs(window - times).max() < 1e-3


@pytest.mark.parametrize("format", LOADERS)
def test_localization(output: Path, tmp_path: Path, format: Format) -> None:
    done = export(format, output, tmp_path / "made")
    assert (done.videos, done.rows, done.shape, done.missing) == (3, 9, (CHANNELS,), 1)
    for key, _, _ in VIDEOS:
        values, centres = LOADERS[format](tmp_path / "made", key)
        with open_features(output) as features:
            assert values.dtype == np.float32
            assert np.array_equal(values, features[key].embedding[:])
        expect_times(output, key, centres)
    assert (tmp_path / "made/missing_files.txt").read_text() == "lost.mp4\n"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([None, Fraction(15), Fraction(30000, 1001)]),
    st.sampled_from([("start", "pad"), ("start", "drop"), ("center", "pad")]),
    st.lists(st.tuples(st.integers(1, 150), st.sampled_from([10.0, 24000 / 1001, 25.0, 60.0])), min_size=1, max_size=3),
    st.sampled_from(sorted(LOADERS)),
)
def test_times_are_the_stored_ones(
    tmp_path: Path,
    clip_len: int,
    interval: int,
    stride: int,
    fps: Fraction | None,
    how: tuple[Any, Any],
    sizes: list[tuple[int, float]],
    format: Format,
) -> None:
    """For any settings, an export has the stored times, or it is refused, or it leaves out a short video."""
    sampling = Sampling(clip_len, interval, stride, fps, *how)
    videos = [(f"{k}.mp4", count, rate) for k, (count, rate) in enumerate(sizes)]
    first_centre = sampling.start(0) + sampling.span / 2
    assume(how[0] == "start" or min(count for count, _ in sizes) > first_centre)  # see the test below
    number = len(os.listdir(tmp_path))
    source = make_output(tmp_path / f"{number}.h5", videos, sampling, failed=["lost.mp4"])
    folder = tmp_path / f"{number}.made"
    if format == "opentad" and first_centre % 1:
        with pytest.raises(UsageError, match="OpenTAD"):
            export(format, source, folder)
        assert not folder.exists()
        return
    export(format, source, folder)
    left_out = (folder / "missing_files.txt").read_text().splitlines()
    for key, count, _ in videos:
        if key not in left_out:
            expect_times(source, key, LOADERS[format](folder, key)[1])
        elif how[0] == "start":  # a short video with a rate of its own
            assert count < sampling.span


@pytest.mark.parametrize("format", LOADERS)
def test_an_export_with_wrong_times_is_refused(tmp_path: Path, format: Format) -> None:
    shift = make_output(tmp_path / "shift.h5", VIDEOS, Sampling(16, 2, 16, tail="shift"))
    with pytest.raises(UsageError, match="tail shift"):
        export(format, shift, tmp_path / "made")
    variable = make_output(tmp_path / "variable.h5", VIDEOS, SAMPLING, jitter=0.0012, failed=["lost.mp4"])
    with pytest.raises(UsageError, match=r"row 0 of 'a/c.mkv' .*1 of 3 videos.*--fps"):
        export(format, variable, tmp_path / "made")
    short = make_output(tmp_path / "short.h5", [("a.mp4", 3, 25.0)], Sampling(2, 1, 16, align="center"))
    with pytest.raises(UsageError, match=r"row 0 of 'a.mp4'"):  # it ends before its first centre
        export(format, short, tmp_path / "made")
    assert sorted(os.listdir(tmp_path)) == ["shift.h5", "short.h5", "variable.h5"]
    assert not (tmp_path / "made").exists()
    near = make_output(tmp_path / "near.h5", VIDEOS, SAMPLING, jitter=0.0008, failed=["lost.mp4"])
    export(format, near, tmp_path / "made")  # containers round time stamps to milliseconds
    export(format, variable, tmp_path / "resized", Feature(length=20))  # which uses the stored times
    values, centres = LOADERS[format](tmp_path / "resized", "a/b.mp4")
    assert values.shape == (20, CHANNELS)
    assert values.dtype == np.float32
    assert np.allclose(centres, (np.arange(20) + 0.5) * 4.0 / 20)
    with open_features(variable) as features:
        video = features["a/b.mp4"]
        wanted = [np.interp(centres, video.times[:].mean(1), video.embedding[:, c]) for c in range(CHANNELS)]
    assert np.allclose(values.T, wanted, atol=1e-5)


def test_frame_rates(tmp_path: Path) -> None:
    """A common rate goes into the configuration; different ones come from the annotations."""
    for name, videos, expected in (("one", EVEN, 25.0), ("several", VIDEOS, None)):
        source = make_output(tmp_path / f"{name}.h5", videos, SAMPLING)
        export("actionformer", source, tmp_path / name)
        section = yaml.safe_load((tmp_path / name / "actionformer.yaml").read_text())["dataset"]
        assert (section["default_fps"], section["feat_stride"], section["num_frames"]) == (expected, 16, 32)
        assert [fact["fps"] for fact in annotations(tmp_path / name).values()] == [fps for _, _, fps in videos]


@pytest.mark.parametrize("format", [*LOADERS, "moment-detr", "tvr"])
def test_a_video_of_one_clip_does_not_change_the_rate_of_the_others(tmp_path: Path, format: Format) -> None:
    videos = [*EVEN, ("short.mp4", 9, 24.3)]
    source = make_output(tmp_path / "out.h5", videos, Sampling(16, 2, 16, align="center"))
    done = export(format, source, tmp_path / "made")
    assert done.videos == len(EVEN)
    assert [note for note in done.notes if "frame rates differ" in note] == []
    assert any("short.mp4" in note for note in done.notes)


def moment_detr(folder: Path, vid: str) -> tuple[Array, float]:
    """Load features like StartEndDataset, and return its clip length."""
    options = shlex.split((folder / "moment-detr.txt").read_text(), comments=True)
    read = dict(zip(options[::2], options[1::2], strict=True))
    features = np.load(os.path.join(read["--v_feat_dirs"], f"{vid}.npz"))["features"][: int(read["--max_v_l"])]
    assert features.shape[1] == int(read["--v_feat_dim"])
    return features.astype(np.float32), float(read["--clip_length"])


def tvr(folder: Path, vid: str) -> tuple[Array, float]:
    options = shlex.split((folder / "tvr.txt").read_text(), comments=True)
    read = dict(zip(options[::2], options[1::2], strict=True))
    with h5py.File(read["--vid_feat_path"], "r") as file:
        features = file[vid][: int(read["--max_ctx_l"])]
    assert features.shape[1] == int(read["--vid_feat_size"])
    return features, float(read["--clip_length"])


@pytest.mark.parametrize(("format", "load"), [("moment-detr", moment_detr), ("tvr", tvr)])
@pytest.mark.parametrize("sampling", [Sampling(16, 2), Sampling(16, 2, 16, align="center")], ids=str)
def test_moment_retrieval(tmp_path: Path, format: Format, load: Any, sampling: Sampling) -> None:
    source = make_output(tmp_path / "out.h5", EVEN, sampling)
    export(format, source, tmp_path / "made")
    for key, _, _ in EVEN:
        values, length = load(tmp_path / "made", key)
        assert length == sampling.step / 25
        expect_times(source, key, (np.arange(len(values)) + 0.5) * length)  # row k is [k, k + 1) * length
        with open_features(source) as features:
            assert np.array_equal(values, features[key].embedding[:])
    whole = make_output(tmp_path / "whole.h5", EVEN, Sampling(25, 2))
    export("moment-detr", whole, tmp_path / "seconds")
    assert "--clip_length 2 " in (tmp_path / "seconds/moment-detr.txt").read_text()  # its option is a whole number


def test_moment_retrieval_refuses_what_has_no_clip_length(output: Path, tmp_path: Path) -> None:
    even = make_output(tmp_path / "even.h5", EVEN, SAMPLING)
    for source, length, message in (
        (output, None, "20 and 29.97; extract with --fps"),
        (even, None, "extract with a --stride of 32, or with --align center"),
        (even, 5, "--resize-length"),
    ):
        for name in ("moment-detr", "tvr"):
            with pytest.raises(UsageError, match=re.escape(message)):
                export(name, source, tmp_path / "made", Feature(length=length))


def test_clip_retrieval(output: Path, tmp_path: Path) -> None:
    export("clip-retrieval", output, tmp_path / "whole", Feature("stage4"))
    (tmp_path / "made").mkdir()
    with open_features(output) as features:
        items = read_items(features, Feature("stage4", l2=True), {name: name for name in features})
        formats.write_clip_retrieval(tmp_path / "made", items, rows=9, rows_per_file=4)
    names = sorted(os.listdir(tmp_path / "made/img_emb"))
    assert names == [f"img_emb_{k}.npy" for k in range(3)]
    embeddings = np.concatenate([np.load(tmp_path / "made/img_emb" / name) for name in names])
    assert embeddings.dtype == np.float16
    tables = [parquet.read_table(tmp_path / f"made/metadata/metadata_{k}.parquet").to_pydict() for k in range(3)]
    assert [len(table["image_path"]) for table in tables] == [4, 4, 1]
    with open_features(output) as features:
        expected = features.file["embedding"][:]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(embeddings, expected, atol=1e-3)
        assert [begin for table in tables for begin in table["start"]] == features.file["clips/times"][:, 0].tolist()
        assert [name for table in tables for name in table["video"]] == [
            video_id for video_id, video in features.items() for _ in range(len(video))
        ]


def test_npy(output: Path, tmp_path: Path) -> None:
    done = export("npy", output, tmp_path / "made", Feature("stage4", "none"))
    assert done.shape == MAP
    with open_features(output) as features:
        for key, video in features.items():
            assert np.array_equal(np.load(tmp_path / "made" / f"{key}.npy"), video.stage4[:])
            assert np.array_equal(np.load(tmp_path / "made/times" / f"{key}.npy"), video.times[:])
    facts = json.loads((tmp_path / "made/export.json").read_text())
    expected = {"name": "stage4", "pool": "none", "length": None, "l2": False, "crop_pool": "mean"}
    assert facts["feature"] == {**expected, "shape": list(MAP)}
    assert (facts["source"], facts["sampling"]["stride"]) == ("out.h5", 16)


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """Group members like webdataset: the key is the name up to the first dot of its last part."""
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(shard, "r|*") as tar:
        for member in tar:
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            content = tar.extractfile(member)
            assert match is not None
            assert content is not None
            found[match[1]][match[2]] = content.read()
    return found


def test_webdataset(output: Path, tmp_path: Path) -> None:
    feature = Feature("stage4", "space", l2=True)
    export("webdataset", output, tmp_path / "whole", feature, stem=True)
    (tmp_path / "made").mkdir()
    with open_features(output) as features:
        items = read_items(features, feature, file_names(features, stem=True))
        formats.write_webdataset(tmp_path / "made", items, shard_videos=2)
    assert len(samples(tmp_path / "whole/shard-000000.tar")) == 3
    found = [samples(tmp_path / f"made/shard-{k:06}.tar") for k in range(2)]
    assert [len(shard) for shard in found] == [2, 1]
    with open_features(output) as features:
        for (key, video), sample in zip(features.items(), (s for shard in found for s in shard.values()), strict=True):
            facts = json.loads(sample["json"])
            assert (facts["id"], facts["name"]) == (key, os.path.splitext(key)[0])
            assert facts["end"] == facts["duration"]
            assert np.array_equal(np.load(io.BytesIO(sample["times.npy"])), video.times[:])
            values = np.load(io.BytesIO(sample["features.npy"]))
            assert values.shape == (len(video), MAP[0], CHANNELS)
            assert np.allclose(np.linalg.norm(values, axis=-1), 1, atol=1e-5)


def test_parquet(output: Path, tmp_path: Path) -> None:
    export("parquet", output, tmp_path / "whole")
    (tmp_path / "made").mkdir()
    with open_features(output) as features:
        items = read_items(features, Feature(), {name: name for name in features})
        formats.write_parquet(tmp_path / "made", items, group_rows=5)
    assert parquet.ParquetFile(tmp_path / "made/features.parquet").num_row_groups == 2
    table = parquet.read_table(tmp_path / "made/features.parquet")
    assert str(table.schema.field("feature").type).startswith("fixed_size_list<")
    assert parquet.read_table(tmp_path / "whole/features.parquet").equals(table)
    rows = table.to_pylist()
    with open_features(output) as features:
        assert len(rows) == features.clips
        for row in rows:
            video, k = features[row["id"]], row["row"]
            assert np.array_equal(np.float32(row["feature"]), video.embedding[k])
            assert [row["start"], row["end"]] == video.times[k].tolist()
            assert [row["first_frame"], row["end_frame"]] == video.frames[k].tolist()
            assert row["valid"] == video.valid[k]
    export("parquet", output, tmp_path / "resized", Feature(length=3, l2=True))
    resized = parquet.read_table(tmp_path / "resized/features.parquet")
    assert (resized.num_rows, "valid" in resized.schema.names) == (9, False)


def test_names(tmp_path: Path) -> None:
    """`/` makes directories. --stem drops the extensions of videos only, and two equal names are an error."""
    made = make_output(tmp_path / "out.h5", [(name, 9, 25.0) for name in ("a/v.1.mp4", "a/v.2", "w.webm")], SAMPLING)
    export("npy", made, tmp_path / "ids")
    export("npy", made, tmp_path / "stems", stem=True)

    def listed(folder: str) -> list[str]:
        return sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob("*.npy"))

    assert [name for name in listed("ids") if "times" not in name] == ["a/v.1.mp4.npy", "a/v.2.npy", "w.webm.npy"]
    assert [name for name in listed("stems") if "times" not in name] == ["a/v.1.npy", "a/v.2.npy", "w.npy"]
    twice = make_output(tmp_path / "twice.h5", [("a.mp4", 9, 25.0), ("a.mkv", 9, 25.0)], SAMPLING)
    export("npy", twice, tmp_path / "both")
    with pytest.raises(UsageError, match="without --stem"):
        export("npy", twice, tmp_path / "one", stem=True)
    times = make_output(tmp_path / "times.h5", [("a", 9, 25.0), ("times/a", 9, 25.0)], SAMPLING)
    with pytest.raises(UsageError, match=r"times/a\.npy"):  # as of A and a, where a file system takes them for one
        export("npy", times, tmp_path / "times")
    assert not (tmp_path / "times").exists()
    outside = make_output(tmp_path / "outside.h5", [("../a.mp4", 9, 25.0)], SAMPLING)
    with pytest.raises(UsageError, match=r"\.\./a\.mp4"):
        export("npy", outside, tmp_path / "inside")


def test_nothing_is_overwritten_or_left_half(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    export("npy", output, folder)
    with pytest.raises(OutputError, match=f"{folder} exists"):
        export("npy", output, folder)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UsageError, match="4 x 8; use --pool all"):
        export("parquet", output, tmp_path / "maps", Feature("stage4", "space"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("parquet", "clip-retrieval"):
        with pytest.raises(UsageError, match=re.escape("pip install 'vswin-extract[export]'")):
            export(name, output, tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == before


def test_choices() -> None:
    choices = {parameter.name: getattr(parameter.type, "choices", None) for parameter in command.params}
    assert tuple(FORMATS) == get_args(Format)
    assert tuple(choices["pool"] or ()) == get_args(Pool)


def test_real_videos(run: Run, small_weights: Path, tmp_path: Path) -> None:
    """One of the examples has a variable frame rate: it is refused, and exported right after resampling."""
    arguments = ("vswin-extract", ROOT / "examples/videos", "--weights", small_weights, "--stage", 4, "--stride", 16)
    for name, more in (("as-is", ()), ("resampled", ("--fps", "12.5"))):
        assert run(*arguments, tmp_path / f"{name}.h5", *more).returncode == 0
    refused = run("vswin", "export", "opentad", tmp_path / "as-is.h5", tmp_path / "made")
    assert refused.returncode == 2
    assert "of 'chelsea-portrait.mp4' covers" in refused.stderr
    assert "1 of 5 videos" in refused.stderr
    made = run("vswin", "export", "actionformer", tmp_path / "resampled.h5", tmp_path / "made", "--stage", 4)
    assert made.returncode == 0, made.stderr
    with open_features(tmp_path / "resampled.h5") as features:
        for key, video in features.items():
            values, centres = actionformer(tmp_path / "made", key)
            assert np.allclose(values, video.embedding[:], atol=1e-5)
            expect_times(tmp_path / "resampled.h5", key, centres)
