"""Many broken and hostile files, and the memory of long runs."""

import os
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numbered
import numpy as np
import pytest
from conftest import ROOT, Run, read_video, script, start_decoder

from vswin_extract.checks.output import verify_output
from vswin_extract.errors import FrameTableWrong, UsageError, VideoError, WeightsError
from vswin_extract.feeding.messages import Task
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.store.features import open_features
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import find_videos
from vswin_extract.weights.checkpoints import tensors_sha256
from vswin_extract.weights.load import read_checkpoint

EXAMPLES = sorted(
    path for path in (ROOT / "examples" / "videos").rglob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".avi")
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = start_decoder("pyav", timeout=30)
    yield process
    process.close()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Flip, remove or repeat bytes, or cut off the end."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 3, 30])):
        at, length = chance.randrange(len(changed)), chance.choice([1, 4, 200, 5000])
        match chance.randrange(4):
            case 0:
                changed[at : at + length] = chance.randbytes(min(length, len(changed) - at))
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case _:
                changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed[: chance.randrange(len(changed) // 2, len(changed))] if chance.random() < 0.2 else changed)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_videos_neither_hang_nor_crash_the_run(decoder: DecoderProcess, tmp_path: Path, count: int) -> None:
    chance = random.Random(count)
    path = tmp_path / "mutated"
    outcomes = {"clips": 0, "failed": 0}
    for number in range(count):
        source = EXAMPLES[number % len(EXAMPLES)]
        path.write_bytes(mutated(source.read_bytes(), chance))
        fps = chance.choice([None, 15])
        task = Task(str(path), "pyav", Sampling(8, 4, fps=fps), Geometry(32, 32))  # type: ignore[arg-type]
        try:
            try:
                clips, _ = read_video(decoder, task)
            except FrameTableWrong:  # a worker does the same
                clips, _ = read_video(decoder, replace(task, sequential=True))
            assert all(clip.times[0] <= clip.times[1] for clip in clips)
            outcomes["clips"] += len(clips)
        except VideoError:
            outcomes["failed"] += 1
    assert outcomes["clips"] > count  # most clips of most videos can be decoded
    assert outcomes["failed"] < count


def test_mutated_weights_are_refused_or_unchanged(small_weights: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    content = small_weights.read_bytes()
    whole = tensors_sha256(read_checkpoint(small_weights).state)
    path = tmp_path / "w.safetensors"
    for _ in range(60):
        changed = bytearray(content)
        changed[chance.randrange(chance.choice([8, 3000, len(content)]))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            read = read_checkpoint(path)
        except WeightsError:
            continue
        assert tensors_sha256(read.state) == whole  # the changed bit has no effect


def test_random_manifests_raise_usage_errors(tmp_path: Path) -> None:
    chance = random.Random(0)
    pieces = ["path", "id", ",", "\n", '"', "a.mp4", "../x", "\0", "1e9", "é", "\r", "start", "end", "-1", " ", "/"]
    path = tmp_path / "list.csv"
    for _ in range(500):
        path.write_text("path,id,start,end\n" + "".join(chance.choices(pieces, k=chance.randrange(1, 12))), newline="")
        try:
            for video in find_videos(manifest=path):
                assert ".." not in video.id.split("/")
                assert not video.id.startswith("/")
        except UsageError:
            continue


def test_a_huge_declared_size_is_given_up(run: Run, small_weights: Path, tmp_path: Path) -> None:
    """The header of an AVI file declares 30000 x 30000 pixels."""
    small = numbered.write(tmp_path / "a.avi", 3, codec="mjpeg", pix_fmt="yuvj420p").read_bytes()
    huge = (30000).to_bytes(4, "little")
    width, height = (96).to_bytes(4, "little"), (64).to_bytes(4, "little")
    (tmp_path / "a.avi").write_bytes(small.replace(width + height, huge + huge))
    done = run("vswin-extract", tmp_path / "a.avi", tmp_path / "out.h5", "--weights", small_weights, "--timeout", 20)
    assert done.returncode in (0, 3)
    assert verify_output(tmp_path / "out.h5").problems == ()


def peak_memory(arguments: list[str], environment: dict[str, str]) -> int:
    """Return the peak memory of a command in kilobytes."""
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    assert process.stderr is not None
    assert os.waitstatus_to_exitcode(status) == 0, process.stderr.read()
    process.stderr.close()
    process.returncode = 0
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(
    environment: dict[str, str], small_weights: Path, tmp_path: Path
) -> None:
    """Compare one minute with sixty."""
    peaks = []
    for name, seconds in (("short", 60), ("long", 3600)):
        path = tmp_path / f"{name}.mp4"
        numbered.write(path, 30 * seconds, size=(64, 64), wrap=4096)
        out = tmp_path / f"{name}.h5"
        command = [script("vswin-extract"), str(path), str(out), "--weights", str(small_weights), "--stage", "4"]
        peaks.append(peak_memory(command, environment))
        with open_features(out) as features:
            assert features.clips == -(-30 * seconds // 16)
    assert peaks[1] < 1.2 * peaks[0], peaks


@pytest.mark.slow
def test_memory_and_journal_do_not_grow_with_the_number_of_videos(
    environment: dict[str, str], small_weights: Path, tmp_path: Path
) -> None:
    """Compare a hundred small videos with ten thousand."""
    source = numbered.write(tmp_path / "source.mp4", 7)
    peaks = []
    for count in (100, 10_000):
        videos, out = tmp_path / str(count), tmp_path / f"{count}.h5"
        for number in range(count):
            path = videos / f"{number // 100:03}" / f"{number % 100:02}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(source)
        command = [
            script("vswin-extract"),
            str(videos),
            str(out),
            "--weights",
            str(small_weights),
            "--batch-size",
            "16",
        ]
        peaks.append(peak_memory(command, environment))
        with open_features(out) as features:
            assert len(features) == features.clips == count
            first = np.asarray(features["000/00.mp4"].embedding)
            assert np.allclose(first, features.file["embedding"][:], atol=1e-5)
        assert verify_output(out).problems == ()
    assert peaks[1] < 1.2 * peaks[0], peaks


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(environment: dict[str, str], small_weights: Path, tmp_path: Path) -> None:
    """The decoder processes end, too, after kill -9."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(10):
        numbered.write(videos / f"{number}.mp4", 200)
    arguments = [
        str(videos),
        str(tmp_path / "o.h5"),
        "--weights",
        str(small_weights),
        "--stride",
        "1",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        [script("vswin-extract"), *arguments], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    children: set[int] = set()
    while process.poll() is None and len(children) < 2:
        time.sleep(0.02)
        children = {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    process.kill()
    process.wait()
    assert len(children) == 2
    for _ in range(200):
        if not any(alive(pid) for pid in children):
            break
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
