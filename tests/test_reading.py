"""Reading an output: rows by time, only the rows that are indexed, in any process; and as a dataset of PyTorch."""

import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import MAP, make_output
from torch.utils.data import DataLoader

import vswin_extract
from vswin_extract.errors import UsageError
from vswin_extract.journal.merge import merge
from vswin_extract.loading.sequences import Feature, resample
from vswin_extract.store.features import linked_files, open_features
from vswin_extract.video.sampling import Sampling

VIDEOS = [("a/b.mp4", 100, 25.0), ("a/c.mp4", 40, 20.0), ("d.mp4", 9, 30.0)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make_output(tmp_path / "out.h5", VIDEOS, Sampling(16, 1, stride=8))


def test_rows_by_time(output: Path) -> None:
    with open_features(output) as features:
        video = features["a/b.mp4"]  # clips of 0.64 s, one each 0.32 s
        assert [video.at(seconds) for seconds in (0, 0.31, 0.33, 0.47, 0.49, 0.63, 0.65)] == [0, 0, 0, 0, 1, 1, 1]
        assert video.at(0.48) == 0  # equally near to both centres
        assert video.at(3.99) == len(video) - 1
        for seconds in (-0.01, 4.0, 1e9, float("nan")):
            with pytest.raises(IndexError, match=r"'a/b.mp4'.*\[0.000, 4.000\) s"):
                video.at(seconds)


def test_no_row_covers_a_gap(tmp_path: Path) -> None:
    with open_features(make_output(tmp_path / "out.h5", VIDEOS, Sampling(4, 1, stride=25))) as features:
        assert features["a/b.mp4"].at(1.1) == 1
        with pytest.raises(IndexError, match=r"0\.5 s"):
            features["a/b.mp4"].at(0.5)


def test_tensors(output: Path) -> None:
    features = open_features(output)
    tensors = features["a/c.mp4"].to_torch()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "embedding": (4, MAP[-1]),
        "stage4": (4, *MAP),
        "frames": (4, 2),
        "times": (4, 2),
        "valid": (4,),
    }
    assert (tensors["stage4"].dtype, tensors["times"].dtype) == (torch.float32, torch.float64)
    features.close()
    assert torch.allclose(tensors["embedding"], tensors["stage4"].mean((1, 2, 3)), atol=1e-6)  # in memory of their own


def test_only_indexed_rows_are_read(tmp_path: Path) -> None:
    """Every chunk but one is damaged, so reading another one fails."""
    path = make_output(tmp_path / "out.h5", VIDEOS, Sampling(16, 1, stride=8), compression="gzip")
    with h5py.File(path, "r+") as file:  # rows this small share a chunk
        values = file["stage4"][:]
        del file["stage4"]
        dataset = file.create_dataset("stage4", data=values, chunks=(1, *MAP), compression="gzip")
        file.flush()
        chunks = [dataset.id.get_chunk_info(k) for k in range(dataset.id.get_num_chunks())]
    kept = 13  # row 1 of the second video, whose first is 12
    with open(path, "r+b") as raw:
        for chunk in chunks:
            if chunk.chunk_offset[0] != kept:
                raw.seek(chunk.byte_offset)
                raw.write(b"\xff" * chunk.size)
    with open_features(path) as features:
        video = features["a/c.mp4"]
        assert video.stage4.shape == (4, *MAP)
        assert np.allclose(video.stage4[1].mean((0, 1, 2)), video.embedding[1], atol=1e-6)
        assert video.stage4[-3:-2, 0].shape == (1, *MAP[1:])
        with pytest.raises(OSError):
            video.stage4[2]


def test_an_index_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(16, 1, stride=8)
    parts = [make_output(tmp_path / f"{k}.h5", VIDEOS[k : k + 1], sampling) for k in range(3)]
    merge(tmp_path / "index.h5", parts, layout="linked")
    assert len(linked_files(tmp_path / "index.h5")) == 3
    monkeypatch.chdir(tmp_path)
    with open_features("index.h5") as features:
        again = pickle.loads(pickle.dumps(features["a/c.mp4"]))
        monkeypatch.chdir("/")
        assert again.at(0.7) == features["a/c.mp4"].at(0.7) == 1
        assert torch.equal(again.stage4.to_torch(), open_features(parts[1])["a/c.mp4"].stage4.to_torch())
    dataset = vswin_extract.FeatureDataset(tmp_path / "index.h5", length=5)
    assert [item["features"].shape for item in dataset] == [(5, MAP[-1])] * 3


def test_pickles_of_rows_open_the_file_again(output: Path) -> None:
    features = open_features(output)
    rows = pickle.loads(pickle.dumps(features["a/c.mp4"].embedding))
    expected = features["a/c.mp4"].embedding[1:3]
    features.close()
    assert np.array_equal(rows[1:3], expected)


def test_forked_processes_have_files_of_their_own(output: Path) -> None:
    features = open_features(output)
    video, parents = features["a/b.mp4"], features.file.id.get_vfd_handle()
    expected = video.stage4[:]

    def read(queue: "multiprocessing.SimpleQueue[tuple[bool, bool]]") -> None:
        right = all(np.array_equal(video.stage4[k], expected[k]) for k in list(range(len(video))) * 20)
        assert features.file is features.file
        queue.put((right, features._process == os.getpid()))

    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    children = [fork.Process(target=read, args=(queue,)) for _ in range(3)]
    for child in children:
        child.start()
    assert all(np.array_equal(video.stage4[k], expected[k]) for k in list(range(len(video))) * 20)
    assert [queue.get() for _ in children] == [(True, True)] * 3
    for child in children:
        child.join()
    assert features.file.id.get_vfd_handle() == parents


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_dataset_in_workers(output: Path, method: str, workers: int) -> None:
    dataset = vswin_extract.FeatureDataset(output, "stage4", l2=True)
    alone = [dataset[k] for k in range(3)]  # the parent has read before it forks
    loader = DataLoader(
        dataset, batch_size=2, num_workers=workers, collate_fn=vswin_extract.collate, multiprocessing_context=method
    )
    batches = list(loader)
    assert [batch["id"] for batch in batches] == [["a/b.mp4", "a/c.mp4"], ["d.mp4"]]
    first = batches[0]
    assert first["features"].shape == (2, MAP[-1], 12)
    assert first["mask"].shape == (2, 1, 12)
    assert first["mask"].sum((1, 2)).tolist() == [12, 4]
    for k, item in enumerate(alone[:2]):
        count = len(item["features"])
        assert torch.equal(first["features"][k, :, :count].T, item["features"])
        assert torch.equal(first["times"][k, :count], item["times"])
        assert not first["features"][k, :, count:].any()


def test_dataset_items(output: Path) -> None:
    with open_features(output) as features:
        video = features["a/c.mp4"]
        item = vswin_extract.FeatureDataset(output, "stage4", ids=["a/c.mp4"])[0]
        assert (item["id"], item["features"].dtype, item["times"].dtype) == ("a/c.mp4", torch.float32, torch.float64)
        assert np.allclose(item["features"], video.embedding[:], atol=1e-6)
        assert np.array_equal(item["times"], video.times[:])
        assert item["mask"].all()
        space = vswin_extract.FeatureDataset(output, "stage4", pool="space", ids=["a/c.mp4"])
        assert space.shape == (MAP[0], MAP[-1])
        assert np.allclose(space[0]["features"], video.stage4[:].mean((2, 3)), atol=1e-6)
    padded = vswin_extract.FeatureDataset(output, length=6, fit="pad")
    assert len(padded) == 3
    assert [int(padded[k]["mask"].sum()) for k in range(3)] == [6, 4, 1]
    assert [tuple(padded[k]["features"].shape) for k in range(3)] == [(6, MAP[-1])] * 3
    assert next(iter(DataLoader(padded, batch_size=3)))["features"].shape == (3, 6, MAP[-1])
    for arguments, message in (
        ({"name": "stage3"}, "has no stage3; it has embedding, stage4"),
        ({"pool": "space"}, "averaged over time too"),
        ({"length": 0}, "1 or more"),
        ({"fit": "crop"}, "resample or pad"),
        ({"ids": ["a/c.mp4", "nowhere"]}, "lacks 1 video of `ids`: nowhere"),
    ):
        with pytest.raises(UsageError, match=message):
            vswin_extract.FeatureDataset(output, **arguments)
    with pytest.raises(UsageError, match="pool all"):
        vswin_extract.collate([space[0]])


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 100), st.floats(0.1, 10))
def test_resampling_keeps_times(count: int, length: int, begin: float, step: float) -> None:
    """Features that equal their own time stay so, except before the first centre and after the last."""
    times = begin + np.stack([np.arange(count), np.arange(count) + 1.0], 1) * step
    values, made = resample(
        (times.mean(1, keepdims=True)).astype(np.float32), times, begin, begin + count * step, length
    )
    assert values.shape == (length, 1)
    assert np.allclose(made[1:, 0], made[:-1, 1])
    assert np.allclose([made[0, 0], made[-1, 1]], [begin, begin + count * step])
    wanted = np.clip(made.mean(1), times[0].mean(), times[-1].mean())
    assert np.allclose(values[:, 0], wanted, rtol=1e-5, atol=1e-4)


def test_resampling_to_the_same_number_of_rows_changes_nothing(output: Path) -> None:
    path = make_output(output.with_name("even.h5"), [("a.mp4", 64, 25.0)], Sampling(16, 1))
    with open_features(path) as features:
        values, times = Feature(length=4).read(features["a.mp4"])
        assert np.allclose(values, features["a.mp4"].embedding[:], atol=1e-6)
        assert np.allclose(times, features["a.mp4"].times[:])
