"""Commands and code of the README and docs/ run, and what they say agrees with the code."""

import os
import re
import shlex
from pathlib import Path

import click
import pytest
import reference
from conftest import ROOT, Run

from benchmarks.model import model
from vswin_extract.cli import vswin
from vswin_extract.cli.exit import EXIT_CODES
from vswin_extract.cli.extract import extract
from vswin_extract.decoding.pyav import FORMATS
from vswin_extract.errors import VIDEO_ERRORS
from vswin_extract.network.variants import VARIANTS

README = (ROOT / "README.md").read_text()
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PROSE = "\n".join(text for name, text in PAGES.items() if name != "cli.md")


def blocks(kind: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Our commands in blocks of ```console, as words; what is a shell's is left out."""
    lines = "".join(blocks("console", text)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ vswin")]
    return [each[: each.index("<")] if "<" in each else each for each in words]


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's first command was run, without the install, on two of the example videos."""
    here = tmp_path_factory.mktemp("readme")
    (here / "examples/videos").mkdir(parents=True)
    for name in ("clips", "astronaut-pan.mp4"):
        (here / "examples/videos" / name).symlink_to(ROOT / "examples/videos" / name)
    (here / "videos").symlink_to(ROOT / "examples/videos/clips")
    (here / "run.toml").write_text('videos = "videos"\noutput = "big.h5"\n')
    install, *commands = blocks("sh")[0].strip().split(" && ")
    assert install == "pip install ."
    for command in commands:
        name, *arguments = command.split()
        done = run(name, *arguments, cwd=here)
        assert done.returncode == 0, done.stderr
    return here


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})


def parsed(name: str, *words: str) -> None:
    """Raise click.UsageError for a command or an option that does not exist."""
    command: click.Command = {"vswin": vswin, "vswin-extract": extract}[name]
    rest = list(words)
    while isinstance(command, click.Group):
        name, _, rest = command.resolve_command(click.Context(command), rest)  # type: ignore[assignment]
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    with command.make_context(name, rest) as context:
        if context.info_name == "slurm":
            extract.make_context("vswin-extract", list(context.params["arguments"]))


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for words in commands(PAGES[name]):
        parsed(*words)


ELSEWHERE = ("pull", "ray", "--submit")
"""Words of commands that need a network or a cluster, which the tests do not have."""


def test_the_cookbook_works(run: Run, folder: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for words in commands(PAGES["cookbook.md"]):
        if not set(words) & set(ELSEWHERE):
            done = run(*[str(small_weights) if word == "t-k400" else word for word in words])
            assert done.returncode == 0, (words, done.stderr)
    for code in blocks("python", PAGES["cookbook.md"]):
        exec(compile(code, "docs/cookbook.md", "exec"), {})
    offered = (folder / "data/actionformer/actionformer.yaml").read_text()
    for key in ("feat_stride", "num_frames", "default_fps", "input_dim"):
        assert f"{key}:" in offered
    for key in ("feature_stride", "sample_stride", "offset_frames"):
        assert key in (folder / "data/opentad/opentad.py").read_text()


def test_the_reference_is_that_of_the_commands() -> None:
    assert PAGES["cli.md"] == reference.reference(PAGES["cli.md"]), "python docs/reference.py"


def test_the_drawings_of_clips_are_those_of_the_code() -> None:
    assert PAGES["conventions.md"] == reference.redrawn(PAGES["conventions.md"]), "python docs/reference.py"
    assert reference.draw("--clip-len 3 --frame-interval 2 --stride 4, 12 frames").splitlines() == [
        "frame    0  1  2  3  4  5  6  7  8  9 10 11",
        "clip 0   x  .  x  .  x  .                     [0, 6)  valid 3",
        "clip 1               x  .  x  .  x  .         [4, 10)  valid 3",
        "clip 2                           x  .  x  r   [8, 12)  valid 2",
    ]


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        here = (ROOT if name == "README.md" else ROOT / "docs").resolve()
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert os.path.exists(here / target), (name, target)


def test_options_that_are_named_exist() -> None:
    for name in re.findall(r"`(--[a-z0-9-]+)", PROSE):
        assert re.search(rf"(?<![a-z-]){name}(?![a-z-])", PAGES["cli.md"]), name


def test_exit_codes_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| (\d{1,3}) \| (.*) \|$", PROSE, re.MULTILINE))
    assert table == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_failure_classes_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| ([A-Z]\w+) \| ([^|]*) \|$", PROSE, re.MULTILINE))
    assert table.keys() == VIDEO_ERRORS.keys()
    for name, meaning in table.items():
        first_line = (VIDEO_ERRORS[name].__doc__ or "").rstrip(".").lower()
        assert meaning.lower().startswith(first_line[:30]), name


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
    assert {"t-k400", "nano"} <= set(listed.stdout.split())
    converted = run("vswin", "weights", "convert", small_weights, tmp_path / "mine.safetensors")
    assert converted.returncode == 0, converted.stderr
    for value in ("nano", "4x7x7", "3 classes"):
        assert value in converted.stdout
    wrong = run("vswin", "weights", "convert", small_weights, tmp_path / "mine.pth")
    assert (wrong.returncode, "mine.pth" in wrong.stderr) == (2, True)
    near = run("vswin", "weights", "pull", "t-k40")
    assert (near.returncode, "t-k400" in near.stderr) == (2, True)


def test_no_playlist_or_image_format_is_opened() -> None:
    names = set(FORMATS.split(","))
    assert not names & {"hls", "dash", "concat", "image2", "tee", "rtsp", "sdp", "webm_dash_manifest", "imf", "lavfi"}
    assert not [name for name in names if name.endswith("_pipe")]


def test_the_model_of_a_run_is_what_the_benchmark_says() -> None:
    """Every number of the first table of docs/scale.md, to the digits that it has there."""
    measured = {row["what"]: list(row.values())[1:] for row in model()}
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
        for cell, value in zip(table[name], measured[what], strict=True):
            assert number(cell) == pytest.approx(value * unit, rel=0.03), (name, cell)


def number(cell: str) -> float:
    """1,230; 2.5 TB; 0.3 M; 28 on 512."""
    digits, _, unit = cell.partition(" ")
    factor = {"M": 1e6, "G": 1e9, "GB": 1e9, "TB": 1e12, "PB": 1e15}.get(unit, 1.0)
    return float(digits.replace(",", "")) * factor
