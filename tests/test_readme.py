"""Commands and code of the README and docs/ run, and what they say agrees with the code."""

import math
import os
import re
import shlex
import tomllib
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
from vswin_extract.weights.registry import manifest

README = (ROOT / "README.md").read_text()
INDEX = "docs/README.md"
PAGES = {page.name: page.read_text() for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "README.md"}
PAGES |= {"README.md": README, INDEX: (ROOT / INDEX).read_text()}
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


@pytest.mark.parametrize("code", blocks("python") + blocks("python", PAGES["file.md"]))
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


@pytest.mark.slow
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


def anchors(text: str) -> set[str]:
    """What links to headings of a page are called, as GitHub makes it."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "weights/README.md"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    pictures = [(source, "") for source in re.findall(r'<img src="([^":]+)"', text)]
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text) + pictures:
        there = page.parent / target if target else page
        assert os.path.exists(there), target
        assert not anchor or anchor in anchors(there.read_text()), f"{target}#{anchor}"


def test_the_index_has_every_page() -> None:
    named = set(re.findall(r"^- \[[^]]+\]\(([\w.]+)\): \S", PAGES[INDEX], re.MULTILINE))
    assert named == PAGES.keys() - {"README.md", INDEX}


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    assert len(README.split()) <= 1200
    assert [block.partition(" ")[0] for block in blocks("sh")] == ["pip", "pip"]


def test_badges_say_what_the_project_file_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    says = {
        path.stem: (re.search("<title>(.*)</title>", path.read_text()) or ["", ""])[1]
        for path in (ROOT / "docs/badges").glob("*.svg")
    }
    (torch,) = (each for each in project["dependencies"] if each.startswith("torch>="))
    first, before = re.findall(r"2\.(\d+)", torch)
    assert says == {
        "python": f"Python: {project['requires-python'].removeprefix('>=')}+",
        "pytorch": f"PyTorch: 2.{first} – 2.{int(before) - 1}",
        "licence": f"licence: {project['license']}",
    }


def test_settings_by_task_can_be_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `(--[^|`]+)`[^|]* \| ([^|]+) \|$", PAGES["choosing.md"], re.MULTILINE)
    assert len(rows) == 8
    for clips, features in rows:
        options = re.findall(r"[^\s`]+", f"{clips} {features}".removesuffix("embedding"))
        parsed("vswin-extract", "videos", "new.h5", *options)


def test_weights_that_are_advised_exist() -> None:
    named = set(re.findall(r"`([tsbl]-[a-z0-9-]+)`", PAGES["choosing.md"]))
    assert len(named) > 5
    assert named <= manifest().keys()


def test_costs_of_an_hour_of_video() -> None:
    """The last table of docs/choosing.md, for T and clips of 32 frames."""
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| (.+) \| (.+) \| (.+) \|$", PAGES["choosing.md"], re.MULTILINE)
    assert [row[0] for row in rows] == ["64", "32", "16", "8", "4"]
    embedding = 4 * VARIANTS["t"].channels(4)
    for stride, clips, *cells in rows:
        count = math.ceil(3600 * 30 / int(stride))
        assert number(clips) == count
        for cell, size in zip(cells, (embedding, 16 * embedding, 16 * 49 * embedding), strict=True):
            assert number(cell) == pytest.approx(count * size, rel=0.01), (stride, cell)


def test_options_that_are_named_exist() -> None:
    for name in re.findall(r"`(--[a-z0-9-]+)", PROSE):
        assert re.search(rf"(?<![a-z-]){name}(?![a-z-])", PAGES["cli.md"]), name


def test_exit_codes_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| (\d{1,3}) \| (.*) \|$", PAGES["operations.md"], re.MULTILINE))
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
    assert max(map(len, listed.stdout.partition("\n\n")[0].splitlines())) <= 80  # Something-Something is not wrapped
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
    factor = {"M": 1e6, "G": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}.get(unit, 1.0)
    return float(digits.replace(",", "")) * factor
