"""What operating systems do differently: commands work where Python lacks what only Linux has, as on macOS.

`other_systems/sitecustomize.py` takes it away from a command and from its child processes.
"""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numbered
import numpy as np
import pytest
from conftest import ROOT, Done, Run, script

from vswin_extract import system
from vswin_extract.store.features import open_features

OTHER = Path(__file__).parent / "other_systems"
LINUX_ONLY = {
    "sched_getaffinity", "sched_setaffinity", "posix_fallocate", "posix_fadvise", "memfd_create", "pidfd_open",
    "F_SETPIPE_SZ", "F_FULLFSYNC", "RLIMIT_AS", "RLIMIT_NOFILE", "fsync", "CDLL", "sysconf",
}  # fmt: skip
"""Names that only `system` may use. fsync: it means something else on macOS."""


@pytest.fixture(scope="module")
def other(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a command on another system."""
    return {**environment, "PYTHONPATH": os.pathsep.join([str(OTHER), str(ROOT)])}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        numbered.write(folder / f"{number}.mp4", 40, first=100 * number)
    return folder


def call(environment: dict[str, str], command: str, *arguments: object) -> Done:
    done = subprocess.run(
        [script(command), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (arguments, done.stderr)
    return Done(done.returncode, done.stdout, done.stderr)


def test_linux_is_taken_away_from_children_too(other: dict[str, str]) -> None:
    code = "import os, sys; print(sys.platform, hasattr(os, 'sched_getaffinity'), __import__('vswin_extract').__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=other, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["darwin", "False", str(ROOT / "vswin_extract" / "__init__.py")]


@pytest.mark.slow
def test_features_are_the_same_on_another_system(
    other: dict[str, str], run: Run, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    """One process here; there two shards, one of two processes that are killed, and that one process continues."""
    here, there = tmp_path / "here.h5", tmp_path / "there.h5"
    options = ["--weights", str(small_weights), "--stage", "4", "--quiet"]
    assert run("vswin-extract", videos, here, *options).returncode == 0

    first = [str(videos), str(there), *options, "--shard", "0/2"]
    process = subprocess.Popen([script("vswin-extract"), *first, "--device", "cpu:2"], env=other)
    deadline = time.monotonic() + 100
    while not list(there.with_name("there.h5.parts").glob("shard-*/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    call(other, "vswin-extract", *first)
    call(other, "vswin-extract", videos, there, *options, "--shard", "1/2")
    call(other, "vswin", "merge", there)
    with open_features(here) as expected, open_features(there) as found:
        assert list(found) == list(expected)
        for name in expected:
            assert np.allclose(found[name].stage4[:], expected[name].stage4[:], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_other_commands_on_another_system(
    other: dict[str, str], videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    call(other, "vswin-extract", videos, out, "--weights", small_weights, "--quiet")
    for arguments in (
        ("inspect", out),
        ("check", out),
        ("search", out, "0.mp4"),
        ("search", out, videos / "1.mp4", "--weights", small_weights),
        ("export", "npy", out, tmp_path / "npy"),
        ("report", out, "-o", tmp_path / "report.html"),
        ("weights", "list"),
    ):
        call(other, "vswin", *arguments)


def names_used(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield f"sys.{node.attr}" if isinstance(node.value, ast.Name) and node.value.id == "sys" else node.attr
        elif isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (place for place in ("/proc/", "/sys/", "/dev/shm/") if node.value.startswith(place))


def test_one_module_knows_systems() -> None:
    forbidden = LINUX_ONLY | {"/proc/", "/sys/", "sys.platform", "import resource", "import ctypes"}
    for path in (ROOT / "vswin_extract").rglob("*.py"):
        if path.name != "system.py":
            assert not forbidden & set(names_used(path)), path.name
    assert forbidden & set(names_used(Path(system.__file__)))


def test_when_processes_began(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = system.started(os.getpid())
    assert mine not in (None, system.UNKNOWN)
    assert system.is_alive(os.getpid(), mine)
    assert not system.is_alive(os.getpid(), "another time")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended_at = system.started(ended.pid)
    deadline = time.monotonic() + 60
    while system.started(ended.pid) is not None:  # dead, and not collected
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not system.is_alive(ended.pid, ended_at)
    ended.wait()
    assert system.started(ended.pid) is None

    # where the system does not tell: a living process counts, so that its lock is not taken from it
    monkeypatch.setattr(Path, "read_text", lambda path: path.with_name("nowhere").open().read())
    monkeypatch.setenv("PATH", "")
    assert system.started(os.getpid()) == system.UNKNOWN
    assert system.is_alive(os.getpid(), mine)
    assert system.is_alive(os.getpid(), system.UNKNOWN)
    assert system.started(ended.pid) is None


def test_ps_tells_when_a_process_began(other: dict[str, str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = f"from vswin_extract.system import started; print(started({child.pid}))"
    try:
        done = subprocess.run([sys.executable, "-c", code], env=other, capture_output=True, text=True, check=True)
        assert done.stdout.strip() not in ("None", "", system.UNKNOWN)
    finally:
        child.communicate()


def test_the_names_of_a_directory_that_cannot_be_flushed() -> None:
    """As on some network file systems: fsync of a directory is an error there."""
    directory = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            os.fsync(directory)
        system.flush(directory)
    finally:
        os.close(directory)


def test_a_file_that_cannot_be_flushed() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            system.flush(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("linux", [True, False])
def test_room_is_reserved(linux: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not linux:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        system.reserve(file.fileno(), 100_000)
        assert os.fstat(file.fileno()).st_size == 100_000
