"""The journal: nothing finished is lost, nothing damaged is believed, and it stays small."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import ARRAYS, ATTRIBUTES, SETTINGS, add, begin, expect_complete, names, publish

from vswin_extract.checks.output import verify_output
from vswin_extract.errors import OutputError
from vswin_extract.journal import directory as directory_
from vswin_extract.journal import parts
from vswin_extract.journal.directory import claim, finish_interrupted_cleanup, tables_directory
from vswin_extract.journal.entries import single_path
from vswin_extract.journal.journal import join_journal, open_journal
from vswin_extract.journal.merge import merge
from vswin_extract.journal.writer import JournalWriter, open_writer
from vswin_extract.store.features import open_features
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.ranges import WHOLE, ClipRange, without
from vswin_extract.video.videos import Video


def test_packs_keep_the_journal_small(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    most = 0
    with begin(output) as journal:
        with open_writer(journal.root, ARRAYS, pack_size=16) as writer:
            for number in range(100):
                add(writer, number)
                most = max(most, len(os.listdir(writer.directory)))
            assert most <= 2 * 16 + 2 * 100 // 16 + 2
            packed = sum(path.stat().st_size for path in writer.directory.iterdir())
            assert len(writer.singles) < 16
            found = verify_output(output)
            assert (found.videos + found.failures, found.finished, found.problems) == (100, False, ())
        publish(journal, 100)
    assert packed < 1.2 * output.stat().st_size
    expect_complete(output, 100)
    assert not (tmp_path / "out.h5.parts").exists()


def test_a_writer_packs_what_is_left_and_leaves_nothing_unfinished(tmp_path: Path) -> None:
    with begin(tmp_path / "out.h5") as journal:
        for pack, files in ((True, 2), (False, 6)):
            with open_writer(journal.root, ARRAYS) as writer:
                for number in range(3):
                    add(writer, number)
                writer.part(Video("w", Path("w")))
                writer.close(pack)
            assert len(os.listdir(writer.directory)) == files
        with open_writer(journal.root, ARRAYS) as writer:
            writer.part(Video("w", Path("w")))
        assert not writer.directory.exists()
        publish(journal, 3)
    expect_complete(tmp_path / "out.h5", 3)


def test_a_disk_that_is_too_full_for_a_pack_keeps_single_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with begin(tmp_path / "out.h5") as journal:
        with open_writer(journal.root, ARRAYS) as writer:
            for number in range(3):
                add(writer, number)
            monkeypatch.setattr(parts.Part, "write", full)
        monkeypatch.undo()
        assert len(os.listdir(writer.directory)) == 6
        publish(journal, 3)
    expect_complete(tmp_path / "out.h5", 3)


def test_what_killed_writers_left_unfinished_goes(tmp_path: Path) -> None:
    with begin(tmp_path / "out.h5") as journal:
        add(journal.writer(), 0)
    shard = next(journal.root.glob("shard-*"))
    for name, age in (("old.rows.tmp", 1000), ("new.rows.tmp", 10)):
        (shard / name).write_bytes(b"half")
        os.utime(shard / name, (time.time() - age, time.time() - age))
    with begin(tmp_path / "out.h5") as journal:
        assert list(journal.entries) == names(1)
        assert [path.name for path in shard.glob("*.tmp")] == ["new.rows.tmp"]  # it may be another task's


COMMITTER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from vswin_extract.journal.writer import open_writer
import journals
with journals.begin(Path(sys.argv[1])) as journal, open_writer(journal.root, journals.ARRAYS, pack_size=8) as writer:
    for number, name in enumerate(journals.names(int(sys.argv[2]))):
        if name not in journal.entries:
            journals.add(writer, number)
    journals.publish(journal, int(sys.argv[2]))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment(tmp_path: Path, kills: int) -> None:
    """Of a process that commits, packs and publishes as fast as it can."""
    output, count = tmp_path / "out.h5", 60 * kills
    script = COMMITTER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    chance = random.Random(kills)
    known: set[str] = set()
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", script, str(output), str(count)], stderr=subprocess.PIPE)
        while process.poll() is None and not (tmp_path / "out.h5.parts" / "lock").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.communicate()
        if output.exists():
            break
        with begin(output) as journal:
            assert journal.notes == []
            assert known <= journal.entries.keys()  # nothing that was finished is lost
            known = set(journal.entries)
    if not output.exists():
        assert known
        subprocess.run([sys.executable, "-c", script, str(output), str(count)], check=True)
    expect_complete(output, count)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damaged_files_and_packs_are_not_believed(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with begin(output) as journal:
        writer = open_writer(journal.root, ARRAYS, pack_size=8)
        for number in range(20):
            add(writer, number)
    pack = writer.directory / "pack-0.rows"
    nonsense, gone, part = (single_path(writer.directory, names(20)[number], WHOLE) for number in (16, 17, 18))
    flip(pack)
    flip(part)
    gone.unlink()
    nonsense.with_suffix(".json").write_text("{")
    assert {problem.where for problem in verify_output(output).problems} == {
        path.name for path in (pack, part, gone, nonsense)
    }
    with begin(output) as journal:
        assert len(journal.notes) == 4
        lost = {*range(8), 16, 17, 18}
        assert set(names(20)) - journal.entries.keys() == {names(20)[number] for number in lost}
        for number in lost:
            add(journal.writer(), number)
        publish(journal, 20)
    expect_complete(output, 20)


def test_a_journal_removed_by_hand_is_an_error(tmp_path: Path) -> None:
    with begin(tmp_path / "out.h5") as journal:
        add(journal.writer(), 0)
        shutil.rmtree(journal.root)
        with pytest.raises(OutputError, match="removed"):
            add(journal.writer(), 1)


def test_a_lock_of_another_host_or_a_living_process_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with begin(output), pytest.raises(OutputError, match=f"process {os.getpid()} on {os.uname().nodename}"):
        begin(output)
    lock = tmp_path / "out.h5.parts" / "lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(OutputError, match="process 1 on elsewhere"):
        begin(output)
    assert os.listdir(lock.parent) == ["lock"]
    os.utime(lock, (time.time() - 700, time.time() - 700))  # it has not been touched for long
    with begin(output) as journal:
        add(journal.writer(), 0)
    dead = subprocess.Popen(["true"])
    dead.wait()
    again = {"host": os.uname().nodename, "pid": os.getpid(), "started": "1"}  # the pid of another, used again
    for content in (json.dumps({**again, "pid": dead.pid}), json.dumps(again), "", "[]"):
        lock.write_text(content)
        with begin(output) as journal:
            assert list(journal.entries) == names(1)


def test_a_lock_is_touched_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with claim(lock, tmp_path / "out.h5", touch_every=0.01):
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime < time.time() - 60:
            time.sleep(0.01)
    assert not lock.exists()


def test_a_kill_between_the_last_rename_and_the_cleaning_up(tmp_path: Path) -> None:
    output, root = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    with begin(output, 1) as journal:
        add(journal.writer(), 0)
        shutil.copytree(root, tmp_path / "kept")
        publish(journal, 1)
    (tmp_path / "kept" / "lock").unlink()
    (tmp_path / "kept").rename(root)
    assert finish_interrupted_cleanup(output, root) == SETTINGS
    assert not root.exists()
    assert finish_interrupted_cleanup(output, root) is None
    expect_complete(output, 1)


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "out.h5.parts"
    directory.mkdir()
    (directory / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match=f"{directory} is in the way"):
        begin(tmp_path / "out.h5")
    assert (directory / "thesis.txt").read_text() == "precious"
    assert os.listdir(directory) == ["thesis.txt"]
    (tmp_path / "b.h5.parts").write_text("a file")
    with pytest.raises(OutputError, match=r"b\.h5\.parts is in the way"):
        begin(tmp_path / "b.h5")


def test_finished_videos_are_not_dropped_silently(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with begin(output) as journal:
        add(journal.writer(), 0)
    with pytest.raises(OutputError, match=r"v/00000.mp4"):
        open_journal(output, SETTINGS, ARRAYS, overwrite=False, video_ids=["other"])
    with open_journal(output, SETTINGS, ARRAYS, overwrite=True, video_ids=["other"]) as journal:
        assert "v/00000.mp4" in journal.entries


def test_done_means_the_same_video_the_same_segment_and_no_passing_failure(tmp_path: Path) -> None:
    path = os.path.abspath("x")
    with begin(tmp_path / "out.h5") as journal:
        commit(journal.writer(), 1, 0.0, "x", size=5, mtime=1.5, start=1.0)
        for name, error in (("late", "DecoderTimeout"), ("bad", "VideoUnreadable")):
            journal.writer().commit(VideoRecord(name, path, "failed", size=5, mtime=1.5, start=1.0, error=error))
        journal.load()
        video = Video("x", Path("x"), 1.0)
        assert journal.missing(video, 5, 1.5) == []
        assert journal.missing(video, 6, 1.5) == [WHOLE]
        assert journal.missing(video, 5, 2.5) == [WHOLE]
        assert journal.missing(replace(video, start=None), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, end=2.0), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, path=Path("b.mp4")), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, id="late"), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, id="bad"), 5, 1.5) == []


X = "v/09999.mp4"


def commit(writer: JournalWriter, clips: int, value: float, name: str = X, **facts: Any) -> None:
    """Commit a video, or a clip range of one, whose rows all have one value."""
    part = writer.part(Video(name, Path(name), clip_range=facts.get("clip_range", WHOLE)))
    rows = {feature: np.full((clips, *shape), value) for feature, shape in ARRAYS.shapes.items()}
    places = {"clips/frames": np.zeros((clips, 2)), "clips/times": np.zeros((clips, 2)), "clips/valid": np.ones(clips)}
    part.append({**rows, **places})
    writer.commit(VideoRecord(name, os.path.abspath(name), "ok", clips=clips, **facts), part)


@pytest.mark.parametrize("again", [True, False])
def test_a_video_that_was_replaced_between_two_runs(tmp_path: Path, again: bool) -> None:
    """By a shorter and older one. `again`: the same process writes both, so that the rows have the same name."""
    output = tmp_path / "out.h5"
    with begin(output) as journal:
        commit(journal.writer(), 3, 1.0, size=3, mtime=50.0)
        if again:
            commit(journal.writer(), 1, 2.0, size=1, mtime=20.0)
    with begin(output) as journal:
        assert journal.missing(Video(X, Path(X)), 1, 20.0) == ([] if again else [WHOLE])
        with open_writer(journal.root, ARRAYS, pack_size=2) as writer:
            if not again:
                commit(writer, 1, 2.0, size=1, mtime=20.0)
                add(writer, 0)  # and both are packed
                assert not writer.singles
        journal.load()
        journal.publish([X], ATTRIBUTES)
    with open_features(output) as features:
        assert features[X].embedding[:].tolist() == [[2.0] * 64]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_extracted_last_counts_however_old_its_video_is(tmp_path: Path, fails: bool) -> None:
    output = tmp_path / "out.h5"
    for mtime, value in ((50.0, 1.0), (20.0, 2.0)):
        with join_journal(output, SETTINGS, ARRAYS, {}) as journal:
            if fails and value == 2:
                failed = VideoRecord(X, os.path.abspath(X), "failed", size=2, mtime=mtime, error="VideoUnreadable")
                journal.writer().commit(failed)
            else:
                commit(journal.writer(), 1, value, size=2, mtime=mtime)
        time.sleep(0.02)
    with join_journal(output, SETTINGS, ARRAYS, {}) as journal:  # which version is wanted is not known
        assert journal.extracted(X).record.mtime == 20.0
        assert journal.extracted(X).record.status == ("failed" if fails else "ok")


PIECES: list[ClipRange] = [(0, 2), (2, 5), (5, None)]


@given(st.permutations(range(5)), st.booleans())
@settings(max_examples=8)
def test_a_whole_video_counts_more_than_its_clip_ranges(order: list[int], several: bool) -> None:
    """Pieces 0 to 2 have the value 0, the whole video (3) has 1, and 4 says that the frame table was wrong: in any
    order, by one process or `several`, packed or not, and with a kill after each."""
    with TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        output = Path(name) / "out.h5"
        journal = stack.enter_context(begin(output))
        video, written = Video(X, Path(X)), set()
        for what in order:
            writer = journal.writer()
            if several:
                writer = stack.enter_context(open_writer(journal.root, ARRAYS, pack_size=1))
            if what == 4:
                wrong = VideoRecord(X, os.path.abspath(X), "failed", error="FrameTableWrong", clip_range=PIECES[1])
                writer.commit(wrong)
            else:
                clip_range, clips = [*PIECES, WHOLE][what], (2, 3, 2, 7)[what]
                commit(writer, clips, float(what == 3), clip_range=clip_range, skipped=what)
            written.add(what)
            journal.load()
            missing, found = journal.missing(video, -1, 0.0), journal.complete(X)
            overwritten = not several and 1 in written and order.index(4) < order.index(1)
            if 3 in written:
                assert (missing, found and found.record.skipped) == ([], 3)
            elif 4 in written and not overwritten:
                assert (missing, found, journal.must_be_sequential(X)) == ([WHOLE], None, True)
            else:
                done = [PIECES[k] for k in sorted(written & {0, 1, 2})]
                assert missing == without(WHOLE, done)
                assert (found and found.record.skipped) == (3 if len(done) == 3 else None)
        assert [piece.record.clips for piece in journal.extracted(X).pieces] == [7]
        if not several:
            journal.publish([X], ATTRIBUTES)
            with open_features(output) as features:
                assert (features[X].embedding[:] == 1).all()


def test_what_the_pieces_say_is_said_of_the_video(tmp_path: Path) -> None:
    with begin(tmp_path / "out.h5") as journal:
        commit(journal.writer(), 2, 0.0, clip_range=(0, 2), width=8, frames=40, skipped=3)
        commit(journal.writer(), 3, 0.0, clip_range=(2, 5), skipped=4, frames=90)
        journal.load()
        assert journal.complete(X) is None
        commit(journal.writer(), 0, 0.0, clip_range=(5, None), frames=100, skipped=5, duration=4.0)
        damaged = VideoRecord(X, os.path.abspath(X), "partial", clips=3, clip_range=(2, 5), skipped=4, message="a gap")
        part = journal.writer().part(Video(X, Path(X), clip_range=(2, 5)))
        part.write(bytes(3 * part.dtype.itemsize), 3)
        journal.writer().commit(damaged, part)
        journal.load()
        record = journal.extracted(X).record
    assert (record.status, record.message, record.clip_range) == ("partial", "a gap", WHOLE)
    assert (record.clips, record.skipped, record.frames, record.duration, record.width) == (5, 12, 100, 4.0, 8)


def test_frame_tables_go_with_the_journal(tmp_path: Path) -> None:
    for finished in (False, True):
        with begin(tmp_path / "out.h5") as journal:
            (tables_directory(journal.root) / "a.npz").write_bytes(b"table")
            if finished:
                add(journal.writer(), 0)
        assert journal.root.exists() == finished
    with begin(tmp_path / "out.h5", 1) as journal:
        assert (tables_directory(journal.root) / "a.npz").exists()
        journal.load()
        journal.publish(names(1), ATTRIBUTES)
    assert not journal.root.exists()


def test_two_outputs_of_one_name_in_one_storage(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    one, other = (tmp_path / name / "out.h5" for name in ("one", "other"))
    for folder in (storage, one.parent, other.parent):
        folder.mkdir()
    open_ = partial(open_journal, settings=SETTINGS, arrays=ARRAYS, video_ids=names(3), storage=storage)
    with open_(one, overwrite=False) as journal:
        add(journal.writer(), 0)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"holds a run for {one}, not for {other}"):
            open_(other, overwrite=overwrite)
    with pytest.raises(OutputError, match=f"not for {other}"):
        join_journal(other, SETTINGS, ARRAYS, {}, storage)
    with open_(one, overwrite=False) as journal:
        assert list(journal.entries) == names(1)


def test_a_journal_that_is_moved_with_its_output_continues(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with begin(tmp_path / "here" / "out.h5") as journal:
        add(journal.writer(), 0)
    (tmp_path / "here").rename(tmp_path / "there")
    with begin(tmp_path / "there" / "out.h5") as journal:
        assert list(journal.entries) == names(1)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with begin(tmp_path / "out.h5") as journal:
        add(journal.writer(), 0)
        with pytest.raises(OutputError, match=f"process {os.getpid()}"):
            begin(tmp_path / "out.h5")
        publish(journal, 1)
    expect_complete(tmp_path / "out.h5", 1)


def test_an_error_at_the_beginning_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(directory_, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            begin(tmp_path / "out.h5")
    with begin(tmp_path / "out.h5") as journal:
        add(journal.writer(), 0)


def test_a_damaged_job_file_is_an_error(tmp_path: Path) -> None:
    with begin(tmp_path / "out.h5") as journal:
        add(journal.writer(), 0)
    for content in ("{", "{}", "[]"):
        (tmp_path / "out.h5.parts" / "job.json").write_text(content)
        with pytest.raises(OutputError, match=r"job\.json is damaged"):
            begin(tmp_path / "out.h5")


OLD = np.dtype(
    [
        ("embedding", "float32", (64,)),
        ("stage4", "float32", (2, 3, 3, 64)),
        ("clips/frames", "int64", (2,)),
        ("clips/times", "float64", (2,)),
        ("clips/valid", "int32"),
    ]
)


def old_rows(number: int, clips: range) -> bytes:
    """The rows of a video, or of a clip range of one, as version 0.1 wrote them."""
    rows = np.zeros(len(clips), OLD)
    for row, k in zip(rows, clips, strict=True):
        row["embedding"], row["stage4"] = number + k / 10, number + k / 10
        row["clips/frames"], row["clips/times"], row["clips/valid"] = [8 * k, 8 * k + 8], [k / 2, k / 2 + 0.5], 8
    return rows.tobytes()


def write_old(directory: Path, numbers: list[int], span: tuple[int, int | None] = (0, None), stem: str = "") -> None:
    """Write the entry of one video as version 0.1 did, or with a `stem` a pack of several."""
    directory.mkdir(exist_ok=True)
    videos, rows = [], b""
    for number in numbers:
        name, clips = names(10)[number], range(span[0], span[1] or 1 + number % 3)
        if number == 6:
            result: dict[str, Any] = {"status": "failed", "error": "VideoUnreadable", "message": "no"}
        else:
            rows += old_rows(number, clips)
            result = {"status": "ok", "clips": len(clips), "fps": 16.0, "frames": 8, "error": "", "message": ""}
        videos.append({"id": name, "path": name, "size": number, "mtime": 0.0, "etag": "", "span": span, **result})
    key = name if span == (0, None) else f"{name}\0{span}"
    stem = stem or hashlib.sha256(key.encode()).hexdigest()[:32]
    sha256 = hashlib.sha256(rows).hexdigest() if rows else ""
    (directory / f"{stem}.rows").write_bytes(rows)
    (directory / f"{stem}.json").write_text(json.dumps({"videos": videos, "sha256": sha256}))


@pytest.fixture
def old_journal(tmp_path: Path) -> Path:
    """An unfinished output of version 0.1, which lacks video 5 of 7. Entries are in the journal itself, or in branches;
    video 4 was shared out."""
    root = tmp_path / "out.h5.parts"
    for number in (0, 1, 6):
        write_old(root, [number])
    write_old(root / "branch-x", [2, 3], stem="pack-0")
    write_old(root / "branch-x", [4], (0, 1))
    write_old(root / "branch-y", [4], (1, None))
    (root / "branch-y" / "half.rows.tmp").write_bytes(b"half")
    arrays = {"shapes": {"embedding": [64], "stage4": [2, 3, 3, 64]}, "dtype": "float32", "compression": "none"}
    job = {"settings": SETTINGS, "run": "0" * 32, "arrays": arrays, "attributes": ATTRIBUTES, "classes": []}
    (root / "job.json").write_text(json.dumps({**job, "output": str(tmp_path / "out.h5")}))
    (root / "videos.json").write_text(json.dumps({"ids": names(7), "clips": [None] * 7}))
    return tmp_path / "out.h5"


def test_a_journal_of_version_0_1_continues(old_journal: Path) -> None:
    found = verify_output(old_journal)
    assert (found.videos, found.failures, found.problems) == (5, 1, ())
    with begin(old_journal) as journal:
        assert journal.notes == []
        assert [name for name in names(7) if journal.complete(name) is None] == names(7)[5:6]
        add(journal.writer(), 5)
        assert len(list(journal.root.glob("shard-*/*.json"))) == 1
        publish(journal, 7)
    expect_complete(old_journal, 7)
    assert os.listdir(old_journal.parent) == ["out.h5"]


def test_a_journal_of_version_0_1_is_merged(old_journal: Path) -> None:
    with pytest.raises(OutputError, match=names(7)[5]):
        merge(old_journal)
    with join_journal(old_journal, SETTINGS, ARRAYS, {}) as journal:
        add(journal.writer(), 5)
    assert merge(old_journal).videos == 6
    expect_complete(old_journal, 7)
    assert os.listdir(old_journal.parent) == ["out.h5"]


def test_clip_ranges_that_overlap_make_one_video(tmp_path: Path) -> None:
    """Another number of devices cuts a video at other places; no clip counts twice."""
    with begin(tmp_path / "out.h5") as journal:
        for clips, value, clip_range in ((3, 0.0, (0, 3)), (3, 1.0, (2, 5)), (2, 2.0, (5, None))):
            commit(journal.writer(), clips, value, clip_range=clip_range)
        journal.load()
        video = Video(X, Path(X))
        assert journal.missing(video, -1, 0.0) == []
        journal.publish([X], ATTRIBUTES)
    with open_features(tmp_path / "out.h5") as features:
        assert features[X].embedding[:, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]


def damage(path: Path, what: str) -> None:
    with h5py.File(path, "r+") as file:
        match what:
            case "value":
                file["stage4"][3, 0, 0, 0, 0] += 1
            case "nan":
                file["embedding"][2, 3] = np.nan
            case "times":
                file["clips/times"][2] = [9.0, 8.0]
            case "rows":
                file["embedding"].resize(len(file["embedding"]) - 1, axis=0)
            case "gone":
                del file["clips/valid"]
            case "table":
                file["videos_table/clips"][0] += 1
            case "view":
                del file["videos/v/00003.mp4/embedding"]
            case "incomplete":
                file.attrs["complete"] = False


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("value", "/stage4"),
        ("nan", "/embedding"),
        ("times", "/clips/times"),
        ("rows", "/embedding"),
        ("gone", "/clips/valid"),
        ("table", "/videos_table"),
        ("view", "/videos/v/00003.mp4/embedding"),
        ("incomplete", "/"),
    ],
)
def test_check_finds_what_is_wrong(run: Run, tmp_path: Path, what: str, where: str) -> None:
    output = tmp_path / "out.h5"
    with begin(output) as journal:
        for number in range(12):
            add(journal.writer(), number)
        publish(journal, 12)
    assert run("vswin", "check", output).stdout.endswith("nothing wrong\n")
    damage(output, what)
    done = run("vswin", "check", output)
    assert done.returncode == 4
    assert where in {problem.where for problem in verify_output(output).problems}
    assert where in done.stdout


def test_check_against_videos(run: Run, tmp_path: Path) -> None:
    videos, output = tmp_path / "v", tmp_path / "out.h5"
    videos.mkdir()
    with begin(output) as journal:
        for number in range(6):
            add(journal.writer(), number)
        publish(journal, 6)
    for number in (1, 2, 9):
        (videos / f"{number:05}.mp4").write_bytes(bytes(number))
        os.utime(videos / f"{number:05}.mp4", (0, 0))
    (videos / "00002.mp4").write_bytes(bytes(50))
    manifest = tmp_path / "list.csv"
    manifest.write_text("path\nv/00001.mp4\nv/00002.mp4\nv/00009.mp4\n")
    done = run("vswin", "check", output, "--manifest", manifest)
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert sum("is in the output, but not among the videos" in line for line in lines) == 4
    assert any(line.startswith("v/00009.mp4") and "is missing from the output" in line for line in lines)
    assert any(line.startswith("v/00002.mp4") and "has changed" in line for line in lines)
    assert run("vswin", "check", tmp_path / "nowhere.h5").returncode == 2


def test_a_full_disk_loses_nothing(run: Run, small_disk: Path, small_weights: Path, tmp_path: Path) -> None:
    import numbered

    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        numbered.write(videos / f"{number:02}.mp4", 60, first=60 * number)
    out = small_disk / "out.h5"
    arguments = [videos, out, "--weights", small_weights, "--stage", 1, "--stride", 4]
    full = run("vswin-extract", *arguments)
    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert not out.exists()
    finished = verify_output(out)
    assert finished.videos > 0
    assert finished.problems == ()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    again = run("vswin-extract", *arguments)
    assert again.returncode == 0, again.stderr
    assert f"{finished.videos} of them done before" in again.stderr
    assert verify_output(out).problems == ()
