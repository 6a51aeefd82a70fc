"""Which shards are removed, and when: never those that another index links to, nor those of another attempt."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from conftest import ROOT, Run
from journals import ATTRIBUTES, SETTINGS, add, begin, names
from outputs import make_embedded, random_embeddings

from vswin_extract.checks.output import verify_output
from vswin_extract.errors import OutputError, UsageError
from vswin_extract.journal.directory import finish_interrupted_cleanup
from vswin_extract.journal.merge import merge
from vswin_extract.store.features import linked_files, open_features
from vswin_extract.store.layouts import ShardLimit
from vswin_extract.store.shards import spare_shards


def slow(*values: object) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow)


OLD, NEW = random_embeddings(0, 3, 4, 5), random_embeddings(1, 2, 2)


def make(path: Path, run: str = "1") -> Path:
    """An output of three shards."""
    return make_embedded(path, OLD, run, "sharded", 1)


def replace(path: Path, run: str = "2") -> Path:
    """Another output of two shards, in its place."""
    return make_embedded(path, NEW, run, "sharded", 1)


def expect_old(path: Path, follow: bool = False) -> None:
    with open_features(path, follow=follow) as features:
        for name, rows in OLD.items():
            assert np.array_equal(features[name].embedding, rows)
    assert verify_output(path, follow=follow).problems == ()


def rename(out: Path) -> Path:
    return out.rename(out.with_name("first.h5"))


def copy(out: Path) -> Path:
    return Path(shutil.copy(out, out.with_name("out.h5.bak")))


def link(out: Path) -> Path:
    out.with_name("first.h5").hardlink_to(out)
    return out.with_name("first.h5")


def index(out: Path) -> Path:
    return merge(out.with_name("all.h5"), [out], layout="linked").output


def index_elsewhere(out: Path) -> Path:
    (out.parent / "below").mkdir()
    return merge(out.parent / "below" / "all.h5", [out], layout="linked").output


def behind_block(out: Path) -> Path:
    """A copy whose HDF5 begins behind other bytes, as h5jam and h5repack -u make it."""
    copied = out.with_name("block.h5")
    copied.write_bytes(bytes(2048) + out.read_bytes())
    return copied


@pytest.mark.parametrize(
    "keep", [rename, behind_block, *(slow(other) for other in (copy, link, index, index_elsewhere))]
)
def test_shards_that_another_index_links_to_stay(keep: Callable[[Path], Path], tmp_path: Path) -> None:
    out = make(tmp_path / "out.h5")
    other = keep(out)
    follow = other.parent != out.parent
    replace(out)
    assert len(linked_files(out)) == 2
    expect_old(other, follow)
    make_embedded(out, NEW, "3")
    expect_old(other, follow)
    assert verify_output(out).problems == ()


def test_shards_that_nothing_else_links_to_go(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no HDF5")
    os.mkfifo(tmp_path / "pipe")
    out = make(tmp_path / "out.h5")
    (tmp_path / "out.h5.shards" / "mine.txt").write_text("precious")
    replace(out)
    assert sorted(os.listdir(tmp_path / "out.h5.shards")) == [*(p.name for p in linked_files(out)), "mine.txt"]
    assert spare_shards(out) == []


def test_shards_stay_where_it_cannot_be_known(run: Run, tmp_path: Path) -> None:
    """A damaged file may have been a copy of the index. A note says how much disk space stays in use."""
    out = make(tmp_path / "out.h5")
    shards = linked_files(out)
    (tmp_path / "copy.h5").write_bytes(out.read_bytes()[:2000])
    replace(out)
    assert all(shard.exists() for shard in shards)
    checked = run("vswin", "check", out)
    assert (checked.returncode, "3 files" in checked.stdout) == (0, True), checked.stdout


def test_cleaning_up_after_a_kill_where_shards_are_elsewhere(tmp_path: Path) -> None:
    """The index links to files outside its directory, which this process made itself."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    output, root = tmp_path / "here" / "out.h5", tmp_path / "here" / "out.h5.parts"
    output.with_name("out.h5.shards").symlink_to(tmp_path / "disk")
    with begin(output, 1) as journal:
        add(journal.writer(), 0)
        shutil.copytree(root, tmp_path / "kept")
        journal.load()
        (note,) = journal.publish(names(1), ATTRIBUTES, (), "sharded")
        assert "--follow" in note
    (tmp_path / "kept" / "lock").unlink()
    (tmp_path / "kept").rename(root)
    assert finish_interrupted_cleanup(output, root) == SETTINGS
    assert not root.exists()


def test_a_shard_directory_that_is_a_link(run: Run, tmp_path: Path) -> None:
    """The index names its shards by absolute paths, so it may have been moved anywhere. Nothing tells the link from one
    that somebody else made, so `--follow` is needed, and notes of runs and merges say so."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out.h5.shards").symlink_to(tmp_path / "disk")
    out = make(tmp_path / "here" / "out.h5")
    with pytest.raises(UsageError, match="--follow"):
        open_features(out)
    expect_old(out, follow=True)
    out.rename(tmp_path / "moved.h5")
    replace(out)
    part = make_embedded(tmp_path / "part.h5", OLD)
    done = run("vswin", "merge", "-o", out, part, "--layout", "sharded", "--overwrite")
    assert (done.returncode, "--follow" in done.stderr) == (0, True), done.stderr
    expect_old(out, follow=True)
    expect_old(tmp_path / "moved.h5")  # the shards are below its directory


@pytest.mark.parametrize("form", [slow("{:05}.h5"), slow("{:05}-0123abcd.h5")])
def test_shards_of_earlier_versions_go_with_their_index(form: str, tmp_path: Path) -> None:
    out = make(tmp_path / "out.h5")
    old = [shard.rename(shard.with_name(form.format(k))) for k, shard in enumerate(linked_files(out))]
    merge(out, old, layout="linked", overwrite=True)
    expect_old(out)
    replace(out)
    assert not any(shard.exists() for shard in old)


@pytest.mark.parametrize(
    ("layout", "lost"),
    [("linked", True), ("single", False), slow("linked", False), slow("single", True), slow("sharded", True)],
)
def test_an_index_is_made_again_of_its_shards(layout: str, lost: bool, tmp_path: Path) -> None:
    out = make(tmp_path / "out.h5")
    shards = linked_files(out)
    if lost:
        out.unlink()
        with pytest.raises(UsageError, match="--link"):
            verify_output(out)
    notes: list[str] = []
    merge(out, shards, layout=layout, overwrite=not lost, on_note=notes.append)  # type: ignore[arg-type]
    expect_old(out)
    assert all(shard.exists() for shard in shards)
    assert linked_files(out) == (shards if layout == "linked" else [] if layout == "single" else linked_files(out))
    assert ["3 files" in note for note in notes] == ([] if layout == "linked" else [True])


@pytest.mark.parametrize("lost", [True, slow(False)])
def test_a_merge_of_a_damaged_file_removes_nothing(run: Run, lost: bool, tmp_path: Path) -> None:
    out = make(tmp_path / "out.h5")
    parts = linked_files(out)
    if lost:
        out.unlink()
    with h5py.File(parts[1], "r+") as file:
        file["embedding"][1, 1] += 1
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    for option in (["--layout", "sharded"], []):
        done = run("vswin", "merge", "-o", out, *parts, *option, *([] if lost else ["--overwrite"]))
        assert (done.returncode, str(parts[1]) in done.stderr) == (2, True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.h5")} == before
    assert len(list(tmp_path.rglob("*"))) == len(before) + 1  # the shard directory


def test_a_merge_on_a_full_disk_removes_its_own_shards_only(run: Run, small_disk: Path, tmp_path: Path) -> None:
    first = make(small_disk / "out.h5")
    first.rename(small_disk / "first.h5")
    part = make_embedded(tmp_path / "a.h5", random_embeddings(2, 9000))
    (small_disk / "filling").write_bytes(bytes(1 << 20))
    before = sorted(small_disk.rglob("*"))
    done = run("vswin", "merge", "-o", first, part, make(tmp_path / "b.h5"), "--on-duplicate", "first",
               "--layout", "sharded")  # fmt: skip
    assert (done.returncode, "No space left" in done.stderr) == (1, True), done.stderr
    assert sorted(small_disk.rglob("*")) == before
    expect_old(small_disk / "first.h5")


def test_two_runs_have_shards_of_different_names(tmp_path: Path) -> None:
    with open_features(make(tmp_path / "a.h5", "a")) as features:
        assert all(f"-{'a' * 32}-" in shard.name for shard in features.linked)


MERGE = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from vswin_extract.journal.merge import merge
from vswin_extract.store import layouts, shards
from vswin_extract.store.layouts import ShardLimit
where = sys.argv[1]
def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "before the index":
    layouts._write_index = end
elif where == "before the index is published":
    shards.publish = end
elif where == "after it":
    shards.Attempt.finish = end
merge(sys.argv[2], [Path(sys.argv[3])], layout="sharded", shard_limit=ShardLimit(videos=1), overwrite=True)
"""


def merge_and_die(where: str, out: Path, part: Path) -> None:
    code = MERGE.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code, where, str(out), str(part)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before the index", "before the index is published", "after it"])
def test_kill_9_while_an_output_is_published(where: str, run: Run, tmp_path: Path) -> None:
    """The next attempt of the same run removes what was left. No other run does, and `check` names it."""
    root, out = tmp_path / "storage" / "out.h5.parts", tmp_path / "out.h5"
    root.parent.mkdir()
    with begin(out, 4, root.parent) as journal:
        for number in range(4):
            add(journal.writer(), number)
    make(out)
    old = linked_files(out)
    merge_and_die(where, out, root)
    left = [path for path in (tmp_path / "out.h5.shards").glob("*.h5") if path not in old]
    assert len(left) == 4
    replaced = where == "after it"
    if not replaced:
        expect_old(out)
    assert f"{3 if replaced else 4} files" in run("vswin", "check", out).stdout
    other = make_embedded(tmp_path / "other.h5", NEW)
    merge(out, [other], layout="sharded", overwrite=True)
    assert [path.exists() for path in left] == [not replaced] * 4
    merge(out, [root], layout="sharded", shard_limit=ShardLimit(videos=1), overwrite=True)
    with open_features(out) as features:
        assert list(features) == names(4)
    assert not any(path.exists() for path in left)
    assert len(list((tmp_path / "out.h5.shards").glob("*"))) == 4 + 3 * replaced


INTERRUPTED = """
import sys, time
from functools import partial
sys.path[:0] = [{root!r}]
from vswin_extract.cli import vswin
from vswin_extract.journal import merge
from vswin_extract.store import layouts
merge.merge = partial(merge.merge, shard_limit=layouts.ShardLimit(videos=1))
write = layouts.write_output
def wait(path, *rest):
    write(path, *rest)
    if path.name.startswith("00001"):
        print("ready", flush=True)
        time.sleep(60)
layouts.write_output = wait
vswin(["merge", "-o", *sys.argv[1:], "--layout", "sharded"])
"""


@pytest.mark.slow
def test_an_interrupted_merge_removes_its_own_shards_only(tmp_path: Path) -> None:
    out = make(tmp_path / "out.h5")
    out.rename(tmp_path / "first.h5")
    part = make_embedded(tmp_path / "a.h5", OLD)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", INTERRUPTED.format(root=str(ROOT)), str(out), str(part)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(list((tmp_path / "out.h5.shards").glob("0000?-*"))) == 3 + 2
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert sorted(tmp_path.rglob("*")) == before
    expect_old(tmp_path / "first.h5")


def test_parts_of_different_precision_or_shape_are_not_merged(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a.h5"), make_embedded(tmp_path / "b.h5", {"x.mp4": np.ones((2, 16), np.float32)})
    for shard in linked_files(one):
        with h5py.File(shard, "r+") as file:
            file.attrs["precision"] = "bf16"
    with pytest.raises(OutputError, match="precision"):
        merge(tmp_path / "out.h5", [one, other])
    narrow = make_embedded(tmp_path / "c.h5", {"y.mp4": np.ones((2, 8), np.float32)})
    for layout in ("single", "sharded", "linked"):
        with pytest.raises(OutputError, match="embedding"):
            merge(tmp_path / "out.h5", [other, narrow], layout=layout)
    assert not list(tmp_path.glob("out.h5*"))
