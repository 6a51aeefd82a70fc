"""Apple's GPUs, which no machine of this project has: what can be tested without one. In the run, the CPU computes."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numbered
import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn

from vswin_extract.backbone import find_device, find_devices, find_precision
from vswin_extract.checks import devices
from vswin_extract.checks.result import Check
from vswin_extract.errors import DeviceError
from vswin_extract.network import inference
from vswin_extract.network.reference import ReferenceSwin
from vswin_extract.store.features import open_features
from vswin_extract.worker import device as worker_device
from vswin_extract.worker.device import CpuDevice, MpsDevice, make_device

CPU, MPS = torch.device("cpu"), torch.device("mps")


class OnCpu:
    """A `ReferenceSwin` that says that it is on mps."""

    compile_for = None
    device = MPS

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype, mean: Any, std: Any) -> None:
        assert (device.type, dtype) == ("mps", torch.float32)
        self.inner = ReferenceSwin(network, CPU, dtype, mean, std)

    @property
    def head(self) -> nn.Linear | None:
        return self.inner.head

    def __call__(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        return self.inner(frames, index, stages)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have PyTorch say that there is a Metal device, and refuse what it can only do with CUDA."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was used")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("Stream", "Event", "stream", "current_stream", "empty_cache", "device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(inference, "ReferenceSwin", OnCpu)
    monkeypatch.setattr(worker_device, "MpsDevice", lambda device: MpsDevice(CPU))


def test_mps_where_there_is_none(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("mps", "mps:0"):
        with pytest.raises(DeviceError, match=rf"{name} .*--device cpu"):
            find_device(name)
    numbered.write(tmp_path / "a.mp4", 8)
    done = run("vswin-extract", tmp_path / "a.mp4", tmp_path / "out.h5", "--device", "mps")
    assert (done.returncode, "mps" in done.stderr) == (2, True)


def test_names_of_devices(metal: None) -> None:
    assert find_device("mps").type == "mps"
    assert find_devices("mps") == ["mps"]
    for name in ("mps:1", "mps:0,1", "mps:all"):
        with pytest.raises(DeviceError, match="mps"):
            find_device(find_devices(name)[0])


def test_auto_does_not_choose_mps(metal: None) -> None:
    assert find_device("auto").type == "cpu"


def test_mps_computes_in_fp32(metal: None) -> None:
    assert find_precision("auto", MPS) == find_precision("fp32", MPS) == "fp32"
    for name in ("bf16", "fp16"):
        with pytest.raises(DeviceError, match="fp32"):
            find_precision(name, MPS)


def test_devices_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device(MPS, 4)
    assert (type(device), device.threads, device.asynchronous) == (MpsDevice, 1, False)
    assert type(make_device(CPU, 1)) is CpuDevice
    freed: list[bool] = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: freed.append(True))
    device.free_memory()
    assert freed


def test_a_run_on_mps(metal: None, run: Run, small_weights: Path, tmp_path: Path) -> None:
    numbered.write(tmp_path / "a.mp4", 40)
    outputs = {}
    for name in ("cpu", "mps"):
        outputs[name] = tmp_path / f"{name}.h5"
        options = ["--weights", small_weights, "--precision", "fp32", "--device", name, "--batch-size", 2, "--stage", 4]
        done = run("vswin-extract", tmp_path / "a.mp4", outputs[name], *options)
        assert done.returncode == 0, done.stderr
        assert ("measured" in done.stderr) == (name == "mps")
    with open_features(outputs["cpu"]) as expected, open_features(outputs["mps"]) as found:
        assert found.info["device"] == "mps"
        np.testing.assert_allclose(found["a.mp4"].stage4[:], expected["a.mp4"].stage4[:], rtol=1e-4, atol=1e-5)


def test_compiling_is_refused_on_mps(metal: None, run: Run, small_weights: Path, tmp_path: Path) -> None:
    numbered.write(tmp_path / "a.mp4", 8)
    options = ["--weights", small_weights, "--device", "mps", "--compile", "on"]
    done = run("vswin-extract", tmp_path / "a.mp4", tmp_path / "out.h5", *options)
    assert (done.returncode, "--compile off" in done.stderr) == (2, True)


def test_doctor_compares_the_features_of_mps(metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(variant: Any, device: torch.device, precision: str) -> Check:
        compared.append((device.type, precision))
        return Check("golden features", "ok", "")

    monkeypatch.setattr(devices, "compare_variant", compare)
    assert "device mps" in {check.what for check in devices.check_devices()}
    assert "golden features on mps" in {check.what for check in devices.check_network()}
    assert ("mps", "fp32") in compared
