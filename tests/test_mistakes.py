"""Mistakes that people make. Each gets one line that leads on: it names the command or the value that was meant."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import Run
from outputs import make_output

from vswin_extract.cli import COMMANDS, vswin
from vswin_extract.cli.command import AliasGroup, ExampleCommand
from vswin_extract.cli.extract import MEANT, extract
from vswin_extract.video.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an output, out.h5, of shapes.mkv and clips/b.mp4, and with files of these names."""
    folder = tmp_path_factory.mktemp("mistakes")
    make_output(folder / "out.h5", [("shapes.mkv", 30, 10.0), ("clips/b.mp4", 20, 10.0)], Sampling(8, 1))
    (folder / "clips").mkdir()
    for name in ("shapes.mkv", "clips/b.mp4"):
        (folder / name).write_bytes(b"\x1aE\xdf\xa3 no frames in it\x00")
    return folder


MISTAKES = {
    "vswin-extract inspect out.h5": "vswin inspect out.h5",
    "vswin-extract info out.h5": "vswin inspect out.h5",
    "vswin-extract report out.h5 -o page.html": "vswin report out.h5 -o page.html",
    "vswin-extract doctor": "vswin doctor",
    "vswin-extract help": "vswin-extract --help",
    "vswin-extract": "vswin-extract videos/ out.h5",
    "vswin-extract shapes.mkv": "vswin-extract shapes.mkv out.h5",
    "vswin-extract out.h5 clips": "vswin-extract clips out.h5",
    "vswin-extract shapes.mkv new.npy": "new.h5",
    "vswin-extract shapes.mkv -o new.h5": "VIDEOS... OUT.h5",
    "vswin-extract shapes.mkv new.h5 --model t-k400": "--weights",
    "vswin-extract shapes.mkv new.h5 --stages 4": "--stage",
    "vswin-extract shapes.mkv new.h5 --stage 3 4": "--stage 3,4",
    "vswin-extract shapes.mkv new.h5 -stride 4": "--stride",
    "vswin-extract shapes.mkv new.h5 --fp16": "--precision fp16",
    "vswin-extract shapes.mkv new.h5 --device gpu": "cuda",
    "vswin-extract shapes.mkv new.h5 --weights video_swin_b": "b-k400",
    "vswin-extract shapes.mkv new.h5 --weights t-k400": "vswin weights pull t-k400",
    "vswin-extract shapes.mkv out.h5": "--overwrite",
    "vswin-extract nowhere/ new.h5": "nowhere",
    "vswin inspct out.h5": "inspect",
    "vswin help search": "vswin search --help",
    "vswin out.h5": "vswin inspect out.h5",
    "vswin shapes.mkv": "vswin extract shapes.mkv out.h5",
    "vswin inspect shapes.mkv": "vswin-extract shapes.mkv out.h5",
    "vswin inspect clips": "vswin-extract clips out.h5",
    "vswin search out.h5": "--duplicates",
    "vswin search out.h5 shapes": "shapes.mkv",
    "vswin search out.h5 b.mp4@0:01.0": "clips/b.mp4@0:01.0",
    "vswin search out.h5 shapes.mkv@1:05.3": "1:05.3",
    "vswin search out.h5 shapes.mkv -k 0": "1 or more",
    "vswin plot out.h5 shape.mkv": "shapes.mkv",
    "vswin plot out.h5": "vswin plot out.h5 a.mp4",
    "vswin merge": "-o OUT.h5",
    "vswin weights convert nano new.pth": "new.safetensors",
    "vswin weights pul t-k400": "pull",
    "vswin slurm shapes.mkv new.h5": "--tasks 8",
}
"""What was typed, and what its error must name."""


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_gets_one_line_that_leads_on(run: Run, folder: Path, typed: str) -> None:
    before = sorted(folder.rglob("*"))
    done = run(*shlex.split(typed), cwd=folder)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0]
    assert MISTAKES[typed] in errors[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("alias", ["info", "show", "ls"])
def test_other_names_of_commands(run: Run, folder: Path, alias: str) -> None:
    assert run("vswin", alias, folder / "out.h5") == run("vswin", "inspect", folder / "out.h5")


def test_other_names_of_weights_commands(run: Run) -> None:
    assert run("vswin", "weights", "ls") == run("vswin", "weights", "list")
    assert run("vswin", "weights", "download", "nano").stdout == run("vswin", "weights", "pull", "nano").stdout
    assert run("vswin", "weights", "download", "t-k40").returncode == 2


def test_another_name_of_weights_is_explained(run: Run, folder: Path) -> None:
    assert "tiny is t-k400" in run("vswin-extract", "shapes.mkv", "new.h5", "--weights", "tiny", cwd=folder).stderr


def test_outputs_have_names_if_none_is_given(run: Run, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "some.h5"
    source.write_bytes((folder / "out.h5").read_bytes())
    done = run("vswin", "plot", source, "shapes.mkv")
    assert (done.returncode, str(tmp_path / "some.shapes.png") in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "some.shapes.png").is_file()
    assert run("vswin", "weights", "convert", "nano", cwd=tmp_path).returncode == 0
    assert (tmp_path / "nano.safetensors").is_file()
    assert run("vswin", "weights", "convert", "nano.safetensors", cwd=tmp_path).returncode == 0
    assert (tmp_path / "nano-converted.safetensors").is_file()


def test_the_package_is_a_command(folder: Path) -> None:
    def answer(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "vswin_extract", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)

    assert "VIDEOS... OUT.h5" in answer("--help").stdout
    inspected = answer("inspect", "out.h5")
    assert (inspected.returncode, "shapes.mkv" in inspected.stdout) == (0, True)


def commands(group: click.Command = vswin, path: str = "vswin") -> dict[str, click.Command]:
    """All commands by the words that call them."""
    found = {path: group}
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            below = group.get_command(context, name)
            assert below is not None
            found |= commands(below, f"{path} {name}")
    return found


def test_examples_of_help_are_commands() -> None:
    """Their options exist, and each command has some."""
    every = commands()
    assert {f"vswin {name}" for name in COMMANDS} <= set(every)
    for path, command in every.items():
        assert isinstance(command, ExampleCommand | AliasGroup)
        assert 1 <= len(command.examples) <= 3, path
        for example in command.examples:
            words = shlex.split(example)
            if words[0] == "vswin-extract":
                target, rest = extract, words[1:]
            else:
                name = max((each for each in every if f"{example} ".startswith(f"{each} ")), key=len)
                target, rest = every[name], words[len(name.split()) :]
            assert isinstance(target, click.Command)
            context = target.context_class(target, info_name=path, **target.context_settings)
            target.make_parser(context).parse_args(list(rest))


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for path, command in commands().items():
        with command.context_class(command, info_name=path, max_content_width=100) as context:
            text = command.get_help(context)
        lines = text.splitlines()
        assert max(map(len, lines)) <= min(columns, 100), path
        assert not [line for line in lines if re.search(r"\w-$", line)], path
        assert "x>=" not in text


def test_words_of_other_tools_name_options_that_there_are() -> None:
    ours = {name for parameter in extract.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word, meant in MEANT.items():
        assert word not in ours
        assert not meant.startswith("-") or meant.split()[0] in ours
