"""The table of docs/security.md is true: what each command writes, and whether it uses the network."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numbered
import pytest
from conftest import ROOT, Run

from vswin_extract.cli import COMMANDS, vswin

PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = {
    command: {"writes": writes, "network": network}
    for commands, _, writes, network in re.findall(
        r"^\| (`vswin[^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", PAGE, re.MULTILINE
    )
    for command in re.findall(r"`(vswin[^`]*)`", commands)
}
"""By command."""


@dataclass
class Seen:
    """What this process did: files opened for writing, made, renamed or removed, and connections."""

    active: bool = False
    written: set[str] = field(default_factory=set)
    connections: list[Any] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.written.add(os.path.abspath(os.fsdecode(path)))
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            if arguments[-1] in (-1, None):  # else a name in an open directory, as rmtree removes it
                self.written.add(os.path.abspath(os.fsdecode(arguments[0])))
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.written.update(os.path.abspath(os.fsdecode(each)) for each in arguments[:2])
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self.connections.append(arguments[-2:])


SEEN = Seen()
sys.addaudithook(SEEN)  # it stays for ever, so it is asleep between these tests


@contextmanager
def watching() -> Iterator[Seen]:
    SEEN.written, SEEN.connections, SEEN.active = set(), [], True
    try:
        yield SEEN
    finally:
        SEEN.active = False


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def desk(run: Run, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, two outputs and weights."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("a", "b"):
        (folder / name).mkdir()
        numbered.write(folder / name / f"{name}.mp4", 30)
        done = run("vswin-extract", folder / name, folder / f"{name}.h5", "--weights", small_weights)
        assert done.returncode == 0, done.stderr
    (folder / "small.safetensors").write_bytes(small_weights.read_bytes())
    return folder


EXAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "vswin-extract": (["a", "out/n.h5", "--weights", "small.safetensors"], ["out/n.h5", "out/n.h5.toml"]),
    "vswin slurm": (["-o", "out/x.sbatch", "--tasks", "2", "a", "out/s.h5"], ["out/x.sbatch"]),
    "vswin inspect": (["a.h5"], []),
    "vswin search": (["a.h5", "a.mp4", "--html", "out/s.html"], ["out/s.html"]),
    "vswin report": (["a.h5", "-o", "out/r.html"], ["out/r.html"]),
    "vswin plot": (["a.h5", "a.mp4", "-o", "out/p.png"], ["out/p.png"]),
    "vswin merge": (["-o", "out/m.h5", "a.h5", "b.h5"], ["out/m.h5"]),
    "vswin export": (
        ["npy", "a.h5", "out/npy"],
        ["out/npy/a.mp4.npy", "out/npy/times/a.mp4.npy", "out/npy/export.json", "out/npy/videos.json"],
    ),
    "vswin check": (["a.h5"], []),
    "vswin config": ([], []),
    "vswin weights list": ([], []),
    "vswin weights path": (["nano"], []),
    "vswin weights prune": ([], []),
    "vswin weights show": (["small.safetensors"], []),
    "vswin weights verify": (["nano"], []),
    "vswin weights convert": (["small.safetensors", "out/c.safetensors"], ["out/c.safetensors"]),
}
"""By command: words, and the files that are there afterwards."""
MATPLOTLIB = [Path.home() / ".config" / "matplotlib", Path.home() / ".cache" / "matplotlib"]
NOT_RUN = {
    "vswin extract": "it is vswin-extract",
    "vswin weights pull": "tests/test_download.py runs it with a server",
    "vswin weights inflate": "tests/test_inflation.py runs it; it writes as convert does",
    "vswin doctor": "tests/test_doctor.py runs it; it takes long",
}


def leaves(group: click.Group, name: str) -> Iterator[str]:
    for each in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), each)
        if isinstance(command, click.Group):
            yield from leaves(command, f"{name} {each}")
        else:
            yield f"{name} {each}"


def test_the_table_has_every_command() -> None:
    commands = {"vswin-extract", *leaves(vswin, "vswin")}
    assert set(ROWS) == commands
    assert {*EXAMPLES, *NOT_RUN} == commands
    assert all(name in PAGE for name in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=pytest.mark.slow) if each in ("vswin report", "vswin plot") else each
        for each in EXAMPLES
    ],
)
def test_commands_write_what_they_are_told(command: str, desk: Path, run: Run, environment: dict[str, str]) -> None:
    (desk / "out").mkdir(exist_ok=True)
    words, expected = EXAMPLES[command]
    name, *rest = command.split()
    before = state(desk)
    with watching() as seen:
        done = run(name, *rest, *words, cwd=desk)
    assert done.returncode == 0, done.stderr
    after = state(desk)
    assert {path: each for path, each in after.items() if path in before} == before, "it has changed what it read"
    assert sorted(str(path.relative_to(desk)) for path in after.keys() - before.keys()) == sorted(expected)
    allowed = [desk / "out", Path(environment["VSWIN_WEIGHTS_DIR"]), Path("/dev/null"), *MATPLOTLIB]
    assert not {path for path in seen.written if not any(Path(path).is_relative_to(each) for each in allowed)}
    assert not seen.connections, "it has used the network"
    assert ROWS[command]["network"].startswith("no")
    assert ROWS[command]["writes"].startswith("nothing") == (not expected)
