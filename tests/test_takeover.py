"""Processes that use one output at a time: who is refused, and one that finds its lock taken over when it wakes up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numbered
import pytest
from conftest import ROOT, Run, script
from journals import ARRAYS, ATTRIBUTES, SETTINGS, add, begin, expect_complete, names, publish
from outputs import make_embedded, random_embeddings

from vswin_extract import locks, system
from vswin_extract.errors import OutputError
from vswin_extract.journal.directory import DEAD_AFTER, begin_job, claim, finish_interrupted_cleanup
from vswin_extract.journal.journal import join_journal, open_journal
from vswin_extract.journal.merge import merge
from vswin_extract.journal.writer import open_writer
from vswin_extract.store import layouts
from vswin_extract.store.features import open_features

HERE = os.uname().nodename

HOLDER = """
import socket, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
socket.gethostname = lambda: {host!r}
from vswin_extract.errors import OutputError
from vswin_extract.journal.journal import join_journal
from vswin_extract.journal.writer import open_writer
import journals
how, output, count, *storage = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:])
opened = (
    journals.begin(output, 10_000, *storage) if how == "alone"
    else join_journal(output, journals.SETTINGS, journals.ARRAYS, {{}}, *storage)
)
try:
    with opened as journal, open_writer(journal.root, journals.ARRAYS) as writer:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "publish":
                journals.publish(journal, count)
            elif line.strip() != "end":
                journals.add(writer, int(line))
            print("done", flush=True)
            if line.strip() in ("publish", "end"):
                break
except OutputError as error:
    sys.exit(f"OutputError: {{error}}")
"""


class Other:
    """Another process that has the journal of an output, alone or as a task. It does what it is told."""

    def __init__(
        self, how: str, output: Path, count: int = 0, host: str = HERE, storage: Path | None = None, within: str = ""
    ) -> None:
        code = HOLDER.format(root=str(ROOT), tests=str(ROOT / "tests"), host=host)
        words = [*within.split(), sys.executable, "-c", code, how, str(output), str(count)]
        self.process = subprocess.Popen(
            [*words, *([str(storage)] if storage else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer() == "ready\n"

    def tell(self, order: object) -> str:
        """Give an order, and return "done", or the error that ended the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self._answer().strip()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        return self.process.stdout.readline() or self.process.stderr.read()


@contextmanager
def other(
    how: str, output: Path, count: int = 0, host: str = HERE, storage: Path | None = None, within: str = ""
) -> Iterator[Other]:
    found = Other(how, output, count, host, storage, within)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


def age(root: Path, seconds: float = DEAD_AFTER + 100) -> None:
    """Make all locks of a journal and its output as old as if their machine had slept for so long."""
    beside = root.with_name(f".{root.stem}.lock")
    for lock in [beside, root / "lock", *root.glob("shard-*/lock")]:
        if lock.exists():
            os.utime(lock, (time.time() - seconds, time.time() - seconds))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_beside_a_task_is_refused(tmp_path: Path, overwrite: bool) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with other("task", output) as task:
        before = sorted(root.iterdir())
        for settings in (SETTINGS, {"settings": 2}):
            with pytest.raises(OutputError, match=f"process {task.process.pid} on {HERE}"):
                open_journal(output, settings, ARRAYS, overwrite, names(7))
        assert sorted(root.iterdir()) == before
        assert [task.tell(number) for number in range(3)] == ["done"] * 3
        assert task.tell("end") == "done"
        task.process.wait()
    with begin(output) as journal:
        assert sorted(journal.entries) == names(3)
    assert not list(root.glob("shard-*/lock"))


def test_a_task_that_was_killed_refuses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with other("task", output) as task:
        task.tell(0)
    assert len(list((tmp_path / "out.h5.parts").glob("shard-*"))) == 2  # of the task, and of its worker
    with begin(output) as journal:
        assert sorted(journal.entries) == names(1)
    assert len(list((tmp_path / "out.h5.parts").glob("shard-*"))) == 1


def test_a_task_of_another_host_counts_until_it_is_silent_for_long(tmp_path: Path) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with other("task", output, host="elsewhere") as task:
        task.tell(0)
        for seconds in (0, DEAD_AFTER - 60):
            age(root, seconds)
            with pytest.raises(OutputError, match=f"process {task.process.pid} on elsewhere"):
                begin(output)
        age(root)
        with begin(output) as journal:
            assert sorted(journal.entries) == names(1)
            error = task.tell(1)
            assert f"process {os.getpid()} on {HERE}" in error
            publish(journal, 1)
    expect_complete(output, 1)


def test_a_task_beside_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with other("alone", output) as run, pytest.raises(OutputError, match=f"process {run.process.pid} on {HERE}"):
        join_journal(output, SETTINGS, ARRAYS, {})
    before = sorted(root.iterdir())
    (root / "lock").unlink()

    def begin_late(*arguments: object) -> object:
        """As if a run had begun since the task looked."""
        assert locks.acquire(root / "lock", DEAD_AFTER) is None
        return begin_job(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("vswin_extract.journal.journal.read_job", lambda root: None)
    monkeypatch.setattr("vswin_extract.journal.journal.begin_job", begin_late)
    with pytest.raises(OutputError, match=f"process {os.getpid()} on {HERE}"):
        join_journal(output, SETTINGS, ARRAYS, {})
    assert sorted(root.iterdir()) == before


def test_tasks_do_not_refuse_each_other(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with other("task", output) as one, other("task", output) as two:
        assert (one.tell(0), two.tell(1)) == ("done", "done")


def test_the_empty_directory_of_a_living_writer_stays(tmp_path: Path) -> None:
    """And one that was made just now, by a writer that is about to lock it."""
    with begin(tmp_path / "out.h5") as journal:
        writer = open_writer(journal.root, ARRAYS)
        (journal.root / "shard-new").mkdir()
        (journal.root / "shard-old").mkdir()
        os.utime(journal.root / "shard-old", (0, 0))
    add(writer, 0)
    with begin(tmp_path / "out.h5") as journal:
        assert sorted(journal.entries) == names(1)
    assert {path.name for path in journal.root.glob("shard-*")} == {writer.directory.name, "shard-new"}
    writer.close()


def test_an_interrupted_cleanup_waits_for_tasks(tmp_path: Path) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with begin(output, 1) as journal:
        add(journal.writer(), 0)
        shutil.copytree(root, tmp_path / "kept", ignore=shutil.ignore_patterns("lock"))
        publish(journal, 1)
    (tmp_path / "kept").rename(root)
    with other("task", output) as task:
        with pytest.raises(OutputError, match=f"process {task.process.pid} on {HERE}"):
            finish_interrupted_cleanup(output, root)
        assert task.tell(1) == "done"
    assert finish_interrupted_cleanup(output, root) == SETTINGS
    assert os.listdir(tmp_path) == ["out.h5"]


def test_an_unfinished_journal_is_not_merged_beside_its_tasks(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with begin(output) as journal:
        add(journal.writer(), 0)
    with other("task", output) as task:
        with pytest.raises(OutputError, match=f"process {task.process.pid} on {HERE}"):
            merge(output, allow_missing=True)
        assert task.tell(1) == "done"
    assert merge(output, allow_missing=True).videos == 2


@pytest.mark.parametrize("order", ["publish", *(pytest.param(order, marks=pytest.mark.slow) for order in ("0", "end"))])
def test_a_holder_whose_lock_was_taken_over_leaves_everything_to_the_new_one(tmp_path: Path, order: str) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with other("alone", output, 4, "elsewhere") as first:
        assert [first.tell(number) for number in range(4)] == ["done"] * 4
        first.process.send_signal(signal.SIGSTOP)
        age(root)
        with begin(output) as journal:
            assert sorted(journal.entries) == names(4)
            content, directory = (root / "lock").read_text(), journal.writer().directory
            first.process.send_signal(signal.SIGCONT)
            answer = first.tell(order)
            if order == "end":
                assert (answer, first.process.wait()) == ("done", 0)
            else:
                assert answer.startswith("OutputError")
                assert f"process {os.getpid()} on {HERE}" in answer
            assert not output.exists()
            assert (root / "lock").read_text() == content
            assert directory.is_dir()
            publish(journal, 4)
    expect_complete(output, 4)
    assert os.listdir(tmp_path) == ["out.h5"]


def test_a_lock_of_another_process_is_neither_touched_nor_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    theirs = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})
    with claim(lock, tmp_path / "out.h5", touch_every=0.01) as ours:
        ours.check()
        (tmp_path / "new").write_text(theirs)
        (tmp_path / "new").rename(lock)
        os.utime(lock, (1, 1))
        while not ours.lost:
            time.sleep(0.01)
        time.sleep(0.1)
        with pytest.raises(OutputError, match="process 1 on elsewhere"):
            ours.check()
    assert (lock.read_text(), lock.stat().st_mtime) == (theirs, 1)


@pytest.fixture
def storages(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two")]
    for storage in found:
        storage.mkdir()
    return found


@pytest.mark.parametrize("beside", [pytest.param(True, marks=pytest.mark.slow), False])
def test_two_runs_on_one_output_share_a_lock_wherever_their_journals_are(
    tmp_path: Path, storages: list[Path], beside: bool
) -> None:
    output = tmp_path / "out.h5"
    with other("alone", output, 3, storage=storages[0]) as first:
        storage = None if beside else storages[1]
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=f"process {first.process.pid} on {HERE}"):
                begin(output, storage=storage, overwrite=overwrite)
        with pytest.raises(OutputError, match=f"process {first.process.pid} on {HERE}"):
            merge(output, [make_embedded(tmp_path / "a.h5", random_embeddings(0, 1))])
        assert os.listdir(storages[1]) == []
        assert not (tmp_path / "out.h5.parts").exists()
        assert merge(tmp_path / "other.h5", [tmp_path / "a.h5"]).videos == 1
        assert [first.tell(number) for number in range(3)] == ["done"] * 3
        assert first.tell("publish") == "done"
        first.process.wait()
    expect_complete(output, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"out.h5", "a.h5", "other.h5", "one", "two"}


@pytest.mark.slow
def test_a_run_that_was_killed_leaves_an_output_to_the_next(tmp_path: Path, storages: list[Path]) -> None:
    output = tmp_path / "out.h5"
    with other("alone", output, storage=storages[0]) as first:
        first.tell(0)
    assert (tmp_path / ".out.h5.lock").exists()
    with begin(output, storage=storages[1]) as journal:
        add(journal.writer(), 0)
        publish(journal, 1)
    expect_complete(output, 1)
    assert sorted(os.listdir(tmp_path)) == ["one", "out.h5", "two"]


@pytest.mark.slow
def test_tasks_and_their_merge_need_no_lock_of_the_output(tmp_path: Path, storages: list[Path]) -> None:
    """A task that runs beside another run of the output is not refused: it does not make the output."""
    output = tmp_path / "out.h5"
    with begin(output), other("task", output, storage=storages[0]) as task:
        assert task.tell(0) == "done"
        assert task.tell("end") == "done"
    assert merge(output, [storages[0] / "out.h5.parts"], allow_missing=True).videos == 1


def test_a_journal_in_which_a_run_is_going_on_is_not_merged(tmp_path: Path, storages: list[Path]) -> None:
    output, root = tmp_path / "out.h5", storages[0] / "out.h5.parts"
    with other("alone", output, 1, storage=storages[0]) as run:
        assert run.tell(0) == "done"
        for name in ("out.h5", "all.h5"):
            with pytest.raises(OutputError, match=f"process {run.process.pid} on {HERE}"):
                merge(tmp_path / name, [root], allow_missing=True)
        assert run.tell("end") == "done"
        run.process.wait()
    assert merge(tmp_path / "all.h5", [root], allow_missing=True).videos == 1
    assert not (root / "lock").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_appears_or_changes_during_a_run_is_not_replaced(tmp_path: Path, overwrite: bool) -> None:
    output = tmp_path / "out.h5"
    if overwrite:
        make_embedded(output, random_embeddings(1, 2))
    with begin(output, 3, overwrite=overwrite) as journal:
        for number in range(3):
            add(journal.writer(), number)
        theirs = make_embedded(output, random_embeddings(2, 2)).read_bytes()
        with pytest.raises(OutputError, match=str(output)):
            publish(journal, 3)
    assert output.read_bytes() == theirs
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "out.h5.parts"]
    with begin(output, 3, overwrite=True) as journal:  # what is finished is kept
        publish(journal, 3)
    expect_complete(output, 3)


@pytest.mark.slow
def test_an_output_that_is_gone_when_it_should_be_replaced(tmp_path: Path) -> None:
    output = make_embedded(tmp_path / "out.h5", random_embeddings(1, 2))
    with begin(output, 1, overwrite=True) as journal:
        add(journal.writer(), 0)
        output.unlink()
        publish(journal, 1)
    expect_complete(output, 1)


@pytest.mark.parametrize("layout", ["single", pytest.param("linked", marks=pytest.mark.slow)])
def test_an_output_that_appears_during_a_merge_is_not_replaced(tmp_path: Path, layout: str) -> None:
    output = tmp_path / "out.h5"
    parts = [make_embedded(tmp_path / "a.h5", random_embeddings(0, 2))]
    theirs = make_embedded(tmp_path / "theirs.h5", random_embeddings(2, 2)).read_bytes()
    name = "write_output" if layout == "single" else "_write_index"
    write = getattr(layouts, name)

    def write_late(*arguments: object) -> None:
        write(*arguments)
        output.write_bytes(theirs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layouts, name, write_late)
        with pytest.raises(OutputError, match=str(output)):
            merge(output, parts, layout=layout)  # type: ignore[arg-type]
    assert output.read_bytes() == theirs
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "out.h5", "theirs.h5"]


@pytest.mark.slow
def test_an_output_with_a_long_name_has_a_lock(tmp_path: Path) -> None:
    output = tmp_path / f"{'x' * 240}.h5"
    with begin(output, 1) as journal:
        assert len(list(tmp_path.glob(".*.lock"))) == 1
        with pytest.raises(OutputError, match="process"):
            begin(output, storage=tmp_path)
        add(journal.writer(), 0)
        publish(journal, 1)
    expect_complete(output, 1)


def test_what_was_merged_of_a_part_of_a_run_is_not_taken_for_all_of_it(tmp_path: Path, storages: list[Path]) -> None:
    output, root = tmp_path / "out.h5", storages[0] / "out.h5.parts"
    with begin(output, 2, storages[0]) as journal:
        add(journal.writer(), 0)
    merge(output, [root], allow_missing=True)
    assert finish_interrupted_cleanup(output, root) is None
    with pytest.raises(OutputError, match="--overwrite"):
        begin(output, 2, storages[0])
    with begin(output, 2, storages[0], overwrite=True) as journal:
        add(journal.writer(), 1)
        publish(journal, 2)
    expect_complete(output, 2)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_loses_nothing(small_disk: Path) -> None:
    """As a disk does after an error of its file system."""
    output, root = small_disk / "out.h5", small_disk / "out.h5.parts"
    with other("alone", output) as run:
        assert run.tell(0) == "done"
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert "Read-only file system" in run.tell(1)
        run.process.wait()
    with pytest.raises(OutputError, match=str(small_disk)):
        begin(output)
    assert merge(small_disk.parent / "all.h5", [root], allow_missing=True).videos == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with begin(output) as journal:
        assert list(journal.entries) == names(1)
        add(journal.writer(), 1)
        publish(journal, 2)
    expect_complete(output, 2)
    assert os.listdir(small_disk) == ["out.h5"]


NAMESPACE = "unshare --pid --fork --mount-proc --kill-child"


def test_a_process_of_this_host_name_in_another_namespace_counts_as_one_of_another_host(tmp_path: Path) -> None:
    """As in a container of the same name: its process ids mean nothing here, and ours nothing there."""
    if subprocess.run([*NAMESPACE.split(), "true"], capture_output=True).returncode:
        pytest.skip("a namespace of process ids cannot be made here")
    output = tmp_path / "out.h5"
    with other("alone", output, 1, within=NAMESPACE) as inside:
        with pytest.raises(OutputError, match=f"process 1 on {HERE}"):
            begin(output)
        assert inside.tell(0) == "done"
        age(tmp_path / "out.h5.parts")
        with begin(output) as journal:
            assert sorted(journal.entries) == names(1)
            assert f"process {os.getpid()} on {HERE}" in inside.tell("publish")
            publish(journal, 1)
    expect_complete(output, 1)


def test_a_lock_of_a_machine_of_this_name_that_was_started_again(tmp_path: Path) -> None:
    """It may as well be of another machine of this name: it counts as long as it is touched. But nothing has touched it
    since this machine was started if it is of an earlier start."""
    lock = tmp_path / "lock"
    up, space = system.uptime(), system.process_space()
    if up is None or not all(space):
        pytest.skip("this system does not tell when it was started")
    theirs = {"host": HERE, "pid": os.getpid(), "started": system.started(os.getpid()), "role": ""}
    for written, idle, counts in (
        ([*space], 10**6, True),  # this process itself
        (["another boot", space[1]], 1, True),
        (["another boot", space[1]], min(DEAD_AFTER, max(up, locks.REBOOT)) + 5, False),
        (["another boot", space[1]], DEAD_AFTER + 5, False),
        ([space[0], "another namespace"], DEAD_AFTER - 5, True),
        ([space[0], "another namespace"], DEAD_AFTER + 5, False),
        (None, 10**6, True),  # of an earlier version
    ):
        lock.write_text(json.dumps({**theirs, **({"space": written} if written else {})}))
        os.utime(lock, (time.time() - idle, time.time() - idle))
        assert (locks.holder(lock, DEAD_AFTER) is not None) == counts, (written, idle)
        assert lock.exists() == counts


def test_a_lock_of_wrong_types_is_damaged(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    wrongs: list[tuple[str, object]] = [
        *(("pid", wrong) for wrong in ("1", -1, 0, 1 << 40, True, None)),
        *(("space", wrong) for wrong in (5, ["a"], [1, 2])),
        ("host", 5),
        ("role", []),
        ("started", 5),
    ]
    for name, wrong in wrongs:
        lock.write_text(json.dumps({"host": HERE, "pid": os.getpid(), "started": "?", name: wrong}))
        assert locks.named_holder(lock) is None
        assert locks.holder(lock, DEAD_AFTER) is None
        assert not lock.exists()
    os.mkfifo(lock)
    assert locks.acquire(lock, DEAD_AFTER) is None


SLEEPER = """
import socket, sys
sys.path[:0] = [{root!r}]
socket.gethostname = lambda: "elsewhere"
from vswin_extract.cli.extract import extract
extract(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        numbered.write(folder / f"{number}.mp4", 150, first=100 * number)
    return folder


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "second_ends"), [("cpu", True), ("cpu:2", False)])
def test_a_run_that_slept_for_long_leaves_the_output_to_the_next(
    environment: dict[str, str], videos: Path, options: list[str], tmp_path: Path, device: str, second_ends: bool
) -> None:
    """`second_ends`: it wakes up after the other run has finished. Both are real commands."""
    out, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    arguments = [str(videos), str(out), *options, "--device", device]

    def start(*command: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)

    first = start(sys.executable, "-c", SLEEPER.format(root=str(ROOT)))
    wait_for(lambda: list(root.glob("shard-*/*.json")), first)
    first.send_signal(signal.SIGSTOP)
    age(root)
    second = start(script("vswin-extract"))
    if second_ends:
        assert second.wait() == 0, second.communicate()
    else:
        wait_for(lambda: (root / "lock").exists() and json.loads((root / "lock").read_text())["host"] == HERE, second)
    first.send_signal(signal.SIGCONT)
    error = first.communicate()[1]
    assert first.returncode == 2, error
    assert ("removed" if second_ends else f"process {second.pid} on {HERE}") in error
    assert second.wait() == 0, second.communicate()
    second.communicate()
    with open_features(out) as features:
        assert len(features) == 8
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "out.h5.toml"]


@pytest.mark.slow
def test_a_command_beside_a_shard_is_refused_and_the_shard_ends_well(
    run: Run, environment: dict[str, str], videos: Path, options: list[str], tmp_path: Path
) -> None:
    out, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    command = [script("vswin-extract"), str(videos), str(out), *options, "--shard", "0/2"]
    shard = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(root.glob("shard-*/lock")), shard)
    shard.send_signal(signal.SIGSTOP)
    refused = run("vswin-extract", videos, out, *options)
    assert (refused.returncode, f"process {shard.pid} on {HERE}" in refused.stderr) == (2, True), refused.stderr
    shard.send_signal(signal.SIGCONT)
    shard.communicate()
    assert shard.returncode == 0
    assert run("vswin-extract", videos, out, *options).returncode == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_merge_that_was_killed_while_it_removed_its_journal_is_finished(overwrite: bool, tmp_path: Path) -> None:
    """By kill -9 at each removal of a file. The output is never replaced by one of what is left of the journal."""
    output, count = tmp_path / "out.h5", 5
    root = output.with_name("out.h5.parts")
    for removals in range(30):
        with open_journal(output, SETTINGS, ARRAYS, False, names(count), {"attributes": ATTRIBUTES}) as journal:
            for number in range(count):
                add(journal.writer(), number)
        if not (child := os.fork()):
            kill_at_removal(removals, output, root)
            merge(output, overwrite=overwrite)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not status:
            break
        merged = merge(output, overwrite=overwrite)
        assert (merged.videos + merged.failed, root.exists()) == (count, False), removals
        expect_complete(output, count)
        output.unlink()
    assert removals > 4


def kill_at_removal(removals: int, output: Path, root: Path) -> None:
    """Make this process kill itself instead of removing a file of the journal, after so many that it removed once the
    output was there."""
    left, unlink = removals, Path.unlink

    def remove(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if output.exists() and path.is_relative_to(root):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        unlink(path, missing_ok)

    def remove_tree(path: Path) -> None:
        for each in sorted(path.iterdir()):
            remove(each)
        path.rmdir()

    Path.unlink = remove  # type: ignore[method-assign, assignment]
    shutil.rmtree = remove_tree  # type: ignore[assignment]


def test_a_command_with_overwrite_looks_at_the_videos_again(run: Run, small_weights: Path, tmp_path: Path) -> None:
    """Also where a merge has left the journal that it read in --storage, and made the output of it."""
    (tmp_path / "v").mkdir()
    (tmp_path / "st").mkdir()
    for name in ("a", "b"):
        numbered.write(tmp_path / "v" / f"{name}.mp4", 20)
    out = tmp_path / "o.h5"
    command = ["vswin-extract", tmp_path / "v", out, "--weights", small_weights, "--storage", tmp_path / "st"]
    assert run(*command, "--shard", "0/1").returncode == 0
    assert run("vswin", "merge", "-o", out, tmp_path / "st" / "o.h5.parts").returncode == 0
    numbered.write(tmp_path / "v" / "a.mp4", 30)
    numbered.write(tmp_path / "v" / "c.mp4", 20)
    assert run(*command, "--overwrite").returncode == 0
    assert run("vswin", "check", out, "--against", tmp_path / "v").returncode == 0
    with open_features(out) as features:
        assert list(features) == ["a.mp4", "b.mp4", "c.mp4"]
        assert features["a.mp4"].info["frames"] == 30


def test_a_merge_changes_nothing_in_a_journal_that_it_only_reads(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with open_journal(output, SETTINGS, ARRAYS, False, names(3), {"attributes": ATTRIBUTES}) as journal:
        for number in range(3):
            add(journal.writer(), number)
    (rows, *_) = output.with_name("out.h5.parts").glob("shard-*/*.rows")
    content = bytearray(rows.read_bytes())
    content[100] ^= 1
    rows.write_bytes(content)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    notes: list[str] = []
    with pytest.raises(OutputError, match="not complete"):
        merge(tmp_path / "other.h5", [output.with_name("out.h5.parts")], on_note=notes.append)
    assert "not taken" in notes[0]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
