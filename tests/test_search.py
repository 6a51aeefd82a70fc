"""Searching: exact whatever the blocks are, one result per run of clips, near-copies found."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from absent import without
from conftest import ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import make_embedded, random_embeddings, unit

from vswin_extract.errors import UsageError
from vswin_extract.explore import search, similarity
from vswin_extract.explore.approximate import open_index
from vswin_extract.explore.near_copies import THRESHOLD, near_copies
from vswin_extract.explore.query import Moment, find_query
from vswin_extract.explore.search import nearest, runs
from vswin_extract.store.features import open_features

VIDEOS = ROOT / "examples" / "videos"


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    block=st.integers(1, 12),
    asked=st.integers(1, 9),
)
def test_scores_are_those_of_the_full_product(
    tmp_path_factory: pytest.TempPathFactory, seed: int, counts: list[int], block: int, asked: int
) -> None:
    videos = random_embeddings(seed, *counts)
    everything = np.concatenate(list(videos.values()))
    vectors = random_embeddings(seed + 1000, asked)["v/0.mp4"]
    full = unit(everything) @ unit(vectors).T
    path = make_embedded(tmp_path_factory.mktemp("exact") / "out.h5", videos)
    with open_features(path) as features:
        scores, like, mean = search.compare_all(features, similarity.unit(vectors), block)
    assert np.allclose(scores, full.max(1), atol=2e-6)
    assert np.allclose(full[np.arange(len(full)), like], full.max(1), atol=2e-6)
    assert mean == pytest.approx(full.mean(), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    tenths=st.lists(st.lists(st.integers(-5, 10), min_size=1, max_size=12), min_size=1, max_size=4),
    mean=st.floats(-0.5, 0.5),
    overlap=st.booleans(),
)
def test_results_are_runs_around_peaks(tenths: list[list[int]], mean: float, overlap: bool) -> None:
    scores = np.array([score / 10 for video in tenths for score in video], np.float32)
    video = np.repeat(np.arange(len(tenths)), [len(one) for one in tenths])
    starts = np.concatenate([np.arange(len(one)) for one in tenths]).astype(float)
    times = np.stack([starts, starts + (2.5 if overlap else 1)], 1)
    found = list(runs(scores, video, times, mean, len(scores)))
    best = [float(scores[row]) for row, _ in found]
    assert best == sorted(best, reverse=True)
    assert best[0] == scores.max()
    seen: set[int] = set()
    for row, (first, end) in found:
        assert first <= row < end
        assert len(set(video[first:end])) == 1
        level = (scores[row] + min(mean, float(scores[row]))) / 2
        assert (scores[first:end] >= np.float32(level) - 1e-6).all()
        assert not seen & set(range(first, end))
        seen |= set(range(first, end))
    if overlap:  # a better result's run leaves nothing that overlaps it for another to begin with
        for k, (row, _) in enumerate(found):
            for _, (first, end) in found[:k]:
                apart = times[row, 0] >= times[end - 1, 1] or times[row, 1] <= times[first, 0]
                assert video[row] != video[first] or apart
    assert found[:2] == list(runs(scores, video, times, mean, 2))  # how many are asked for changes none of them


def test_equal_clips_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = random_embeddings(3, 1, channels=257)["v/0.mp4"]
    videos = {f"{number:02}.mp4": rows * (1 + number) for number in range(40)}
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        # with blocks of 7 rows, equal clips are computed at different places of a block
        found = nearest(features, find_query(features, "05.mp4"), top=39, block=7)
    assert [result.best.video for result in found] == [name for name in videos if name != "05.mp4"]
    assert {result.score for result in found} == {1.0}


def test_what_a_query_names(tmp_path: Path) -> None:
    videos = {**random_embeddings(1, 6, 4), "odd@3.mp4": random_embeddings(2, 5)["v/0.mp4"]}
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        clip = find_query(features, "v/0.mp4@3.2")
        assert clip.moments == (Moment("v/0.mp4", 2.0, 4.0),)  # [3, 5) covers it, too, but its middle is farther off
        assert np.allclose(clip.vectors, unit(videos["v/0.mp4"][2:3]), atol=1e-6)
        assert len(find_query(features, "v/1.mp4").moments) == 4
        assert len(find_query(features, "odd@3.mp4").moments) == 5
        assert find_query(features, "odd@3.mp4@0").moments[0].start == 0
        with pytest.raises(UsageError, match=r"0:07\.5 .*v/0\.mp4.* 0:07\.0"):
            find_query(features, "v/0.mp4@7.5")
        for wrong in ("1m", "1,5", "-1", "", "1:99"):
            with pytest.raises(UsageError, match=f"'{wrong}' behind v/0.mp4@ is no time"):
                find_query(features, f"v/0.mp4@{wrong}")
        with pytest.raises(UsageError, match=r"nothing\.mp4"):
            find_query(features, "nothing.mp4")
        found = nearest(features, clip)
        own = [result.best for result in found if result.best.video == "v/0.mp4"]
        assert own
        assert not [best for best in own if best.start < 4 and best.end > 2]  # what overlaps the query is left out
        elsewhere = nearest(features, clip, same_video=False)
        assert {result.best.video for result in elsewhere} <= {"v/1.mp4", "odd@3.mp4"}
        assert {result.best.video for result in nearest(features, clip, within="odd*")} == {"odd@3.mp4"}
        with pytest.raises(UsageError, match=r"x\*"):
            nearest(features, clip, within="x*")


def test_an_index_of_shards_is_searched_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = random_embeddings(4, *[3] * 10)
    with (
        open_features(make_embedded(tmp_path / "one.h5", videos)) as one,
        open_features(make_embedded(tmp_path / "out.h5", videos, layout="sharded", shard_videos=3)) as shards,
    ):
        assert len(shards.linked) == 4
        query = find_query(shards, "v/7.mp4@1")
        expected = nearest(one, query, block=5)
        assert nearest(shards, query, block=5) == expected
        assert nearest(shards, query, index=open_index(shards), block=5) == expected
        assert not open_index(shards).built


def test_faiss_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((40, 24), np.float32) * 3
    videos = {
        f"{number}.mp4": centres[number % 40] + chance.standard_normal((20, 24), np.float32) for number in range(160)
    }
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        index = open_index(features, exact_below=500)
        assert index.faiss.ntotal == 3200
        assert index.faiss.nlist == 56  # cells, where there are many
        same = 0
        for name in list(features)[::16]:
            query = find_query(features, f"{name}@5")
            exact, by_index = nearest(features, query), nearest(features, query, index=index)
            scores = {result.best: result.score for result in exact}
            same += len(scores.keys() & {result.best for result in by_index})
            for result in by_index:  # as exact as the others
                assert scores.get(result.best, result.score) == result.score
        assert same > 95
        hidden = nearest(features, query, top=3, within="7.mp4", index=index)  # far from the query: asks for more
        assert {result.best.video for result in hidden} == {"7.mp4"}


@pytest.mark.parametrize("block", [1, 5, 100])
def test_nearest_videos_are_those_of_the_full_product(tmp_path: Path, block: int) -> None:
    limits = {"compared": 6, "block": block}
    videos = random_embeddings(7, 4, 9, 1, 6, 3, 12)
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        found = search.nearest_videos(features, list(videos), top=3, **limits)
        assert search.nearest_videos(features, ["v/2.mp4"], top=9, **limits)["v/2.mp4"][:3] == found["v/2.mp4"]
    for name, results in found.items():
        asked = np.linspace(0, len(videos[name]) - 1, min(6, len(videos[name]))).astype(int)
        full = {other: unit(videos[name][asked]) @ unit(clips).T for other, clips in videos.items() if other != name}
        best = sorted(full, key=lambda other: -full[other].max())[:3]
        assert [result.best.video for result in results] == best
        for result in results:
            own, row = np.unravel_index(full[result.best.video].argmax(), full[result.best.video].shape)
            assert (result.like.video, result.like.start, result.best.start) == (name, int(asked[own]), int(row))
            assert result.score == pytest.approx(full[result.best.video].max(), abs=2e-6)


def test_an_index_is_read_where_nothing_may_be_written(small_disk: Path) -> None:
    path = make_embedded(small_disk / "out.h5", random_embeddings(1, 5, 5))
    with open_features(path) as features:
        assert open_index(features).built
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with open_features(path) as features:
        assert not open_index(features).built
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    (small_disk / "out.h5.faiss").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with open_features(path) as features, pytest.raises(UsageError, match=re.escape(str(small_disk))):
        open_index(features)


def test_a_stale_index_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    beside = tmp_path / "out.h5.faiss"

    def built() -> bool:
        with open_features(path) as features:
            return open_index(features).built

    make_embedded(path, random_embeddings(1, 5, 5))
    assert (built(), built()) == (True, False)
    make_embedded(path, random_embeddings(1, 5, 5), run="2")  # another run
    assert (built(), built()) == (True, False)
    make_embedded(path, random_embeddings(2, 5, 5), run="2")  # other numbers
    assert (built(), built()) == (True, False)
    make_embedded(path, random_embeddings(2, 5, 6), run="2")
    assert (built(), built()) == (True, False)
    beside.write_bytes(b'{"made_of": rubbish')
    assert (built(), built()) == (True, False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "out.h5.faiss"]


@pytest.mark.parametrize("how", ["exact", "faiss"])
def test_near_copies_are_found_and_merged(tmp_path: Path, how: str) -> None:
    chance = np.random.default_rng(5)
    videos = random_embeddings(5, 20, 20, 15, channels=64)
    copied = videos["v/0.mp4"][4:12] + 0.02 * chance.standard_normal((8, 64), np.float32)
    copied[3] = chance.standard_normal(64)  # a clip in the middle was cut out
    videos["v/2.mp4"][5:13] = copied
    videos["v/1.mp4"][18:] = videos["v/0.mp4"][:2]
    videos["v/1.mp4"][8] = videos["v/1.mp4"][2]  # within a video nothing is a copy
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        index = open_index(features) if how == "faiss" else None
        found = near_copies(features, index=index, block=6)
        assert [(pair.one, pair.other) for pair in found] == [
            (Moment("v/0.mp4", 0.0, 3.0), Moment("v/1.mp4", 18.0, 21.0)),
            (Moment("v/0.mp4", 4.0, 13.0), Moment("v/2.mp4", 5.0, 14.0)),
        ]
        assert found[0].score == 1.0
        assert 0.99 < found[1].score < 1.0
        assert len(near_copies(features, threshold=0.99999, index=index, block=6)) == 1
        assert len(near_copies(features, within="v/1*", index=index, block=6)) == 1
        with pytest.raises(UsageError, match=r"8 .*0\.95.*--threshold"):
            near_copies(features, index=index, most_pairs=8)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, run: Run, small_weights: Path) -> Path:
    out = tmp_path_factory.mktemp("search") / "out.h5"
    options = ["--weights", small_weights, "--stride", 24, "--tail", "shift", "--precision", "fp32", "-q"]
    assert run("vswin-extract", VIDEOS, out, *options).returncode == 0
    return out


def test_a_video_file_is_extracted_as_the_file_was(extracted: Path, run: Run, small_weights: Path) -> None:
    path = VIDEOS / "astronaut-pan.mp4"
    done = run("vswin", "search", extracted, path, "--weights", small_weights, "--json", "--index", "exact")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    best = printed["results"][0]
    assert best["run"]["video"] == "astronaut-pan.mp4"
    assert best["score"] == 1.0  # the same weights, clips and pixels
    with open_features(extracted) as features:
        times = features["astronaut-pan.mp4"].times[:]
        assert [(moment["start"], moment["end"]) for moment in printed["query"]] == [tuple(row) for row in times]
    clip = run("vswin", "search", extracted, f"{path}@1.5", "--weights", small_weights)
    assert clip.returncode == 0, clip.stderr
    assert re.match(r"video +time +best clip +cosine\nastronaut-pan.mp4 .* 1\.0000\n", clip.stdout)
    unknown = run("vswin", "search", extracted, path)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "small" in unknown.stderr  # the name of the weights that were not found
    assert "--weights" in unknown.stderr
    other = run("vswin", "search", extracted, path, "--weights", "nano")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "small.safetensors of sha256" in other.stderr
    text = run("vswin", "search", extracted, ROOT / "README.md", "--weights", small_weights)
    assert (text.returncode, "VideoUnreadable" in text.stderr) == (2, True)


def test_the_commands(extracted: Path, run: Run, tmp_path: Path) -> None:
    done = run("vswin", "search", extracted, "shapes.mkv@1", "-k", 2, "--html", tmp_path / "x.html")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "data:image/jpeg;base64," in (tmp_path / "x.html").read_text()
    by_index = [run("vswin", "search", extracted, "shapes.mkv@1", "-k", 2, "--index", "faiss") for _ in range(2)]
    assert [each.stdout for each in by_index] == [done.stdout] * 2
    assert [f"{extracted}.faiss" in each.stderr for each in by_index] == [True, False]  # built by the first command
    copies = run("vswin", "search", extracted, "--duplicates", "--threshold", 0, "-k", 1, "--json")
    printed = json.loads(copies.stdout)
    assert printed["threshold"] == 0
    assert len(printed["duplicates"]) == 1 <= printed["found"]
    assert f"[default: {THRESHOLD}]" in run("vswin", "search", "--help").stdout
    drawn_ = run("vswin", "plot", extracted, "shapes.mkv", "-o", tmp_path / "x.png")
    assert drawn_.returncode == 0, drawn_.stderr
    assert drawn_.stdout.startswith(f"{tmp_path / 'x.png'}: ")


def test_errors_are_one_line_that_names_the_value(extracted: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(extracted, tmp_path / "no.h5")
    with h5py.File(tmp_path / "no.h5", "r+") as file:
        del file["embedding"]
    cases: list[tuple[list[object], str]] = [
        (["search", extracted, "nothing.mp4"], "'nothing.mp4'"),
        (["search", extracted, "shapes.mkv@99"], "1:39.0 "),
        (["search", tmp_path / "no.h5", "shapes.mkv"], "--no-embedding"),
        (["search", tmp_path / "none.h5", "shapes.mkv"], "none.h5"),
        (["search", extracted, "shapes.mkv", "--html", tmp_path / "y" / "x.html"], "x.html"),
        (["plot", extracted, "nothing.mp4", "-o", tmp_path / "x.png"], "'nothing.mp4'"),
        (["plot", extracted, "shapes.mkv", "-o", tmp_path / "x.xyz"], "x.xyz"),
        (["plot", extracted, "shapes.mkv", "-o", tmp_path / "y" / "x.png"], f"{tmp_path / 'y'}"),
    ]
    missing = {
        "faiss": (["search", extracted, "shapes.mkv", "--index", "faiss"], "pip install 'vswin-extract[search]'"),
        "PIL": (["search", extracted, "shapes.mkv", "--html", tmp_path / "x.html"], "'vswin-extract[report]'"),
        "jinja2": (["search", extracted, "shapes.mkv", "--html", tmp_path / "x.html"], "'vswin-extract[report]'"),
        "matplotlib": (["plot", extracted, "shapes.mkv", "-o", tmp_path / "x.png"], "'vswin-extract[report]'"),
    }
    for arguments, value in cases:
        done = run("vswin", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), arguments
        assert value in done.stderr
    for module, (arguments, value) in missing.items():
        with without(module):
            done = run("vswin", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), module
        assert value in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["no.h5"]


def test_a_page_appears_complete_or_not_at_all(
    extracted: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "x.html"
    page.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        done = run("vswin", "search", extracted, "shapes.mkv", "--html", page, "--overwrite")
    assert (done.returncode, page.read_text()) == (1, "before")
    assert list(tmp_path.iterdir()) == [page]
    assert run("vswin", "search", extracted, "shapes.mkv", "--html", page, "--overwrite").returncode == 0
    assert page.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [page]
