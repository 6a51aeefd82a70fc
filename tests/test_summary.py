"""Exports for networks that summarise videos: the layout of the file, the frames of rows, and change points."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numbered
import numpy as np
import pytest
import ruptures
from absent import without
from conftest import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outputs import make_output, scenes

from vswin_extract.errors import UsageError
from vswin_extract.export.export import export
from vswin_extract.export.summary import find_changes, find_picks
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

VIDEOS = [("a/b.mp4", 100, 25.0), ("c.mkv", 40, 20.0), ("d.mp4", 9, 30000 / 1001)]


def load(folder: Path, key: str) -> dict[str, Any]:
    """Return what DSNet's VideoDataset, PGL-SUM's inference and VASNet's evaluation read, less the annotations."""
    with h5py.File(folder / "summary.h5") as file:
        assert all("/" not in name for name in file)  # they take the part of a key before the last / for the file
        read = {name: file[key][name][...] for name in file[key]}
        assert read["features"].dtype == np.float32
        assert file[key]["video_name"].asstr()[()] in [name for name, _, _ in VIDEOS]
        return read


def expect_layout(video: dict[str, Any], rows: int, frames: int) -> None:
    """The segments are all frames, and each begins with a row."""
    assert (video["n_frames"], video["n_steps"], len(video["features"])) == (frames, rows, rows)
    assert video["picks"].shape == (rows,)
    assert video["picks"][0] == 0
    assert (np.diff(video["picks"]) >= 0).all()
    points, counts = video["change_points"], video["n_frame_per_seg"]
    assert points[0, 0] == 0
    assert points[-1, 1] == frames - 1
    assert np.array_equal(points[1:, 0], points[:-1, 1] + 1)
    assert np.array_equal(points[:, 1] - points[:, 0] + 1, counts)
    assert counts.sum() == frames
    assert set(points[:, 0]) <= set(video["picks"])


def test_the_layout(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out.h5", VIDEOS, Sampling(16, 1), failed=["lost.mp4"])
    done = export("summary", source, tmp_path / "made")
    assert (done.videos, done.missing, done.files) == (3, 1, ("export.json",))
    for number, (name, frames, _) in enumerate(VIDEOS, 1):
        video = load(tmp_path / "made", f"video_{number}")
        expect_layout(video, -(-frames // 16), frames)
        assert video["picks"].tolist() == [*range(0, frames, 16)]
        with open_features(source) as features:
            assert np.array_equal(video["features"], features[name].embedding[:])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 40), st.sampled_from([None, Fraction(15)]),
    st.sampled_from([("start", "pad"), ("start", "drop"), ("start", "shift"), ("center", "pad")]), st.integers(1, 150),
)  # fmt: skip
def test_a_frame_counts_for_the_row_with_the_nearest_centre(
    tmp_path: Path, clip_len: int, interval: int, stride: int, fps: Fraction | None, how: tuple[Any, Any], count: int
) -> None:
    sampling = Sampling(clip_len, interval, stride, fps, *how)
    (tmp_path / "out.h5").unlink(missing_ok=True)
    source = make_output(tmp_path / "out.h5", [("a.mp4", count, 15.0)], sampling)
    with open_features(source) as features:
        picks, frames = find_picks(features["a.mp4"])
        rows = len(features["a.mp4"])
    assert (frames, picks[0], len(picks)) == (count, 0, rows)
    starts = [sampling.start(k) for k in range(rows)]
    if how[1] == "shift" and rows > 1:
        starts[-1] = min(starts[-1], count - sampling.span)
    far = np.abs(np.arange(count)[:, None] + 0.5 - (np.array(starts) + sampling.span / 2))
    row = np.searchsorted(picks, np.arange(count), "right") - 1
    assert (far[np.arange(count), row] <= far.min(1) + 1).all()  # boundaries are whole frames of the video


def test_changes_between_scenes() -> None:
    assert find_changes(ruptures, scenes(12, 5, 20)) == [12, 17]
    assert find_changes(ruptures, scenes(30)) == []
    assert find_changes(ruptures, scenes(1)) == []
    assert find_changes(ruptures, np.zeros((4, 3), np.float32)) == []


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out.h5", VIDEOS, Sampling(16, 1))
    for feature, named in ((Feature(length=4), "--resize-length"), (Feature("stage4", "space"), "--pool all")):
        with pytest.raises(UsageError, match=named):
            export("summary", source, tmp_path / "made", feature)
    with without("ruptures"), pytest.raises(UsageError, match=r"vswin-extract\[summary\]"):
        export("summary", source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_segments_and_a_resampled_video(run: Run, small_weights: Path, tmp_path: Path) -> None:
    """Frames of a segment are counted from its own first one."""
    numbered.write(tmp_path / "a.mp4", 90)
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,id,start,end\n{tmp_path / 'a.mp4'},late,1,\n{tmp_path / 'a.mp4'},whole,,\n")
    for options, step in (([], 16), (["--fps", 15], 32)):
        out, made = tmp_path / f"{step}.h5", tmp_path / f"{step}"
        done = run("vswin-extract", "--manifest", manifest, out, "--weights", small_weights, *options)
        assert done.returncode == 0, done.stderr
        done = run("vswin", "export", "summary", out, made)
        assert done.returncode == 0, done.stderr
        with h5py.File(made / "summary.h5") as file:
            for key, frames in (("video_1", 60), ("video_2", 90)):
                assert file[key]["n_frames"][()] == frames
                assert file[key]["picks"][:].tolist() == [*range(0, frames, step)]
        assert json.loads((made / "export.json").read_text())["format"] == "summary"
