"""Slurm: the shard of each task, the batch script, and both on a real Slurm where tasks are killed."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numbered
import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, Run, script
from hypothesis import given
from hypothesis import strategies as st
from slurm_cluster import SlurmCluster, installed
from test_many import expect_equal

from vswin_extract.cli import vswin
from vswin_extract.errors import UsageError
from vswin_extract.job.shard import Shard
from vswin_extract.run.slurm import own_shard
from vswin_extract.weights.cache import cached_file
from vswin_extract.weights.registry import find_published

EXAMPLE = ROOT / "examples" / "slurm" / "extract.sbatch"


def array_task(task: int, count: int, least: int, most: int, step: int) -> dict[str, str]:
    """The environment that Slurm gives the batch script of a task of an array."""
    facts = {"ID": task, "COUNT": count, "MIN": least, "MAX": most, "STEP": step}
    array = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}
    return {**array, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def srun_task(process: int, count: int) -> dict[str, str]:
    facts = {"SLURM_PROCID": process, "SLURM_NTASKS": count, "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_ID": 0}
    return {name: str(value) for name, value in facts.items()}


def index_of(environment: Mapping[str, str]) -> tuple[int, int] | None:
    found = own_shard(environment)
    return found and (found[0].index, found[0].count)


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 40), st.integers(1, 8))
def test_every_task_has_a_shard_of_its_own_and_no_shard_is_missing(
    least: int, step: int, count: int, processes: int
) -> None:
    most = least + (count - 1) * step
    shards = [
        index_of(array_task(task, count, least, most, step) | srun_task(process, processes))
        for task in range(least, most + 1, step)
        for process in range(processes)
    ]
    assert shards == [(index, count * processes) for index in range(count * processes)]


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 4))
def test_a_list_of_indices_is_not_taken_for_a_range(indices: set[int], step: int) -> None:
    """Each task gets its own shard or is refused, whatever step Slurm reports."""
    least, most, count = min(indices), max(indices), len(indices)
    found = []
    for task in sorted(indices):
        with contextlib.suppress(UsageError):
            found.append(index_of(array_task(task, count, least, most, step)))
    assert len(set(found)) == len(found)
    if step == 1:
        assert len(found) == (count if most - least + 1 == count else 0)


@pytest.mark.parametrize(
    ("environment", "shard", "names"),
    [
        ({}, None, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, None, ""),  # a batch script
        ({"SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, None, ""),  # one of --ntasks=3, before srun
        ({"SLURM_NTASKS": "2"}, None, ""),  # the shell of salloc -n2
        (srun_task(2, 3), Shard(2, 3), "SLURM_PROCID"),
        (srun_task(0, 1), None, ""),
        ({**srun_task(0, 1), "SLURM_STEP_NUM_TASKS": "2"}, None, ""),  # sbatch from inside a step of two
        (array_task(2, 4, 0, 3, 1), Shard(2, 4), "SLURM_ARRAY_TASK_ID"),
        (array_task(5, 4, 1, 7, 2), Shard(2, 4), "SLURM_ARRAY_TASK_ID"),
        (array_task(5, 1, 5, 5, 1), Shard(0, 1), "SLURM_ARRAY_TASK_ID"),
        (array_task(1, 2, 0, 1, 1) | srun_task(1, 2), Shard(3, 4), "SLURM_ARRAY_TASK_ID and SLURM_PROCID"),
    ],
)
def test_shards_by_the_environment_of_slurm(environment: dict[str, str], shard: Shard | None, names: str) -> None:
    """As seen in Slurm 22.05."""
    assert own_shard(environment) == (shard and (shard, names))


def test_an_environment_that_does_not_tell_the_shard_is_refused() -> None:
    with pytest.raises(UsageError, match=r"from 1 to 4, have no regular step, .* task 3's .*--shard I/N"):
        own_shard(array_task(3, 3, 1, 4, 1))
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_COUNT is not set in a task"):
        own_shard({"SLURM_ARRAY_TASK_ID": "3"})
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID is 'x'"):
        own_shard(array_task(0, 1, 0, 0, 1) | {"SLURM_ARRAY_TASK_ID": "x"})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two short videos in a folder whose name must be quoted for a shell."""
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    for number in range(2):
        numbered.write(folder / f"{number}.mp4", 40 + number)
    return folder


def test_tasks_of_an_array_find_their_shards(
    environment: dict[str, str], run: Run, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    usual = ["extract", str(videos), str(tmp_path / "out.h5"), "--weights", str(small_weights)]

    def task(environ: Mapping[str, str], *options: str) -> Result:
        return CliRunner().invoke(vswin, [*usual, *options], env={**environment, **environ})

    for number in (4, 6):
        done = task(array_task(number, 2, 4, 6, 2))
        assert done.exit_code == 0, done.stderr
        assert f"note: shard {number // 2 - 2}/2, by SLURM_ARRAY_TASK_ID; --shard none" in done.stderr
        assert not (tmp_path / "out.h5").exists()
    assert run("vswin", "merge", tmp_path / "out.h5").returncode == 0
    alone = task(array_task(4, 2, 4, 6, 2), "--shard", "none", "--overwrite", "--stage", "4")
    assert (alone.exit_code, "note: shard" in alone.stderr) == (0, False), alone.stderr
    irregular = task(array_task(3, 3, 1, 4, 1))
    assert (irregular.exit_code, "no regular step" in irregular.stderr) == (2, True)


def test_the_example_is_what_the_command_writes(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    cached_file(find_published("t-k400")).touch()
    videos.rename(tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    arguments = (
        "slurm videos out.h5 --tasks 8 --partition gpu --time 04:00:00 --gpus-per-task 1 --cpus-per-task 8 --mem 32G "
        "-o extract.sbatch -- --weights t-k400 --stage 4 --pool space"
    )
    done = CliRunner().invoke(vswin, arguments.split())
    assert (done.exit_code, done.output.startswith("extract.sbatch: ")) == (0, True)
    written = (tmp_path / "extract.sbatch").read_text()
    assert written.replace(str(tmp_path), "/data").replace(str(Path(sys.executable).parent), "/opt/vswin/bin") == (
        EXAMPLE.read_text()
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing(run: Run, videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a b.sbatch"
    others = ["--partition", "a b", "--sbatch=--comment=it's"]
    assert run("vswin", "slurm", videos, tmp_path / "o.h5", "--tasks", 1, *others, "-o", path).returncode == 0
    for each in ([EXAMPLE], ["--exclude=SC2016", path]):  # a $ in single quotes is meant to be one
        done = subprocess.run(["shellcheck", *each], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


def test_names_and_options_reach_the_command_unchanged(
    run: Run, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "storage").mkdir()
    shutil.copy(small_weights, tmp_path / "mine.safetensors")
    options = ["--weights", "mine.safetensors", "--no-embedding", "--stage", 1, "--stage", 4, "--storage", "storage"]
    more = ["-q", "--overwrite", "--workers", 3, "--fps", "30000/1001"]
    done = run("vswin", "slurm", videos.name, "out.h5", "--tasks", 3, "--", *options, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith(script("vswin-extract")))
    words = subprocess.run(  # bash takes it apart, and the command itself reads it
        ["bash", "-c", f"printf '%s\\n' {line.removesuffix('&')}"],
        capture_output=True, text=True, env={"SLURM_ARRAY_TASK_ID": "2"},
    ).stdout.splitlines()  # fmt: skip
    assert words[1:3] == [str(videos), str(tmp_path / "out.h5")]
    for pair in (
        f"--weights {tmp_path}/mine.safetensors", f"--storage {tmp_path}/storage", "--stage 1 --stage 4",
        "--workers 3", "--fps 30000/1001", "--shard 2/3",
    ):  # fmt: skip
        assert pair in " ".join(words)
    assert {"--no-embedding", "--quiet", "--overwrite"} <= set(words)
    assert f"merge -o {tmp_path}/out.h5 {tmp_path}/storage/out.h5.parts --overwrite" in done.stdout


def test_errors_are_reported_before_anything_is_submitted(
    run: Run, environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    usual = ("slurm", str(videos), str(tmp_path / "out.h5"), "--tasks", "2")
    for options, reason in (
        (["--pool", "some"], "Invalid value for '--pool'"),
        (["--stage", "5"], "stages are 1 to 4"),
        (["--stride"], "requires an argument"),
        (["--weights", "t-k40"], "did you mean t-k400"),
        (["--weights", "t-k400"], "vswin weights pull t-k400"),
        (["--shard", "0/2"], "are not for tasks of an array"),
        (["--dry-run"], "are not for tasks of an array"),
        (["--storage", "nowhere"], "no directory"),
        ([str(tmp_path / "third.h5")], "no such file"),
    ):
        done = run("vswin", *usual, "--submit", "--", *options)
        assert (done.returncode, reason in done.stderr, done.stdout) == (2, True, ""), done.stderr
    (tmp_path / "out.h5").write_text("something else")
    there = run("vswin", *usual)
    assert (there.returncode, "was not written by vswin-extract" in there.stderr) == (2, True)
    (tmp_path / "out.h5").unlink()
    broken = run("vswin", *usual, "--sbatch", "--comment=a\nb")
    assert (broken.returncode, "has a line break" in broken.stderr) == (2, True)
    missing = CliRunner().invoke(vswin, [*usual, "--submit"], env={**environment, "PATH": str(tmp_path)})
    assert (missing.exit_code, missing.stderr.startswith("Error: no sbatch on the PATH")) == (2, True)


no_slurm = pytest.mark.skipif(not installed(), reason="needs Debian's slurm-wlm and munge")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "so many"
    folder.mkdir()
    numbered.write_folder(folder, 24)
    return folder


@pytest.fixture(scope="module")
def options(small_weights: Path) -> list[str]:
    return ["--weights", str(small_weights), "--stage", "4", "--stride", "2"]


@pytest.fixture(scope="module")
def single(run: Run, many: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single") / "out.h5"
    assert run("vswin-extract", many, out, *options).returncode == 3
    return out


def until(what: str, true: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.slow
@no_slurm
def test_an_array_with_a_task_out_of_time_and_a_task_killed(
    environment: dict[str, str], slurm: SlurmCluster, many: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    command = [script("vswin"), "slurm", str(many), out.name, "--tasks", "4", "--submit", "--", *options]
    submitted = subprocess.run(
        command, cwd=tmp_path, env=environment | slurm.env, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"^job (\d+): extracts.*\njob (\d+): merges", submitted)
    assert found, submitted
    job, merge = found.groups()

    def log(task: int) -> str:
        path = tmp_path / f"slurm-{job}_{task}.out"
        return path.read_text() if path.exists() else ""

    # Slurm sends it late and by the minute; the script cannot tell who sent it.
    until("task 1 has begun", lambda: "videos" in log(1))
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_1"], env=slurm.env, check=True)
    # The script alone is killed so. Without cgroups its command lives on, as the script says; here it dies, too.
    until("task 2 has begun", lambda: "videos" in log(2) and bool(list(parts.glob("shard-*/*.json"))))
    subprocess.run(["scancel", "--signal=KILL", "--batch", f"{job}_2"], env=slurm.env, check=True)
    slurm.kill(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID="2")
    until("task 2 has failed", lambda: slurm.state(f"{job}_2") == "FAILED")
    assert slurm.state(merge) == "PENDING"
    subprocess.run(["scontrol", "requeue", f"{job}_2"], env=slurm.env, check=True)
    assert slurm.wait(job, 240) == "COMPLETED", [log(task) for task in range(4)]
    assert slurm.wait(merge, 60) == "COMPLETED", (tmp_path / f"slurm-{merge}.out").read_text()
    assert "stopping: finishing the videos in flight" in log(1)
    assert re.search(r"stopped: [0-6] of [67] videos are done", log(1)), log(1)
    for task in (1, 2):
        assert len(re.findall(r" in \w+; [67] videos", log(task))) == 2, log(task)
    assert " of them done before" in log(1)
    expect_equal(single, out)
    assert not parts.exists()


@pytest.mark.slow
@no_slurm
def test_tasks_of_srun_in_an_array(
    run: Run, slurm: SlurmCluster, many: Path, options: list[str], single: Path, tmp_path: Path
) -> None:
    """Two tasks of an array with two processes each find their shards by the environment."""
    batch, out = tmp_path / "batch.sh", tmp_path / "out.h5"
    batch.write_text(f"#!/bin/sh\nsrun {script('vswin-extract')} '{many}' {out} {' '.join(options)} || test $? -eq 3\n")
    job = slurm.sbatch("--array=3-5:2", "--ntasks=2", f"--output={tmp_path}/%a.log", batch)
    assert slurm.wait(job, 240) == "COMPLETED", [path.read_text() for path in tmp_path.glob("*.log")]
    for task in (0, 1):
        notes = re.findall(
            r"shard (\d)/4, by SLURM_ARRAY_TASK_ID and SLURM_PROCID", (tmp_path / f"{3 + 2 * task}.log").read_text()
        )
        assert sorted(map(int, notes)) == [2 * task, 2 * task + 1]
    assert run("vswin", "merge", out).returncode == 3
    expect_equal(single, out)


@pytest.mark.slow
@no_slurm
def test_both_jobs_are_submitted_or_none(
    environment: dict[str, str], slurm: SlurmCluster, videos: Path, tmp_path: Path
) -> None:
    command = [
        script("vswin"),
        "slurm",
        str(videos),
        "out.h5",
        "--tasks",
        "2",
        "--sbatch=--begin=now+1hour",
        "--submit",
    ]
    environment = environment | slurm.env

    def submit(*more: str) -> str:
        done = subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert "nothing is submitted: " in (printed := submit("--partition=nowhere"))
    assert "invalid partition specified: nowhere" in printed
    picky = tmp_path / "bin" / "sbatch"  # as a site that demands of each job what the merge lacks
    picky.parent.mkdir()
    picky.write_text(
        f'#!/bin/sh\ncase "$*" in *--wrap*) echo sbatch: error: no merges here >&2; exit 1;; esac\n'
        f'exec {shutil.which("sbatch", path=slurm.env["PATH"])} "$@"\n'
    )
    picky.chmod(0o755)
    environment["PATH"] = f"{picky.parent}{os.pathsep}{environment['PATH']}"
    assert "nothing is submitted: no merges here" in submit()
    assert slurm.waiting() == []
