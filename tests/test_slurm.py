"""An array of tasks on a real Slurm, one of them killed -9 midway and requeued: the file that a single run writes."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numbered
import pytest
from conftest import Run, script
from slurm_cluster import SlurmCluster, installed
from test_many import expect_equal

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="needs Debian's slurm-wlm and munge")]

ARRAY = """#!/bin/bash
exec {command} {videos} {out} {options} --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
"""
MERGE = """#!/bin/bash
exec {command} merge {out}
"""


@pytest.fixture
def slurm() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


def test_an_array_with_a_task_killed_and_requeued(
    run: Run, slurm: SlurmCluster, small_weights: Path, tmp_path: Path
) -> None:
    videos, out, single = tmp_path / "videos", tmp_path / "out.h5", tmp_path / "single.h5"
    videos.mkdir()
    for number in range(24):
        numbered.write(videos / f"{number:02}.mp4", 200 + number, first=100 * number)
    options = ["--weights", str(small_weights), "--stage", "4", "--stride", "2"]
    assert run("vswin-extract", videos, single, *options).returncode == 0
    facts = {"videos": videos, "out": out, "options": " ".join(options)}
    array, merge = tmp_path / "array.sh", tmp_path / "merge.sh"
    array.write_text(ARRAY.format(command=script("vswin-extract"), **facts))
    merge.write_text(MERGE.format(command=script("vswin"), **facts))
    logs = f"--output={tmp_path}/%A_%a.log"
    job = slurm.sbatch("--array=0-3", "--requeue", "--open-mode=append", logs, array)
    parts, deadline = tmp_path / "out.h5.parts", time.monotonic() + 120
    while not list(parts.glob("branch-*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    while slurm.state(f"{job}_1") != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.01)
    # The script is the command itself, by exec: only so is it killed -9, and nothing of it is left behind.
    subprocess.run(["scancel", "--signal=KILL", "--batch", f"{job}_1"], env=slurm.env, check=True)
    while slurm.state(f"{job}_1") != "FAILED" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slurm.state(f"{job}_1") == "FAILED"
    subprocess.run(["scontrol", "requeue", f"{job}_1"], env=slurm.env, check=True)
    # An array of which a task has failed is never "ok" again, even if it is requeued.
    merging = slurm.sbatch(f"--dependency=afterany:{job}", f"--output={tmp_path}/merge.log", merge)
    assert slurm.wait(job, 240) == "COMPLETED", [log.read_text() for log in tmp_path.glob("*.log")]
    assert slurm.wait(merging, 60) == "COMPLETED", (tmp_path / "merge.log").read_text()
    expect_equal(single, out)
    assert not parts.exists()
