"""The rules that the code keeps: which module may import which, what the command line offers, how fast help answers."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from conftest import ROOT, script

from vswin_extract import backbone, clips, errors, frames, job, layouts, preprocess, store
from vswin_extract.cli import COMMANDS, vswin
from vswin_extract.cli.extract import extract

PACKAGE = ROOT / "vswin_extract"
ORDER = (
    "errors files variants clips schedule slurm preprocess swin3d tiled kernels fused checkpoints locks remote "
    "download classes weights backbone golden verify inflation fetch videos frames store features sequences dataset "
    "export similarity approximate parts layouts journal job check merge writer pipeline engines search thumbnails "
    "page plot report doctor cli"
).split()
"""Data goes one way; a module imports only from those before it."""
SOURCES = sorted(PACKAGE.rglob("*.py"))


def station(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE or p.name != "__init__.py"], ids=str)
def test_arrows_point_one_way(path: Path) -> None:
    here = ORDER.index(station(path))
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "vswin_extract" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= here, f"{path.name} imports {name}"


def test_every_module_has_its_place() -> None:
    assert {station(path) for path in SOURCES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_assert_on_what_users_give_and_no_print_from_the_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and station(path) != "cli":
            assert node.func.id not in ("print", "exit"), f"line {node.lineno}"


def test_decoders_start_without_torch_and_reading_without_either() -> None:
    for module, without in (
        ("vswin_extract.frames.worker", ["torch", "h5py", "fsspec"]),
        ("vswin_extract.features", ["torch", "av", "decord"]),
        ("vswin_extract.weights", ["torch", "h5py", "fsspec"]),
        ("vswin_extract.export", ["torch", "av", "decord", "pyarrow"]),
        ("vswin_extract.search", ["torch", "av", "faiss"]),
        ("vswin_extract.plot", ["torch", "av", "matplotlib"]),
        ("vswin_extract.report", ["torch", "matplotlib", "bokeh", "jinja2", "PIL"]),
        ("vswin_extract.cli.extract", ["torch", "numpy", "rich"]),
    ):
        found = f"import sys, {module}; print([m for m in {without} if m in sys.modules])"
        said = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True, cwd=ROOT)
        assert said.stdout.strip() == "[]", module


@pytest.mark.parametrize("arguments", [["vswin-extract", "--help"], ["vswin", "--help"], ["vswin", "extract", "-h"]])
def test_help_answers_at_once(arguments: list[str]) -> None:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([script(arguments[0]), *arguments[1:]], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.4


def test_choices_of_the_command_line_are_those_of_the_library() -> None:
    choices = {
        option.name: list(option.type.choices)
        for option in extract.params
        if isinstance(option, click.Option) and isinstance(option.type, click.Choice)
    }
    literals: dict[str, Any] = {
        "pool": backbone.Pool,
        "precision": backbone.Precision,
        "align": clips.Align,
        "tail": clips.Tail,
        "crop": preprocess.Crop,
        "decoder": frames.DecoderName,
        "dtype": job.Dtype,
        "compression": store.Compression,
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
