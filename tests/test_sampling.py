"""Sampling arithmetic against definitions that are spelled out frame by frame."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.errors import UsageError
from vswin_extract.video.sampling import Clip, Resampler, Sampling

lengths = st.integers(1, 400)
samplings = strategies.samplings(20, 6, 90)


def all_clips(sampling: Sampling, n: int) -> list[Clip]:
    return [sampling.clip(k, n) for k in range(sampling.count(n))]


@given(samplings, lengths)
def test_every_video_has_clips_of_real_frames(sampling: Sampling, n: int) -> None:
    clips = all_clips(sampling, n)
    assert clips
    for k, clip in enumerate(clips):
        assert clip.index == k
        assert len(clip.positions) == sampling.clip_len
        assert all(0 <= p < n for p in clip.positions)
        assert 0 <= clip.first < clip.end <= n
        assert 1 <= clip.valid <= sampling.clip_len
        assert set(clip.positions) <= set(range(clip.first, clip.end)) | {0, n - 1}
    assert all(a.first <= b.first and a.end <= b.end for a, b in pairwise(clips))


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 90), lengths)
def test_pad_covers_every_frame_and_repeats_only_the_last(length: int, interval: int, stride: int, n: int) -> None:
    sampling = Sampling(length, interval, min(stride, length * interval))
    clips = all_clips(sampling, n)
    covered = {p for clip in clips for p in range(clip.first, clip.end)}
    assert covered == set(range(n))
    span = length * interval
    assert len(clips) == max(1, -(-(n - span) // sampling.step) + 1)
    for clip in clips:
        wanted = [clip.index * sampling.step + i * interval for i in range(length)]
        assert clip.positions == tuple(min(p, n - 1) for p in wanted)
        assert clip.valid == sum(p < n for p in wanted)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 90), lengths)
def test_drop_keeps_whole_clips(length: int, interval: int, stride: int, n: int) -> None:
    clips = all_clips(Sampling(length, interval, stride, tail="drop"), n)
    span = length * interval
    if n < span:
        assert len(clips) == 1
    else:
        assert len(clips) == (n - span) // stride + 1
        assert all(clip.end - clip.first == span and clip.valid == length for clip in clips)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 90), lengths)
def test_shift_ends_on_the_last_frame(length: int, interval: int, stride: int, n: int) -> None:
    clips = all_clips(Sampling(length, interval, stride, tail="shift"), n)
    assert clips[-1].end == n
    if n >= length * interval:
        assert all(clip.valid == length for clip in clips)
        assert len(set(clips)) == len(clips)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 90), lengths)
def test_center_is_untrimmed_sampling_of_mmaction2(length: int, interval: int, stride: int, n: int) -> None:
    clips = all_clips(Sampling(length, interval, stride, align="center"), n)
    centres = range(stride // 2, n, stride) or [n - 1]
    offsets = range(-(length // 2) * interval, (length - length // 2) * interval, interval)
    assert [clip.positions for clip in clips] == [
        tuple(min(max(centre + offset, 0), n - 1) for offset in offsets) for centre in centres
    ]


def test_the_example_in_the_module() -> None:
    sampling = Sampling(3, 2, 4)
    assert [(c.positions, c.first, c.end, c.valid) for c in all_clips(sampling, 12)] == [
        ((0, 2, 4), 0, 6, 3),
        ((4, 6, 8), 4, 10, 3),
        ((8, 10, 11), 8, 12, 2),
    ]
    shifted = all_clips(Sampling(3, 2, 4, tail="shift"), 12)[-1]
    assert (shifted.positions, shifted.first, shifted.end) == ((6, 8, 10), 6, 12)


def test_gaps_between_clips_make_no_empty_one() -> None:
    sampling = Sampling(clip_len=32, frame_interval=2, stride=200)
    assert [clip.first for clip in all_clips(sampling, 165)] == [0]
    assert [clip.first for clip in all_clips(sampling, 201)] == [0, 200]


def shown_at(second: float, ends: list[float]) -> int:
    """Return the frame that is on screen at this second."""
    return next(index for index, end in enumerate(ends) if second < end)


@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=60),
    st.sampled_from([Fraction(1), Fraction(15), Fraction(30), Fraction(30000, 1001), Fraction(60), Fraction("12.5")]),
)
def test_resampling_shows_what_is_on_screen(durations: list[int], fps: Fraction) -> None:
    """Frames last whole ticks of 1/90000 s. A position within a tick of the end of a frame may show either."""
    tick = 1 / 90000
    ends = [sum(durations[: i + 1]) * tick for i in range(len(durations))]
    resampler = Resampler(fps, tick)
    positions = [index for index, end in enumerate(ends) for _ in range(resampler.repeats(end))]
    assert abs(len(positions) - ends[-1] * float(fps)) <= 1
    for k, index in enumerate(positions):
        second = k / float(fps)
        if min(abs(second - end) for end in ends) > tick:
            assert index == shown_at(second, ends)


def test_resampling_to_the_own_rate_changes_nothing() -> None:
    """Matroska rounds to milliseconds, so frame 2 of 30 fps has the time stamp 67 ms instead of 66.67."""
    stamps = [round(i * 1000 / 30) / 1000 for i in range(1, 301)]
    resampler = Resampler(Fraction(30), 0.001)
    assert [resampler.repeats(end) for end in stamps] == [1] * 300


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"clip_len": 0}, "clip-len"),
        ({"stride": 0}, "stride"),
        ({"frame_interval": -2}, "frame-interval"),
        ({"fps": Fraction(0)}, "fps"),
        ({"fps": Fraction(10**6)}, "fps"),
        ({"align": "middle"}, "align"),
        ({"tail": "loop"}, "tail"),
        ({"align": "center", "tail": "drop"}, "align"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Sampling(**{"clip_len": 32, "frame_interval": 2, **wrong})
