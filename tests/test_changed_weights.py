"""A file of weights that is saved over in place, truncated or removed by another process while a run goes on."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numbered
import pytest
import torch
from conftest import ROOT, Run, script

from vswin_extract import load_model, open_features
from vswin_extract.errors import WeightsError
from vswin_extract.job.events import Notice, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.pools.pool import WorkerPool, make_pool
from vswin_extract.pools.processes import ProcessPool
from vswin_extract.run.run import run as run_job
from vswin_extract.video.videos import find_videos
from vswin_extract.weights.checkpoints import save_checkpoint
from vswin_extract.weights.load import read_checkpoint

MOST = 2000
"""Bytes that are left of a truncated file: less than its first page."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        numbered.write(folder / f"{number}.mp4", 60, first=60 * number)
    return folder


@pytest.fixture(params=[".safetensors", pytest.param(".pth", marks=pytest.mark.slow)])
def weights(request: pytest.FixtureRequest, small_weights: Path, tmp_path: Path) -> Path:
    """Weights of a suffix, and beside them NEW, others in a file of the same length."""
    read = read_checkpoint(small_weights)
    assert read.recipe is not None
    state = read.state
    for name in ("w", "NEW"):
        path = tmp_path / f"{name}{request.param}"
        if request.param == ".pth":
            torch.save({"state_dict": state}, path)
        else:
            save_checkpoint(path, state, read.variant, read.recipe, read.classes)
        state = {name: value + 0.1 for name, value in state.items()}
    return tmp_path / f"w{request.param}"


def save_over(weights: Path) -> None:
    """Write other weights into the same file, in another process."""
    subprocess.run(["cp", weights.with_stem("NEW"), weights], check=True)


def truncate(weights: Path) -> None:
    subprocess.run(["truncate", "-s", str(MOST), weights], check=True)


def make_job(videos: Path, weights: Path, out: Path) -> Job:
    found = tuple(find_videos([videos]))
    return Job(found, out, weights=str(weights), stride=6, clip_len=8, size=32, resize=32, precision="fp32")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extract(job: Job, spoil: Callable[[], None], pool: Callable[[Job], WorkerPool] = make_pool) -> list[str]:
    """Run a job, spoil its weights once the first video is done, and return the notices."""
    notices, left = [], [spoil]
    for event in run_job(job, make_pool=pool):
        if isinstance(event, VideoDone) and left:
            left.pop()()
        if isinstance(event, Notice):
            notices.append(event.text)
    return notices


def features_of(out: Path) -> dict[str, bytes]:
    with open_features(out) as features:
        return {name: features[name].embedding[:].tobytes() for name in features}


@pytest.mark.parametrize("spoil", [save_over, truncate])
def test_a_model_does_not_change_with_its_file(weights: Path, spoil: Callable[[Path], None]) -> None:
    clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    before, model = sha256_of(weights), load_model(weights, device="cpu", precision="fp32")
    assert model.file is not None
    os.utime(weights)  # another time, but the same bytes
    assert model.file.describe_change() == ""
    features = model(clips, logits=True)
    spoil(weights)
    again = model(clips, logits=True)
    assert features.embedding is not None
    assert again.embedding is not None
    assert torch.equal(features.embedding, again.embedding)
    assert model.sha256 == before
    assert [word in model.file.describe_change() for word in (before, sha256_of(weights), str(weights))] == [True] * 3
    weights.unlink()
    assert "No such file" in model.file.describe_change()


@pytest.mark.slow
def test_weights_that_are_saved_over_change_no_features(videos: Path, weights: Path, tmp_path: Path) -> None:
    job = make_job(videos, weights, tmp_path / "a.h5")
    assert extract(job, lambda: os.utime(weights)) == []  # another time, but the same bytes
    before, expected = sha256_of(weights), features_of(job.output)
    job = make_job(videos, weights, tmp_path / "b.h5")
    notices = extract(job, lambda: save_over(weights))
    assert sha256_of(weights) != before
    assert [(before in notice, sha256_of(weights) in notice, str(weights) in notice) for notice in notices] == [
        (True, True, True)
    ]
    with open_features(job.output) as features:
        assert features.info["weights_sha256"] == before
    assert features_of(job.output) == expected


@pytest.mark.slow
def test_weights_that_are_truncated_do_not_end_the_run(
    videos: Path, weights: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out, before = tmp_path / "out.h5", sha256_of(weights)
    words = [script("vswin-extract"), videos, out, "--weights", weights, "--device", "cpu:2"]
    words += ["--clip-len", "8", "--size", "32", "--stride", "1"]
    with subprocess.Popen(
        [str(word) for word in words], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out.h5.parts/*/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        truncate(weights)
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors.count(str(weights)) == errors.count(before) == 1  # of two workers
    with open_features(out) as features:
        assert features.info["weights_sha256"] == before


@pytest.mark.slow
def test_a_worker_that_starts_again_must_read_the_same_weights(videos: Path, weights: Path, tmp_path: Path) -> None:
    job = make_job(videos, weights, tmp_path / "out.h5")
    before = sha256_of(weights)
    pool = ProcessPool(job, ["cpu"])

    def spoil() -> None:
        save_over(weights)
        os.kill(pool.children[0].pid, signal.SIGKILL)

    with pytest.raises(WeightsError, match=before) as caught:
        extract(job, spoil, lambda _: pool)
    assert sha256_of(weights) in str(caught.value)
    assert not job.output.exists()


def test_weights_that_are_written_while_they_are_read_are_refused(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as are there are read, and then the file is longer."""
    fstat = os.fstat
    calls: list[int] = []

    def later(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            weights.write_bytes(weights.read_bytes() + b"more")
        return fstat(descriptor)

    monkeypatch.setattr("vswin_extract.weights.load.os.fstat", later)
    with pytest.raises(WeightsError, match=r"while it was read") as caught:
        read_checkpoint(weights)
    assert str(weights) in str(caught.value)


def test_what_is_verified_is_what_is_hashed(run: Run, weights: Path) -> None:
    done = run("vswin", "weights", "verify", weights)
    assert sha256_of(weights) in done.stdout.replace("\n", "").replace(" ", "")
    truncate(weights)
    done = run("vswin", "weights", "verify", weights)
    assert (done.returncode, str(weights) in done.stdout.replace("\n", "")) == (4, True)
