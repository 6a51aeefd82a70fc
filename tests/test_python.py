"""What Python programs get: stages by any name, features of videos in memory, outputs that are searched and tables."""

import asyncio
import gc
import inspect
import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numbered
import numpy as np
import pytest
import torch
from absent import without
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import make_embedded, random_embeddings
from torch.utils.data import DataLoader, TensorDataset

import vswin_extract
from vswin_extract import VideoInMemory, VideoOptions, VswinError, backbone, errors, extract, load_model, open_features
from vswin_extract.errors import UsageError, VideoError, VideoMissing
from vswin_extract.job.job import Job
from vswin_extract.loading.sequences import Feature
from vswin_extract.network.variants import parse_stages
from vswin_extract.python.model import Model


@settings(max_examples=30)
@given(st.lists(st.integers(1, 4)), st.sampled_from(["{}", "stage{}", "Stage {}", " {}", "stage{},"]))
def test_stages_have_any_usual_name(stages: list[int], form: str) -> None:
    wanted = tuple(sorted(set(stages)))
    words = [form.format(stage) for stage in stages]
    assert parse_stages(stages) == parse_stages(np.array(stages, int)) == parse_stages(words) == wanted
    assert parse_stages(iter(words)) == wanted
    for stage, word in zip(stages, words, strict=True):
        assert parse_stages(stage) == parse_stages(word) == (stage,)
    if stages:
        assert parse_stages(",".join(word.rstrip(",") for word in words)) == wanted
    assert parse_stages("all") == parse_stages(["all", 2]) == (1, 2, 3, 4)


@pytest.mark.parametrize("wrong", [0, 5, -1, 4.0, True, "", "5", "stage5", "3;4", "stages", None, [4, None], [[4]]])
def test_what_is_no_stage(wrong: object) -> None:
    with pytest.raises(UsageError, match="stages are 1 to 4"):
        parse_stages(wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long video, then short ones, one of them is none, one ends too early and one has the name of another."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "z").mkdir()
    for name, frames in (("a-long.mp4", 60), ("b.mp4", 20), ("d.mkv", 40), ("z/b.mp4", 3)):
        numbered.write(folder / name, frames)
    (folder / "c.mp4").write_bytes(b"no video")
    cut = (folder / "d.mkv").read_bytes()
    (folder / "d.mkv").write_bytes(cut[: len(cut) * 2 // 3])
    return folder


@pytest.fixture(scope="module")
def model(small_weights: Path) -> Model:
    return load_model(small_weights, device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    if not children() <= before:
        gc.collect()
    assert children() <= before


def children() -> set[str]:
    """The processes that this one has started and that have not ended."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.mark.parametrize(
    "options",
    [
        VideoOptions(stages="stage4", stride=12, workers=1, partial="fail", batch_size=2),
        VideoOptions(stages=[3, 4], pool="all", fps=9.5, logits=True, align="center", dtype="float16", workers=1),
    ],
    ids=str,
)
def test_features_in_memory_are_those_of_a_run(
    options: VideoOptions, model: Model, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    extract(videos, tmp_path / "out.h5", weights=small_weights, device="cpu", precision="fp32", **options)
    with open_features(tmp_path / "out.h5") as features:
        found = list(model.stream(videos, on_error="yield", **options))
        here = [video for video in found if isinstance(video, VideoInMemory)]
        assert [video.id for video in here] == list(features)
        for video in here:
            there = features[video.id]
            assert (len(video), video.names, video.stages.keys()) == (len(there), there.names, there.stages.keys())
            for name in (*video.names, "frames", "times", "valid"):
                mine, written = getattr(video, name), getattr(there, name)
                assert (mine.dtype, mine.shape) == (written.dtype, written.shape)
                np.testing.assert_array_equal(mine, written[:])
            for stage, rows in video.stages.items():
                np.testing.assert_array_equal(rows, there.stages[stage][:])
            for facts in (mine := video.info, written := there.info):
                del facts["first_clip"]
            assert mine == written
        failed = {Path(failure["path"]).name: failure for failure in features.failures}
        assert "c.mp4" in failed
        for error in (video for video in found if isinstance(video, VideoError)):
            name = next(name for name in failed if f"{name}: " in str(error))
            assert type(error).__name__ == failed[name]["error"]
            assert failed.pop(name)["message"] in str(error)
        assert not failed


def test_a_video_in_memory_is_used_as_one_of_an_output(model: Model, videos: Path) -> None:
    video = model.video(videos / "b.mp4", stages=4, stride=6)
    assert repr(video) == "<VideoInMemory 'b.mp4', 2 clips of embedding, stage4>"
    assert video.output is None
    assert (video.at(0.0), video.rows, video.embedding.mean(0).shape) == (0, slice(0, 2), (128,))
    assert {"embedding", "stage4", "times", "stages"} <= set(dir(video))
    tensors = video.to_torch()
    assert tensors["stage4"].equal(video.stage4.to_torch())
    assert tensors.keys() == {"embedding", "stage4", "frames", "times", "valid"}
    again = pickle.loads(pickle.dumps(video))
    np.testing.assert_array_equal(again.stage4, video.stage4)
    values, times = Feature("stage4", length=5).read(video)
    assert (values.shape, times.shape) == ((5, 128), (5, 2))
    with pytest.raises(AttributeError, match="stage3"):
        _ = video.stage3
    with pytest.raises(IndexError):
        video.at(99)


def test_videos_come_in_the_order_in_which_they_are_given(model: Model, videos: Path) -> None:
    """Although short videos are done before a long one; an iterator is not read far ahead, and ids may be the same."""
    names = ["a-long.mp4", "b.mp4", "z/b.mp4", "b.mp4", "a-long.mp4", *["z/b.mp4"] * 30]
    taken = 0

    def paths() -> Iterator[Path]:
        nonlocal taken
        for name in names:
            taken += 1
            yield videos / name

    with model.stream(paths(), stride=32, workers=2) as stream:
        found = [next(stream) for _ in range(5)]
        assert taken < 20
        found += stream
    assert [video.id for video in found] == [Path(name).name for name in names]
    assert [video.info["path"] for video in found] == [str(videos / name) for name in names]


def test_what_fails_is_raised_when_its_turn_comes(model: Model, videos: Path, tmp_path: Path) -> None:
    paths = [videos / "b.mp4", videos / "nowhere.mp4", videos / "b.mp4"]
    stream = model.stream(paths, workers=1)
    assert next(stream).id == "b.mp4"
    with pytest.raises(VideoMissing, match=r"nowhere\.mp4"):
        next(stream)
    assert list(stream) == []
    for wrong in (videos, tmp_path, ""):
        with pytest.raises(UsageError):
            model.video(wrong)
    assert list(model.stream([])) == []


@pytest.mark.parametrize(
    "options",
    [{"stages": 5}, {"stride": 0}, {"pool": "mean"}, {"on_error": "skip"}, {"embedding": False}, {"fps": "x"}],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, object], model: Model, videos: Path) -> None:
    with pytest.raises(UsageError):
        model.stream(videos, **options)  # type: ignore[call-overload]


def test_options_that_do_not_exist(model: Model, videos: Path) -> None:
    for wrong in ("sride", "output", "overwrite", "device"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'.* stride"):
            model.video(videos / "b.mp4", **{wrong: 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean stages"):
        model.video(videos / "b.mp4", stage=4)  # type: ignore[call-arg]


def test_decoder_processes_end_with_their_stream(model: Model, videos: Path) -> None:
    before = children()
    never = model.stream(videos)
    assert children() == before  # they start when the first video is wanted
    never.close()
    for end in ("closed", "not used"):
        stream = model.stream([videos / "b.mp4"] * 30, workers=1)
        next(stream)
        assert len(children() - before) == 1
        if end == "closed":
            with stream:
                pass
            assert list(stream) == []
        else:
            del stream
            gc.collect()
        assert children() == before, end

    def interrupting() -> Iterator[Path]:
        yield from [videos / "b.mp4"] * 6
        assert len(children() - before) == 1
        raise KeyboardInterrupt  # inside of `next`

    with pytest.raises(KeyboardInterrupt):
        list(model.stream(interrupting(), workers=1))
    assert children() == before


def test_videos_in_an_event_loop_and_beside_a_data_loader(model: Model, videos: Path) -> None:
    """As in a notebook, whose cells run in an event loop; the workers of a DataLoader are forked meanwhile."""

    async def cell() -> list[int]:
        one = await asyncio.to_thread(model.video, videos / "b.mp4", stride=6)
        with model.stream([videos / "b.mp4"] * 12, stride=6, workers=1) as stream:
            lengths = [len(one), len(next(stream))]
            batches = DataLoader(TensorDataset(torch.arange(3)), batch_size=1, num_workers=1)
            assert [int(batch) for [batch] in batches] == [0, 1, 2]
            return lengths + [len(video) for video in stream]

    assert asyncio.run(cell()) == [2] * 13


def test_the_model_takes_what_a_backbone_and_a_job_take() -> None:
    public, inner = (inspect.signature(load) for load in (load_model, backbone.load_model))
    assert list(public.parameters) == [name for name in inner.parameters if name != "kind"]
    of_files = {"videos", "output", "compression", "layout", "storage", "shard", "overwrite"}
    of_models = {"weights", "variant", "ema", "device", "precision", "compile", "offline"}
    of_clusters = {"engine", "ray_address", "actors"}
    left = {field.name for field in fields(Job)} - of_files - of_models - of_clusters
    assert left == VideoOptions.__annotations__.keys(), "a new option of Job belongs to VideoOptions, or to a set above"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of three videos, with random embeddings."""
    return make_embedded(tmp_path_factory.mktemp("output") / "out.h5", random_embeddings(0, 3, 4, 5))


def test_an_open_output_is_searched(output: Path) -> None:
    with open_features(output) as features:
        ids = list(features)
        rows = features[ids[1]].embedding[:]
        of_video = features.nearest(features[ids[1]], top=3)
        of_rows, of_one, of_list = (features.nearest(given, top=3) for given in (rows, rows[2], rows[2].tolist()))
        assert (of_video[0].best.video, of_video[0].score) == (ids[1], 1.0)
        assert [result.best for result in of_rows] == [result.best for result in of_video]
        assert [result.best for result in of_one] == [result.best for result in of_list]
        assert {result.like.video for result in of_one} == {"row 0"}
        assert features.nearest(torch.from_numpy(rows), top=3)[0].score == 1.0
        assert {result.best.video for result in features.nearest(rows, within=ids[0])} == {ids[0]}
        assert ids[1] not in {result.best.video for result in features.search(ids[1], same_video=False)}
        assert pickle.loads(pickle.dumps(features)).nearest(rows, top=3)[0].score == 1.0
        wrongs: list[Any] = [rows[:, :-1], rows[None], rows[:0], [], "text", np.full_like(rows, np.nan)]
        for wrong in wrongs:
            with pytest.raises(UsageError):
                features.nearest(wrong)
        for text in ("nowhere.mp4", f"{ids[0]}@1e9"):
            with pytest.raises(UsageError):
                features.search(text)


def test_an_unknown_id_names_the_one_that_was_meant(output: Path) -> None:
    with open_features(output) as features:
        known = next(iter(features))
        for wrong, meant in ((Path(known).stem, True), ("nothing like it", False)):
            with pytest.raises(KeyError) as raised:
                features[wrong]
            for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
                assert (repr(known) in str(error), error.args) == (meant, (wrong,))
            assert wrong not in features
            assert features.get(wrong) is None


def test_an_open_output_is_a_table(output: Path) -> None:
    with open_features(output) as features:
        table = features.to_pandas(["embedding"])
        assert list(features.to_pandas().columns) == ["id", "row", "start", "end", "first_frame", "end_frame", "valid"]
        assert list(features.to_pandas("embedding").columns) == list(table.columns)
        for video_id, video in features.items():
            mine = table[table["id"] == video_id]
            assert mine["row"].tolist() == list(range(len(video)))
            np.testing.assert_array_equal(mine[["start", "end"]], video.times[:])
            np.testing.assert_array_equal(mine[["first_frame", "end_frame"]], video.frames[:])
            np.testing.assert_array_equal(mine["valid"], video.valid[:])
            np.testing.assert_array_equal(np.stack(mine["embedding"]), video.embedding[:])
        with pytest.raises(UsageError, match="stage2"):
            features.to_pandas(["stage2"])
        with without("pandas"), pytest.raises(UsageError, match=r"vswin-extract\[pandas\]"):
            features.to_pandas()


def test_every_public_name_is_there() -> None:
    assert set(vswin_extract.__all__) <= set(dir(vswin_extract))
    for name in vswin_extract.__all__:
        assert getattr(vswin_extract, name).__doc__, name
    assert vswin_extract.VswinError is VswinError is errors.VswinError
