"""What a decoder process sends for its tasks, without a process: messages go into a list."""

import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numbered
import pytest
from conftest import granted_slots
from fake_decoder import SIZE, FakeDecoder

from vswin_extract.errors import DecoderCrash, VideoMissing
from vswin_extract.feeding.child import Waiting, count_clips, progress_sender, receive_tasks, run_task
from vswin_extract.feeding.messages import DecodedFrames, FromChild, Grant, Progress, Task, VideoEnd
from vswin_extract.feeding.sender import FRAMES_AT_ONCE, send_clips
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.sampling import Sampling


def frames(count: int) -> FakeDecoder:
    return FakeDecoder([number / 25 for number in range(count)])


def task(sampling: Sampling, path: str | Path = "", decoder: str = "pyav", clip_range: ClipRange = WHOLE) -> Task:
    return Task(str(path), decoder, sampling, Geometry(64, 64), clip_range=clip_range)


def receive(decoder: FakeDecoder, what: Task) -> tuple[list[DecodedFrames], VideoEnd]:
    """Return what is sent of a video. As the parent does, keep no frames that later clips do not need."""
    messages: list[FromChild] = []
    memory, granted = granted_slots()
    end = send_clips(decoder, what, messages.append, granted)
    pixels = memory.frames(what.geometry.shape)
    sent = [message for message in messages if isinstance(message, DecodedFrames)]
    kept: dict[int, Any] = {}
    for message in sent:
        kept |= {number: pixels[slot] for number, slot in message.slots.items()}
        if message.row is not None:
            assert [numbered.read(kept[number][0]) for number in message.row.shown] == list(message.row.shown)
        kept = {number: pixels for number, pixels in kept.items() if number >= message.oldest}
    return sent, end


@pytest.mark.parametrize(
    ("sampling", "converted"),
    [
        (Sampling(4, 4, 4), [*range(0, 49, 4), 49]),
        (Sampling(2, 1, 10), [0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 49]),
        (Sampling(4, 1, 1), [*range(50)]),
    ],
)
def test_frames_that_clips_show_are_converted_and_sent_once(sampling: Sampling, converted: list[int]) -> None:
    decoder = frames(50)
    sent, end = receive(decoder, task(sampling))
    assert decoder.converted == converted  # always with the last one, which clips may repeat
    assert [number for message in sent for number in message.slots] in (converted, converted[:-1])
    assert [message.row.index for message in sent if message.row] == list(range(sampling.count(50)))
    assert (end.clips, end.frames, (end.width, end.height)) == (sampling.count(50), 50, SIZE)


def test_long_clips_are_sent_in_parts() -> None:
    sent, _ = receive(frames(100), task(Sampling(60, 1)))
    assert [len(message.slots) for message in sent] == [FRAMES_AT_ONCE, 61 - FRAMES_AT_ONCE, FRAMES_AT_ONCE, 7]


def test_a_clip_range_ends_early_and_leaves_out_the_frames_before() -> None:
    decoder = frames(100)
    sent, end = receive(decoder, task(Sampling(4, 1), clip_range=(5, 7)))
    assert decoder.converted == list(range(20, 28))
    assert [message.row.index for message in sent if message.row] == [5, 6]
    assert (end.clips, end.last) == (2, False)


def test_counting_converts_nothing() -> None:
    decoder = frames(50)
    end = count_clips(decoder, task(Sampling(4, 3, 5)))
    assert (end.clips, end.frames, decoder.converted) == (Sampling(4, 3, 5).count(50), 50, [])


def test_every_task_ends_with_one_outcome(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.mp4", 20)
    messages: list[FromChild] = []
    _, granted = granted_slots()
    run_task(task(Sampling(5, 1), path), messages.append, granted)
    assert isinstance(messages[-1], VideoEnd)
    assert len([message for message in messages if isinstance(message, VideoEnd)]) == 1
    run_task(task(Sampling(5, 1), tmp_path / "gone.mp4"), messages.append, granted)
    assert isinstance(messages[-1], VideoMissing)


def test_any_other_exception_is_the_failure_of_its_video(tmp_path: Path) -> None:
    messages: list[FromChild] = []
    run_task(
        task(Sampling(5, 1), numbered.write(tmp_path / "a.mp4", 20), "nonsense"), messages.append, granted_slots()[1]
    )
    assert isinstance(messages[-1], DecoderCrash)
    assert "nonsense" in str(messages[-1])


def receive_from(messages: Sequence[object]) -> Any:
    """Return a function that gives these messages, and then fails as a channel whose other end is closed."""
    left = iter(messages)

    def receive() -> object:
        for message in left:
            return message
        raise EOFError

    return receive


def test_tasks_are_queued_until_the_parent_is_gone() -> None:
    waiting: Waiting = queue.SimpleQueue()
    statuses: list[int] = []
    tasks = [task(Sampling(5, 1), name) for name in ("a", "b")]
    receive_tasks(receive_from([tasks[0], Grant((7,)), tasks[1]]), waiting, granted_slots()[1], statuses.append)
    assert [waiting.get(), waiting.get()] == [(each, None) for each in tasks]
    assert statuses == [0]


def test_a_listener_that_is_told_to_exit_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    def receive() -> object:
        sys.exit("on purpose")

    statuses: list[int] = []
    receive_tasks(receive, queue.SimpleQueue(), granted_slots()[1], statuses.append)
    assert statuses == [1]
    assert "on purpose" in capsys.readouterr().err


def test_a_message_that_is_no_task_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    statuses: list[int] = []
    receive_tasks(receive_from(["no task"]), queue.SimpleQueue(), granted_slots()[1], statuses.append)
    assert statuses == [1]
    assert "AttributeError" in capsys.readouterr().err.splitlines()[-1]


def test_progress_is_sent_now_and_then() -> None:
    messages: list[FromChild] = []
    for interval, count in ((3600.0, 0), (-1.0, 5)):
        on_progress = progress_sender(messages.append, interval)
        for _ in range(5):
            on_progress()
        assert messages == [Progress()] * count
