"""The parity part of `python -m benchmarks gpu`: the numbers on a GPU, and, on any machine, that the proof runs."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks import usual
from benchmarks.gpu import faults, parity, rebuilt
from benchmarks.gpu.code import Code, loops, programs
from benchmarks.gpu.peer import peer_model
from benchmarks.gpu.proof import SHARES, OutOfTime, Section, alarm, has_failed, prove
from benchmarks.machine import Row
from vswin_extract.network import cuda
from vswin_extract.network.variants import VARIANTS

CPU = torch.device("cpu")


def section(name: str, device: torch.device, found: dict[str, list[Row]], folder: Path) -> Section:
    return Section(name, device, 600, found, lambda: None, folder)


@pytest.mark.gpu
def test_the_kernel_agrees_with_float64_on_a_gpu(tmp_path: Path) -> None:
    found: dict[str, list[Row]] = {}
    device = torch.device("cuda")
    parity.alone(section("parity", device, found, tmp_path), device, 3)
    assert "failed" not in found


@pytest.mark.gpu
@pytest.mark.parametrize("name", parity.FIXTURES)
@pytest.mark.parametrize("precision", parity.DTYPES)
def test_networks_give_the_published_numbers_on_a_gpu(name: str, precision: str, tmp_path: Path) -> None:
    found: dict[str, list[Row]] = {}
    parity.published(section("parity", torch.device("cuda"), found, tmp_path), name, precision)
    assert "failed" not in found


def test_a_kernel_that_is_wrong_or_leaves_gaps_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, list[Row]] = {}
    parity.alone(section("parity", CPU, found, tmp_path), CPU, 1)
    assert "failed" not in found
    right = cuda.window_attention
    for wrong in (1.1, float("nan")):
        monkeypatch.setattr(parity, "window_attention", lambda *given, by=wrong: right(*given) * by)
        found = {}
        parity.alone(section("parity", CPU, found, tmp_path), CPU, 1)
        assert len(found["failed"]) == 2 * len(parity.SMALL_CASES)


def test_an_error_ends_only_its_part_and_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Section) -> None:
        given.add("table", {"what": 1})
        raise ValueError("broken")

    monkeypatch.setattr(faults, "faults", broken)
    out = tmp_path / "out.json"
    found = prove(CPU, 5, ("attention", "faults"), out, tmp_path)
    assert has_failed(found)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert [row["section"] for row in found["failed"]] == ["faults"]
    assert found["faults: table"] == [{"what": 1}]
    assert len(found["attention: a block's attention"]) == 16


def test_what_there_is_no_time_for_is_skipped_by_name(tmp_path: Path) -> None:
    found: dict[str, list[Row]] = {}
    hurried = Section("forward", torch.device("cuda"), 1, found, lambda: None, tmp_path)
    assert hurried.allows("short", 0.1)
    assert not hurried.allows("long", 60)
    assert [row["what"] for row in found["skipped"]] == ["long"]
    with pytest.raises(OutOfTime), alarm(0.05):
        time.sleep(10)


def test_machine_code_is_read() -> None:
    text = """
.L_x_0:
        /*0010*/                   LDG.E R2, desc[UR8][R4.64] ;    /* 0x1 */
.L_x_1:
        /*0020*/              @!P1 LDG.E.128 R4, desc[UR8][R6.64] ;    /* 0x1 */
        /*0030*/              @P0 BRA `(.L_x_1) ;    /* 0x1 */
        /*0040*/              @UP0 BRA `(.L_x_0) ;    /* 0x1 */
        /*0050*/                   BRA `(.L_x_2) ;    /* 0x1 */
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);    /* 0x1 */
"""
    assert list(loops(text)) == [["LDG.E.128", "BRA"], ["LDG.E", "LDG.E.128", "BRA", "BRA"]]


def test_what_limits_the_programs_of_a_processor() -> None:
    free = Code(registers=32, stack=0, shared=1024, columns=0, loop=[])
    assert programs(free, 90) == 16  # warps
    assert programs(free._replace(registers=128), 90) == 4
    assert programs(free._replace(registers=129), 90) == 3
    assert programs(free._replace(shared=56 * 1024), 90) == 4
    assert programs(free._replace(shared=56 * 1024), 80) == 2
    assert programs(free._replace(columns=512), 100) == 1


def test_the_rebuilt_network_is_that_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    variant = replace(VARIANTS["nano"], window=(8, 7, 7))
    theirs, origin = peer_model(variant)
    assert origin == "torchvision"
    ours = rebuilt.SwinTransformer3d([2, 4, 4], variant.embed_dim, variant.depths, variant.heads, variant.window, 400)
    parameters = {name: value for name, value in theirs.state_dict().items() if not name.endswith("position_index")}
    ours.eval().load_state_dict(parameters)
    clips = torch.randn(1, 3, 18, 76, 92, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = usual.embed(theirs, clips)
        assert (usual.embed(ours, clips) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("missing", [[], ["av", "decord"]])
def test_the_whole_proof_runs_on_a_cpu(missing: list[str], tmp_path: Path) -> None:
    start = f"import sys; sys.modules.update(dict.fromkeys({missing})); from benchmarks.__main__ import main; main()"
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", start, "gpu", "--device", "cpu", "--minutes", "20", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    found = json.loads(out.read_text())
    assert [row["section"] for row in found["time"]] == list(SHARES)
    skipped = {row["what"] for row in found["skipped"]}
    assert ({"end to end", "all faults"} <= skipped) == bool(missing)
