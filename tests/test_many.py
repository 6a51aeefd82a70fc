"""Several devices, shards and merging all give the file that a single run writes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numbered
import numpy as np
import pytest
from conftest import Run, script

from vswin_extract import open_features
from vswin_extract.checks.output import verify_output
from vswin_extract.job.events import Notice
from vswin_extract.job.job import Job
from vswin_extract.pools.pool import WorkerPool
from vswin_extract.pools.processes import ProcessPool
from vswin_extract.run.run import run as run_job
from vswin_extract.video.videos import find_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen short videos, a long one and an unreadable one, in two folders."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "b").mkdir()
    for number in range(16):
        numbered.write(folder / ("b" if number % 3 else "") / f"{number:02}.mp4", 40 + number, first=10 * number)
    numbered.write(folder / "b.mp4", 1500)
    (folder / "b" / "bad.mp4").write_text("no video")
    return folder


def expect_equal(one: Path, other: Path) -> None:
    """Assert the same videos in the same order, the same clips, and the same features to 1e-6."""
    assert verify_output(other).problems == ()
    with h5py.File(one) as a, h5py.File(other) as b:
        for name in ("id", "clips", "frames", "fps", "duration", "status", "message", "width", "size"):
            assert a["videos_table"][name][:].tolist() == b["videos_table"][name][:].tolist(), name
        assert a["failures/id"][:].tolist() == b["failures/id"][:].tolist()
        for name in ("clips/frames", "clips/times", "clips/valid", "clips/video"):
            assert np.array_equal(a[name][:], b[name][:]), name
        for name in ("embedding", "stage4"):
            assert np.linalg.norm(a[name][:] - b[name][:]) <= 1e-6 * np.linalg.norm(a[name][:])


@pytest.mark.slow
def test_two_workers_write_what_one_does(
    run: Run, videos: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    done = run("vswin-extract", videos, tmp_path / "out.h5", *options, "--device", "cpu:2")
    assert done.returncode == 3, done.stderr
    assert "on cpu x 2" in done.stderr
    expect_equal(single, tmp_path / "out.h5")
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "out.h5.toml"]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_devices_order_and_batches_do_not_change_a_bit(
    run: Run, videos: Path, options: list[str], precision: str, tmp_path: Path
) -> None:
    """On CPUs. With several workers, timing decides which clips are computed together, and so does the order here."""
    paths = sorted(videos.glob("[01]*.mp4"))
    shared = [*options, "--stage", "1", "--pool", "space", "--logits", "--precision", precision]
    names = ("embedding", "logits", "stage1", "stage4")
    found = []
    for number, (files, device, batch) in enumerate([(paths, "cpu", 1), (paths[::-1], "cpu:2", 3)]):
        out = tmp_path / f"{number}.h5"
        done = run("vswin-extract", *files, out, *shared, "--device", device, "--batch-size", batch)
        assert done.returncode == 0, done.stderr
        with open_features(out) as features:
            found.append({(video, name): getattr(features[video], name)[:] for video in features for name in names})
    one, other = found
    assert len(one) == len(paths) * len(names)
    assert other.keys() == one.keys()
    for key, values in one.items():
        assert other[key].tobytes() == values.tobytes(), key


class TwoProcesses:
    """Makes the pool of a job: two worker processes. The test can reach it by `pool`."""

    pool: ProcessPool

    def __call__(self, job: Job) -> WorkerPool:
        self.pool = ProcessPool(job, ["cpu", "cpu"])
        return self.pool


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(
    videos: Path, options: list[str], single: Path, small_weights: Path, tmp_path: Path
) -> None:
    two_processes = TwoProcesses()
    job = Job(find_videos([videos]), tmp_path / "out.h5", str(small_weights), stages=(4,), stride=6, device="cpu:2")
    notices: list[str] = []
    done = 0
    for event in run_job(job, make_pool=two_processes):
        done += type(event).__name__ == "VideoDone"
        if done == 2 and not notices:
            os.kill(two_processes.pool.children[0].pid, signal.SIGKILL)
            done += 1
        if isinstance(event, Notice):
            notices.append(event.text)
    assert any("worker 0 (cpu) died" in text and "SIGKILL" in text for text in notices)
    expect_equal(single, tmp_path / "out.h5")


def test_a_worker_that_stops_answering_is_replaced(
    videos: Path, options: list[str], single: Path, small_weights: Path, tmp_path: Path
) -> None:
    two_processes = TwoProcesses()
    job = Job(find_videos([videos]), tmp_path / "out.h5", str(small_weights), stages=(4,), stride=6, timeout=5)
    notices: list[str] = []
    stopped = 0
    for event in run_job(job, make_pool=two_processes):
        finished = tmp_path.glob("out.h5.parts/shard-*/*.json")
        if not stopped and len({video.parent for video in finished}) == 2:  # the first clips may take a worker longer
            stopped = two_processes.pool.children[0].pid
            os.kill(stopped, signal.SIGSTOP)
        if isinstance(event, Notice):
            notices.append(event.text)
    assert [text for text in notices if "worker 0 (cpu) died" in text and "5 s" in text and "starting it again" in text]
    assert not Path(f"/proc/{stopped}").exists()  # it can write into the journal no more
    expect_equal(single, tmp_path / "out.h5")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cpu:2"])
def test_a_run_that_was_suspended_goes_on(
    environment: dict[str, str], videos: Path, options: list[str], single: Path, tmp_path: Path, device: str
) -> None:
    """As by Ctrl-Z and `fg`, for longer than the timeout: neither decoders nor workers are taken for stuck."""
    out, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    command = [script("vswin-extract"), str(videos), str(out), *options, "--device", device, "--timeout", "4"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list(parts.glob("shard-*/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    stderr = process.communicate()[1]
    assert process.returncode == 3, stderr  # one of them is no video
    assert "died" not in stderr
    expect_equal(single, out)


@pytest.mark.slow
def test_kill_9_of_the_whole_run_and_the_same_command(
    run: Run, environment: dict[str, str], videos: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    command = [script("vswin-extract"), str(videos), str(out), *options, "--device", "cpu:2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out.h5.parts"
    while len(list(parts.glob("shard-*/*.json"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = run("vswin-extract", videos, out, *options)  # another kind of run continues it
    assert again.returncode == 3, again.stderr
    assert "of them done before" in again.stderr
    expect_equal(single, out)


def test_shards_are_merged_to_what_a_single_run_writes(
    run: Run, environment: dict[str, str], videos: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    process = subprocess.Popen(
        [script("vswin-extract"), str(videos), str(out), *options, "--shard", "1/3"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((tmp_path / "out.h5.parts").glob("shard-*/*.json")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    for index in (0, 2):
        assert run("vswin-extract", videos, out, *options, "--shard", f"{index}/3").returncode in (0, 3)
    early = run("vswin", "merge", out)
    assert early.returncode == 2
    assert "--allow-missing" in early.stderr
    other = run("vswin-extract", videos, out, *options, "--stride", 8, "--shard", "1/3")
    assert (other.returncode, "sampling.stride was 6, is 8" in other.stderr) == (2, True)
    last = run("vswin-extract", videos, out, *options, "--shard", "1/3")
    assert last.returncode in (0, 3)
    assert "vswin merge" in last.stdout
    merged = run("vswin", "merge", out)
    assert merged.returncode == 3, merged.stderr  # one video failed
    expect_equal(single, out)
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "out.h5.toml"]
    late = run("vswin-extract", videos, out, *options, "--shard", "1/3")
    assert (late.returncode, "nothing to do" in late.stdout) == (0, True)


@pytest.mark.slow
def test_outputs_are_merged_in_the_order_of_ids(
    run: Run, videos: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    root, ids = videos, [video.id for video in find_videos([videos])]
    for name, mine in (("one", ids[::2]), ("two", ids[1::2])):
        manifest = tmp_path / f"{name}.csv"
        manifest.write_text("path,id\n" + "".join(f"{root / each},{each}\n" for each in reversed(mine)))
        done = run("vswin-extract", "--manifest", manifest, tmp_path / f"{name}.h5", *options)
        assert done.returncode in (0, 3), done.stderr
    parts = [tmp_path / "one.h5", tmp_path / "two.h5"]
    assert run("vswin", "merge", tmp_path / "out.h5", *parts).returncode == 3
    expect_equal(single, tmp_path / "out.h5")
    double = run("vswin", "merge", tmp_path / "d.h5", *parts, tmp_path / "one.h5")
    assert (double.returncode, "--on-duplicate first" in double.stderr) == (2, True)
    first = run("vswin", "merge", tmp_path / "d.h5", *parts, tmp_path / "one.h5", "--on-duplicate", "first")
    assert first.returncode == 3
    expect_equal(single, tmp_path / "d.h5")
    run("vswin-extract", videos / "00.mp4", tmp_path / "other.h5", *options, "--stride", 7)
    other = run("vswin", "merge", tmp_path / "e.h5", *parts, tmp_path / "other.h5")
    assert (other.returncode, "sampling.stride was 6, is 7" in other.stderr) == (2, True)
    with h5py.File(parts[1], "r+") as file:
        file["embedding"][3, 5] += 1
    damaged = run("vswin", "merge", tmp_path / "e.h5", *parts)
    assert (damaged.returncode, "/embedding has another sha256" in damaged.stderr) == (2, True)
    assert not (tmp_path / "e.h5").exists()
    assert not list(tmp_path.glob(".*"))


def test_clip_ranges_give_the_clips_of_the_whole_video(
    videos: Path, small_weights: Path, single: Path, tmp_path: Path
) -> None:
    """A long video is divided into clip ranges by the plan of the run."""
    with h5py.File(single) as file:
        whole = file["videos/b.mp4"]["embedding"].shape[0]
    job = Job(
        find_videos([videos / "b.mp4"]), tmp_path / "o.h5", str(small_weights), stages=(4,), stride=6, device="cpu:2"
    )
    directories = 0
    for _ in run_job(job):
        directories = max(directories, len(list((tmp_path / "o.h5.parts").glob("shard-*/*.rows*"))))
    assert directories >= 2  # clip ranges, since there is only one video
    with h5py.File(tmp_path / "o.h5") as file, h5py.File(single) as one:
        assert len(file["embedding"]) == whole
        for name in ("frames", "times", "valid"):
            assert np.array_equal(file["videos/b.mp4"][name][:], one["videos/b.mp4"][name][:])
        a, b = one["videos/b.mp4/embedding"][:], file["embedding"][:]
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)
