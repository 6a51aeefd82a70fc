"""The rules that the code keeps: which module may import which, what the command line offers, how fast help answers."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from conftest import ROOT, script

from vswin_extract import backbone, errors
from vswin_extract.cli import COMMANDS, vswin
from vswin_extract.cli.extract import extract
from vswin_extract.decoding import decoders
from vswin_extract.job import job
from vswin_extract.network.pooling import CropPool, Pool
from vswin_extract.store import layouts
from vswin_extract.store.schema import Compression
from vswin_extract.video import geometry, sampling

PACKAGE = ROOT / "vswin_extract"
SOURCES = sorted(PACKAGE.rglob("*.py"))


ROOMS = (
    "network",  # the model
    "video",  # which videos, which frames of them, which pixels
    "decoding",  # frames with exact times out of files
    "feeding",  # clips of videos, decoded in processes of their own
    "weights",  # a name or a file to a checked state dict
    "backbone",  # pixels in, features out
    "store",  # rows to a file, and back
    "loading",  # features as sequences for other models
    "journal",  # what is finished survives a kill
    "job",  # what a run is asked to do, and what it says
    "worker",  # one device: clips to rows
    "pools",  # workers in this process, in others, on a Ray cluster
    "run",  # all devices: a job to its events
    "export",  # the files of other projects
    "explore",  # searching and looking
    "checks",  # whether an output, weights and this machine are sound
    "python",  # what Python programs get: features in memory, outputs that can be searched
    "cli",  # parse, call, render
)
"""From the ground up. A module imports from its own room and from rooms before it."""
GROUND = ("__init__", "errors", "files", "formatting", "locks", "processes", "system")
"""Modules of the package's root, on which all rooms stand."""


def room(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def floor(name: str) -> int:
    return -1 if name in GROUND else ROOMS.index(name)


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Modules of this package that a file imports, each with the name that it takes from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            for alias in node.names:
                yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == PACKAGE.name:
                    yield alias.name, ""


def test_every_file_is_in_a_room() -> None:
    found = {room(path) for path in SOURCES}
    assert found - set(GROUND) == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in SOURCES if path != PACKAGE / "__init__.py"], ids=str)
def test_rooms_import_only_downwards(path: Path) -> None:
    for module, name in imported(path):
        parts = [*module.split("."), name]
        if parts[1] in (*ROOMS, *GROUND):
            assert floor(parts[1]) <= floor(room(path)), f"{path.name} imports {name} of {module}"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_room_uses_private_names_of_another(path: Path) -> None:
    for module, name in imported(path):
        there = module.split(".")[1:2]
        if there and there[0] != room(path):
            assert not any(part.startswith("_") for part in [*module.split("."), name]), f"{module}: {name}"


MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_ROOM_FILES = 400, 60, 11
EXCEPTIONS = {
    "run/api.py:extract": "its signature has every option written out, and its body passes each on",
}
"""Files, functions (FILE:NAME) and rooms that may be larger, each with its reason. At most five."""


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Functions of a file, each with its lines from `def` to its end. Options of a command are not part of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def room_files(name: str) -> Iterator[Path]:
    """The files of a room, without its __init__ and, in cli, without the one file for each command."""
    for path in (PACKAGE / name).glob("*.py"):
        if path.name != "__init__.py" and not (name == "cli" and path.stem in COMMANDS):
            yield path


def test_files_functions_and_rooms_are_small() -> None:
    large = set()
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        if len(path.read_text().splitlines()) > MOST_FILE_LINES:
            large.add(name)
        large |= {f"{name}:{function}" for function, lines in functions(path) if lines > MOST_FUNCTION_LINES}
    large |= {name for name in ROOMS if len(list(room_files(name))) > MOST_ROOM_FILES}
    assert large == set(EXCEPTIONS)
    assert len(EXCEPTIONS) <= 5
    assert all(EXCEPTIONS.values())


def test_one_name_means_one_thing() -> None:
    """No two public classes of the package have one name, and no file is a heap of helpers."""
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
    assert not {path.stem for path in SOURCES} & {"utils", "util", "misc", "common", "helpers", "tools"}


@pytest.mark.parametrize("name", ROOMS)
def test_every_room_says_what_it_is(name: str) -> None:
    """Its docstring names each of its files."""
    folder = PACKAGE / name
    if not folder.is_dir():
        return
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    for path in room_files(name):
        assert path.name in docstring or path.stem in docstring, path.name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_assert_on_what_users_give_and_no_print_from_the_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and room(path) != "cli":
            assert node.func.id not in ("print", "exit"), f"line {node.lineno}"


def test_decoders_start_without_torch_and_reading_without_either() -> None:
    for module, without in (
        ("vswin_extract.feeding.child", ["torch", "h5py", "fsspec"]),
        ("vswin_extract.store.features", ["torch", "av", "decord"]),
        ("vswin_extract.weights.pull", ["torch", "h5py", "fsspec"]),
        ("vswin_extract.job.events", ["torch", "h5py", "av"]),
        ("vswin_extract.export.export", ["torch", "av", "decord", "pyarrow"]),
        ("vswin_extract.explore.search", ["torch", "av", "faiss"]),
        ("vswin_extract.explore.plot", ["torch", "av", "matplotlib"]),
        ("vswin_extract.explore.report", ["torch", "matplotlib", "bokeh", "jinja2", "PIL"]),
        ("vswin_extract.python.model", ["av", "decord"]),
        ("vswin_extract.python.opened", ["torch", "av", "pandas"]),
        ("vswin_extract.cli.extract", ["torch", "numpy", "rich"]),
    ):
        found = f"import sys, {module}; print([m for m in {without} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == "[]", module


def defined(module: Path) -> set[str]:
    """The names that a file defines."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    dotted = set(re.findall(r"`(\w+(?:\.\w+)+)`", page))
    assert len(dotted) > 20
    for name in dotted - {"__init__.py"}:
        if (ROOT / name).exists() or name.startswith("out.h5"):
            continue
        *parts, last = name.split(".")
        place = PACKAGE.joinpath(*parts)
        module = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        assert last in defined(module), name
    classes = {name for path in SOURCES for name in defined(path)}
    for name in re.findall(r"`([A-Z]\w+)`", page):
        assert name in classes, name
    for name in re.findall(r"`([\w/]+/)`|`(\w+/\w+\.py)`", page):
        assert (PACKAGE / "".join(name)).exists() or (ROOT / "".join(name)).exists(), name
    rooms = re.findall(r"^ (\w+) {2,}", page.partition("```")[2].partition("```")[0], re.MULTILINE)
    assert rooms == list(reversed(ROOMS))
    trip = page.partition("## The trip")[2].partition("## Where")[0]
    assert len(re.findall(r"^\d+\. ", trip, re.MULTILINE)) <= 10
    words = page.partition("## Words")[2]
    assert len(re.findall(r"^\| ", words, re.MULTILINE)) - 1 <= 20


@pytest.mark.parametrize("arguments", [["vswin-extract", "--help"], ["vswin", "--help"], ["vswin", "extract", "-h"]])
def test_help_answers_at_once(arguments: list[str]) -> None:
    """Measured in processor time, so that a busy machine changes nothing."""
    seconds = []
    for _ in range(3):
        begun = os.times()
        subprocess.run([script(arguments[0]), *arguments[1:]], check=True, stdout=subprocess.DEVNULL)
        ended = os.times()
        seconds.append(ended.children_user + ended.children_system - begun.children_user - begun.children_system)
    assert min(seconds) < 0.4


def test_choices_of_the_command_line_are_those_of_the_library() -> None:
    choices = {
        option.name: list(option.type.choices)
        for option in extract.params
        if isinstance(option, click.Option) and isinstance(option.type, click.Choice)
    }
    literals: dict[str, Any] = {
        "pool": Pool,
        "precision": backbone.Precision,
        "align": sampling.Align,
        "tail": sampling.Tail,
        "crop": geometry.Crop,
        "crop_pool": CropPool,
        "decoder": decoders.DecoderName,
        "dtype": job.Dtype,
        "compression": Compression,
        "layout": layouts.Layout,
        "partial": job.Partial,
        "compile": job.Compile,
        "engine": job.Engine,
    }
    assert choices == {name: list(get_args(literal)) for name, literal in literals.items()}


def test_every_option_is_documented_and_every_command_is_there() -> None:
    context = click.Context(vswin)
    for name, short in COMMANDS.items():
        command = vswin.get_command(context, name)
        assert command is not None
        assert command.help
        assert short
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, parameter.name
    fields = set(job.Job.__dataclass_fields__) - {"videos", "output"}
    offered = {parameter.name for parameter in extract.params} - {"inputs", "output", "manifest"}
    assert fields - offered == set()


def test_the_family_of_errors_is_drawn_as_it_is() -> None:
    drawn = errors.__doc__ or ""
    family = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    for error in family:
        assert f"{error.__name__} " in drawn
        assert error.__doc__
    assert set(errors.VIDEO_ERRORS.values()) == set(errors.VideoError.__subclasses__())


def test_nothing_of_this_machine_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.split(b"\0")
    here = os.fsencode(ROOT)
    for name in filter(None, listed):
        content = (ROOT / os.fsdecode(name)).read_bytes()
        assert here + b"/" not in content, name
