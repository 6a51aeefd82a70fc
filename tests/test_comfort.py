"""Where options come from, answers to mistakes, colours, completion, versions."""

import io
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numbered
import pytest
import torch
from click.shell_completion import BashComplete
from conftest import Run, script
from outputs import make_output
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from vswin_extract import open_features
from vswin_extract.checks.result import Check
from vswin_extract.cli import COMMANDS, vswin
from vswin_extract.cli.config import GENERAL, check_environment, parameters, write_config
from vswin_extract.cli.console import PrintableFormatter, note, show_checks, stderr, stdout, table
from vswin_extract.cli.exit import fail
from vswin_extract.cli.extract import extract
from vswin_extract.cli.progress import LiveProgress, LogProgress, NotebookProgress, QuietProgress
from vswin_extract.job.events import ClipsDone, ClipsExpected, Notice, Started, VideoDone
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.sampling import Sampling


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    numbered.write(folder / "a.mp4", 40)
    numbered.write(folder / "b b.mp4", 20)
    return folder


@pytest.fixture
def config(videos: Path, small_weights: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f'videos = "{videos}"\noutput = "out.h5"\nweights = "{small_weights}"\n'
        'stage = [4, 2]\npool = "all"\nclip_len = 4\nstride = 6\nfps = 15\nworkers = 1\nlogits = true\n'
    )
    return path


def test_a_run_by_a_file_and_again_by_what_it_wrote(run: Run, config: Path, tmp_path: Path) -> None:
    done = run("vswin-extract", "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(config) in done.stderr
    written = (tmp_path / "out.h5.toml").read_text()
    assert written.startswith(f"# Written by vswin-extract {version('vswin-extract')}")
    used = tomllib.loads(written)
    assert (used["stage"], used["clip-len"], used["fps"], used["tail"]) == ([4, 2], 4, "15", "pad")
    assert used["output"] == str(tmp_path / "out.h5")
    without_value = {"frame-interval", "size", "resize", "manifest", "cache-dir", "variant", "batch-size", "storage"}
    assert set(used) == set(parameters(extract)) - without_value - {"actors", "dry-run"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = run("vswin-extract", "--config", tmp_path / "out.h5.toml", "--quiet", elsewhere / "again.h5", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    rewritten = tomllib.loads((elsewhere / "again.h5.toml").read_text())
    assert rewritten == {**used, "output": str(elsewhere / "again.h5"), "quiet": True}
    with open_features(tmp_path / "out.h5") as one, open_features(elsewhere / "again.h5") as other:
        assert one.names == other.names == ["embedding", "logits", "stage2", "stage4"]
        assert list(one) == list(other) == ["a.mp4", "b b.mp4"]
        assert one.info["sampling"] == other.info["sampling"]
        assert one.file["stage4"][:].tobytes() == other.file["stage4"][:].tobytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def parsed(*words: object) -> dict[str, Any]:
    """The options of vswin-extract by the command line, the environment and a file."""
    with extract.make_context("vswin-extract", list(map(str, words))) as context:
        return context.params


def test_line_before_environment_before_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*words: object) -> tuple[int, bool]:
        options = parsed("--config", config, *words)
        return options["stride"], options["embedding"]

    assert given() == (6, True)
    monkeypatch.setenv("VSWIN_EXTRACT_STRIDE", "5")
    monkeypatch.setenv("VSWIN_EXTRACT_EMBEDDING", "no")
    assert given() == (5, False)
    assert given("--stride", 4, "--embedding") == (4, True)


def test_config_shows_each_setting_and_where_it_comes_from(run: Run, config: Path, environment: dict[str, str]) -> None:
    environment["VSWIN_EXTRACT_STRIDE"], environment["VSWIN_WEIGHTS_MIRROR"] = "5", "http://user:secret@host/weights"
    try:
        words = ("--pool", "space", "--workers", "auto", "http://user:secret@host/a.mp4", "o.h5")
        done = run("vswin", "config", "--config", config, *words)
        wrong = run("vswin", "config", "--strid", "4")
    finally:
        del environment["VSWIN_EXTRACT_STRIDE"], environment["VSWIN_WEIGHTS_MIRROR"]
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    for name, value, where in (
        ("pool", "space", "command line"),
        ("workers", "auto", "command line"),
        ("stride", "5", "VSWIN_EXTRACT_STRIDE"),
        ("fps", "15", str(config)),
        ("tail", "pad", "default"),
        ("clip-len", "4", str(config)),
        ("size", "224", "default"),
        ("overwrite", "false", "default"),
    ):
        assert value in lines[name].split()
        assert where in lines[name]
    assert "secret" not in done.stdout
    assert (done.returncode, wrong.returncode, "--stride" in wrong.stderr) == (0, 2, True)


WRONG_FILES = [
    ("strid = 4", ["strid;", "did you mean stride?"]),
    ('stride = "4"', ["stride", "'4'"]),
    ("stride = 4.5", ["stride", "4.5"]),
    ("stride = true", ["stride", "True"]),
    ("logits = 1", ["logits", "not 1"]),
    ('stage = ["four"]', ["stage", "['four']"]),
    ('pool = "spce"', ["'--pool' (pool in run.toml)", "'spce'", "Did you mean space?"]),
    ('workers = "many"', ["'--workers' (workers in run.toml)", "'many'"]),
    ("stride = 0", ["stride", "not 0", "run.toml"]),
    ("[extract]\nstride = 4", ["unknown key extract"]),
    ('config = "other.toml"', ["unknown key config"]),
    ("stride 4", ["run.toml", "TOML"]),
    ("STRIDE = 4", ["STRIDE;", "did you mean stride?"]),
    ("stride = {a = 1}", ["stride", "{'a': 1}"]),
    ("stride = 4\nstride = 5", ["run.toml", "overwrite"]),
    ("clip-len = 4\nclip_len = 5", ["clip-len", "clip_len"]),
    (f"stride = {'4' * 5000}", ["run.toml", "digits"]),
    ('cache_dir = "a\\u0000b"', ["cache_dir", "null"]),
    ('"a\\nb" = 4', ["a\\nb"]),
    (f"stride = {'[' * 5000}", ["run.toml", "nested"]),
]
"""Lines of a file, and what the error names."""


@pytest.mark.parametrize(("line", "named"), WRONG_FILES, ids=[line[:40] for line, _ in WRONG_FILES])
def test_a_wrong_file_is_an_error_that_names_the_key(
    run: Run, config: Path, tmp_path: Path, line: str, named: list[str]
) -> None:
    name = re.split(r"[^a-z_]", line)[0].replace("clip", "clip_len")
    kept = [row for row in config.read_text().splitlines() if not row.startswith(f"{name} ")]
    config.write_text("\n".join([*kept, line]))
    done = run("vswin-extract", "--config", "run.toml", cwd=tmp_path)
    assert done.returncode == 2
    for value in named:
        assert value in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["run.toml"]


def test_what_is_no_file_of_options_is_not_read(run: Run, tmp_path: Path) -> None:
    """It might never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes("# caf\xe9\n".encode("latin-1"))
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 40)
    for name in ("pipe", "folder", "latin", "large", "/dev/zero", "none"):
        done = run("vswin-extract", "a.mp4", "o.h5", "--config", name, cwd=tmp_path)
        assert (done.returncode, name in done.stderr.splitlines()[-1]) == (2, True)
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbfstride = 4\n")
    assert parsed("--config", tmp_path / "mark", "a.mp4", "o.h5")["stride"] == 4


def written(out: Path, *words: object) -> str:
    """Write the options of a run as it does when it has ended; why it did not, or an empty text."""
    with extract.make_context("vswin-extract", list(map(str, words))) as context:
        return write_config(context, out)


def test_a_file_that_is_not_ours_stays(config: Path, tmp_path: Path) -> None:
    mine = config.rename(tmp_path / "out.h5.toml")
    before = mine.read_text()
    assert str(mine) in written(tmp_path / "out.h5", "--config", mine)
    assert mine.read_text() == before


def test_options_that_cannot_be_written_are_said(config: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert f"{small_disk}/out.h5.toml is not written: Read-only" in written(small_disk / "out.h5", "--config", config)


def test_the_file_of_options_that_a_run_reads_stays(config: Path, tmp_path: Path) -> None:
    assert written(tmp_path / "out.h5", "--config", config) == ""
    ours = tmp_path / "out.h5.toml"
    ours.write_text(ours.read_text() + "# a comment\n")
    before = ours.read_text()
    assert written(tmp_path / "out.h5", "--config", ours) == ""
    assert str(ours) in written(tmp_path / "out.h5", "--config", ours, "--stride", 7)
    assert ours.read_text() == before


def test_shards_write_what_the_whole_run_writes(config: Path, tmp_path: Path) -> None:
    texts = []
    for shard in ("0/2", "1/2", "none"):
        assert written(tmp_path / "out.h5", "--config", config, "--shard", shard) == ""
        texts.append((tmp_path / "out.h5.toml").read_text())
    assert texts[0] == texts[1]
    assert "shard" not in tomllib.loads(texts[0])
    assert tomllib.loads(texts[2]) == {**tomllib.loads(texts[0]), "shard": "none"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.h5.toml", "run.toml"]


def test_queries_of_addresses_are_not_written(tmp_path: Path) -> None:
    words = ["https://user:secret@host/a.mp4?token=secret", "s3://bucket/b.mp4", tmp_path / "out.h5"]
    assert written(tmp_path / "out.h5", *words) == ""
    assert tomllib.loads((tmp_path / "out.h5.toml").read_text())["videos"] == [
        "https://host/a.mp4",
        "s3://bucket/b.mp4",
    ]


def test_variables_of_all_commands(run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, str] = {}
    for path, command in commands():
        for each in command.params:
            if isinstance(each, click.Option) and each.expose_value:
                assert str(each.envvar).startswith("_".join(["VSWIN", *path]).upper() + "_")
                assert taken.setdefault(str(each.envvar), " ".join(path)) == " ".join(path)
    assert "VSWIN_EXTRACT_CLIP_LEN" in taken
    assert "VSWIN_SLURM_SBATCH" in taken
    assert not taken.keys() & {"VSWIN_WEIGHTS_DIR", "VSWIN_WEIGHTS_MIRROR", "VSWIN_RESTARTED", "VSWIN_OFFLINE"}

    monkeypatch.setenv("VSWIN_SEARCH_TOP", "x")
    assert "(VSWIN_SEARCH_TOP): 'x'" in run("vswin", "search", "out.h5", "a").stderr
    monkeypatch.setenv("VSWIN_EXTRACT_STRIDE", "eight")
    for name, *words in (["vswin-extract"], ["vswin", "extract"]):
        done = run(name, *words, "--config", config)
        assert "'--stride' (VSWIN_EXTRACT_STRIDE): 'eight'" in done.stderr
    monkeypatch.setenv("VSWIN_EXTRACT_STRIDE", "8")
    monkeypatch.setenv("VSWIN_EXTRACT_TIMEOT", "8")
    done = run("vswin-extract", "--config", config)
    assert (done.returncode, "did you mean VSWIN_EXTRACT_TIMEOUT?" in done.stderr) == (2, True)


UNKNOWN = [
    ("VSWIN_EXTRACT_STRID", "vswin-extract a.mp4 o.h5", "VSWIN_EXTRACT_STRIDE"),
    ("VSWIN_STRIDE", "vswin-extract a.mp4 o.h5", "VSWIN_EXTRACT_STRIDE"),
    ("vswin_extract_stride", "vswin extract a.mp4 o.h5", "VSWIN_EXTRACT_STRIDE"),
    ("VSWIN_SEARCH_TOPP", "vswin search o.h5 a", "VSWIN_SEARCH_TOP"),
    ("VSWIN_TOP", "vswin search o.h5 a", "VSWIN_SEARCH_TOP"),
    ("VSWIN_EXPORT_POOLS", "vswin export npy o.h5 a", "VSWIN_EXPORT_POOL"),
    ("VSWIN_SLURM_TASK", "vswin slurm a.mp4 o.h5 --tasks 2", "VSWIN_SLURM_TASKS"),
    ("VSWIN_WEIGHTS_CONVRT_HALF", "vswin weights path nano", "VSWIN_WEIGHTS_CONVERT_HALF"),
    ("VSWIN_WEIGHTS_DIRS", "vswin-extract a.mp4 o.h5", "VSWIN_WEIGHTS_DIR"),
    ("VSWIN_WEIGHT_DIR", "vswin weights path nano", "VSWIN_WEIGHTS_DIR"),
]
"""Variables without effect, a command, and the variable that was meant."""


@pytest.mark.parametrize(("name", "line", "meant"), UNKNOWN)
def test_a_misspelt_variable_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str, meant: str
) -> None:
    monkeypatch.setenv(name, "4")
    done = run(*line.split(), cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, f"variable {name}; did you mean {meant}?" in last) == (2, True), last


def test_variables_of_other_commands_and_programs_are_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, command in commands():
        for each in command.params:
            if each.envvar:
                monkeypatch.setenv(str(each.envvar), "")
    for name in (*GENERAL, "VSWIN_DATA", "VSWINDLE"):
        monkeypatch.setenv(name, "")
    for path, command in commands():
        above = click.Context(vswin, info_name="vswin")
        for name in path[:-1]:
            group = vswin.get_command(above, name)
            assert group is not None
            above = click.Context(group, parent=above, info_name=name)
        check_environment(click.Context(command, parent=above, info_name=path[-1]))
    check_environment(click.Context(extract, info_name="vswin-extract"))


def commands(group: click.Group = vswin, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_slurm_spells_out_what_is_set_elsewhere(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_EXTRACT_STRIDE", "5")
    done = run("vswin", "slurm", "--tasks", 2, "--", "--config", config, "--tail", "drop", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = next(line for line in done.stdout.splitlines() if "SLURM_ARRAY_TASK_ID/2" in line)
    for words in ("--stride 5", "--stage 4 --stage 2", "--tail drop", "--fps 15", "--logits", f"{tmp_path}/out.h5 "):
        assert words in command
    assert "--config" not in command
    monkeypatch.setenv("VSWIN_EXTRACT_STRID", "5")
    done = run("vswin", "slurm", "--tasks", 2, "--", "--config", config, cwd=tmp_path)
    assert (done.returncode, "VSWIN_EXTRACT_STRID;" in done.stderr) == (2, True)


MISTAKES = [
    ("vswin serch out.h5", "did you mean search?"),
    ("vswin weights lst", "'lst'"),
    ("vswin VIDEOS out.h5 --stage 4", "vswin extract VIDEOS out.h5 --stage 4"),
    ("vswin s3://bucket/videos out.h5", "vswin extract s3://bucket/videos out.h5"),
    ("vswin extract VIDEOS out.h5 --strid 4", "--stride"),
    ("vswin-extract VIDEOS out.h5 -stride 4", "'-stride'"),
    ("vswin-extract VIDEOS out.h5 --pool spce", "Did you mean space?"),
    ("vswin export opentdad out.h5 x", "Did you mean opentad?"),
    ("vswin slurm VIDEOS out.h5 --tasks 2 --stage 4", "--stage is an option of vswin-extract"),
    ("vswin merge out.h5", "out.h5"),
    ("vswin-extract VIDEOS s3://bucket/out.h5", "s3://bucket/out.h5"),
    ("vswin-extract VIDEOS", "vswin-extract VIDEOS out.h5"),
    ("vswin-extract out.h5 --manifest no.csv", "no.csv"),
    ("vswin-extract --config no.toml", "no.toml"),
]
"""Commands, and what the error names."""


@pytest.mark.parametrize(("line", "says"), MISTAKES)
def test_mistakes_are_answered_by_what_was_meant(run: Run, videos: Path, tmp_path: Path, line: str, says: str) -> None:
    words = [str(videos) if word == "VIDEOS" else word for word in line.split()]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert says.replace("VIDEOS", str(videos)) in last
    assert os.listdir(tmp_path) == []


def test_version_says_what_an_issue_needs(run: Run) -> None:
    done = run("vswin", "--version")
    assert done.returncode == 0
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines["vswin-extract"] == version("vswin-extract")
    assert lines["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert lines["torch"].startswith(torch.__version__)
    assert "CUDA" in lines["torch"]
    assert ("no GPU seen" in lines["torch"]) == (not torch.cuda.is_available())
    assert "HDF5 " in lines["h5py"]
    assert "FFmpeg " in lines["av"]
    assert lines["decord2"] == version("decord2")
    assert run("vswin-extract", "--version").stdout == done.stdout


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[int]:
    """A command on a terminal of its own; gives the other end."""
    pid, descriptor = pty.fork()
    if pid == 0:  # pragma: no cover
        os.environ.pop("NO_COLOR", None)
        os.environ.update({"TERM": "xterm", "COLUMNS": "200", **environment})
        os.execv(command[0], command)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        os.waitpid(pid, 0)


def read_until(descriptor: int, wanted: str | None = None, seconds: float = 100) -> str:
    """What a terminal shows, until it shows that, or to the command's end."""
    shown, deadline = "", time.monotonic() + seconds
    while (wanted is None or wanted not in shown) and time.monotonic() < deadline:
        try:
            shown += os.read(descriptor, 65536).decode()
        except OSError:  # the command has ended
            break
    return shown


COLOUR = re.compile(r"\x1b\[[\d;]*(3\d|9\d)m")


@pytest.mark.slow
def test_no_colour_on_a_terminal_but_a_live_display(videos: Path, small_weights: Path, tmp_path: Path) -> None:
    command = [script("vswin-extract"), str(videos), str(tmp_path / "a.h5"), "--weights", str(small_weights)]
    with terminal(*command, NO_COLOR="1") as descriptor:
        shown = read_until(descriptor)
    assert (tmp_path / "a.h5").exists(), shown
    assert not COLOUR.search(shown)
    assert "\x1b[2K" in shown


EVENTS = (
    Started("nano", 4_200_000, "cpu", "fp32", videos=3, resumed=1, bytes=20, notes=("a note",)),
    ClipsExpected(40),
    ClipsDone(7),
    VideoDone(VideoRecord("[red]a.mp4", "/v/a.mp4", "ok", clips=7), bytes=10),
    VideoDone(VideoRecord("b\x1b[2J.mp4", "/v/b.mp4", "failed", error="VideoUnreadable", message="bad"), bytes=10),
)


@pytest.mark.parametrize("display", [LiveProgress, LogProgress, NotebookProgress, QuietProgress])
def test_displays_name_what_failed_as_text(display: type[QuietProgress]) -> None:
    shown = io.StringIO()
    live = display is LiveProgress
    console = Console(
        file=shown, force_terminal=live, color_system="standard" if live else None, width=200, highlight=False
    )
    with display(console) as progress:
        for event in EVENTS:
            progress.show(event)
    assert (progress.videos, progress.total, progress.clips) == (3, 3, 7)
    assert "failed: b\\x1b[2J.mp4: VideoUnreadable: bad" in shown.getvalue()
    assert ("note: a note" in shown.getvalue()) == (display is not QuietProgress)
    assert bool(COLOUR.search(shown.getvalue())) == live


ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08"


def test_nothing_that_is_printed_has_control_characters(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Names, notes, messages of servers and decoders: whoever prints them, and however."""
    events = (
        Started(ESCAPES, 1, ESCAPES, "fp32", videos=1, resumed=0, bytes=1, notes=(ESCAPES,)),
        Notice(ESCAPES),
        VideoDone(VideoRecord(ESCAPES, "/v", "partial", message=ESCAPES), bytes=1),
        VideoDone(VideoRecord(ESCAPES, "/v", "ok"), bytes=1),
    )
    for display in (LiveProgress, LogProgress, QuietProgress):
        with display(stderr(), verbose=True) as progress:
            for event in events:
                progress.show(event)
    for out in (stdout(), stderr()):
        out.print(ESCAPES)
        out.print(Text(ESCAPES), table([[ESCAPES]], [ESCAPES]), Panel(ESCAPES, title=ESCAPES))
        out.print("two\nlines")
    note(ESCAPES)
    show_checks([Check(ESCAPES, "failed", ESCAPES, ESCAPES)])
    with pytest.raises(SystemExit):
        fail(ESCAPES, 1)
    record = logging.LogRecord("x", logging.DEBUG, "x", 1, "decoder: %s", (ESCAPES,), None)
    shown = "".join(capsys.readouterr()) + PrintableFormatter().format(record)
    assert re.findall(r"[^\n -~\xa0-\U0010ffff]", shown) == []
    assert shown.count("\\x1b]0;title") >= 15
    assert "two\nlines\n" in shown


@pytest.mark.slow
def test_a_note_about_a_damaged_part_has_no_control_characters(run: Run, small_weights: Path, tmp_path: Path) -> None:
    video = numbered.write(tmp_path / f"a{ESCAPES}.mp4", 20)
    words = [video, tmp_path / "o.h5", "--weights", small_weights, "--shard", "0/1"]
    assert run("vswin-extract", *words).returncode == 0
    (rows,) = (tmp_path / "o.h5.parts").glob("shard-*/*.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    done = run("vswin-extract", *words)
    assert done.returncode == 0
    assert "extracting again: a\\x1b" in done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stderr + done.stdout)


def test_a_log_has_no_live_display_whatever_is_forced(
    run: Run, videos: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run("vswin-extract", videos, tmp_path / "a.h5", "--weights", small_weights)
    assert done.returncode == 0
    assert "\x1b[2K" not in done.stderr
    assert "\x1b[?25l" not in done.stderr


def test_what_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_output(tmp_path / "out.h5", [("a.mp4", 20, 10.0), ("b b.mp4", 20, 10.0)], Sampling(8, 2))
    monkeypatch.chdir(tmp_path)

    def completed(words: str) -> list[str]:
        name, *before, begun = words.split(" ")
        command = extract if name == "vswin-extract" else vswin
        found = BashComplete(command, {}, name, "_COMPLETE").get_completions(before, begun)
        return [item.value for item in found if item.type == "plain"]

    for words, offered in (
        ("vswin-extract --str", ["--stride"]),
        ("vswin extract --stri", ["--stride"]),
        ("vswin-extract a b --pool ", ["none", "space", "all"]),
        ("vswin-extract a b --weights na", ["nano"]),
        ("vswin se", ["search"]),
        ("vswin ", list(COMMANDS)),
        ("vswin search out.h5 ", ["a.mp4", "b b.mp4"]),
        ("vswin plot out.h5 b", ["b b.mp4"]),
        ("vswin search no.h5 ", []),
    ):
        assert completed(words) == offered, words
    assert "t-k400" in completed("vswin-extract a b --weights t-")


def test_completing_imports_neither_torch_nor_rich(environment: dict[str, str]) -> None:
    given = {"COMP_WORDS": "vswin extract a b --weights t-", "COMP_CWORD": "5", "_VSWIN_COMPLETE": "bash_complete"}
    code = (
        "import sys\nfrom vswin_extract.cli import vswin\ntry: vswin.main(prog_name='vswin')\n"
        "finally: print([m for m in ('torch', 'av', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **given}, capture_output=True, text=True, check=True
    )
    offered, imported = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert "plain,t-k400" in offered
    assert imported == "[]"


def test_bash_completes_at_the_tab_key(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "checkpoint.pth").write_text("")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with terminal("/bin/bash", "--norc", "--noprofile", "-i", PATH=path, PS1="ready> ") as descriptor:

        def typed(keys: str, wanted: str) -> str:
            os.write(descriptor, keys.encode())
            return read_until(descriptor, wanted)

        typed(f"cd {shlex.quote(str(tmp_path))}\n", "ready> ")
        for name in ("vswin-extract", "vswin"):
            variable = f"_{name}_COMPLETE".replace("-", "_").upper()
            typed(f'eval "$({variable}=bash_source {name})"; echo do"ne"\n', "done\r\n")
        assert "--stride " in typed("vswin-extract --str\t", "--stride ")
        assert "nano " in typed("8 a.mp4 --weights nan\t", "nano ")
        assert "checkpoint.pth " in typed("--weights check\t", "checkpoint.pth ")
        assert "search " in typed("\x15vswin sea\t", "search ")  # after Ctrl-U, which empties the line
        os.write(descriptor, b"\x15exit\n")
        read_until(descriptor, "exit\r\n")
