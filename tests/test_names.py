"""Names on the command line: of the output, of files that are no videos, of stages, of the file of settings."""

import io
import json
import tomllib
from pathlib import Path

import h5py
import numbered
import numpy as np
import pytest
from conftest import Run
from outputs import make_embedded, random_embeddings

import vswin_extract
from vswin_extract.cli.extract import extract
from vswin_extract.errors import UsageError
from vswin_extract.store.hdf5 import output_path
from vswin_extract.video.videos import find_videos, read_paths


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return numbered.write(tmp_path / "a.mp4", 20)


@pytest.mark.parametrize(
    ("given", "better"),
    [
        ("out.npy", "out.h5"), ("r.html", "r.h5"), ("4", "4.h5"), ("newdir/", "newdir.h5"), ("run.1", "run.1.h5"),
        ("-", "out.h5"), ("", "out.h5"), ("out.h5.parts", "out.h5"), ("out.h5/", "out.h5"), (".", "./out.h5"),
    ],
)  # fmt: skip
def test_an_output_is_named_as_an_hdf5_file(
    given: str, better: str, run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=better):
        output_path(given)
    with pytest.raises(UsageError, match=better):
        vswin_extract.extract(video, given)
    config = tmp_path / "run.toml"
    config.write_text(f"output = {json.dumps(given)}\n")
    part = make_embedded(tmp_path / "part.h5", random_embeddings(0, 1))
    for command in (
        ["vswin-extract", video, given],
        ["vswin-extract", video, given, "--shard", "0/2"],
        ["vswin-extract", video, video, "--config", config, given],
        ["vswin", "slurm", video, given, "--tasks", 2],
        ["vswin", "merge", "-o", given, part],
        ["vswin", "merge", given, part],
    ):
        done = run(*command)
        assert (done.returncode, better in done.stderr) == (2, True), command
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "part.h5", "run.toml"]


def test_names_of_hdf5_files(tmp_path: Path) -> None:
    for name in ("out.h5", "out.hdf5", "OUT.H5", "out.hdf", "out.he5", "a.b.h5"):
        assert output_path(tmp_path / name) == (tmp_path / name).resolve()
    (tmp_path / "link.h5").symlink_to(tmp_path / "target")  # the name that is given counts
    assert output_path(tmp_path / "link.h5") == tmp_path / "target"


def test_a_video_in_the_place_of_the_output(run: Run, video: Path, tmp_path: Path) -> None:
    other = numbered.write(tmp_path / "b.mp4", 20)
    done = run("vswin-extract", video, other)
    assert (done.returncode, str(other) in done.stderr) == (2, True)


@pytest.mark.parametrize(("words", "stages"), [("3,4", [3, 4]), ("all", [1, 2, 3, 4]), ("4,", [4]), ("2", [2])])
def test_several_stages_in_one_word(
    words: str, stages: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"

    def asked(*options: str) -> list[int]:
        with extract.make_context("vswin-extract", ["a.mp4", "out.h5", *options]) as context:
            return list(context.params["stages"])

    assert asked("--stage", words) == stages
    assert asked("--stage", words, "--stage", "1") == [*stages, 1]
    config.write_text(f'stage = "{words}"')
    assert asked("--config", str(config)) == stages
    config.write_text(f'stage = ["{words}", 1]')
    assert asked("--config", str(config)) == [*stages, 1]
    monkeypatch.setenv("VSWIN_EXTRACT_STAGE", f"{words} 1")
    assert asked() == [*stages, 1]


def test_several_stages_are_written(run: Run, video: Path, small_weights: Path) -> None:
    out = video.with_name("out.h5")
    done = run("vswin-extract", video, out, "--weights", small_weights, "--stage", "3,4")
    assert done.returncode == 0, done.stderr
    with h5py.File(out) as file:
        assert {name for name in file if name.startswith("stage")} == {"stage3", "stage4"}
    assert tomllib.loads(Path(f"{out}.toml").read_text())["stage"] == [3, 4]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("VIDEO out.h5 --stage 3 4", "--stage 3,4"),
        ("VIDEO out.h5 --stage 2 3 4", "--stage 2,3,4"),
        ("--stage 3 4 VIDEO out.h5", "--stage 3,4"),
        ("VIDEO out.h5 --stage 3 3,4", "--stage 3,4"),
        ("VIDEO out.h5 --stage 3 all", "--stage all"),
        ("VIDEO out.h5 --stage 3-4", "'3-4'"),
        ("VIDEO out.h5 --stage 0,4", "'0,4'"),
        ("VIDEO out.h5 --stage three", "'three'"),
    ],
)
def test_stages_that_were_not_read_as_such(words: str, says: str, run: Run, video: Path, tmp_path: Path) -> None:
    (tmp_path / "out.h5").touch()
    done = run("vswin-extract", *(str(video) if word == "VIDEO" else word for word in words.split()), cwd=tmp_path)
    assert (done.returncode, says in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    assert not (tmp_path / "4").exists()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("list.csv", b"path\na.mp4\n", "--manifest"),
        ("list.tsv", "path\té.mp4\n".encode("latin-1"), "--manifest"),
        ("list.csv", "path\na.mp4\n".encode("utf-16"), "--manifest"),
        ("empty.csv", b"", "--manifest"),
        ("list.txt", b"a.mp4\n", " - "),
        ("list", b"a.mp4\nb.mp4\n", " - "),
        ("facts.json", b'{"a": 1}', "text"),
        ("page.html", b"<!DOCTYPE html>", "text"),
        ("rows.npy", npy(), "NumPy"),
        ("old.pth", b"\x80\x02\x8a\nl\xfc\x9c", "pickle"),
        ("rows.npz", b"PK\x03\x04\x14\x00", "zip"),
    ],
)
def test_files_that_are_no_videos(name: str, content: bytes, says: str, run: Run, video: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    done = run("vswin-extract", video, path, tmp_path / "out.h5")
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert says in done.stderr
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", ["other.h5", "no-suffix", "4"])
def test_an_hdf5_file_is_no_video(name: str, run: Run, video: Path, tmp_path: Path) -> None:
    ours = make_embedded(tmp_path / "ours.h5", random_embeddings(0, 1)).rename(tmp_path / name)
    done = run("vswin-extract", video, ours, tmp_path / "out.h5")
    assert (done.returncode, f"{ours} is no video" in done.stderr, "HDF5" in done.stderr) == (2, True, True)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a", "4", "a.h5"])
def test_a_video_may_have_any_name(name: str, video: Path, tmp_path: Path) -> None:
    assert [each.id for each in find_videos([video.rename(tmp_path / name)])] == [name]


def test_settings_of_outputs_that_differ_in_their_suffix(
    run: Run, video: Path, small_weights: Path, tmp_path: Path
) -> None:
    old = tmp_path / "out.toml"  # of an earlier version, and the user's now
    old.write_text("# Written by vswin-extract 0.1: vswin-extract --config out.toml\nstride = 3\n")
    for name, stride in (("out.h5", 4), ("out.hdf5", 6)):
        options = ["--weights", small_weights, "--stride", stride]
        assert run("vswin-extract", video, tmp_path / name, *options).returncode == 0
    for name, stride in (("out.h5.toml", 4), ("out.hdf5.toml", 6)):
        assert tomllib.loads((tmp_path / name).read_text())["stride"] == stride
    assert tomllib.loads(old.read_text()) == {"stride": 3}
    again = run("vswin-extract", "--config", tmp_path / "out.h5.toml", "--overwrite")
    assert again.returncode == 0, again.stderr


def test_marks_of_other_encodings(run: Run, video: Path, small_weights: Path, tmp_path: Path) -> None:
    other = numbered.write(tmp_path / "b.mp4", 20)
    out = tmp_path / "out.h5"
    done = run("vswin-extract", "-", out, "--weights", small_weights, input=f"\ufeff{video}\r\n{other}\r\n")
    assert done.returncode == 0, done.stderr
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"\ufeffpath,id\n{video},one\n")
    assert [each.id for each in find_videos((), manifest)] == ["one"]
    config = tmp_path / "run.toml"
    config.write_text("\ufeffstride = 4\n")
    assert run("vswin-extract", video, out, "--overwrite", "--dry-run", "--config", config).returncode == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_lists_in_utf16(encoding: str, run: Run, video: Path, tmp_path: Path) -> None:
    text = f"path\n{video}\n".encode(encoding)
    with pytest.raises(UsageError, match=r"line 1\b.*UTF-16"):
        list(read_paths(io.BytesIO(text)))
    manifest = tmp_path / "list.csv"
    manifest.write_bytes(text)
    done = run("vswin-extract", "--manifest", manifest, tmp_path / "out.h5")
    assert (done.returncode, str(manifest) in done.stderr, "UTF-16" in done.stderr) == (2, True, True)
    assert len(done.stderr.splitlines()) == 1
