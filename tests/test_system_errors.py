"""Errors of the system: each is one line, which names the path."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numbered
import pytest
from conftest import Run, script
from outputs import make_embedded, random_embeddings

from vswin_extract import open_features
from vswin_extract.errors import UsageError, is_out_of_memory
from vswin_extract.files import atomic_write, names_path
from vswin_extract.store.hdf5 import disk_errors

WRITER = "import h5py, sys\nwith h5py.File(sys.argv[1], 'a'):\n    print('open', flush=True)\n    sys.stdin.read()"


@contextmanager
def open_elsewhere(path: Path) -> Iterator[None]:
    """While the block runs, another program has a file open for writing."""
    words = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.communicate()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return make_embedded(tmp_path / "out.h5", random_embeddings(0, 3, 4))


def test_an_output_that_another_program_has_open(run: Run, out: Path, tmp_path: Path) -> None:
    video = numbered.write(tmp_path / "a.mp4", 20)
    before = out.read_bytes()
    commands: list[list[object]] = [
        ["vswin-extract", video, out, "--overwrite"],
        ["vswin-extract", video, out, "--overwrite", "--shard", "0/2"],
        ["vswin-extract", video, out, "--dry-run", "--overwrite"],
        ["vswin", "slurm", video, out, "--tasks", 2, "--", "--overwrite"],
        ["vswin", "inspect", out],
        ["vswin", "check", out],
        ["vswin", "merge", "-o", tmp_path / "m.h5", out],
        ["vswin", "merge", out, video],
        ["vswin", "export", "npy", out, tmp_path / "d"],
        ["vswin", "search", out, "v/0.mp4"],
        ["vswin", "report", out, "-o", tmp_path / "r.html"],
        ["vswin", "plot", out, "v/0.mp4", "-o", tmp_path / "r.png"],
    ]
    with open_elsewhere(out):
        for command in commands:
            done = run(*command)
            assert done.returncode == 2, command
            last = done.stderr.splitlines()[-1]
            assert str(out) in last
            assert "another program has it open" in last, command
            assert "was not written by" not in last
        with pytest.raises(UsageError, match="another program"):
            open_features(out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out.h5"]


def test_a_linked_file_that_another_program_has_open(run: Run, tmp_path: Path) -> None:
    """HDF5 would show NaN for its rows."""
    index = make_embedded(tmp_path / "out.h5", random_embeddings(0, 3, 4), layout="sharded", shard_videos=1)
    with open_features(index) as features:
        shard = features.linked[1]
    with open_elsewhere(shard):
        done = run("vswin", "search", index, "v/0.mp4")
        assert (done.returncode, str(shard) in done.stderr) == (2, True)
    assert run("vswin", "check", index).returncode == 0


def test_a_writer_that_was_killed(run: Run, tmp_path: Path) -> None:
    """A file in the newest format stays marked as open."""
    path, copied = tmp_path / "a.h5", tmp_path / "out.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", (3,), "f4")
        file.swmr_mode = True
        file.flush()
        copied.write_bytes(path.read_bytes())
    done = run("vswin", "inspect", copied)
    assert (done.returncode, "h5clear" in done.stderr) == (2, True)
    other = tmp_path / "b.h5"
    other.write_text("no HDF5")
    assert "not an HDF5 file" in run("vswin", "inspect", other).stderr


def limited(most: int) -> Callable[[], None]:
    """Return what lets a child process write files of so many bytes only, as a full disk would."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


WRITING = [
    ("vswin export npy OUT d", "d"),
    pytest.param("vswin export webdataset OUT d", "d", marks=pytest.mark.slow),
    pytest.param("vswin search OUT v/0.mp4 --html r.html", "r.html", marks=pytest.mark.slow),
    ("vswin merge -o m.h5 OUT", "m.h5"),
    ("vswin slurm a.mp4 o.h5 --tasks 2 -o s.sbatch", "s.sbatch"),
    ("vswin-extract a.mp4 o.h5", "o.h5.parts"),
]


@pytest.mark.parametrize(("line", "named"), WRITING)
def test_a_file_that_cannot_grow_is_named(
    line: str, named: str, out: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    numbered.write(tmp_path / "a.mp4", 40)
    name, *words = line.replace("OUT", str(out)).split()
    done = subprocess.run(
        [script(name), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, preexec_fn=limited(400)
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "File too large" in last
    assert named in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_named(
    run: Run, out: Path, small_disk: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "filling").write_bytes(b"x" * (1 << 21))
    monkeypatch.chdir(tmp_path)
    video = numbered.write(tmp_path / "a.mp4", 40)
    for *words, path in (
        ["vswin-extract", video, "--weights", small_weights, small_disk / "o.h5"],
        ["vswin", "merge", out, "--link", "-o", small_disk / "m.h5"],
        ["vswin", "merge", out, "-o", small_disk / "m.h5"],
        ["vswin", "search", out, "v/0.mp4", "--html", small_disk / "r.html"],
        ["vswin", "export", "npy", out, small_disk / "d"],
        ["vswin", "slurm", video, "o.h5", "--tasks", 2, "-o", small_disk / "s.sbatch"],
    ):
        done = run(*words, path)
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert ("No space left on device" in last, str(path) in last) == (True, True), last


@pytest.mark.parametrize("line", ["check OUT", "search OUT v/0.mp4@0 --json"])
def test_results_on_a_full_disk(line: str, out: Path, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        words = [script("vswin"), *line.replace("OUT", str(out)).split()]
        done = subprocess.run(words, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "standard output" in done.stderr


def test_errors_get_the_name_of_the_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    with pytest.raises(OSError, match="full") as caught, atomic_write(path):
        raise OSError(28, "full")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing, names_path(path):
        other.read_text()
    assert missing.value.filename == str(other)
    text = f"Can't write data (file write failed: time = now\n, filename = '{other}', errno = 28, error message = 'x')"
    with pytest.raises(OSError, match="No space left") as hdf5, disk_errors(path):
        raise RuntimeError(text)
    assert hdf5.value.filename == str(path)


def test_a_video_that_cannot_be_opened_is_named(run: Run, small_weights: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    done = run("vswin-extract", "-", tmp_path / "out.h5", "--weights", small_weights, input=f"{gone}\n")
    assert done.returncode == 3
    assert f"{gone} cannot be opened" in done.stderr


@pytest.mark.parametrize("line", ["vswin-extract OUT x.h5", "vswin inspect OUT", "vswin merge x.h5", "vswin doctor"])
def test_a_working_directory_that_was_removed(line: str, out: Path, environment: dict[str, str]) -> None:
    gone = out.with_name("gone")
    gone.mkdir()
    name, *words = line.replace("OUT", str(out)).split()
    remove = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    command = ["sh", "-c", remove, "sh", script(name), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "working directory" in done.stderr


def short_of_address_space(most: int) -> Callable[[], None]:
    """Return what lets a child process have so many bytes of address space, as `ulimit -v` does."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most))


@pytest.mark.parametrize("megabytes", [60, *(pytest.param(size, marks=pytest.mark.slow) for size in (600, 1150, 1250))])
def test_too_little_address_space_is_one_line(
    megabytes: int, small_weights: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Without a check before, PyTorch, oneDNN and OpenBLAS each end in another way, also in a segmentation fault."""
    video = numbered.write(tmp_path / "a.mp4", 40)
    words = [script("vswin-extract"), video, tmp_path / "o.h5", "--weights", small_weights]
    done = subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, text=True,
        preexec_fn=short_of_address_space(megabytes << 20),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert [word in done.stderr for word in ("out of memory", f"ulimit -v {megabytes << 10}")] == [True, True]
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError("could not create a primitive"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UsageError("no directory /out of memory"), False),
    ],
)
def test_errors_that_mean_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory
