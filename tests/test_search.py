"""Searching: exact whatever the blocks, one result a run, near-copies found; and the pages and pictures of it."""

import base64
import io
import json
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from conftest import ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vswin_extract.errors import UsageError
from vswin_extract.explore import approximate, search, similarity
from vswin_extract.explore import thumbnails as pictures
from vswin_extract.explore.approximate import open_index
from vswin_extract.explore.page import page_of_copies, page_of_results
from vswin_extract.explore.plot import plot_similarity
from vswin_extract.explore.search import Moment, find_query, near_copies, nearest, runs
from vswin_extract.explore.similarity import boundaries, novelty, self_similarity
from vswin_extract.explore.thumbnails import thumbnail, thumbnails
from vswin_extract.store import layouts
from vswin_extract.store.features import open_features
from vswin_extract.store.schema import Arrays, FileDescription, VideoRecord

SETTINGS: dict[str, Any] = {
    "model": "mine.pth",
    "weights_sha256": "ab" * 32,
    "variant": {"name": "nano"},
    "sampling": {"clip_len": 8},
    "preprocessing": {},
    "features": {"dtype": "float32", "compression": "none"},
    "precision": "fp32",
    "decoder": "pyav",
}
VIDEOS = ROOT / "examples" / "videos"


def made(
    path: Path,
    videos: dict[str, NDArray[Any]],
    run: str = "1",
    layout: layouts.Layout = "single",
    shard_videos: int = layouts.SHARD_LIMIT.videos,
) -> Path:
    """An output of videos by id, with these embeddings; clip k covers seconds [k, k + 2)."""
    channels = next(iter(videos.values())).shape[1]
    records = [
        VideoRecord(name, f"/nowhere/{name}", "ok", clips=len(rows), fps=8.0, frames=8 * len(rows) + 8)
        for name, rows in videos.items()
    ]

    def pieces(wanted: Sequence[VideoRecord]) -> Any:
        for record in wanted:
            k = np.arange(record.clips)[:, None]
            yield {
                "embedding": videos[record.id],
                "clips/frames": np.hstack([8 * k, 8 * k + 16]),
                "clips/times": np.hstack([k, k + 2.0]),
                "clips/valid": np.full(record.clips, 8),
            }

    description = FileDescription(Arrays({"embedding": (channels,)}), {**SETTINGS, "run": run * 32})
    layouts.make_output(
        path, path.with_name("unfinished"), layout, pieces, records, description,
        shard_limit=layouts.ShardLimit(videos=shard_videos),
    )  # fmt: skip
    return path


def drawn(seed: int, *counts: int, channels: int = 16) -> dict[str, NDArray[np.float32]]:
    chance = np.random.default_rng(seed)
    return {
        f"v/{number}.mp4": chance.standard_normal((count, channels), np.float32) for number, count in enumerate(counts)
    }


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    rows=st.integers(1, 12),
    asked=st.integers(1, 9),
)
def test_scores_are_those_of_the_full_product(
    tmp_path_factory: pytest.TempPathFactory, seed: int, counts: list[int], rows: int, asked: int
) -> None:
    videos = drawn(seed, *counts)
    everything = np.concatenate(list(videos.values()))
    vectors = drawn(seed + 1000, asked)["v/0.mp4"]
    full = unit(everything) @ unit(vectors).T
    path = made(tmp_path_factory.mktemp("exact") / "out.h5", videos)
    with pytest.MonkeyPatch.context() as patch, open_features(path) as features:
        patch.setattr(similarity, "ROWS", rows)
        patch.setattr(search, "ROWS", rows)
        scores, like, mean = search.compare_all(features, similarity.unit(vectors))
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


def test_equal_clips_come_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ROWS", 7)  # so that equal clips are computed at different places of a block
    rows = drawn(3, 1, channels=257)["v/0.mp4"]
    videos = {f"{number:02}.mp4": rows * (1 + number) for number in range(40)}
    with open_features(made(tmp_path / "out.h5", videos)) as features:
        found = nearest(features, find_query(features, "05.mp4"), top=39)
    assert [result.best.video for result in found] == [name for name in videos if name != "05.mp4"]
    assert {result.score for result in found} == {1.0}


def test_what_a_query_names(tmp_path: Path) -> None:
    videos = {**drawn(1, 6, 4), "odd@3.mp4": drawn(2, 5)["v/0.mp4"]}
    with open_features(made(tmp_path / "out.h5", videos)) as features:
        clip = find_query(features, "v/0.mp4@3.2")
        assert clip.moments == (Moment("v/0.mp4", 2.0, 4.0),)  # [3, 5) covers it, too, but its middle is farther off
        assert np.allclose(clip.vectors, unit(videos["v/0.mp4"][2:3]), atol=1e-6)
        assert len(find_query(features, "v/1.mp4").moments) == 4
        assert len(find_query(features, "odd@3.mp4").moments) == 5
        assert find_query(features, "odd@3.mp4@0").moments[0].start == 0
        with pytest.raises(UsageError, match=r"second 7.5 is not in v/0.mp4, whose clips go from 0.00 to 7.00"):
            find_query(features, "v/0.mp4@7.5")
        with pytest.raises(UsageError, match=r"neither a video of .* nor a video file"):
            find_query(features, "nothing.mp4")
        found = nearest(features, clip)
        own = [result.best for result in found if result.best.video == "v/0.mp4"]
        assert own
        assert not [best for best in own if best.start < 4 and best.end > 2]  # what overlaps the query is left out
        elsewhere = nearest(features, clip, same_video=False)
        assert {result.best.video for result in elsewhere} <= {"v/1.mp4", "odd@3.mp4"}
        assert {result.best.video for result in nearest(features, clip, within="odd*")} == {"odd@3.mp4"}
        with pytest.raises(UsageError, match=r"no id in .* matches 'x\*'"):
            nearest(features, clip, within="x*")


def test_an_index_of_shards_is_searched_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ROWS", 5)
    videos = drawn(4, *[3] * 10)
    with (
        open_features(made(tmp_path / "one.h5", videos)) as one,
        open_features(made(tmp_path / "out.h5", videos, layout="sharded", shard_videos=3)) as shards,
    ):
        assert len(shards.linked) == 4
        query = find_query(shards, "v/7.mp4@1")
        assert nearest(shards, query) == nearest(one, query)
        assert nearest(shards, query, index=open_index(shards)) == nearest(one, query)
        assert not open_index(shards).built


def test_faiss_finds_what_comparing_all_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "EXACT_BELOW", 500)
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((40, 24), np.float32) * 3
    videos = {
        f"{number}.mp4": centres[number % 40] + chance.standard_normal((20, 24), np.float32) for number in range(160)
    }
    with open_features(made(tmp_path / "out.h5", videos)) as features:
        index = open_index(features)
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


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_nearest_videos_are_those_of_the_full_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(similarity, "ROWS", rows)
    monkeypatch.setattr(search, "QUERIES", 6)
    videos = drawn(7, 4, 9, 1, 6, 3, 12)
    with open_features(made(tmp_path / "out.h5", videos)) as features:
        found = search.nearest_videos(features, list(videos), top=3)
        assert search.nearest_videos(features, ["v/2.mp4"], top=9)["v/2.mp4"][:3] == found["v/2.mp4"]
    for name, results in found.items():
        asked = np.linspace(0, len(videos[name]) - 1, min(6, len(videos[name]))).astype(int)
        full = {other: unit(videos[name][asked]) @ unit(clips).T for other, clips in videos.items() if other != name}
        best = sorted(full, key=lambda other: -full[other].max())[:3]
        assert [result.best.video for result in results] == best
        for result in results:
            own, row = np.unravel_index(full[result.best.video].argmax(), full[result.best.video].shape)
            assert (result.like.video, result.like.start, result.best.start) == (name, int(asked[own]), int(row))
            assert result.score == pytest.approx(full[result.best.video].max(), abs=2e-6)


def test_a_stale_index_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    beside = tmp_path / "out.h5.faiss"

    def built() -> bool:
        with open_features(path) as features:
            return open_index(features).built

    made(path, drawn(1, 5, 5))
    assert (built(), built()) == (True, False)
    made(path, drawn(1, 5, 5), run="2")  # another run
    assert (built(), built()) == (True, False)
    made(path, drawn(2, 5, 5), run="2")  # other numbers
    assert (built(), built()) == (True, False)
    made(path, drawn(2, 5, 6), run="2")
    assert (built(), built()) == (True, False)
    beside.write_bytes(b"\x00rubbish")
    assert (built(), built()) == (True, False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "out.h5.faiss"]


@pytest.mark.parametrize("how", ["exact", "faiss"])
def test_near_copies_are_found_and_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(similarity, "ROWS", 6)
    monkeypatch.setattr(search, "ROWS", 6)
    chance = np.random.default_rng(5)
    videos = drawn(5, 20, 20, 15, channels=64)
    copied = videos["v/0.mp4"][4:12] + 0.02 * chance.standard_normal((8, 64), np.float32)
    copied[3] = chance.standard_normal(64)  # a clip in the middle was cut out
    videos["v/2.mp4"][5:13] = copied
    videos["v/1.mp4"][18:] = videos["v/0.mp4"][:2]
    videos["v/1.mp4"][8] = videos["v/1.mp4"][2]  # within a video nothing is a copy
    with open_features(made(tmp_path / "out.h5", videos)) as features:
        index = open_index(features) if how == "faiss" else None
        found = near_copies(features, index=index)
        assert [(pair.one, pair.other) for pair in found] == [
            (Moment("v/0.mp4", 0.0, 3.0), Moment("v/1.mp4", 18.0, 21.0)),
            (Moment("v/0.mp4", 4.0, 13.0), Moment("v/2.mp4", 5.0, 14.0)),
        ]
        assert found[0].score == 1.0
        assert 0.99 < found[1].score < 1.0
        assert len(near_copies(features, threshold=0.99999, index=index)) == 1
        assert len(near_copies(features, within="v/1*", index=index)) == 1
        monkeypatch.setattr(search, "MOST_PAIRS", 8)
        with pytest.raises(UsageError, match=r"more than 8 pairs of clips agree to 0.95; raise --threshold"):
            near_copies(features, index=index)


class Page(HTMLParser):
    """A page's elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "onerror")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_its_pictures_and_names_are_text(tmp_path: Path) -> None:
    evil, other = '<script>alert(1)<|script> "><img src=x onerror=alert(1)>.mkv', "{{ 7 * 7 }}.mkv"
    rows = drawn(6, 4)["v/0.mp4"]
    for name in (evil, other):
        (tmp_path / name).write_bytes((VIDEOS / "shapes.mkv").read_bytes())
    with open_features(made(tmp_path / "out.h5", {evil: rows, other: rows, "gone.mp4": rows})) as features:
        query = find_query(features, other)
        pages = [
            page_of_results(features, query, nearest(features, query), tmp_path),
            page_of_copies(features, near_copies(features), tmp_path),
        ]
    for page in map(Page, pages):
        assert "script" not in page.tags
        assert evil in page.text
        assert other in page.text
        assert "the video is not there" in page.text
        assert page.tags.count("img") >= 2
        assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "default-src 'none'" in pages[0]


def test_a_thumbnail_is_the_frame_on_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "12", "qmin": "1", "qmax": "1"})
        stream.width, stream.height = 640, 320
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((320, 640, 3), 20 + 4 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    moments = {0.0: 0, 0.3: 3, 0.55: 5, 0.56: 5, 3.05: 30, 4.0: 40, 99.0: 49}
    for ahead in (0.2, 1.0, 5.0):  # by seeking, and by decoding on
        monkeypatch.setattr(pictures, "AHEAD", ahead)
        made_ = thumbnails(path, list(moments))
        assert made_ == [thumbnail(path, seconds) for seconds in moments]
        for uri, number in zip(made_, moments.values(), strict=True):
            with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
                assert (picture.format, picture.size) == ("JPEG", (320, 160))
                assert np.asarray(picture).mean() == pytest.approx(20 + 4 * number, abs=1.9), (ahead, number)
    assert thumbnail(tmp_path / "none.mp4", 1) is None
    (tmp_path / "text.mp4").write_text("no video")
    assert thumbnail(tmp_path / "text.mp4", 1) is None


def scenes(*lengths: int, seed: int = 0, noise: float = 0.1) -> NDArray[np.float32]:
    chance = np.random.default_rng(seed)
    return np.concatenate(
        [chance.standard_normal(64) + noise * chance.standard_normal((length, 64)) for length in lengths]
    ).astype(np.float32)


def test_segments_begin_where_scenes_do() -> None:
    assert boundaries(self_similarity(scenes(30, 12, 25, 9))) == [30, 42, 67]
    assert boundaries(self_similarity(scenes(2, 3))) == [2]
    assert boundaries(self_similarity(scenes(40))) == []  # nothing changes but noise
    assert boundaries(self_similarity(scenes(1))) == []
    assert boundaries(self_similarity(np.zeros((5, 8)))) == []
    assert novelty(self_similarity(scenes(50, 50)))[50] > 0.8
    assert self_similarity(scenes(5000, 5000)).shape == (similarity.SHOWN, similarity.SHOWN)
    assert boundaries(self_similarity(scenes(4990, 5010))) == [similarity.SHOWN // 2 - 1]


@pytest.mark.parametrize("clips", [1, 2, 60, 1500])
def test_plot_draws_a_picture(tmp_path: Path, clips: int) -> None:
    name = "$a_b$\n<x>日本.mp4"
    half = clips // 2
    rows = scenes(*([half, clips - half] if half else [clips]))
    with open_features(made(tmp_path / "out.h5", {name: rows})) as features:
        starts = plot_similarity(features, name, tmp_path / "x.png", dpi=100)
    assert starts == ([pytest.approx(half + 0.5, abs=1)] if half else [])
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (700, 740)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "x.png"]


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
    said = json.loads(done.stdout)
    best = said["results"][0]
    assert best["run"]["video"] == "astronaut-pan.mp4"
    assert best["score"] == 1.0  # the same weights, clips and pixels
    with open_features(extracted) as features:
        times = features["astronaut-pan.mp4"].times[:]
        assert [(moment["start"], moment["end"]) for moment in said["query"]] == [tuple(row) for row in times]
    clip = run("vswin", "search", extracted, f"{path}@1.5", "--weights", small_weights)
    assert clip.returncode == 0, clip.stderr
    assert re.match(r"video +seconds +best clip +cosine\nastronaut-pan.mp4 .* 1\.0000\n", clip.stdout)
    unknown = run("vswin", "search", extracted, path)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "a video is compared by the weights of" in unknown.stderr
    assert "name their file by --weights" in unknown.stderr
    other = run("vswin", "search", extracted, path, "--weights", "nano")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "was made with small.safetensors of sha256" in other.stderr
    text = run("vswin", "search", extracted, ROOT / "README.md", "--weights", small_weights)
    assert (text.returncode, "cannot be searched for: VideoUnreadable" in text.stderr) == (2, True)


def test_the_commands(extracted: Path, run: Run, tmp_path: Path) -> None:
    done = run("vswin", "search", extracted, "shapes.mkv@1", "-k", 2, "--html", tmp_path / "x.html")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "data:image/jpeg;base64," in (tmp_path / "x.html").read_text()
    copies = run("vswin", "search", extracted, "--duplicates", "--threshold", 0, "-k", 1, "--json")
    said = json.loads(copies.stdout)
    assert said["threshold"] == 0
    assert len(said["duplicates"]) == 1 <= said["found"]
    assert f"[default: {search.THRESHOLD}]" in run("vswin", "search", "--help").stdout
    drawn_ = run("vswin", "plot", extracted, "shapes.mkv", "-o", tmp_path / "x.png")
    assert drawn_.returncode == 0, drawn_.stderr
    assert drawn_.stdout.startswith(f"{tmp_path / 'x.png'}: ")


def test_errors_are_one_line(extracted: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(extracted) as file:
        file.copy("videos_table", (copy := h5py.File(tmp_path / "no.h5", "w")))
        copy.attrs.update(file.attrs)
        copy["clips/video"] = file["clips/video"][:]
        copy.close()
    cases: list[tuple[list[object], str]] = [
        (["search", extracted, "nothing.mp4"], "neither a video of"),
        (["search", extracted, "shapes.mkv@99"], "second 99 is not in shapes.mkv"),
        (["search", tmp_path / "no.h5", "shapes.mkv"], "has no embedding"),
        (["search", tmp_path / "none.h5", "shapes.mkv"], "no such file"),
        (["plot", extracted, "nothing.mp4", "-o", tmp_path / "x.png"], "has no video 'nothing.mp4'"),
        (["plot", extracted, "shapes.mkv", "-o", tmp_path / "x.xyz"], "must end in a format"),
        (["plot", extracted, "shapes.mkv", "-o", tmp_path / "y" / "x.png"], "no directory"),
    ]
    missing = {
        "faiss": (["search", extracted, "shapes.mkv", "--index", "faiss"], "pip install 'vswin-extract[search]'"),
        "PIL": (["search", extracted, "shapes.mkv", "--html", tmp_path / "x.html"], "'vswin-extract[report]'"),
        "jinja2": (["search", extracted, "shapes.mkv", "--html", tmp_path / "x.html"], "'vswin-extract[report]'"),
        "matplotlib": (["plot", extracted, "shapes.mkv", "-o", tmp_path / "x.png"], "'vswin-extract[report]'"),
    }
    for arguments, why in cases:
        done = run("vswin", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), arguments
        assert why in done.stderr
    for module, (arguments, why) in missing.items():
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
                patch.delitem(sys.modules, name)
            patch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])
            done = run("vswin", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), module
        assert why in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["no.h5"]


class Absent:
    """An environment without a module."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.module)
