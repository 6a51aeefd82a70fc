"""Commands of a user who has neither a home directory nor a name, as in `docker run --user 12345`."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numbered
import pytest
from conftest import Done, script

from vswin_extract.backbone import name_compiler_cache
from vswin_extract.errors import DeviceError
from vswin_extract.weights.cache import cache_dirs, writable_cache
from vswin_extract.weights.registry import manifest

UNKNOWN_USER = (
    *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),  # to read Python, wherever it is
)
NOT_AS_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.getuid() == 0 else ()
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as another user")
NO_HOME = (None, "/", "/nowhere/at/all", "/dev/null")
CACHES = ("VSWIN_WEIGHTS_DIR", "XDG_CACHE_HOME", "HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")


def call(before: tuple[str, ...], home: str | None, *command: str, cwd: Path) -> Done:
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [*before, script(command[0]), *command[1:]],
        env=environment, cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that everybody can write into, and enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@as_root
@pytest.mark.parametrize("home", NO_HOME)
def test_weights_are_listed_without_a_home(folder: Path, home: str | None) -> None:
    done = call(UNKNOWN_USER, home, "vswin", "weights", "list", cwd=folder)
    assert (done.returncode, "t-k400" in done.stdout) == (0, True)
    assert ("VSWIN_WEIGHTS_DIR" in done.stdout) == (home is None)
    assert list(folder.iterdir()) == []  # nothing is called ~


@as_root
@pytest.mark.parametrize("home", [None, pytest.param("/", marks=pytest.mark.slow)])
def test_what_needs_a_cache_names_the_variable(folder: Path, home: str | None) -> None:
    for command in (
        ["vswin-extract", "videos", "out.h5", "--weights", "t-k400"],
        ["vswin", "weights", "path", "t-k400"],
        ["vswin", "weights", "pull", "t-k400", "--from", "."],
    ):
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "videos" / "a.mp4").touch()
        (folder / manifest()["t-k400"].filename).touch()
        done = call(UNKNOWN_USER, home, *command, cwd=folder)
        assert (done.returncode, "VSWIN_WEIGHTS_DIR" in done.stderr) == (2, True), command
        assert len(done.stderr.splitlines()) == 1


@as_root
@pytest.mark.slow
def test_doctor_works_without_a_home(folder: Path) -> None:
    done = call(UNKNOWN_USER, None, "vswin", "doctor", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "VSWIN_WEIGHTS_DIR" in done.stdout


@as_root
@pytest.mark.slow
def test_extraction_works_without_a_home(folder: Path, small_weights: Path) -> None:
    numbered.write(folder / "a.mp4", 30)
    weights = folder / "small.safetensors"
    weights.write_bytes(small_weights.read_bytes())
    done = call(UNKNOWN_USER, None, "vswin-extract", "a.mp4", "out.h5", "--weights", str(weights), cwd=folder)
    assert done.returncode == 0, done.stderr
    for command in (["check", "out.h5"], ["search", "out.h5", "a.mp4"], ["report", "out.h5", "-o", "report.html"]):
        done = call(UNKNOWN_USER, None, "vswin", *command, cwd=folder)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.slow
def test_a_home_that_cannot_be_entered(tmp_path: Path) -> None:
    """As HOME=/root of a user who is not root."""
    home = tmp_path / "home"
    (home / ".cache" / "vswin-extract").mkdir(parents=True)
    home.chmod(0)
    for command, code in (("list", 0), ("prune", 0), ("path t-k400", 2), ("show t-k400", 0), ("verify nano", 0)):
        done = call(NOT_AS_ROOT, str(home), "vswin", "weights", *command.split(), cwd=tmp_path)
        assert done.returncode == code, (command, done.stderr)
        assert ("VSWIN_WEIGHTS_DIR" in done.stderr) == bool(code)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the home directory from this process."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in (*CACHES, "TRITON_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is undone, whatever the test sets
        monkeypatch.delenv(name)


def test_without_a_home_there_is_no_cache(nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (cache_dirs(), writable_cache()) == ([], None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dirs() == [tmp_path / "vswin-extract"]
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "own"))
    assert writable_cache() == tmp_path / "own"


def test_compilers_get_a_directory_without_a_home(
    nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        name_compiler_cache(name)
        assert Path(os.environ[name]).is_relative_to(tmp_path), name
    monkeypatch.setenv("TRITON_CACHE_DIR", "/given")
    name_compiler_cache("TRITON_CACHE_DIR")
    assert os.environ["TRITON_CACHE_DIR"] == "/given"


@pytest.mark.parametrize(
    "plant",
    [
        lambda shared, elsewhere: shared.chmod(0o777),
        lambda shared, elsewhere: shared.chmod(0o1777),
        lambda shared, elsewhere: (shared / "compiled").symlink_to(elsewhere),
        lambda shared, elsewhere: ((shared / "compiled").mkdir(), (shared / "compiled").chmod(0o777)),
        pytest.param(lambda shared, elsewhere: os.chown(shared, 65534, 65534), marks=as_root),
    ],
    ids=["all may write", "sticky", "a link", "compiled", "of another user"],
)
def test_what_is_compiled_is_never_where_others_can_write(
    plant: Callable[[Path, Path], object], nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is executed."""
    for name in ("shared", "temporary", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "shared"))
    plant(tmp_path / "shared", tmp_path / "elsewhere")
    name_compiler_cache("TRITON_CACHE_DIR")
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(tmp_path / "temporary" / f"vswin-extract-{os.geteuid()}")


def test_no_directory_at_all_names_the_variable(nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="TORCHINDUCTOR_CACHE_DIR"):
        name_compiler_cache("TORCHINDUCTOR_CACHE_DIR")
