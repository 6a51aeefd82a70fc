"""`vswin doctor` on this machine, and on things that are broken."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import Run

from vswin_extract.checks import golden, gpu, machine
from vswin_extract.checks.decoders import RATE, find_wrong_frame, grey
from vswin_extract.checks.devices import check_network
from vswin_extract.checks.file_system import check_file_system, file_system_type
from vswin_extract.checks.result import Check
from vswin_extract.checks.weights import check_cache
from vswin_extract.cli.console import show_checks
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.cache import cached_file
from vswin_extract.weights.registry import manifest


def test_this_machine_passes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "t", VARIANTS["nano"])  # T takes much longer; test_golden computes it
    done = run("vswin", "doctor", tmp_path, "--json")
    assert done.returncode == 0, done.stdout
    printed = json.loads(done.stdout)
    checks = {check["what"]: check for check in printed["checks"]}
    computed = [check for check in printed["checks"] if check["what"] == "golden features, drawn nano"]
    assert len(computed) >= 2  # nano, T, and T in another precision if the machine has one
    assert printed["ok"]
    assert list(checks) == [
        "versions", "extras", "cores", "memory", "shared memory", "open files",
        *(what for what in checks if what.startswith("device cuda")), "device cpu",
        "decoder pyav", "decoder decord", "weights cache", "journal lock", "fsync and rename", "HDF5 locking",
        "free space", "golden features, drawn nano",
    ]  # fmt: skip
    for what in ("versions", "decoder pyav", "decoder decord", "journal lock", "fsync and rename", "HDF5 locking"):
        assert checks[what]["state"] == "ok"
    for what in ("vswin-extract 0", "Python 3", "torch 2", "CUDA", "HDF5 ", "h5py ", "av ", "FFmpeg ", "decord2 "):
        assert what in checks["versions"]["found"]
    assert {check["state"] for check in computed} == {"ok"}
    assert str(tmp_path) not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_is_exit_code_1_with_advice(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(directory: Path) -> Iterator[Check]:
        yield Check("one", "ok", "fine")
        yield Check("two", "warning", "little memory", "use less")
        yield Check("three", "failed", "broken", "repair it")

    monkeypatch.setattr(machine, "examine_machine", examine)
    done = run("vswin", "doctor", tmp_path)
    assert done.returncode == 1
    for line in ("three: repair it", "two: use less", "1 failed, 1 warning"):
        assert line in done.stdout
    done = run("vswin", "doctor", tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_proof_is_one_line(run: Run, tmp_path: Path) -> None:
    done = run("vswin", "doctor", "--gpu", tmp_path, "--json")
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["ok"], len(printed["checks"])) == (1, False, 1)


@pytest.mark.gpu
def test_the_proof_of_a_gpu() -> None:
    assert {check.what: check.found for check in gpu.examine_gpu() if check.state == "failed"} == {}


def test_the_proof_of_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code, with tiny sizes."""
    monkeypatch.setitem(VARIANTS, "t", VARIANTS["nano"])
    cpu = torch.device("cpu")
    assert gpu.check_kernel(cpu, torch.float32, groups=True).state == "ok"
    checks = list(gpu.measure(cpu, "fp32", (8, 7, 7), (4, 32, 32), (1, 2)))
    assert [check.state for check in checks] == ["ok"] * 4
    assert "clips/s" in checks[-1].found
    monkeypatch.setattr(gpu, "kernel_problem", lambda *_: "broken")
    assert gpu.check_kernel(cpu, torch.float32, groups=True).found == "broken"


def test_a_directory_that_cannot_be_written() -> None:
    [check] = check_file_system(Path("/proc"))
    assert (check.what, check.state) == ("file system", "failed")
    assert "vswin doctor DIR" in check.advice


def test_no_directory(run: Run, tmp_path: Path) -> None:
    done = run("vswin", "doctor", tmp_path / "nowhere")
    assert (done.returncode, str(tmp_path / "nowhere") in done.stderr) == (2, True)


def test_a_file_system_without_hard_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checks = {check.what: check for check in check_file_system(tmp_path)}
    assert [check.state for check in checks.values()] == ["ok"] * len(checks)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    checks = {check.what: check for check in check_file_system(tmp_path)}
    assert checks["journal lock"].state == "failed"
    assert "Input/output error on " in checks["journal lock"].found
    assert "--storage" in checks["journal lock"].advice
    assert checks["HDF5 locking"].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_types_of_file_systems(tmp_path: Path) -> None:
    assert file_system_type(Path("/proc")) == "proc"
    assert file_system_type(Path("/proc/sys/kernel")) == "proc"
    assert file_system_type(tmp_path) not in ("proc", "unknown")


@pytest.mark.parametrize(
    ("frames", "rate", "brightness", "value"),
    [
        (range(20), RATE, grey, "20 frames"),
        (range(24), RATE + 1, grey, f"{1 / RATE:.4f} s"),
        (range(24), RATE, lambda number: grey(23 - number), "brightness"),
    ],
)
def test_wrong_frames_are_found(frames: range, rate: int, brightness: Any, value: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in frames:
            picture = np.full((64, 64, 3), brightness(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert value in find_wrong_frame("pyav", path)


def test_a_cut_off_file_in_the_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    [empty] = check_cache()
    assert (empty.state, empty.found.endswith(": empty")) == ("ok", True)
    cached_file(manifest()["t-k400"]).write_bytes(b"cut off")
    _, cut = check_cache()
    assert (cut.what, cut.state) == ("weights t-k400", "failed")
    assert "vswin weights verify t-k400" in cut.advice
    with cached_file(manifest()["t-k400"]).open("wb") as file:
        file.truncate(127_414_861)
    [whole] = check_cache()
    assert whole.found.endswith(": t-k400")


def test_a_machine_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "of_variant", lambda variant: (0.1, 0.2, 0.3))
    monkeypatch.setitem(VARIANTS, "t", VARIANTS["nano"])
    checks = list(check_network())
    assert checks
    assert {check.state for check in checks} == {"failed"}
    assert "relative error" in checks[0].found


def test_each_check_is_printed_as_soon_as_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def checks() -> Iterator[Check]:
        for number in range(3):
            yield Check(f"number {number}", "warning", "found", f"advice {number}")
            seen.append(capsys.readouterr().out)

    assert len(show_checks(checks(), "checking")) == 3
    assert [f"number {number}" in out and f"advice {number}" in out for number, out in enumerate(seen)] == [True] * 3
