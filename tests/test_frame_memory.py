"""The memory that decoder processes share with their parent: it suffices, it is reused, and nothing of it is left."""

import contextlib
import errno
import gc
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import closing
from pathlib import Path

import numbered
import numpy as np
import pytest
from conftest import start_decoder
from fake_decoder import FakeDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from vswin_extract.errors import DecoderCrash, VswinError
from vswin_extract.feeding import frame_memory
from vswin_extract.feeding.frame_memory import FRAMES_AHEAD, FrameMemory, GrantedSlots
from vswin_extract.feeding.messages import DecodedFrames, FromChild, Task, VideoEnd
from vswin_extract.feeding.process import GRANTED_AT_ONCE, DecodedClip, DecoderProcess
from vswin_extract.feeding.sender import FRAMES_AT_ONCE, send_clips
from vswin_extract.processes import ChildProcess
from vswin_extract.video.geometry import Geometry, picture_of
from vswin_extract.video.rows import ClipRows, most_kept
from vswin_extract.video.sampling import Sampling

SMALL = Geometry(64, 64)
FRAME = 64 * 64 * 3
FRAMES = 200
"""Of the video: more than a decoder process has slots for. So it cannot finish the video before it is killed, where
clips show every frame."""


def used(memory: FrameMemory) -> int:
    """Return how many slots are in use."""
    slots = []
    with contextlib.suppress(VswinError):
        while True:
            slots.append(memory.take())
    return memory.slots - len(slots)


def read_on(process: DecoderProcess) -> None:
    """Read the clips that were decoded before the error, which it raises."""
    while True:
        process.read()


def test_the_lowest_free_slot_is_taken() -> None:
    memory = FrameMemory(5, 10)
    slots = [memory.take() for _ in range(5)]
    assert [slot.number for slot in slots] == [0, 1, 2, 3, 4]
    with pytest.raises(VswinError, match="in use"):
        memory.take()
    serials = {slot.serial for slot in slots}
    del slots[3], slots[1]
    again = [memory.take(), memory.take()]
    assert [slot.number for slot in again] == [1, 3]
    assert not serials & {slot.serial for slot in again}
    memory.lose([again.pop()])
    assert used(memory) == 5  # the lost one too


def test_a_child_writes_what_its_parent_reads() -> None:
    memory = FrameMemory(3, FRAME)
    granted = GrantedSlots(memory.file, memory.slots, memory.slot_bytes)
    granted.add([2])
    picture = picture_of(numbered.draw(77, 64, 64))
    assert granted.write(picture, SMALL) == 2
    assert np.array_equal(memory.frames(SMALL.shape)[2], SMALL.apply(picture))
    granted.add([1])
    with pytest.raises(ValueError, match="does not fit"):
        granted.write(picture, Geometry(128, 128))
    assert granted.write(picture, SMALL) == 1  # the slot was not lost


@pytest.mark.parametrize("memfd", [True, False])
def test_a_file_without_a_name(memfd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = FrameMemory(100, 1 << 20)
    assert os.fstat(memory.file).st_size == memory.content.nbytes == 100 << 20
    memory.content[3] = 1
    assert os.fstat(memory.file).st_blocks * 512 < 10 << 20  # pages that were not written take no memory
    assert list(tmp_path.iterdir()) == []
    file = memory.file
    del memory
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)


SAMPLINGS = st.builds(
    lambda clip_len, interval, stride, rule: Sampling(clip_len, interval, stride, align=rule[0], tail=rule[1]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 60),
    st.sampled_from([("start", "pad"), ("start", "drop"), ("start", "shift"), ("center", "pad")]),
)


@given(sampling=SAMPLINGS, count=st.integers(1, 150))
def test_no_more_frames_are_kept_than_it_is_said(sampling: Sampling, count: int) -> None:
    rows, kept = ClipRows(sampling), []
    for number in range(count):
        if rows.uses(rows.seen):
            kept.append(number)
        rows.add(number, float(number))
        kept = [each for each in kept if each >= rows.oldest]
        assert len(kept) <= most_kept(sampling)


@settings(max_examples=30)
@given(
    sampling=SAMPLINGS,
    counts=st.lists(st.integers(1, 120), min_size=1, max_size=3),
    batch=st.integers(1, 5),
    in_flight=st.integers(1, 4),
    ahead=st.integers(FRAMES_AT_ONCE + GRANTED_AT_ONCE, FRAMES_AHEAD),
    seed=st.integers(0, 1000),
)
def test_granted_slots_suffice(
    sampling: Sampling, counts: list[int], batch: int, in_flight: int, ahead: int, seed: int
) -> None:
    """Several decoders, read in turn, whose clips fill batches; as many batches are in flight as may be. No decoder is
    ever without a slot before it has sent something, and the memory is never empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_memory, "FRAMES_AHEAD", ahead)
        memory = FrameMemory.for_clips(sampling, Geometry(32, 32), len(counts), batch * (in_flight + 1) + 1)
    decoders = deque(Simulated(memory, sampling, count, ahead) for count in counts)
    batches: deque[list[tuple[object, ...]]] = deque()
    filling: list[tuple[object, ...]] = []
    choice = random.Random(seed)
    while decoders:
        clip = decoders[0].read()
        if clip is None:
            decoders.popleft()
            continue
        decoders.rotate(-1)
        filling.append(clip)
        if len(filling) == batch:
            batches.append(filling)
            filling = []
            while len(batches) > in_flight or (batches and choice.random() < 0.2):
                batches.popleft()
    batches.clear()
    del filling, clip
    assert used(memory) == 0


class Simulated:
    """A decoder process and its parent's side by their rules, without a process: what a child sends, slot by slot."""

    def __init__(self, memory: FrameMemory, sampling: Sampling, count: int, ahead: int) -> None:
        self.memory, self.ahead = memory, ahead
        self.granted: dict[int, object] = {}
        self.frames: dict[int, object] = {}
        messages: list[FromChild] = []
        # the child is given slot numbers of its own: 0, 1, 2, … are the frames that it converts
        scratch = FrameMemory(count + 1, 32 * 32 * 3)
        granted = GrantedSlots(scratch.file, scratch.slots, scratch.slot_bytes)
        granted.add(range(count + 1))
        task = Task("", "pyav", sampling, Geometry(32, 32))
        send_clips(FakeDecoder([k / 25 for k in range(count)]), task, messages.append, granted)
        self.messages = deque(message for message in messages if isinstance(message, DecodedFrames))
        self.grant()

    def grant(self) -> None:
        if len(self.granted) <= self.ahead - GRANTED_AT_ONCE:
            while len(self.granted) < self.ahead:
                slot = self.memory.take()
                self.granted[slot.number] = slot

    def read(self) -> tuple[object, ...] | None:
        while self.messages:
            message = self.messages.popleft()
            assert len(message.slots) < len(self.granted)  # it could have sent it, and one slot is left
            for number in message.slots:
                self.frames[number] = self.granted.pop(next(iter(self.granted)))
            clip = None if message.row is None else tuple(self.frames[number] for number in message.row.shown)
            self.frames = {number: slot for number, slot in self.frames.items() if number >= message.oldest}
            self.grant()
            if clip is not None:
                return clip
        self.granted, self.frames = {}, {}
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered.write(tmp_path_factory.mktemp("memory") / "a.mp4", FRAMES)


def numbers(clip: DecodedClip) -> list[int]:
    return [numbered.read(frame) for frame in clip.views[0]]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(16, 2, 3),
        pytest.param(Sampling(32, 2), marks=pytest.mark.slow),
        pytest.param(Sampling(16, 2, 1), marks=pytest.mark.slow),
        pytest.param(Sampling(40, 1, 7, tail="shift"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_memory_that_is_just_large_enough(path: Path, sampling: Sampling) -> None:
    """Many more frames than slots, and each clip is dropped as soon as the next one is read."""
    memory = FrameMemory.for_clips(sampling, SMALL, 1, 2)
    with closing(DecoderProcess("pyav", 20, memory)) as process:
        for _ in range(2):
            process.submit(Task(str(path), "pyav", sampling, SMALL))
        for _ in range(2):
            k = 0
            while isinstance(clip := process.read(), DecodedClip):
                assert numbers(clip) == list(sampling.clip(k, FRAMES).positions)
                k += 1
            assert isinstance(clip, VideoEnd)
    del clip
    assert used(memory) == 0


def test_a_clip_keeps_its_pixels(path: Path) -> None:
    """Whatever its decoder does afterwards: it reads other videos, is killed, is closed."""
    sampling = Sampling(8, 1, 4)
    with closing(start_decoder()) as process:
        for _ in range(3):
            process.submit(Task(str(path), "pyav", sampling, SMALL))
        kept = process.read()
        assert isinstance(kept, DecodedClip)
        before = kept.views
        while isinstance(process.read(), DecodedClip):
            pass
        process.read()
        os.kill(process.pid, 9)
        with pytest.raises(DecoderCrash):
            read_on(process)
        while isinstance(process.read(), DecodedClip):
            pass
    assert np.array_equal(kept.views, before)


def test_slots_of_killed_decoders_are_used_again(path: Path) -> None:
    sampling = Sampling(32, 1)
    memory = FrameMemory.for_clips(sampling, SMALL, 1, 1)
    with closing(DecoderProcess("pyav", 20, memory)) as process:
        for _ in range(2):
            process.submit(Task(str(path), "pyav", sampling, SMALL))
            process.read()
            os.kill(process.pid, 9)
            with pytest.raises(DecoderCrash):
                read_on(process)
    assert used(memory) == 0


def test_slots_of_a_decoder_that_cannot_be_ended_are_never_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = ChildProcess.close

    def cannot(child: ChildProcess) -> bool:
        close(child)
        return False

    memory = FrameMemory(1000, FRAME)
    process = DecoderProcess("pyav", 20, memory)
    monkeypatch.setattr(ChildProcess, "close", cannot)
    process.close()
    assert used(memory) == FRAMES_AHEAD


SLOW = ["{0: -1}", "{0: 'x'}", "{0: []}", "{0: 0, 1: 0}", "{}"]


@pytest.mark.parametrize("slots", ["{0: 100_000}", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_slots_that_were_not_granted_end_the_decoder(
    slots: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A false decord sends a message of its own."""
    (tmp_path / "decord.py").write_text(
        f"""
import os, socket, time
from vswin_extract.feeding.messages import DecodedFrames
from vswin_extract.processes import Channel
from vswin_extract.video.rows import ClipRow

class DECORDError(Exception):
    pass

def VideoReader(path, num_threads):
    links = {{name: os.path.realpath("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")}}
    (number,) = [int(name) for name, link in links.items() if "socket:" in link]
    Channel(socket.socket(fileno=os.dup(number))).send(
        DecodedFrames({slots}, ClipRow(0, (0, 1), (0, 2), (0.0, 1.0), 2), 0)
    )
    time.sleep(60)
"""
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with closing(start_decoder()) as process:
        process.submit(Task(str(path), "decord", Sampling(8, 2), SMALL))
        process.submit(Task(str(path), "pyav", Sampling(8, 2), SMALL))
        with pytest.raises(DecoderCrash):
            process.read()
        clip = process.read()
        assert isinstance(clip, DecodedClip)
        assert numbers(clip) == list(range(0, 16, 2))


def test_a_process_that_counts_has_no_memory(path: Path) -> None:
    with closing(DecoderProcess("pyav", 20)) as process:
        with pytest.raises(ValueError, match="only counts"):
            process.submit(Task(str(path), "pyav", Sampling(8, 2), SMALL))
        process.submit(Task(str(path), "pyav", Sampling(8, 2), SMALL, count=True))
        assert isinstance(process.read(), VideoEnd)


KILLED = """
import os, signal, sys
from vswin_extract.feeding.frame_memory import FrameMemory
memory = FrameMemory(50, 1 << 20)
memory.content[:] = 1
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_parent_that_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_processes_that_cannot_be_ended_leave_enough_slots() -> None:
    """Their slots are never used again, since they may still write to them."""
    sampling, geometry = Sampling(8, 1), Geometry(32, 32)
    memory = FrameMemory.for_clips(sampling, geometry, decoders=1, clips=1)
    for _ in range(8):
        memory.lose([memory.take() for _ in range(FRAMES_AHEAD)])
    needed = [memory.take() for _ in range(FRAMES_AHEAD + most_kept(sampling) + sampling.clip_len)]
    assert len({slot.number for slot in needed}) == len(needed)


def test_a_memory_that_is_too_large_is_refused_before_a_process_starts() -> None:
    with pytest.raises(VswinError, match="--workers"):
        FrameMemory.for_clips(Sampling(32, 2), Geometry(4096, 4096, "three"), decoders=16, clips=4)


def test_a_limit_of_file_sizes_is_named() -> None:
    code = "from vswin_extract.feeding.frame_memory import FrameMemory; FrameMemory(100, 100_000)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "VswinError" in done.stderr
    assert "ulimit -f" in done.stderr


@pytest.mark.parametrize("refused", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_without_memfd_a_deleted_file_is_used(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers and kernels refuse it in several ways."""

    def refuse(*_: object) -> int:
        raise OSError(refused, "refused")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    memory = FrameMemory(2, 100)
    slot = memory.take()
    memory.frames((10, 10))[slot.number] = 7
    assert (memory.frames((10, 10))[slot.number] == 7).all()
    assert os.fstat(memory.file).st_nlink == 0
