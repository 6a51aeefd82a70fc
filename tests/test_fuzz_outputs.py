"""Hostile outputs: no command that reads one ends in a traceback, hangs, takes all memory, or shows another file.

A thousand files: pytest -n 0 -m slow tests/test_fuzz_outputs.py; others by another seed: FUZZ_SEED=7 pytest …
`fuzzing.py` says how one of them is made again.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import h5py
import pytest
from conftest import ROOT
from fuzzing import TRACEBACK, Finding, How, judge, limit
from fuzzing import Outcome as Ended
from fuzzing import run as run_limited
from hostile_outputs import BASES, Mutant, make_bases
from hostile_structure import TOKEN
from outputs import make_embedded, random_embeddings

from vswin_extract.checks.output import verify_output
from vswin_extract.formatting import describe_difference
from vswin_extract.store import layouts
from vswin_extract.store.attributes import stored_values
from vswin_extract.store.structure import look_into, open_member

SEED = int(os.environ.get("FUZZ_SEED", "0"))


def fuzz(kind: str, count: int, how: How, environment: dict[str, str]) -> tuple[list[Finding], dict[str, Any]]:
    """Try files in a process of its own, whose forks are small. Return the findings and the counts."""
    done = subprocess.run(
        [sys.executable, "tests/fuzzing.py", kind, "--count", str(count), "--seed", str(SEED), "--how", how],
        capture_output=True, text=True, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *found, summary = map(json.loads, done.stdout.splitlines())
    return [Finding(**each) for each in found], summary


@pytest.mark.parametrize(
    ("kind", "count", "how"),
    [
        ("both", 25, "quick"),
        pytest.param("structure", 500, "all", marks=pytest.mark.slow),
        pytest.param("bytes", 500, "all", marks=pytest.mark.slow),
        pytest.param("structure", 100, "torch", marks=pytest.mark.slow),
        pytest.param("bytes", 100, "torch", marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it")
def test_hostile_outputs_are_refused_in_one_line(kind: str, count: int, how: How, environment: dict[str, str]) -> None:
    found, summary = fuzz(kind, count, how, environment)
    assert not found, [(each.number, each.what, each.detail, each.command) for each in found[:20]]
    assert summary["files"] == count
    assert summary["unchanged"] < count / 10
    if how != "torch":
        assert 0 < summary["accepted"] < count  # some changes do no harm, and most are noticed


def test_the_outputs_that_are_changed_are_sound_before(tmp_path: Path) -> None:
    make_bases(tmp_path)
    for name in BASES:
        assert verify_output(tmp_path / name / "out.h5").problems == ()


@pytest.mark.parametrize(
    ("ended", "what"),
    [
        (Ended(-14, b"", b"", 0), "hang"),
        (Ended(-11, b"", b"", 0), "crash"),
        (Ended(99, b"", b"Traceback (most recent call last):\nKeyError: 'id'\n", 0), "traceback"),
        (Ended(1, b"", b"Error: out of memory: no\n", 0), "memory"),
        (Ended(2, b"", b"Error: no\n", 2 << 30), "memory"),
        (Ended(4, b"", b"", 0), "code 4"),
        (Ended(2, b"", b"one\ntwo\n", 0), "lines"),
        (Ended(0, b"", b"", 0), "outside"),
        (Ended(2, b"", f"Error: {TOKEN}\n".encode(), 0), "leak"),
        (Ended(2, b"", b"Error: \x1b[2J\n", 0), "control"),
    ],
)
def test_what_must_not_happen_is_noticed(ended: Ended, what: str, tmp_path: Path) -> None:
    mutant = Mutant(tmp_path / "out.h5", "plain", (), outside="all")
    assert [found for found, _ in judge(["inspect", "out.h5"], ended, mutant, tmp_path)] == [what]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it")
def test_the_length_of_an_attribute_is_not_believed(tmp_path: Path) -> None:
    """HDF5 would take four gigabytes first."""
    path = tmp_path / "in" / "out.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.attrs.update(schema="vswin-extract/1", precision="fp32")
    content = path.read_bytes()
    at = content.index(b"precision\0") + 48  # name, type and shape come before the reference
    assert content[at : at + 4] == bytes([4, 0, 0, 0])
    for length, known in ((4, {"schema", "precision"}), (0xFFFFFFF0, {"schema"})):
        path.write_bytes(content[:at] + length.to_bytes(4, "little") + content[at + 4 :])
        with h5py.File(path) as file:
            assert stored_values(file).keys() == known
    (outcome,) = run_limited([["check", str(path)]], path, tmp_path)
    assert outcome.code == 4
    assert b"memory" not in outcome.stdout + outcome.stderr


def test_a_long_setting_makes_no_long_message() -> None:
    assert len(describe_difference({"model": "x" * 60_000}, {"model": {"y": "z" * 60_000}})) < 500


@pytest.mark.skipif(sys.platform != "linux", reason="time is limited as Linux does it")
@pytest.mark.parametrize("where", ["the attributes", "an attribute of a named type", "a column"])
def test_a_collection_of_texts_without_an_end_is_not_read(where: str, tmp_path: Path) -> None:
    """HDF5 would look for the next text for ever."""
    make_bases(tmp_path / "bases")
    path = tmp_path / "in" / "out.h5"
    path.parent.mkdir()
    path.write_bytes((tmp_path / "bases" / "plain" / "out.h5").read_bytes())
    if where == "an attribute of a named type":
        with h5py.File(path, "a") as file:
            file["named"] = h5py.string_dtype()
            file.attrs.create("model", "my own.pth", (), file["named"])
    content = bytearray(path.read_bytes())
    text = {"a column": b"v/1.mp4\0", "the attributes": b"mine.pth"}.get(where, b"my own.pth")
    at = content.index(b"GCOL", content.rindex(b"GCOL", 0, content.index(text))) + 16
    while int.from_bytes(content[at : at + 2], "little"):  # up to the free bytes after the last text
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    for command in (["check", str(path)], ["inspect", str(path)], ["search", str(path), "v/1.mp4"]):
        (outcome,) = run_limited([command], path, tmp_path)
        assert outcome.code in (2, 4), (command, outcome)


def mapping_of(path: Path, name: str) -> tuple[bytearray, range]:
    """Return the bytes of a file, and which of them are the mappings of a virtual dataset, with their checksum."""
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        layout = content.index(b"\x04\x03", h5py.h5o.get_info(file[name].id).addr)  # its version and its class
    collection, index = struct.unpack_from("<QI", content, layout + 2)
    at = collection + 16
    while int.from_bytes(content[at : at + 2], "little") != index:
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    return content, range(at + 16, at + 16 + int.from_bytes(content[at + 8 : at + 16], "little"))


MAPPED: dict[layouts.Layout, str] = {"single": "videos/v/1.mp4/embedding", "sharded": "embedding"}
"""A virtual dataset of an output, and one of an index."""


def make_mapped(folder: Path, layout: layouts.Layout) -> Path:
    (folder / "in").mkdir()
    videos = random_embeddings(0, 3, 3, channels=8)
    return make_embedded(folder / "in" / "out.h5", videos, layout=layout, shard_videos=1)


@pytest.mark.skipif(sys.platform != "linux", reason="time is limited as Linux does it")
@pytest.mark.parametrize(("layout", "command"), [("single", "check"), ("sharded", "inspect")])
def test_rows_of_too_many_axes_are_not_read(layout: layouts.Layout, command: str, tmp_path: Path) -> None:
    """HDF5 would write past its memory before it finds that the checksum is wrong."""
    path = make_mapped(tmp_path, layout)
    content, block = mapping_of(path, MAPPED[layout])
    at = content.index(struct.pack("<II4xI", 2, 1, 24), block.start, block.stop) + 16  # a selection of two axes
    assert content[at : at + 4] == bytes([2, 0, 0, 0])
    content[at + 2] = 64
    path.write_bytes(content)
    (outcome,) = run_limited([[command, str(path)]], path, tmp_path)
    assert outcome.code == {"check": 4, "inspect": 2}[command], outcome
    assert f"/{MAPPED[layout]}".encode() in outcome.stdout + outcome.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="time is limited as Linux does it")
@pytest.mark.parametrize("layout", MAPPED)
def test_no_byte_of_mappings_is_trusted(layout: layouts.Layout, tmp_path: Path) -> None:
    path = make_mapped(tmp_path, layout)
    content, block = mapping_of(path, MAPPED[layout])
    changes = [(at, content[at] ^ bit) for at in block for bit in (1, 64, 255)]
    assert len(changes) > 200
    pid = os.fork()
    if not pid:  # HDF5 may not survive
        try:
            limit("check")
            for at, byte in changes:
                signal.alarm(10)
                path.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
                assert verify_output(path).problems, (at, byte)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(TRACEBACK)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("rows", [3, 1 << 40])
def test_mappings_of_many_rows_are_sound(rows: int, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "out.h5", "w", userblock_size=512) as file:
        layout = h5py.VirtualLayout((2 * rows, 8), "f4")
        for first in (0, rows):
            layout[first : first + rows] = h5py.VirtualSource("a.h5", "embedding", (3 * rows, 8), "f4")[rows : 2 * rows]
        file.create_virtual_dataset("embedding", layout)
    with h5py.File(tmp_path / "out.h5") as file:
        assert isinstance(open_member(file["/"].id, "embedding", look_into(file.id)), h5py.h5d.DatasetID)
