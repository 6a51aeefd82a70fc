"""The files of an export: no two under one name, none outside the folder, none left of an export that stops."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
from conftest import Run, script
from outputs import make_output
from test_system_errors import limited

from vswin_extract.cli.signals import Terminated, termination
from vswin_extract.errors import OutputError, UsageError
from vswin_extract.export import export as exporting
from vswin_extract.export.export import Format, export
from vswin_extract.export.formats import Item
from vswin_extract.export.guarded import GuardedWriter
from vswin_extract.export.names import expect_apart, file_names, ignores_case
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

GRID = Sampling(16, 2)
FORMATS: tuple[Format, ...] = tuple(name for name in get_args(Format) if name != "ten-crop")  # which needs crops


def videos(path: Path, *ids: str, failed: Iterable[str] = ()) -> Path:
    """An output of short videos with these ids, which every format takes."""
    return make_output(path, [(each, 40, 25.0) for each in ids], GRID, failed=list(failed))


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


COLLISIONS: list[tuple[list[Format], bool, tuple[str, ...], tuple[str, str]]] = [
    (["npy"], True, ("talk.mp4", "times/talk.mp4"), ("talk.mp4", "times/talk.mp4")),
    (["csv"], False, ("times/talk", "talk"), ("times/talk", "talk")),
    (["npy", "tvr"], True, ("talk.mp4", "talk.mkv"), ("talk.mp4", "talk.mkv")),
    (["npy", "opentad"], False, ("cat", "cat.npy/01.mp4"), ("cat", "cat.npy/01.mp4")),
    (["npy"], False, ("a", "cat", "times/cat.npy/b/c"), ("cat", "times/cat.npy/b/c")),
    (["moment-detr"], False, ("cat.npz/01", "cat"), ("cat", "cat.npz/01")),
    (["tvr"], False, ("cat.mp4", "cat.mp4/01.webm"), ("cat.mp4", "cat.mp4/01.webm")),
    (["tvr"], True, ("cat/01.mp4", "cat.mp4"), ("cat", "cat/01.mp4")),
    (["npy"], False, ("a", "export.json/b"), ("export.json", "export.json/b")),
    (["moment-detr"], False, ("videos.json/b",), ("videos.json", "videos.json/b")),
    (["actionformer"], False, ("missing_files.txt/b",), ("missing_files.txt", "missing_files.txt/b")),
    (["opentad"], False, ("opentad.py/b",), ("opentad.py", "opentad.py/b")),
    (["actionformer"], False, (f"{'x' * 252}",), ("x" * 252, "256 bytes")),
    (["npy"], False, ("/".join(["y" * 200] * 21),), ("y" * 200, "long")),
    (["moment-detr"], False, (f"{'é' * 126}.mp4",), ("é" * 126, "long")),
    (list(FORMATS), False, ("../x",), ("../x", "name")),
]
"""Formats, --stem, ids, and what the error names."""


@pytest.mark.parametrize(("formats", "stem", "ids", "named"), COLLISIONS, ids=[f"{c[2]}"[:40] for c in COLLISIONS])
def test_files_that_cannot_be_are_found_before_one_is_written(
    tmp_path: Path, formats: list[Format], stem: bool, ids: tuple[str, ...], named: tuple[str, str]
) -> None:
    source = videos(tmp_path / "out.h5", *ids)
    for name in formats:
        with pytest.raises(UsageError) as caught:
            export(name, source, tmp_path / "above" / "made", stem=stem)
        for each in named:
            assert repr(each) in str(caught.value) or each in str(caught.value)
        assert listed(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("id_", ["/x", "a/../../x", "a//x", "./x", "x/", ".."])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, id_: str) -> None:
    with open_features(videos(tmp_path / "out.h5", id_)) as features, pytest.raises(UsageError, match=re.escape(id_)):
        file_names(features, stem=False)


def test_names_that_do_not_collide(tmp_path: Path) -> None:
    """Of one case each, or as long as they may be, or in a format that has one file for all videos."""
    ids = ["talk.mp4", "talk.times.mp4", "Talk.mp4", "x" * 251, "a/b", "a.npy", "videos.json", "cat", "cat.times"]
    source = videos(tmp_path / "out.h5", *ids)
    export("actionformer", source, tmp_path / "actionformer")
    assert {f"{each}.npy" for each in ids} < set(listed(tmp_path / "actionformer"))
    clashing = videos(tmp_path / "clashing.h5", "cat", "cat/01", "cat.npy/01", "z" * 300, "features.h5")
    for name in ("clip-retrieval", "webdataset", "parquet"):
        export(name, clashing, tmp_path / name)
    assert ignores_case(tmp_path / "parquet") == (tmp_path / "parquet/FEATURES.PARQUET").exists()


def test_a_file_system_without_case() -> None:
    for one, other in (("A.npy", "a.npy"), ("é.npy", "e\u0301.npy"), ("ß.npy", "SS.npy"), ("B/c", "b")):
        files = [(one, "first"), (other, "second")]
        expect_apart(files, ignore_case=False, advice="no")
        with pytest.raises(UsageError, match=r"first.*second|second.*first"):
            expect_apart(files, ignore_case=True, advice="export as parquet")


def test_a_failed_video_does_not_block_another_of_its_name(tmp_path: Path) -> None:
    source = videos(tmp_path / "out.h5", "talk.mp4", failed=["talk.mkv", "gone.mkv"])
    export("opentad", source, tmp_path / "made", stem=True)
    assert (tmp_path / "made/missing_files.txt").read_text() == "gone\n"


def test_where_an_export_may_be(tmp_path: Path) -> None:
    source = videos(tmp_path / "out.h5", "a")
    for folder in ("out.h5.parts", "out.h5.shards"):
        (tmp_path / folder).mkdir()
        for inside in (tmp_path / folder, tmp_path / folder / "made" / "deep"):
            with pytest.raises(UsageError, match=folder):
                export("npy", source, inside)
        assert listed(tmp_path / folder) == []
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match="nowhere"):
        export("npy", source, tmp_path / "dangling")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    export("npy", source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "a.npy" in listed(tmp_path / "empty")
    export("npy", source, tmp_path / ("n" * 250))


def test_a_folder_that_another_user_prepares_is_not_used(tmp_path: Path) -> None:
    """Its name could be foretold."""
    source = videos(tmp_path / "out.h5", "a")
    (tmp_path / "theirs").mkdir()
    (tmp_path / f".made.{os.getpid()}.tmp").symlink_to("theirs")
    export("npy", source, tmp_path / "made")
    assert listed(tmp_path / "theirs") == []


@pytest.mark.parametrize("free", [pytest.param(free, marks=pytest.mark.slow) for free in (0, 5000, 40_000)])
def test_exports_on_a_full_disk(small_disk: Path, tmp_path: Path, run: Run, free: int) -> None:
    """One line that names the folder, and nothing left."""
    source = make_output(tmp_path / "out.h5", [(f"d/{k}.mp4", 3200, 25.0) for k in range(40)], GRID)
    room = os.statvfs(small_disk)
    (small_disk / "filling").write_bytes(bytes(room.f_bavail * room.f_frsize - free // 4096 * 4096))
    for name in FORMATS:
        done = run("vswin", "export", name, source, small_disk / "above" / "made", "--stage", 4)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in last
        assert str(small_disk / "above") in last
        assert listed(small_disk) == ["filling"]
    gc.collect()  # files whose close failed


@pytest.mark.parametrize("most", [20_000, *(pytest.param(most, marks=pytest.mark.slow) for most in (1000, 100_000))])
def test_hdf5_survives_a_file_that_cannot_grow(tmp_path: Path, environment: dict[str, str], most: int) -> None:
    """Where the disk has room when it is asked. HDF5 itself would end by a segmentation fault."""
    source = make_output(tmp_path / "out.h5", [(f"d/{k}.mp4", 3200, 25.0) for k in range(40)], GRID)
    words = [script("vswin"), "export", "tvr", str(source), str(tmp_path / "made")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, preexec_fn=limited(most))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "File too large" in done.stderr
    assert str(tmp_path / "made") in done.stderr
    assert listed(tmp_path) == ["out.h5"]


def test_a_disk_that_fills_up_while_hdf5_writes(small_disk: Path) -> None:
    path = small_disk / "x.h5"
    values = np.arange(3000, dtype=np.float32)

    def write() -> None:
        with GuardedWriter(path) as file:
            for number in range(40):
                file.write(f"a/{number}", values + number)
                if number == 20:
                    room = os.statvfs(small_disk)
                    (small_disk / "filling").write_bytes(bytes(room.f_bavail * room.f_frsize))

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == str(path)
    with pytest.raises(FileExistsError):
        write()
    (small_disk / "filling").unlink()
    path.unlink()
    with GuardedWriter(path) as file:
        for number in range(40):
            file.write(f"a/{number}", values + number)
    with h5py.File(path) as made:
        assert all(np.array_equal(made[f"a/{number}"], values + number) for number in range(40))


def test_a_file_that_hdf5_cannot_make_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    before, threads = os.listdir("/dev/fd"), threading.active_count()
    monkeypatch.setattr(h5py, "File", no_memory)
    with pytest.raises(MemoryError), GuardedWriter(tmp_path / "features.h5"):
        pass
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == (len(before), threads)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_nothing_is_left_of_an_export_that_a_signal_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    def stop(folder: Path, items: Iterable[Item]) -> None:
        (folder / "half.npy").touch()
        assert len(listed(tmp_path / "above")) == 2
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setitem(exporting.WRITERS, "npy", stop)
    source = videos(tmp_path / "out.h5", "a")
    with pytest.raises(error), termination():
        export("npy", source, tmp_path / "above" / "made")
    assert listed(tmp_path) == ["out.h5"]


def test_a_signal_is_not_lost_in_a_destructor() -> None:
    class Stopped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # where the signal's exception is raised, and dropped

    def wait() -> None:
        Stopped()
        time.sleep(10)

    with pytest.raises(Terminated), termination():
        wait()


STUCK = """
import ctypes, math, sys, threading
from vswin_extract.cli.signals import StopSignals, termination

library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)
library.pthread_mutex_init(lock, None)
library.pthread_mutex_lock(lock)
seconds = float(sys.argv[2])


def wait(times):
    try:
        if times:
            wait(times - 1)
        else:
            print("stuck", flush=True)
    finally:  # also after a signal that comes too early
        library.pthread_mutex_lock(lock)


with termination(cleanup=0.2):
    if sys.argv[1] == "run":
        with StopSignals(math.inf, print) as signals:
            threading.Timer(seconds, library.pthread_mutex_unlock, [lock]).start()
            print("stuck", flush=True)
            library.pthread_mutex_lock(lock)  # no signal ends this
            sys.exit(signals.code)
    wait(100)
"""


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [("command", signal.SIGTERM, 143), ("command", signal.SIGINT, 130), ("run", signal.SIGTERM, 143)],
)
def test_a_signal_ends_what_is_stuck_in_a_library(
    environment: dict[str, str], what: str, number: signal.Signals, code: int
) -> None:
    """A run, whose signals are handled by StopSignals, waits for the library, as ever."""
    seconds = 0.6
    words = [sys.executable, "-c", STUCK, what, str(seconds)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "stuck\n"
            process.send_signal(number)
            until = time.monotonic() + 15
            while what == "command" and process.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
                process.send_signal(number)  # the first may have come too early
            said = process.communicate(timeout=15)[0]
        finally:
            process.kill()
    assert (process.returncode, said.startswith("stopping")) == (code, what == "run")


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_signal_that_is_answered_may_take_its_time(seconds: float) -> None:
    """What follows it is not cut short, and no thread or descriptor is left."""
    before, threads = os.listdir("/dev/fd"), threading.active_count()
    with pytest.raises(Terminated), termination(cleanup=0.1):  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            time.sleep(seconds)
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == (len(before), threads)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_handler_that_a_library_installed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python calls it None, and cannot install it again."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with termination():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tvr", "webdataset"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_export_is_stopped_by_a_signal(
    tmp_path: Path, environment: dict[str, str], format: str, number: signal.Signals, code: int
) -> None:
    source = make_output(tmp_path / "out.h5", [(f"d/{k}.mp4", 64, 25.0) for k in range(1000)], GRID)
    words = [script("vswin"), "export", format, str(source), str(tmp_path / "made")]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".*.tmp/*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (code, 1), said
    assert listed(tmp_path) == ["out.h5"]
