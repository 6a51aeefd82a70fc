"""What the README says is run, or held against the code."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, Run

from benchmarks.model import model
from vswin_extract.cli.console import EXIT_CODES
from vswin_extract.errors import VIDEO_ERRORS
from vswin_extract.frames.pyav import FORMATS
from vswin_extract.variants import VARIANTS

README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's first command has been run, but for the install."""
    here = tmp_path_factory.mktemp("readme")
    (here / "examples").symlink_to(ROOT / "examples")
    install, extract, inspect = blocks("sh")[0].strip().split(" && ")
    assert install == "pip install ."
    for command in (extract, inspect):
        name, *arguments = command.split()
        done = run(name, *arguments, cwd=here)
        assert done.returncode == 0, done.stderr
    return here


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})


def test_commands_name_options_that_exist(run: Run) -> None:
    offered = "".join(
        run(*command, "--help").stdout
        for command in (
            ["vswin-extract"],
            *(["vswin", name] for name in ("inspect", "check", "merge", "search", "slurm", "export", "report")),
        )
    )
    for name in re.findall(r"`(--[a-z-]+)", README):
        assert name in offered, name
    for command in re.findall(r"^\$ vswin weights (\w+)", README, re.MULTILINE):
        assert command in run("vswin", "weights", "--help").stdout


def test_exit_codes_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| (\d{1,3}) \| (.*) \|$", README, re.MULTILINE))
    assert table == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_failure_classes_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| ([A-Z]\w+) \| (.*) \|$", README, re.MULTILINE))
    assert table.keys() == VIDEO_ERRORS.keys()
    for name, meaning in table.items():
        said = (VIDEO_ERRORS[name].__doc__ or "").rstrip(".").lower()
        assert meaning.lower().startswith(said[:30]), name


def test_variants_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (nano|T|S|B|L) \| ([\d, ]+) \| ([\d, ]+) \|", README, re.MULTILINE)
    assert len(rows) == len(VARIANTS)
    for name, channels, blocks_ in rows:
        variant = VARIANTS[name.lower()]
        assert channels == ", ".join(str(variant.channels(stage)) for stage in (1, 2, 3, 4))
        assert blocks_ == ", ".join(map(str, variant.depths))


def test_weights_commands(run: Run, small_weights: Path, tmp_path: Path) -> None:
    listed = run("vswin", "weights", "list")
    assert listed.returncode == 0
    assert "t-k400 " in listed.stdout
    assert "nano " in listed.stdout
    converted = run("vswin", "weights", "convert", small_weights, tmp_path / "mine.safetensors")
    assert converted.returncode == 0, converted.stderr
    assert "variant nano, window 8x7x7, 3 classes" in converted.stdout
    wrong = run("vswin", "weights", "convert", small_weights, tmp_path / "mine.pth")
    assert (wrong.returncode, "must end in .safetensors" in wrong.stderr) == (2, True)
    near = run("vswin", "weights", "pull", "t-k40")
    assert (near.returncode, "did you mean t-k400" in near.stderr) == (2, True)


def test_no_playlist_or_image_format_is_opened() -> None:
    names = set(FORMATS.split(","))
    assert not names & {"hls", "dash", "concat", "image2", "tee", "rtsp", "sdp", "webm_dash_manifest", "imf", "lavfi"}
    assert not [name for name in names if name.endswith("_pipe")]


def test_the_model_of_a_run_is_what_the_benchmark_says() -> None:
    """Every number of the first table of docs/scale.md, to the digits that it has there."""
    said = {row["what"]: list(row.values())[1:] for row in model()}
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/scale.md").read_text(), re.MULTILINE
    )
    table = {name: cells for name, *cells in rows}
    for name, what, unit in (
        ("hours of video", "hours of video", 1),
        ("clips", "M clips", 1e6),
        ("core-hours of decoding", "core-hours, decoding", 1),
        ("hours on GPUs of 16 cores each", "hours, T", 1),
        ("embeddings", "GB, embedding", 1e9),
        ("`--stage 4 --pool space`", "GB, stage4, space", 1e9),
        ("`--stage 4`, whole maps", "GB, stage4", 1e9),
        ("file-system calls", "M file operations", 1e6),
        ("shards of 10,000 videos", "shards", 1),
    ):
        for cell, value in zip(table[name], said[what], strict=True):
            assert number(cell) == pytest.approx(value * unit, rel=0.03), (name, cell)


def number(cell: str) -> float:
    """1,230; 2.5 TB; 0.3 M; 28 on 512."""
    digits, _, unit = cell.partition(" ")
    factor = {"M": 1e6, "G": 1e9, "GB": 1e9, "TB": 1e12, "PB": 1e15}.get(unit, 1.0)
    return float(digits.replace(",", "")) * factor
