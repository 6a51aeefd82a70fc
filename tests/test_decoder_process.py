"""Frames that show their own number, decoded by a decoder process: which reach the network, and with which times."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numbered
import numpy as np
import pytest
from conftest import read_video, start_decoder

from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.errors import DecoderCrash, DecoderTimeout, VideoError, VideoTimestamps, VideoUnreadable, VswinError
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.processes import pack_header
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

DECODERS = get_args(DecoderName)
SMALL = Geometry(64, 64)
VFR = [0, 40, 50, 200, 1000, 1010, 1300, 1340, 1500, 1533, 2000, 2600]
"""Milliseconds at which the frames of the video with a variable rate begin."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = start_decoder("pyav", timeout=20)
    yield process
    process.close()


FALSE_DECORD = """
import os, time

class DECORDError(Exception):
    pass

def VideoReader(path, num_threads):
    links = {{name: os.path.realpath("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")}}
    (socket,) = [int(name) for name, link in links.items() if "socket:" in link]
    os.write(socket, {sent!r})
    time.sleep(60)
"""


def read_on(process: DecoderProcess) -> None:
    """Read the clips that were decoded before the error, which it raises."""
    while True:
        process.read()


def numbers(clip: DecodedClip) -> list[int]:
    return [numbered.read(frame) for frame in clip.views[0]]


def task(
    path: Path, sampling: Sampling, decoder: str = "pyav", start: float | None = None, end: float | None = None
) -> Task:
    return Task(str(path), decoder, sampling, SMALL, start, end)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("numbered")
    return {
        "mp4": numbered.write(folder / "a.mp4", 50),
        "mkv": numbered.write(folder / "a.mkv", 40, rate=Fraction(24000, 1001), options={"g": "7", "bf": "2"}),
        "webm": numbered.write(folder / "a.webm", 30, rate=25, codec="libvpx"),
        "avi": numbered.write(folder / "a.avi", 30, rate=Fraction(25, 2), codec="mpeg4"),
        "ts": numbered.write(folder / "a.ts", 40),
        "gif-like": numbered.write(folder / "one.mp4", 1),
        "vfr": numbered.write(folder / "vfr.mp4", len(VFR), ticks=VFR),
        "late": numbered.write(folder / "late.mkv", 30, rate=25, ticks=[5000 + 40 * i for i in range(30)]),
        "portrait": numbered.write(folder / "portrait.mp4", 20, size=(64, 112)),
    }


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "avi", "portrait", "gif-like", "late"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(4, 3, 5),
        Sampling(4, 3, 5, tail="drop"),
        Sampling(4, 3, 5, tail="shift"),
        Sampling(4, 3, 5, align="center"),
        Sampling(5, 1, 23),
        Sampling(3, 2, 2, align="center"),
    ],
    ids=str,
)
def test_every_clip_shows_the_frames_that_it_says(
    decoder: DecoderProcess, videos: dict[str, Path], kind: str, sampling: Sampling, name: str
) -> None:
    clips, end = read_video(decoder, task(videos[kind], sampling, name))
    n = {"mp4": 50, "mkv": 40, "portrait": 20, "gif-like": 1}.get(kind, 30)
    rate = {"mkv": 24000 / 1001, "webm": 25, "avi": 12.5, "late": 25}.get(kind, 30)
    rounding = 0.0011 if kind in ("mkv", "webm", "late") else 1e-6  # Matroska's clock has milliseconds
    assert (end.frames, end.clips, end.damaged) == (n, sampling.count(n), 0)
    assert end.fps == pytest.approx(rate, rel=1e-3)
    assert end.duration == pytest.approx(n / rate, abs=rounding)
    assert len(clips) == sampling.count(n)
    for clip, expected in zip(clips, (sampling.clip(k, n) for k in range(len(clips))), strict=True):
        assert clip.index == expected.index
        assert numbers(clip) == list(expected.positions)
        assert clip.frames == (expected.first, expected.end)
        assert clip.valid == expected.valid
        assert clip.times == pytest.approx((expected.first / rate, expected.end / rate), abs=rounding)


@pytest.mark.parametrize("name", DECODERS)
def test_times_of_a_variable_frame_rate_are_its_time_stamps(
    decoder: DecoderProcess, videos: dict[str, Path], name: str
) -> None:
    clips, end = read_video(decoder, task(videos["vfr"], Sampling(2, 2, 3), name))
    assert [numbers(clip) for clip in clips] == [[0, 2], [3, 5], [6, 8], [9, 11]]
    assert [clip.times[0] for clip in clips] == pytest.approx([0, 0.2, 1.3, 1.533], abs=1e-4)
    assert [clip.times[1] for clip in clips[:3]] == pytest.approx([1.0, 1.34, 2.0], abs=1e-4)
    assert clips[-1].times[1] == end.duration > 2.6


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("fps", [Fraction(10), Fraction(30), Fraction("2.5"), Fraction(30000, 1001)])
def test_resampling_a_variable_frame_rate_shows_what_was_on_screen(
    decoder: DecoderProcess, videos: dict[str, Path], name: str, fps: Fraction
) -> None:
    sampling = Sampling(4, 1, 4, fps=fps)
    clips, end = read_video(decoder, task(videos["vfr"], sampling, name))
    duration = end.duration
    shown = [number for clip in clips for number in numbers(clip)[: clip.valid]]
    assert len(shown) == int(np.ceil(duration * float(fps) - 1e-2))
    for k, number in enumerate(shown):
        millisecond = 1000 * k / float(fps)
        near = min(abs(millisecond - begin) for begin in VFR)
        if near > 1 or near == 0:
            assert number == max(i for i, begin in enumerate(VFR) if begin <= millisecond), k
    for k, clip in enumerate(clips):
        assert clip.times[0] == pytest.approx(4 * k / float(fps))
        assert clip.times[1] == pytest.approx(min(4 * (k + 1) / float(fps), duration))
        real = numbers(clip)[: clip.valid]
        following = numbers(clips[k + 1])[0] if k + 1 < len(clips) else len(VFR)
        assert clip.frames == (real[0], max(real[-1] + 1, following))  # what was on screen meanwhile, shown or not


def test_a_segment_holds_what_is_shown_in_it(decoder: DecoderProcess, videos: dict[str, Path]) -> None:
    clips, end = read_video(decoder, task(videos["mp4"], Sampling(5, 1, 5), start=0.5, end=1.0))
    assert [numbers(clip) for clip in clips] == [list(range(15, 20)), list(range(20, 25)), list(range(25, 30))]
    assert [clip.frames for clip in clips] == [(15, 20), (20, 25), (25, 30)]
    assert clips[0].times == pytest.approx((0.5, 20 / 30))
    assert end.frames == 15
    assert end.duration == pytest.approx(0.5)
    sampling = Sampling(5, 1, 5, fps=Fraction(10))
    clips, _ = read_video(decoder, task(videos["mp4"], sampling, start=0.51, end=1.0))
    assert [numbers(clip)[: clip.valid] for clip in clips] == [[15, 18, 21, 24, 27]]
    assert clips[0].times == pytest.approx((0.51, 1.0))


def test_a_segment_behind_the_end_is_an_error(decoder: DecoderProcess, videos: dict[str, Path]) -> None:
    with pytest.raises(VideoUnreadable, match=r"1\.667 s.* 9 s"):
        read_video(decoder, task(videos["mp4"], Sampling(5, 1), start=9.0))


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("name", DECODERS)
def test_rotation_is_honoured(decoder: DecoderProcess, tmp_path: Path, rotation: int, name: str) -> None:
    path = numbered.write(tmp_path / "turned.mp4", 10, size=(128, 96), rotation=rotation)
    clips, end = read_video(decoder, task(path, Sampling(10, 1), name))
    assert numbers(clips[0]) == list(range(10))
    assert (end.width, end.height) == (128, 96)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "avi", "vfr", "late", "gif-like"])
@pytest.mark.parametrize("fps", [None, Fraction(7)])
def test_counting_by_packets_agrees_with_decoding(
    decoder: DecoderProcess, videos: dict[str, Path], kind: str, fps: Fraction | None
) -> None:
    whole = task(videos[kind], Sampling(3, 2, 4, fps=fps))
    clips, end = read_video(decoder, whole)
    none, counted = read_video(decoder, replace(whole, count=True))
    assert none == []
    assert (counted.clips, counted.frames) == (len(clips), end.frames)


def test_three_crops_of_a_wide_video(decoder: DecoderProcess, videos: dict[str, Path]) -> None:
    wide = replace(task(videos["mp4"], Sampling(5, 1)), geometry=Geometry(32, 32, "three"))
    clips, _ = read_video(decoder, wide)
    assert [np.shape(view) for view in clips[0].views] == [(5, 32, 32, 3)] * 3
    assert [numbered.read(frame) for frame in clips[3].views[1]] == list(range(15, 20))


@pytest.mark.parametrize("decoder_name", DECODERS)
def test_names_that_look_like_protocols(
    decoder: DecoderProcess, videos: dict[str, Path], tmp_path: Path, decoder_name: str
) -> None:
    for name in ("concat:a.mp4", "http:b.mp4", "with space %03d é.mp4", "new\nline.mp4"):
        path = tmp_path / name
        path.write_bytes(videos["mp4"].read_bytes())
        clips, _ = read_video(decoder, task(path, Sampling(4, 1), decoder_name))
        assert numbers(clips[1]) == [4, 5, 6, 7]


def test_a_gap_of_hours_is_not_resampled(decoder: DecoderProcess, tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "gap.mkv", 6, ticks=[0, 40, 80, 36_000_000, 36_000_040, 36_000_080])
    with pytest.raises(VideoTimestamps, match="fps"):
        read_video(decoder, task(path, Sampling(2, 1, fps=Fraction(25))))
    clips, end = read_video(decoder, task(path, Sampling(3, 1)))
    assert clips[1].times == pytest.approx((36000, 36000.113), abs=0.002)
    assert end.frames == 6


def test_time_stamps_that_jump_back_go_on(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Two files joined, as by `cat a.mpg b.mpg`: the second half is neither lost nor without time."""
    for name, first in (("a.mpg", 0), ("b.mpg", 50)):
        numbered.write(tmp_path / name, 50, rate=25, codec="mpeg2video", options={"b": "3M"}, first=first)
    path = tmp_path / "joined.mpg"
    path.write_bytes((tmp_path / "a.mpg").read_bytes() + (tmp_path / "b.mpg").read_bytes())
    clips, end = read_video(decoder, task(path, Sampling(5, 1)))
    assert [number for clip in clips for number in numbers(clip)] == list(range(100))
    assert [clip.times[0] for clip in clips] == pytest.approx([k / 5 for k in range(20)], abs=0.09)
    assert end.trouble
    assert not end.partial
    resampled, _ = read_video(decoder, task(path, Sampling(5, 1, fps=Fraction(5))))
    assert len(resampled) == 4


@pytest.mark.parametrize("cause", ["json.py", "av.py", "vswin_extract.py"])
def test_the_working_directory_is_not_searched(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    (tmp_path / cause).write_text("raise SystemExit('foreign code was run')")
    monkeypatch.chdir(tmp_path)
    process = start_decoder("pyav", timeout=20)
    clips, _ = read_video(process, task(videos["mp4"], Sampling(5, 1)))
    process.close()
    assert len(clips) == 10


def test_a_decoder_that_cannot_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('libavformat is missing')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with closing(start_decoder("decord", timeout=20)) as process:
        process.submit(task(Path("a.mp4"), Sampling(5, 1)))
        with pytest.raises(VswinError, match=r"decord.*libavformat is missing") as caught:
            process.read()
    assert not isinstance(caught.value, VideoError)


@pytest.mark.parametrize("ending", ["mp4", "ts", "avi"])
def test_damage_in_the_middle_keeps_what_decodes_and_says_so(
    decoder: DecoderProcess, tmp_path: Path, ending: str
) -> None:
    path = numbered.write(tmp_path / f"a.{ending}", 200, size=(320, 256), options={"g": "10"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)
    clips, end = read_video(decoder, task(path, Sampling(4, 1)))
    assert end.trouble
    assert 80 <= end.frames <= 200
    assert [numbers(clip) for clip in clips[:10]] == [list(range(4 * k, 4 * k + 4)) for k in range(10)]


def test_packets_that_do_not_decode_are_left_out_and_counted(decoder: DecoderProcess, tmp_path: Path) -> None:
    """One group of pictures in Matroska. Damage to the structure of the container itself is skipped unnoticed."""
    path = numbered.write(tmp_path / "a.mkv", 200, size=(320, 256), options={"g": "10"})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0])]
    content, at = bytearray(path.read_bytes()), 0
    for number, packet in enumerate(packets[:110]):
        at = content.index(packet, at)
        if number >= 100:
            content[at : at + len(packet)] = np.random.default_rng(0).bytes(len(packet))
        at += len(packet)
    path.write_bytes(content)
    clips, end = read_video(decoder, task(path, Sampling(10, 1)))
    assert (end.damaged, end.frames, end.partial, bool(end.trouble)) == (10, 190, True, True)
    assert [numbers(clip)[0] for clip in clips] == [*range(0, 100, 10), *range(110, 200, 10)]


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_video_that_was_cut_off_is_not_called_whole(decoder: DecoderProcess, tmp_path: Path, ending: str) -> None:
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    path = numbered.write(tmp_path / f"a.{ending}", 200, size=(320, 256), container_options=options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    clips, end = read_video(decoder, task(path, Sampling(4, 1)))
    assert end.trouble
    assert 80 <= end.frames <= 160
    assert numbers(clips[10]) == [40, 41, 42, 43]


def test_a_crash_ends_one_video_and_not_the_next(videos: dict[str, Path], tmp_path: Path) -> None:
    long = numbered.write(tmp_path / "long.mp4", 400, size=(32, 32))  # longer than a decoder may be ahead
    with closing(start_decoder("pyav", timeout=20)) as process:
        process.submit(task(long, Sampling(2, 1, 1)))
        process.submit(task(videos["webm"], Sampling(5, 1)))
        process.read()
        os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(DecoderCrash, match="SIGSEGV"):
            read_on(process)
        clips = []
        while isinstance(arrived := process.read(), DecodedClip):
            clips.append(arrived)
        assert len(clips) == 6


def test_an_unexpected_exception_ends_one_video_and_not_the_process(
    decoder: DecoderProcess, videos: dict[str, Path]
) -> None:
    before = decoder.pid
    with pytest.raises(DecoderCrash, match=r"UsageError: .*nonsense"):
        read_video(decoder, task(videos["mp4"], Sampling(5, 1), "nonsense"))
    assert len(read_video(decoder, task(videos["mp4"], Sampling(5, 1)))[0]) == 10
    assert decoder.pid == before


@pytest.mark.parametrize(
    "raised", ["SystemExit(0)", "KeyboardInterrupt", "MemoryError", "OSError(5, 'disk')", "EOFError"]
)
def test_whatever_a_library_raises_ends_one_video_and_not_the_process(
    raised: str, videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class DECORDError(Exception): pass\ndef VideoReader(path, num_threads): raise "
    (tmp_path / "decord.py").write_text(code + raised)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with closing(start_decoder("pyav", timeout=20)) as process:
        before = process.pid
        with pytest.raises(DecoderCrash, match=raised.partition("(")[0]):
            read_video(process, task(videos["mp4"], Sampling(5, 1), "decord"))
        assert len(read_video(process, task(videos["mp4"], Sampling(5, 1)))[0]) == 10
        assert process.pid == before


class Unreadable:
    """What cannot be unpickled."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def test_a_child_that_cannot_receive_says_why(videos: dict[str, Path]) -> None:
    with closing(start_decoder("pyav", timeout=20)) as process:
        whole = task(videos["mp4"], Sampling(5, 1))
        process.submit(replace(whole, address=Unreadable()))  # type: ignore[arg-type]
        process.submit(whole)
        with pytest.raises(DecoderCrash, match="no number"):
            process.read()
        assert isinstance(process.read(), DecodedClip)


def test_a_signal_that_is_meant_for_the_run_ends_no_decoder(decoder: DecoderProcess, videos: dict[str, Path]) -> None:
    """Slurm sends SIGTERM to all processes of a job that it ends or requeues."""
    before = decoder.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        decoder.submit(task(videos["mp4"], Sampling(2, 1, 1)))
        decoder.read()
        os.kill(decoder.pid, number)
        while not isinstance(decoder.read(), VideoEnd):
            pass
        assert len(read_video(decoder, task(videos["webm"], Sampling(5, 1)))[0]) == 6
    assert decoder.pid == before


def test_a_decoder_without_progress_is_stopped(videos: dict[str, Path], tmp_path: Path) -> None:
    long = numbered.write(tmp_path / "long.mp4", 400, size=(32, 32))  # longer than a decoder may be ahead
    with closing(start_decoder("pyav", timeout=20)) as process:
        process.submit(task(long, Sampling(2, 1, 1)))
        process.submit(task(videos["avi"], Sampling(5, 1)))
        process.read()
        os.kill(process.pid, signal.SIGSTOP)
        process.timeout = 0.3
        with pytest.raises(DecoderTimeout):
            read_on(process)
        process.timeout = 20
        assert isinstance(process.read(), DecodedClip)


@pytest.mark.parametrize(
    ("sent", "error", "named"),
    [
        (b"\xff" * 64, DecoderCrash, "no message"),  # no header
        (b"[h264 @ 0x5]", DecoderCrash, "no message"),  # what a library prints
        (pack_header([4]) + b"junk", DecoderCrash, "no message"),  # no pickle
        (pack_header([4]) + b"\x80\x05N.", DecoderCrash, "NoneType"),  # a pickle of None
        (pack_header([4])[:6], DecoderTimeout, "no progress"),  # a header that does not end
        (pack_header([1 << 30]), DecoderTimeout, "no progress"),  # a promise of bytes that do not come
    ],
    ids=["no header", "a line", "no pickle", "no message", "half a header", "no bytes"],
)
def test_garbled_messages_end_one_video(
    sent: bytes,
    error: type[VideoError],
    named: str,
    videos: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A false decord writes to the socket of the messages, as broken native code could."""
    (tmp_path / "decord.py").write_text(FALSE_DECORD.format(sent=sent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with closing(start_decoder("pyav", timeout=20)) as process:
        read_video(process, task(videos["gif-like"], Sampling(5, 1)))
        if error is DecoderTimeout:
            process.timeout = 0.5
        begun = time.monotonic()
        with pytest.raises(error, match=named):
            read_video(process, task(videos["mp4"], Sampling(5, 1), "decord"))
        assert time.monotonic() - begun < 30
        process.timeout = 20
        assert len(read_video(process, task(videos["mp4"], Sampling(5, 1)))[0]) == 10


PARENT = """
import os, signal, sys, time
from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.messages import Task
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

process = DecoderProcess("pyav", 20, FrameMemory(500, 64 * 64 * 3), ahead=1)
process.submit(Task(sys.argv[1], "pyav", Sampling(2, 1, 1), Geometry(64, 64)))
process.read()
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_decoder_does_not_outlive_its_parent(videos: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, str(videos["mp4"])], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 20
    while is_running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(int(done.stdout))


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False
