"""Clip rows that are made while positions arrive, against rows that are made with the whole video at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import strategies
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.rows import ClipRow, ClipRows
from vswin_extract.video.sampling import Sampling

samplings = strategies.samplings(12, 5, 70)
clip_ranges = st.tuples(st.integers(0, 6), st.none() | st.integers(1, 5)).map(
    lambda pair: (pair[0], None if pair[1] is None else pair[0] + pair[1])
)


@dataclass(frozen=True)
class Track:
    """The positions of a video: source frame numbers and the seconds at which they begin, and where the video ends."""

    frames: Sequence[int]
    begins: Sequence[float]
    end: tuple[int, float]


def track(steps: Sequence[tuple[int, int]], more: int) -> Track:
    """Each step is how many frames and milliseconds a position is ahead of the one before: 0 frames repeat it."""
    frames = [sum(frame for frame, _ in steps[:i]) for i in range(len(steps))]
    begins = [sum(tick for _, tick in steps[:i]) / 1000 for i in range(len(steps))]
    return Track(frames, begins, (frames[-1] + 1 + more, begins[-1] + steps[-1][1] / 1000))


tracks = st.builds(
    track, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), min_size=1, max_size=150), st.integers(0, 2)
)
plain_tracks = st.integers(1, 150).map(lambda count: track([(1, 40)] * count, 0))


def arriving(sampling: Sampling, video: Track, clip_range: ClipRange = WHOLE) -> list[ClipRow]:
    """Return the rows that ClipRows gives. No row may show a frame older than those that it said it needs."""
    rows = ClipRows(sampling, clip_range)
    found: list[ClipRow] = []
    needed = 0
    for frame, begin in zip(video.frames, video.begins, strict=True):
        new = rows.add(frame, begin)
        assert all(min(row.shown) >= needed and row.times[1] <= begin for row in new)
        needed = rows.oldest
        found += new
    if not rows.complete:
        new = rows.end(*video.end)
        assert all(min(row.shown) >= needed for row in new)
        found += new
    assert rows.clips == len(found)
    return found


def starts(sampling: Sampling, n: int) -> list[int]:
    """Return where clips start in a video of n positions, as docs/conventions.md defines it."""
    span, step = sampling.span, sampling.step
    if sampling.align == "center":
        return [c - sampling.clip_len // 2 * sampling.frame_interval for c in range(step // 2, n, step) or [n - 1]]
    whole = [start for start in range(0, n, step) if start + span <= n] or [0]
    if sampling.tail == "drop" or whole[-1] + span >= n:
        return whole
    if sampling.tail == "shift":
        return [*whole, n - span]
    return [*whole, whole[-1] + step] if whole[-1] + step < n else whole


def spelled_out(sampling: Sampling, video: Track) -> list[ClipRow]:
    """Return the rows of a video position by position."""
    n = len(video.frames)
    frames, begins = [*video.frames, video.end[0]], [*video.begins, video.end[1]]
    rows = []
    for index, start in enumerate(starts(sampling, n)):
        wanted = [start + i * sampling.frame_interval for i in range(sampling.clip_len)]
        shown = [max(0, min(n - 1, position)) for position in wanted]
        covered = [position for position in range(start, start + sampling.span) if 0 <= position < n]
        behind = covered[-1] + 1
        last = max(frames[covered[-1]] + 1, frames[behind])
        rows.append(
            ClipRow(
                index=index,
                shown=tuple(frames[position] for position in shown),
                frames=(frames[covered[0]], last),
                times=(begins[covered[0]], begins[behind]),
                valid=len([position for position in wanted if position in covered]),
            )
        )
    return rows


@given(samplings, tracks)
def test_rows_are_those_of_the_whole_video(sampling: Sampling, video: Track) -> None:
    assert arriving(sampling, video) == spelled_out(sampling, video)


@given(samplings, tracks)
def test_rows_are_the_clips_of_the_sampling(sampling: Sampling, video: Track) -> None:
    n = len(video.frames)
    rows = arriving(sampling, video)
    assert len(rows) == sampling.count(n)
    for row, clip in zip(rows, (sampling.clip(k, n) for k in range(n)), strict=False):
        assert (row.index, row.valid) == (clip.index, clip.valid)
        assert row.shown == tuple(video.frames[position] for position in clip.positions)
        assert (row.frames[0], row.times[0]) == (video.frames[clip.first], video.begins[clip.first])


@given(samplings, tracks, clip_ranges)
def test_a_clip_range_has_the_rows_of_the_whole(sampling: Sampling, video: Track, clip_range: ClipRange) -> None:
    first, end = clip_range
    assert arriving(sampling, video, clip_range) == spelled_out(sampling, video)[first:end]


@given(samplings, plain_tracks, clip_ranges)
def test_no_clip_shows_a_position_that_is_unused(sampling: Sampling, video: Track, clip_range: ClipRange) -> None:
    """The last position of the video apart, which clips repeat."""
    rows = ClipRows(sampling, clip_range)
    for row in arriving(sampling, video, clip_range):
        for position in row.shown:  # on a plain track, positions are frames
            assert rows.uses(position) or position == len(video.frames) - 1


@given(samplings, st.integers(0, 200), clip_ranges)
def test_a_position_that_is_used_is_shown_by_some_clip(
    sampling: Sampling, position: int, clip_range: ClipRange
) -> None:
    """Centred and shifted clips use more positions, since they depend on where the video ends."""
    if sampling.align == "center" or sampling.tail == "shift" or not ClipRows(sampling, clip_range).uses(position):
        return
    video = track([(1, 40)] * (position + sampling.span + sampling.step + 1), 0)
    assert any(position in row.shown for row in arriving(sampling, video, clip_range))


@given(samplings, plain_tracks, clip_ranges)
def test_no_more_is_kept_than_a_clip_spans(sampling: Sampling, video: Track, clip_range: ClipRange) -> None:
    rows = ClipRows(sampling, clip_range)
    for frame, begin in zip(video.frames, video.begins, strict=True):
        if rows.complete:
            break
        rows.add(frame, begin)
        assert frame - rows.oldest <= sampling.span


def test_the_example_in_the_module() -> None:
    frames, begins = [0, 2, 2, 3, 7, 8, 9], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rows = arriving(Sampling(2, 2, 3), Track(frames, begins, (10, 0.7)))
    assert rows == [
        ClipRow(0, shown=(0, 2), frames=(0, 7), times=(0.0, 0.4), valid=2),
        ClipRow(1, shown=(3, 8), frames=(3, 10), times=(0.3, 0.7), valid=2),
    ]


def test_a_range_is_complete_with_its_last_clip() -> None:
    rows = ClipRows(Sampling(2, 1, 2), (1, 3))
    found = []
    for frame in range(20):
        found += rows.add(frame, frame / 25)
        if rows.complete:
            break
    assert [row.shown for row in found] == [(2, 3), (4, 5)]
    assert rows.seen == 7  # frame 6 says when clip 2 ends
    assert rows.clips == 2
