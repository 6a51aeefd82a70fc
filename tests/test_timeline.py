"""When frames are shown, and the positions of a segment: with a decoder that has no file."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from fake_decoder import FakeDecoder
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.decoding.timeline import timeline
from vswin_extract.errors import VideoTimestamps, VideoUnreadable
from vswin_extract.feeding.messages import Task
from vswin_extract.feeding.positions import Positions
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

SECOND = [number / 25 for number in range(25)]
"""Time stamps of 25 frames."""


def begins(decoder: FakeDecoder) -> list[float]:
    return [frame.start for frame in timeline(decoder, decoder)]


def positions(decoder: FakeDecoder, fps: Fraction | None = None, **task: Any) -> Positions:
    return Positions(decoder, Task("", "pyav", Sampling(4, 1, fps=fps), Geometry(32, 32), **task))


def test_frames_are_shown_until_the_next_begins() -> None:
    frames = list(timeline(decoder := FakeDecoder([5.0, 5.04, 5.5, 5.54]), decoder))
    assert [(frame.index, frame.start) for frame in frames] == [(0, 0), (1, pytest.approx(0.04)), (2, 0.5), (3, 0.54)]
    assert [frame.end for frame in frames] == pytest.approx([0.04, 0.5, 0.54, 0.58])


def test_missing_time_stamps_follow_the_frame_before_and_jitter_is_flattened() -> None:
    decoder = FakeDecoder([None, None, 10.0, 10.04, 10.04, 9.99])
    assert begins(decoder) == pytest.approx([0, 0.04, 0.08, 0.12, 0.12, 0.12])
    assert decoder.trouble == ""


def test_time_stamps_that_jump_back_are_counted_on() -> None:
    decoder = FakeDecoder([10.0, 10.04, 3.0, 3.04])
    assert begins(decoder) == pytest.approx([0, 0.04, 0.08, 0.12])
    assert "frame 2" in decoder.trouble


def test_frames_that_are_missing_at_the_beginning_count_as_damage() -> None:
    decoder = FakeDecoder([1.0, 1.04], begins=0.2)
    assert begins(decoder) == pytest.approx([0.8, 0.84])
    assert decoder.incomplete


@given(st.lists(st.none() | st.floats(-100, 100), min_size=1, max_size=40))
def test_time_never_goes_back(times: list[float | None]) -> None:
    frames = list(timeline(decoder := FakeDecoder(times), decoder))
    assert [frame.index for frame in frames] == list(range(len(times)))
    assert all(frame.start <= frame.end for frame in frames)
    assert all(one.end == other.start for one, other in pairwise(frames))


def test_positions_without_fps_are_the_frames_of_the_segment() -> None:
    segment = positions(FakeDecoder(SECOND), start=0.2, end=0.4)
    assert [(frame.index, begin) for frame, begin in segment] == [(i, i / 25) for i in range(5, 10)]
    assert (segment.seen, segment.frames) == (5, 10)
    assert segment.seconds == pytest.approx(0.4)
    end = segment.video_end(2, (96, 64), complete=False)
    assert (end.frames, end.fps, end.clips, end.partial, end.last) == (5, 25, 2, False, True)


def test_positions_with_fps_show_what_is_on_screen() -> None:
    segment = positions(FakeDecoder([0.0, 0.04, 0.5, 0.54]), fps=Fraction(10))
    assert [(frame.index, begin) for frame, begin in segment] == [
        (0, 0.0), (1, 0.1), (1, 0.2), (1, 0.3), (1, 0.4), (2, 0.5)
    ]  # fmt: skip


def test_a_video_shorter_than_a_period_has_one_position() -> None:
    segment = positions(FakeDecoder(SECOND), fps=Fraction(1, 10), start=0.2)
    assert [(frame.index, begin) for frame, begin in segment] == [(5, 0.2)]
    short = positions(FakeDecoder([3.0], fps=0, duration=0), fps=Fraction(25))
    assert [(frame.index, begin) for frame, begin in short] == [(0, 0.0)]
    assert short.seen == 1


@pytest.mark.parametrize(
    ("times", "task", "named"),
    [([], {}, "no frame"), ([], {"end": 3.0}, "3 s"), (SECOND, {"start": 9.0}, "9 s")],
)
def test_a_segment_without_frames_is_an_error(times: list[float], task: dict[str, Any], named: str) -> None:
    with pytest.raises(VideoUnreadable, match=named):
        list(positions(FakeDecoder(times), **task))


def test_a_gap_of_hours_is_not_resampled() -> None:
    times = [0.0, 0.04, 36_000.0]
    assert len(list(positions(FakeDecoder(times)))) == 3
    with pytest.raises(VideoTimestamps):
        list(positions(FakeDecoder(times), fps=Fraction(25)))


@pytest.mark.parametrize(
    ("declared", "task", "complete", "partial"),
    [
        (1.0, {}, False, False),
        (1.4, {}, False, False),
        (2.0, {}, False, True),
        (2.0, {"end": 0.5}, False, False),
        (2.0, {}, True, False),
    ],
)
def test_a_video_that_ends_before_its_declared_end_is_partial(
    declared: float, task: dict[str, Any], complete: bool, partial: bool
) -> None:
    segment = positions(FakeDecoder(SECOND, declared=declared), **task)
    list(segment)
    end = segment.video_end(1, (96, 64), complete)
    assert (end.partial, bool(end.trouble), end.last) == (partial, partial, not complete)
