"""Files that a user names to be written: nothing that a command reads, and nothing of another program, is replaced."""

import gc
import os
import shutil
import stat
from pathlib import Path

import numbered
import pytest
from conftest import Done, Run
from outputs import make_embedded, random_embeddings

from vswin_extract.errors import UsageError
from vswin_extract.files import FileKind, Target, write_json

MINE = b"# written by hand\n"


@pytest.fixture(scope="module")
def made(run: Run, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an output of two videos of it."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("a.mp4", "b.mp4"):
        numbered.write(folder / name, 20)
    done = run("vswin-extract", "a.mp4", "b.mp4", "out.h5", "--weights", small_weights, "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, whose output's videos are those of `made`."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


COMMANDS = {
    "report": ("vswin report out.h5 --limit 1 --map 0 -o", "page.html"),
    "search": ("vswin search out.h5 a.mp4 --html", "page.html"),
    "plot": ("vswin plot out.h5 a.mp4 -o", "picture.png"),
    "slurm": ("vswin slurm a.mp4 b.mp4 new.h5 --tasks 2 -o", "script.sbatch"),
    "convert": ("vswin weights convert weights.safetensors", "new.safetensors"),
}
"""Commands that write a file, and a name for it."""


def call(run: Run, folder: Path, name: str, target: object, *more: object) -> Done:
    return run(*COMMANDS[name][0].split(), target, *more, cwd=folder)


def expect_refused(done: Done, *named: object) -> None:
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("Error: ")
    for each in named:
        assert str(each) in last


@pytest.mark.parametrize(
    "name", ["search", "slurm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("report", "plot"))]
)
def test_a_file_of_another_program_stays(run: Run, folder: Path, name: str) -> None:
    """An output, a video, notes, pictures of others: whatever its name, unless --overwrite is given."""
    target = COMMANDS[name][1]
    (folder / target).write_bytes(MINE)
    expect_refused(call(run, folder, name, target), target, "--overwrite")
    assert (folder / target).read_bytes() == MINE
    os.replace(make_embedded(folder / "other.h5", random_embeddings(0, 2)), folder / target)
    before = (folder / target).read_bytes()
    expect_refused(call(run, folder, name, target), target)
    assert (folder / target).read_bytes() == before
    (folder / target).chmod(0o600)
    done = call(run, folder, name, target, "--overwrite")
    assert done.returncode == 0, done.stderr
    made = (folder / target).read_bytes()
    assert made != before
    assert stat.S_IMODE((folder / target).stat().st_mode) == 0o600
    done = call(run, folder, name, target)  # its own kind
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["report", "search", "plot"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_output_is_not_written_over_by_what_is_made_of_it(run: Run, folder: Path, name: str, link: object) -> None:
    """However it is spelt, and even with --overwrite."""
    before = (folder / "out.h5").read_bytes()
    target = folder / COMMANDS[name][1]
    link(folder / "out.h5", target)  # type: ignore[operator]
    for more in ((), ("--overwrite",)):
        expect_refused(call(run, folder, name, target, *more), target)
    assert (folder / "out.h5").read_bytes() == before
    assert os.path.samefile(target, folder / "out.h5")


def test_no_other_input_is_written_over(run: Run, made: Path, folder: Path, small_weights: Path) -> None:
    """Videos, files that an index links to, weights, a manifest, a file of options."""
    index = make_embedded(folder / "index.h5", random_embeddings(0, 1, 1), layout="sharded", shard_videos=1)
    shard = next((folder / "index.h5.shards").iterdir())
    shutil.copy(small_weights, folder / "weights.safetensors")
    (folder / "list.csv").write_text("path\na.mp4\n")
    (folder / "run.toml").write_text("stride = 4\n")
    video = made / "a.mp4"
    for words, target in (
        ("vswin report out.h5 -o", video),
        ("vswin search out.h5 a.mp4 --html", video),
        ("vswin search out.h5 b.mp4@0 --html", folder / "out.h5"),
        ("vswin search out.h5 --duplicates --html", video),
        (f"vswin search {index} v/0.mp4 --html", shard),
        ("vswin search out.h5 ./a.mp4@0 --html", folder / "a.mp4"),
        ("vswin search out.h5 ./a.mp4 --weights weights.safetensors --html", folder / "weights.safetensors"),
        ("vswin slurm --tasks 2 -o TARGET new.h5 --overwrite -- --manifest list.csv", folder / "list.csv"),
        ("vswin slurm --tasks 2 -o TARGET a.mp4 new.h5 --overwrite -- --config run.toml", folder / "run.toml"),
        ("vswin slurm --tasks 2 -o TARGET a.mp4 new.h5 --overwrite", folder / "a.mp4"),
        ("vswin slurm --tasks 2 -o TARGET a.mp4 new.h5 --overwrite", folder / "new.h5"),
        ("vswin weights convert ./weights.safetensors", folder / "weights.safetensors"),
    ):
        before = target.read_bytes() if target.exists() else None
        line = words if "TARGET" in words else f"{words} TARGET --overwrite"
        expect_refused(run(*line.replace("TARGET", str(target)).split(), cwd=folder), target)
        assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.parametrize("name", ["report", "slurm", "convert"])
def test_what_is_no_file_is_not_written(run: Run, folder: Path, small_weights: Path, name: str) -> None:
    """A rename would have put a file in the place of /dev/null."""
    shutil.copy(small_weights, folder / "weights.safetensors")
    for each, make in (
        ("pipe", os.mkfifo),
        ("null", lambda path: os.symlink("/dev/null", path)),
        ("gone", lambda path: os.symlink("missing", path)),
        ("folder", os.mkdir),
    ):
        target = folder / f"{each}.safetensors"
        make(target)
        before = target.lstat()
        for more in ((), ("--overwrite",)):
            expect_refused(call(run, folder, name, target, *more), target.name)
        assert (target.lstat().st_mode, target.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert not (folder / "missing").exists()
    expect_refused(call(run, folder, name, folder / "no/x.safetensors"), folder / "no")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_a_file_of_its_own_kind_is_followed(run: Run, folder: Path) -> None:
    (folder / "kept").mkdir()
    assert call(run, folder, "slurm", "kept/script.sbatch").returncode == 0
    (folder / "kept/script.sbatch").chmod(0o755)
    (folder / "latest").symlink_to("kept/script.sbatch")
    before = (folder / "kept/script.sbatch").stat()
    assert call(run, folder, "slurm", "latest").returncode == 0
    assert (folder / "latest").is_symlink()
    after = (folder / "kept/script.sbatch").stat()
    assert (after.st_ino == before.st_ino, after.st_mode) == (False, before.st_mode)


def test_weights_follow_a_link(run: Run, folder: Path, small_weights: Path) -> None:
    """The file that was checked is the one that is written."""
    (folder / "kept").mkdir()
    (folder / "kept/new.safetensors").write_bytes(MINE)
    (folder / "new.safetensors").symlink_to("kept/new.safetensors")
    done = run("vswin", "weights", "convert", small_weights, "new.safetensors", "--overwrite", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "new.safetensors").is_symlink()
    assert (folder / "kept/new.safetensors").stat().st_size > len(MINE)


def test_what_is_read_is_compared_once(tmp_path: Path) -> None:
    """There may be 100,000 paths of videos. A file that takes the target's place is compared, too."""
    asked = []

    def reads() -> list[Path]:
        asked.append(1)
        return [tmp_path / "video"]

    (tmp_path / "video").write_bytes(MINE)
    (tmp_path / "page").write_bytes(b"<page>")
    target = Target(tmp_path / "page", FileKind("a page", (b"<page>",)), reads, overwrite=True)
    target.check()
    with target.write() as unfinished:
        unfinished.write_bytes(b"<page>")
    assert len(asked) == 1
    (tmp_path / "page").unlink()
    os.link(tmp_path / "video", tmp_path / "page")
    with pytest.raises(UsageError, match="video"):
        target.check()


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    target = Target(tmp_path / "page", FileKind("a page", (b"<page>",)))
    with pytest.raises(UsageError, match="not a page"), target.write() as unfinished:  # noqa: PT012
        unfinished.write_bytes(b"<page>")
        (tmp_path / "page").write_bytes(MINE)
    assert (tmp_path / "page").read_bytes() == MINE
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@pytest.mark.parametrize("free", [0, pytest.param(8192, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_what_was_there(
    run: Run, folder: Path, small_disk: Path, small_weights: Path, free: int
) -> None:
    """One line that names the file; the old file whole, and nothing beside it."""
    shutil.copy(small_weights, folder / "weights.safetensors")
    files = {name: small_disk / words[1] for name, words in COMMANDS.items()}
    for path in {*files.values()}:
        path.write_bytes(MINE)
    room = os.statvfs(small_disk)
    (small_disk / "filling").write_bytes(bytes(room.f_bavail * room.f_frsize - free))
    before = sorted(small_disk.iterdir())
    for name, path in files.items():
        if name in (("search", "slurm") if free else ("plot",)):  # those that need less; and Matplotlib is slow to load
            continue
        done = call(run, folder, name, path, "--overwrite")
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, "No space left on device" in last, str(path) in last) == (1, True, True), done.stderr
        assert path.read_bytes() == MINE
        assert sorted(small_disk.iterdir()) == before
    gc.collect()  # files whose close failed


def test_golden_features_on_a_full_disk(small_disk: Path) -> None:
    """As `vswin weights verify --record` writes them."""
    (small_disk / "golden").mkdir()
    room = os.statvfs(small_disk)
    (small_disk / "filling").write_bytes(bytes(room.f_bavail * room.f_frsize))
    with pytest.raises(OSError, match="No space left"):
        write_json(small_disk / "golden" / "x.json", {"x": [0.0]})
    assert list((small_disk / "golden").iterdir()) == []


def test_an_index_of_others_stays(run: Run, folder: Path) -> None:
    (folder / "out.h5.faiss").write_bytes(MINE)
    expect_refused(run("vswin", "search", "out.h5", "a.mp4", "--index", "faiss", cwd=folder), "out.h5.faiss")
    assert (folder / "out.h5.faiss").read_bytes() == MINE
    (folder / "out.h5.faiss").unlink()
    assert run("vswin", "search", "out.h5", "a.mp4", "--index", "faiss", cwd=folder).returncode == 0
    target = folder / "out.h5.faiss"
    expect_refused(run(*"vswin search out.h5 a.mp4 --overwrite --html".split(), target, cwd=folder), target)
