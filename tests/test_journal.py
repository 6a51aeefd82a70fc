"""The journal by itself: nothing finished is lost, nothing damaged is believed, and it stays small."""

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
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT, Run

from vswin_extract.checks.output import verify_output
from vswin_extract.errors import OutputError
from vswin_extract.journal import journal as journal_
from vswin_extract.journal.journal import Journal, open_journal
from vswin_extract.store.features import open_features
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.videos import Video

ARRAYS = Arrays({"embedding": (64,), "stage4": (2, 3, 3, 64)})
ATTRIBUTES = {
    "model": "none",
    "weights_sha256": "0" * 64,
    "sampling": {"clip_len": 8},
    "preprocessing": {},
    "precision": "fp32",
    "decoder": "pyav",
}


def opened(output: Path) -> Journal:
    return open_journal(output, {"settings": 1}, ARRAYS, overwrite=False, video_ids=names(10_000))


def add(journal: Journal, number: int) -> None:
    """A video of one to three clips whose values tell its number; every seventh one fails."""
    name, clips = f"v/{number:05}.mp4", 1 + number % 3
    if number % 7 == 6:
        journal.commit(VideoRecord(name, name, "failed", size=number, error="VideoUnreadable", message="no"))
        return
    part = journal.part(Video(name, Path(name)))
    values = np.arange(clips)[:, None] / 10 + number
    part.append(
        {
            "embedding": np.broadcast_to(values, (clips, 64)),
            "stage4": np.broadcast_to(values.reshape(-1, 1, 1, 1, 1), (clips, 2, 3, 3, 64)),
            "clips/frames": np.array([[8 * k, 8 * k + 8] for k in range(clips)]),
            "clips/times": np.array([[k / 2, k / 2 + 0.5] for k in range(clips)]),
            "clips/valid": np.full(clips, 8),
        }
    )
    journal.commit(VideoRecord(name, name, "ok", clips=clips, fps=16.0, frames=8 * clips, size=number), part)


def names(count: int) -> list[str]:
    return [f"v/{number:05}.mp4" for number in range(count)]


def expect_whole(output: Path, count: int) -> None:
    with open_features(output) as features:
        assert list(features) == [name for i, name in enumerate(names(count)) if i % 7 != 6]
        assert [failure["id"] for failure in features.failures] == names(count)[6::7]
        for number in range(count):
            if number % 7 != 6:
                video = features[names(count)[number]]
                assert len(video) == 1 + number % 3
                assert np.allclose(video.embedding[:, 5], np.arange(len(video)) / 10 + number)
                assert np.allclose(video.stage4[-1], (len(video) - 1) / 10 + number)
    found = verify_output(output)
    assert found.problems == ()
    assert found.finished


def test_packs_keep_the_journal_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_, "PACK", 16)
    output = tmp_path / "out.h5"
    most = 0
    with opened(output) as journal:
        for number in range(200):
            add(journal, number)
            most = max(most, len(os.listdir(journal.directory)))
        assert most <= 2 * 16 + 2 * 200 // 16 + 2
        packed = sum(path.stat().st_size for path in journal.directory.iterdir())
        assert len(journal.singles) < 16
        found = verify_output(output)
        assert (found.videos + found.failures, found.finished, found.problems) == (200, False, ())
        journal.publish(names(200), ATTRIBUTES)
    assert packed < 1.2 * output.stat().st_size
    expect_whole(output, 200)
    assert not (tmp_path / "out.h5.parts").exists()


COMMITTER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from vswin_extract import journal as journal_
import test_journal
journal_.PACK = 8
with test_journal.opened(Path(sys.argv[1])) as journal:
    for number in range(int(sys.argv[2])):
        if f"v/{{number:05}}.mp4" not in journal.entries:
            test_journal.add(journal, number)
    journal.publish(test_journal.names(int(sys.argv[2])), test_journal.ATTRIBUTES)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
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
        with opened(output) as journal:
            assert journal.notes == []
            assert known <= journal.entries.keys()  # nothing that was finished is lost
            known = set(journal.entries)
    if not output.exists():
        assert known
        subprocess.run([sys.executable, "-c", script, str(output), str(count)], check=True)
    expect_whole(output, count)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damaged_parts_and_packs_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_, "PACK", 8)
    output = tmp_path / "out.h5"
    with opened(output) as journal:
        for number in range(20):
            add(journal, number)
        pack, part = journal.directory / "pack-0.rows", journal._file("v/00018.mp4", WHOLE, ".rows")
        gone, nonsense = journal._file("v/00017.mp4", WHOLE, ".rows"), journal._file("v/00016.mp4", WHOLE, ".json")
    flip(pack)
    flip(part)
    gone.unlink()
    nonsense.write_text("{")
    wrong = {problem.where for problem in verify_output(output).problems}
    assert wrong == {pack.name, part.name, gone.name, nonsense.with_suffix(".rows").name}
    with opened(output) as journal:
        assert len(journal.notes) == 4
        lost = {*names(8), "v/00016.mp4", "v/00017.mp4", "v/00018.mp4"}
        assert set(names(20)) - journal.entries.keys() == lost
        for number in range(20):
            if names(20)[number] in lost:
                add(journal, number)
        journal.publish(names(20), ATTRIBUTES)
    expect_whole(output, 20)


def test_a_journal_removed_by_hand_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path / "out.h5") as journal:
        add(journal, 0)
        shutil.rmtree(journal.directory)
        with pytest.raises(OSError, match="No such file"):
            add(journal, 1)


def test_a_lock_of_another_host_or_a_living_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_, "TOUCH_EVERY", 0.05)
    output = tmp_path / "out.h5"
    with opened(output), pytest.raises(OutputError, match=f"process {os.getpid()} on {os.uname().nodename}"):
        opened(output)
    lock = tmp_path / "out.h5.parts" / "lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(OutputError, match="process 1 on elsewhere"):
        opened(output)
    assert os.listdir(lock.parent) == ["lock"]
    os.utime(lock, (time.time() - 700, time.time() - 700))  # it has not been touched for long
    with opened(output) as journal:
        add(journal, 0)
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime < time.time() - 60:  # whatever this process is busy with
            time.sleep(0.01)
    dead = subprocess.Popen(["true"])
    dead.wait()
    again = {"host": os.uname().nodename, "pid": os.getpid(), "started": "1"}  # the pid of another, used again
    for content in (json.dumps({**again, "pid": dead.pid}), json.dumps(again), "", "[]"):
        lock.write_text(content)
        with opened(output) as journal:
            add(journal, 0)


def test_a_kill_between_the_last_rename_and_the_cleaning_up(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with opened(output) as journal:
        add(journal, 0)
        shutil.copytree(journal.directory, tmp_path / "kept")
        journal.publish(names(1), ATTRIBUTES)
    (tmp_path / "kept" / "lock").unlink()
    (tmp_path / "kept").rename(tmp_path / "out.h5.parts")
    assert journal_.finish_interrupted_cleanup(output, tmp_path / "out.h5.parts") == {"settings": 1}
    assert not (tmp_path / "out.h5.parts").exists()
    assert journal_.finish_interrupted_cleanup(output, tmp_path / "out.h5.parts") is None
    expect_whole(output, 1)


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "out.h5.parts"
    directory.mkdir()
    (directory / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is no journal of vswin-extract"):
        opened(tmp_path / "out.h5")
    assert (directory / "thesis.txt").read_text() == "precious"
    assert os.listdir(directory) == ["thesis.txt"]
    (tmp_path / "b.h5.parts").write_text("a file")
    with pytest.raises(OutputError, match="is no directory"):
        opened(tmp_path / "b.h5")


def test_finished_videos_are_not_dropped_silently(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with opened(output) as journal:
        add(journal, 0)
    with pytest.raises(OutputError, match=r"not among those named now: v/00000.mp4"):
        open_journal(output, {"settings": 1}, ARRAYS, overwrite=False, video_ids=["other"])
    with open_journal(output, {"settings": 1}, ARRAYS, overwrite=True, video_ids=["other"]) as journal:
        assert "v/00000.mp4" in journal.entries


def test_done_means_the_same_video_the_same_segment_and_no_bad_luck(tmp_path: Path) -> None:
    path = os.path.abspath("a.mp4")
    with opened(tmp_path / "out.h5") as journal:
        for name, error in (("x", ""), ("late", "DecoderTimeout"), ("bad", "VideoUnreadable")):
            status: Any = "failed" if error else "ok"
            journal.commit(VideoRecord(name, path, status, size=5, mtime=1.5, start=1.0, error=error))
        video = Video("x", Path("a.mp4"), 1.0)
        assert journal.missing(video, 5, 1.5) == []
        assert journal.missing(video, 6, 1.5) == [WHOLE]
        assert journal.missing(video, 5, 2.5) == [WHOLE]
        assert journal.missing(replace(video, start=None), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, end=2.0), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, path=Path("b.mp4")), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, id="late"), 5, 1.5) == [WHOLE]
        assert journal.missing(replace(video, id="bad"), 5, 1.5) == []


X = "v/09999.mp4"


def file(journal: Journal, clips: int, value: float, **state: Any) -> None:
    """A video whose rows all have one value."""
    part = journal.part(Video(X, Path(X)))
    rows = {name: np.full((clips, *shape), value) for name, shape in ARRAYS.shapes.items()}
    places = {"clips/frames": np.zeros((clips, 2)), "clips/times": np.zeros((clips, 2)), "clips/valid": np.ones(clips)}
    part.append({**rows, **places})
    journal.commit(VideoRecord(X, X, "ok", clips=clips, **state), part)


def test_a_video_that_was_replaced_between_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_, "PACK", 2)
    output = tmp_path / "out.h5"
    with opened(output) as journal:
        file(journal, 3, 1.0, size=3, mtime=50.0)
    with opened(output) as journal:  # by a shorter and older one, whose rows have the same name
        assert journal.missing(Video(X, Path(X)), 1, 20.0) == [WHOLE]
        file(journal, 1, 2.0, size=1, mtime=20.0)
        add(journal, 0)  # and both are packed
        assert journal.singles == []
    with opened(output) as journal:
        assert [entry.record.clips for entry in journal.entries[X]] == [1]
        journal.publish([X], ATTRIBUTES)
    with open_features(output) as features:
        assert features[X].embedding[:].tolist() == [[2.0] * 64]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_extracted_last_counts_however_old_its_video_is(tmp_path: Path, fails: bool) -> None:
    output = tmp_path / "out.h5"
    for mtime, value in ((50.0, 1.0), (20.0, 2.0)):
        with journal_.join_journal(output, {"settings": 1}, ARRAYS, {}) as journal:
            if fails and value == 2:
                journal.commit(VideoRecord(X, X, "failed", size=2, mtime=mtime, error="VideoUnreadable"))
            else:
                file(journal, 1, value, size=2, mtime=mtime)
        time.sleep(0.02)
    with journal_.join_journal(output, {"settings": 1}, ARRAYS, {}) as journal:  # nobody says which file is wanted
        assert journal.extracted(X).record.mtime == 20.0
        assert journal.extracted(X).record.status == ("failed" if fails else "ok")


def test_two_outputs_of_one_name_in_one_storage(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    one, other = (tmp_path / name / "out.h5" for name in ("one", "other"))
    for folder in (storage, one.parent, other.parent):
        folder.mkdir()
    begin = partial(open_journal, settings={"settings": 1}, arrays=ARRAYS, video_ids=names(3), storage=storage)
    with begin(one, overwrite=False) as journal:
        add(journal, 0)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"holds a run for {one}, not for {other}"):
            begin(other, overwrite=overwrite)
    with pytest.raises(OutputError, match="not for"):
        journal_.join_journal(other, {"settings": 1}, ARRAYS, {}, storage)
    with begin(one, overwrite=False) as journal:
        assert list(journal.entries) == names(1)


def test_a_journal_that_is_moved_with_its_output_continues(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with opened(tmp_path / "here" / "out.h5") as journal:
        add(journal, 0)
    (tmp_path / "here").rename(tmp_path / "there")
    with opened(tmp_path / "there" / "out.h5") as journal:
        assert list(journal.entries) == names(1)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with opened(tmp_path / "out.h5") as journal:
        add(journal, 0)
        with pytest.raises(OutputError, match="is being written by process"):
            opened(tmp_path / "out.h5")
        journal.publish(names(1), ATTRIBUTES)
    expect_whole(tmp_path / "out.h5", 1)


def test_whatever_stops_it_from_beginning_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(journal_, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            opened(tmp_path / "out.h5")
    with opened(tmp_path / "out.h5") as journal:
        add(journal, 0)


def test_a_damaged_job_file_is_an_error_in_words(tmp_path: Path) -> None:
    with opened(tmp_path / "out.h5") as journal:
        add(journal, 0)
    for content in ("{", "{}", "[]"):
        (tmp_path / "out.h5.parts" / "job.json").write_text(content)
        with pytest.raises(OutputError, match="is damaged"):
            opened(tmp_path / "out.h5")


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
    with opened(output) as journal:
        for number in range(12):
            add(journal, number)
        journal.publish(names(12), ATTRIBUTES)
    assert run("vswin", "check", output).stdout.endswith("nothing wrong\n")
    damage(output, what)
    done = run("vswin", "check", output)
    assert done.returncode == 4
    assert where in {problem.where for problem in verify_output(output).problems}
    assert where in done.stdout


def test_check_against_videos(run: Run, tmp_path: Path) -> None:
    videos, output = tmp_path / "v", tmp_path / "out.h5"
    videos.mkdir()
    with opened(output) as journal:
        for number in range(6):
            add(journal, number)
        journal.publish(names(6), ATTRIBUTES)
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


def test_a_full_disk_loses_nothing(run: Run, shell: Run, small_disk: Path, small_weights: Path, tmp_path: Path) -> None:
    import numbered

    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        numbered.write(videos / f"{number:02}.mp4", 60, first=60 * number)
    out = small_disk / "out.h5"
    arguments = [videos, out, "--weights", small_weights, "--stage", 1, "--stride", 4]
    full = shell("vswin-extract", *arguments)
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
