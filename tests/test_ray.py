"""The Ray engine on a real cluster of several raylets: it writes the file of a single run, also when a raylet dies."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numbered
import pytest
from conftest import Run, script
from test_many import expect_equal

from vswin_extract.errors import DeviceError, UsageError
from vswin_extract.job.events import Event, Notice, Stopped, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.pools.pool import WorkerPool
from vswin_extract.run.run import run as run_job
from vswin_extract.video.videos import Video, find_videos
from vswin_extract.worker.writer import make_record

slow = pytest.mark.slow
VIDEOS = 24


class Cluster:
    """A head and two more raylets with a CPU each. All their files are in one folder. `address`: HOST:PORT."""

    def __init__(self, folder: str) -> None:
        os.environ.update(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0")
        from ray.cluster_utils import Cluster as Raylets

        self.folder = folder
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        self.raylets = Raylets()
        self.add(_system_config=quick, include_dashboard=False)
        self.nodes = [self.add(), self.add(num_gpus=1)]
        self.address: str = self.raylets.address

    def add(self, **options: Any) -> Any:
        return self.raylets.add_node(num_cpus=1, object_store_memory=80 << 20, **options)

    def kill(self, node: Any) -> None:
        """Kill the raylet with SIGKILL."""
        self.raylets.remove_node(node, allow_graceful=False)

    def processes(self, of: bytes = b"") -> list[int]:
        """Return the processes of this cluster whose command line has this part: raylets, actors, decoders."""
        mark, found = f"RAY_TMPDIR={self.folder}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # another's, or gone
                if mark in (process / "environ").read_bytes() and of in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    def workers(self) -> list[int]:
        """Return the processes of actors and of their decoders."""
        return self.processes(b"ray::Extractor") + self.processes(b"vswin_extract.feeding.child")


def until(done: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs vswin-extract[ray]")
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets have short names
        made = Cluster(folder)
        try:
            yield made
        finally:
            made.raylets.shutdown()
            os.environ.clear()
            os.environ.update(before)
        until(lambda: not made.processes(), "processes of the cluster are left", 20)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    numbered.write_folder(folder, VIDEOS - 1)
    return folder


@pytest.fixture(scope="module")
def options(small_weights: Path) -> list[str]:
    return ["--weights", str(small_weights), "--stage", "4", "--stride", "4"]


def a_job(cluster: Cluster, videos: Path, out: Path, weights: Path, **options: Any) -> Job:
    return Job(
        find_videos([videos]), out, str(weights), stages=(4,), stride=4, engine="ray", ray_address=cluster.address,
        **{"device": "cpu", **options},
    )  # fmt: skip


def run_noting(job: Job, midway: Callable[[], None], make_pool: Callable[[Job], WorkerPool]) -> list[str]:
    """Run the job, and do something when five videos are finished. Return the notices."""
    notices, done = [], 0
    for event in run_job(job, make_pool=make_pool):
        if isinstance(event, Notice):
            notices.append(event.text)
        done += isinstance(event, VideoDone)
        if done == 5 and isinstance(event, VideoDone):
            midway()
    assert done == VIDEOS
    return notices


class Noted:
    """Makes pools and keeps them in `pools`."""

    def __init__(self, notice_after: float = 15.0) -> None:
        self.notice_after = notice_after
        self.pools: list[Any] = []

    def __call__(self, job: Job) -> WorkerPool:
        from vswin_extract.pools.ray_pool import RayPool

        self.pools.append(RayPool(job, notice_after=self.notice_after))
        return self.pools[-1]  # type: ignore[no-any-return]


@slow
def test_a_raylet_is_killed_midway(
    cluster: Cluster, videos: Path, small_weights: Path, single: Path, tmp_path: Path
) -> None:
    noted = Noted(notice_after=1.0)
    pools = noted.pools
    (tmp_path / "storage").mkdir()
    job = a_job(cluster, videos, tmp_path / "out.h5", small_weights, storage=tmp_path / "storage")

    def kill() -> None:
        assert list((tmp_path / "storage" / "out.h5.parts").glob("shard-*/*.json"))
        assert len(cluster.processes(b"ray::Extractor")) == len(pools[0].places) == 3
        assert cluster.processes(b"vswin_extract.feeding.child")
        cluster.kill(cluster.nodes.pop(0))

    try:
        notices = run_noting(job, kill, noted)
    finally:
        cluster.nodes.append(cluster.add())
    assert pools[0].names == ["cpu"] * 3
    lost = [text for text in notices if "died, with" in text and text.endswith("; starting it again")]
    assert len(lost) == 1, notices  # by its node's death, or by its own, whichever Ray notices first
    assert any("1 of 3 actors have not started yet; each needs a node with 1 CPU" in text for text in notices), notices
    expect_equal(single, tmp_path / "out.h5")
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "storage"]
    assert os.listdir(tmp_path / "storage") == []
    until(lambda: not cluster.workers(), "actors or decoders are left")


@slow
def test_an_actor_that_is_killed_is_started_again(
    cluster: Cluster, videos: Path, small_weights: Path, single: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    killed: list[int] = []
    noted = Noted()
    pools = noted.pools

    def kill() -> None:
        killed.append(pools[0].places[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    job = a_job(cluster, videos, tmp_path / "out.h5", small_weights, actors=1)
    notices = run_noting(job, kill, noted)
    assert any(f"process {killed[0]} on" in text and "starting it again" in text for text in notices), notices
    assert pools[0].places[0].pid != killed[0]
    assert capfd.readouterr() == ("", "")  # the library says nothing, and neither does Ray
    expect_equal(single, tmp_path / "out.h5")
    until(lambda: not cluster.workers(), "actors or decoders are left")


@slow
def test_an_actor_that_stops_answering_is_replaced(
    cluster: Cluster, videos: Path, small_weights: Path, single: Path, tmp_path: Path
) -> None:
    noted = Noted()
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(noted.pools[0].places[0].pid)
        os.kill(stopped[0], signal.SIGSTOP)

    job = a_job(cluster, videos, tmp_path / "out.h5", small_weights, actors=2, timeout=8.0)
    notices = run_noting(job, stop, noted)
    assert any(f"process {stopped[0]} on" in text and "8 s" in text for text in notices), notices
    expect_equal(single, tmp_path / "out.h5")
    until(lambda: not cluster.workers(), "actors or decoders are left")


@slow
def test_a_driver_that_is_killed_and_one_that_is_stopped(
    cluster: Cluster, run: Run, environment: dict[str, str], videos: Path, options: list[str], single: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    more = ["--engine", "ray", "--ray-address", cluster.address, "--device", "cpu", "--actors", "2"]
    command = [script("vswin-extract"), str(videos), str(out), *options, *more]

    def done() -> int:
        return len(list(parts.glob("shard-*/*.json")))

    def begin() -> subprocess.Popen[str]:
        """Start the command and wait until a video is finished."""
        before = done()
        driver = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        until(lambda: done() > before or driver.poll() is not None, "no video is finished")
        return driver

    with begin() as driver:
        assert len(cluster.processes(b"ray::Extractor")) == 2
        driver.kill()
    until(lambda: not cluster.workers(), "actors or decoders are left")

    with begin() as driver:
        driver.send_signal(signal.SIGTERM)  # which Ray would handle itself
        printed = driver.communicate(timeout=60)
    assert driver.returncode == 143, printed
    assert "stopping: finishing the videos in flight" in printed[1]
    assert "the same command continues" in printed[1]
    until(lambda: not cluster.workers(), "actors or decoders are left")

    with begin() as driver:
        driver.send_signal(signal.SIGINT)
        assert "stopping" in next(line for line in driver.stderr or () if "stopping" in line)
        driver.send_signal(signal.SIGINT)
        printed = driver.communicate(timeout=20)
    assert driver.returncode == 130, printed
    assert "stopped at once" in printed[1]
    until(lambda: not cluster.workers(), "actors or decoders are left")

    last = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert last.returncode == 3, last.stderr
    assert "of them done before" in last.stderr
    assert "ray" not in (last.stdout + last.stderr).lower().replace(str(tmp_path).lower(), "")  # none of its own words
    expect_equal(single, out)


@slow
def test_errors_of_actors_name_the_host(cluster: Cluster, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    """The last node claims a GPU that it does not have."""
    with pytest.raises(DeviceError, match=r"^on .+: cuda was asked for, but PyTorch sees no CUDA device"):
        list(run_job(a_job(cluster, videos, tmp_path / "out.h5", small_weights, device="auto")))
    assert not (tmp_path / "out.h5.parts").exists()


@slow
def test_without_room_for_actors_the_run_ends(
    cluster: Cluster, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    from vswin_extract.pools.ray_pool import RayPool, Share

    def full(job: Job) -> WorkerPool:
        return RayPool(job, notice_after=0.5, patience=3.0, divide=lambda *_: Share(0, 4, 1))

    job = a_job(cluster, videos, tmp_path / "out.h5", small_weights)
    events: list[Event] = []
    with pytest.raises(DeviceError, match="Ray found no room for an actor of 4 CPUs"):
        events.extend(run_job(job, make_pool=full))
    waits = "1 of 1 actors have not started yet; each needs a node with 4 CPUs; free now: 1 of 1 GPUs, 3 of 3 CPUs"
    assert events == [Notice(waits)]
    stopping = threading.Event()
    stopping.set()
    assert list(run_job(job, stopping, full)) == [Stopped(VIDEOS)]
    with pytest.raises(DeviceError, match=r"^the Ray cluster has no GPUs; add nodes that have some, or --device cpu$"):
        list(run_job(replace(job, device="cuda"), make_pool=lambda job: RayPool(job, divide=lambda *_: Share(1, 4, 0))))


def test_without_ray_the_extra_is_named(
    run: Run, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered.write(tmp_path / "a.mp4", 20)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "vswin_extract.pools.ray_pool", raising=False)
    done = run("vswin-extract", tmp_path / "a.mp4", tmp_path / "out.h5", "--engine", "ray")
    assert done.returncode == 2
    assert done.stderr == "Error: --engine ray needs Ray: pip install 'vswin-extract[ray]'\n"


def test_without_a_cluster_it_says_how_to_start_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = pytest.importorskip("ray._private.services", reason="needs vswin-extract[ray]")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())  # other people's on this machine
    numbered.write(tmp_path / "a.mp4", 20)
    command = ["vswin-extract", tmp_path / "a.mp4", tmp_path / "out.h5", "--engine", "ray"]
    how = "start one (ray start --head), or name it by --ray-address HOST:PORT\n"
    auto = run(*command)
    assert (auto.returncode, auto.stderr) == (2, f"Error: no Ray cluster runs here; {how}")
    for address in ("127.0.0.1:1", "nonsense:port", "127.0.0.1:99999999"):
        named = run(*command, "--ray-address", address)
        assert named.returncode == 2
        assert named.stderr.startswith(f"Error: no Ray cluster answers at {address}: ")
        assert named.stderr.endswith(how)
        assert named.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "ray", "shard": "0/2"}, "--shard and --engine ray"),
        ({"engine": "ray", "device": "cuda:0,1"}, "Ray chooses devices: --device cuda or cpu and --actors N"),
        ({"engine": "ray", "device": "cpu:2"}, "not cpu:2"),
        ({"engine": "ray", "ray_address": "ray://head:10001"}, "HOST:PORT"),
        ({"engine": "ray", "actors": 0}, "actors must be a whole number from 1"),
        ({"engine": "spark"}, "engine must be one of local, ray"),
        ({"actors": 2}, "--actors is for --engine ray"),
        ({"ray_address": "head:6379"}, "--ray-address is for --engine ray"),
    ],
    ids=str,
)
def test_options_that_exclude_each_other(options: dict[str, Any], reason: str) -> None:
    from vswin_extract.job.shard import parse_shard

    shard = parse_shard(options.pop("shard")) if "shard" in options else None
    with pytest.raises(UsageError, match=reason):
        Job((Video("a", Path("a")),), Path("out.h5"), shard=shard, **options)


@pytest.mark.parametrize(
    ("nodes", "device", "actors", "share"),
    [
        ([(0, 1), (0, 1), (0, 1)], "cpu", 1, (0, 1, 3)),
        ([(0, 64), (0, 64)], "cpu", 1, (0, 8, 16)),
        ([(0, 64), (0, 1)], "cpu", 1, (0, 8, 8)),  # a small head does not make all actors small
        ([(0, 12), (0, 12)], "cpu", 1, (0, 6, 4)),
        ([(0, 2)], "cpu", 1, (0, 2, 1)),
        ([(0, 2)], "cpu", 2, (0, 1, 2)),
        ([(0, 2)], "cpu", 3, (0, 1, 2)),
        ([(0, 0)], "cpu", 1, (0, 1, 0)),
        ([(8, 96), (8, 32), (0, 4)], "cuda", 1, (1, 4, 16)),
        ([(1, 64)], "cuda", 1, (1, 33, 1)),
        ([(1, 0)], "cuda", 1, (1, 0, 1)),
        ([(0, 8)], "cuda", 1, (1, 0, 0)),
    ],
)
def test_a_cluster_is_divided_among_actors(
    nodes: list[tuple[int, int]], device: str, actors: int, share: tuple[int, int, int]
) -> None:
    pytest.importorskip("ray", reason="needs vswin-extract[ray]")
    from vswin_extract.pools.ray_pool import Share, divide_nodes

    assert divide_nodes(nodes, device, actors) == Share(*share)


def test_a_host_that_does_not_see_the_videos_ends_the_run(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs vswin-extract[ray]")
    from vswin_extract.pools.ray_actor import Placed
    from vswin_extract.pools.ray_pool import check_seen

    missing = make_record(Video("a", tmp_path / "a.mp4"), (-1, 0.0, ""), status="failed", error="VideoMissing")
    assert check_seen(VideoDone(missing, 0), Placed("node", 1)) == VideoDone(missing, 0)
    (tmp_path / "a.mp4").touch()
    ended = check_seen(VideoDone(missing, 0), Placed("node", 1))
    assert isinstance(ended, DeviceError)
    assert f"node does not see {tmp_path / 'a.mp4'}, which is there on" in str(ended)
    unreadable = replace(missing, error="VideoUnreadable")
    assert check_seen(VideoDone(unreadable, 0), Placed("node", 1)) == VideoDone(unreadable, 0)
