"""`vswin doctor` on this machine, and on things that are broken."""

import json
import os
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import Run

from vswin_extract.checks import machine as doctor
from vswin_extract.checks.weights import Check
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights import golden
from vswin_extract.weights.cache import cached_file
from vswin_extract.weights.registry import manifest


def test_this_machine_is_well(run: Run, tmp_path: Path) -> None:
    done = run("vswin", "doctor", tmp_path, "--json")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    checks = {check["what"]: check for check in said["checks"]}
    assert said["ok"]
    assert list(checks) == [
        "versions", "extras", "cores", "memory", "shared memory", "open files",
        *(what for what in checks if what.startswith("device cuda")), "device cpu",
        "decoder pyav", "decoder decord", "weights cache", "journal lock", "fsync and rename", "HDF5 locking",
        "free space", "golden features, drawn nano", "golden features, drawn t",
    ]  # fmt: skip
    for what in ("versions", "decoder pyav", "decoder decord", "journal lock", "fsync and rename", "HDF5 locking"):
        assert checks[what]["state"] == "ok"
    for what in ("vswin-extract 0", "torch 2", "CUDA ", "HDF5 ", "h5py ", "PyAV ", "libavcodec ", "decord2 "):
        assert what in checks["versions"]["found"]
    assert "relative error" in checks["golden features, drawn t"]["found"]
    assert str(tmp_path) not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test is about."""
    for name in ("versions", "extras", "cores", "memory", "shared_memory", "open_files"):
        monkeypatch.setattr(doctor, name, lambda: Check("x", "ok", ""))
    for name in ("devices", "decoders", "features", "weights_cache"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))


@pytest.mark.usefixtures("quick")
def test_a_directory_that_cannot_be_written(run: Run) -> None:
    done = run("vswin", "doctor", "/proc")
    assert done.returncode == 1
    assert "failed file system cannot be written" in done.stdout
    assert "vswin doctor DIR" in done.stdout
    assert "1 failed, 0 warnings" in done.stdout


def test_no_directory(run: Run, tmp_path: Path) -> None:
    done = run("vswin", "doctor", tmp_path / "nowhere")
    assert (done.returncode, "no directory" in done.stderr) == (2, True)


@pytest.mark.usefixtures("quick")
def test_a_file_system_without_hard_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checks = {check.what: check for check in doctor.file_system(tmp_path)}
    assert [check.state for check in checks.values()] == ["ok"] * len(checks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_file_system_that_cannot_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    checks = {check.what: check for check in doctor.file_system(tmp_path)}
    assert checks["journal lock"].state == "failed"
    assert "Input/output error on " in checks["journal lock"].found
    assert "--storage" in checks["journal lock"].advice
    assert checks["HDF5 locking"].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    assert doctor.file_system_type(Path("/proc")) == "proc"
    assert doctor.file_system_type(Path("/proc/sys/kernel")) == "proc"
    assert doctor.file_system_type(tmp_path) not in ("proc", "unknown")


@pytest.mark.parametrize(
    ("frames", "rate", "shade", "says"),
    [
        (range(20), doctor.RATE, doctor.grey, "20 frames, where 24 were written"),
        (range(24), doctor.RATE + 1, doctor.grey, "frame 0 is shown|frame 1 is shown"),
        (range(24), doctor.RATE, lambda number: doctor.grey(23 - number), "frame 0 has grey 2.., where 20 was written"),
    ],
)
def test_wrong_frames_are_told(
    frames: range, rate: int, shade: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in frames:
            picture = np.full((64, 64, 3), shade(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert re.match(says, doctor.decode("pyav", path))


def test_a_cut_off_file_in_the_cache_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    [empty] = doctor.weights_cache()
    assert (empty.state, empty.found.endswith(": empty")) == ("ok", True)
    cached_file(manifest()["t-k400"]).write_bytes(b"cut off")
    _, cut = doctor.weights_cache()
    assert (cut.what, cut.state) == ("weights t-k400", "failed")
    assert "vswin weights verify t-k400" in cut.advice
    with cached_file(manifest()["t-k400"]).open("wb") as file:
        file.truncate(127_414_861)
    [whole] = doctor.weights_cache()
    assert whole.found.endswith(": t-k400")


def test_a_machine_that_computes_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "of_variant", lambda variant: (0.1, 0.2, 0.3))
    monkeypatch.setitem(VARIANTS, "t", VARIANTS["nano"])
    checks = list(doctor.features())
    assert checks
    assert {check.state for check in checks} == {"failed"}
    assert "relative error" in checks[0].found
