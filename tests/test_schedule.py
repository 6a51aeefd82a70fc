"""Dividing work: every clip once, evenly, and in the same way for every shard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation import STARTS, Simulated, lengths, run
from vswin_extract.errors import UsageError
from vswin_extract.job.shard import Shard, parse_shard
from vswin_extract.run.schedule import FROM_KEY_FRAME, GAIN, SHORTEST, deal, makespan, plan
from vswin_extract.video.ranges import WHOLE, ClipRange, overlap, without

COUNTS = st.lists(st.integers(1, 2000), min_size=1, max_size=60)
STEP = 64
BOUNDS = st.lists(st.integers(0, 60), unique=True, max_size=6).map(sorted)


def clips(clip_range: ClipRange, count: int) -> set[int]:
    return set(range(clip_range[0], count if clip_range[1] is None else min(clip_range[1], count)))


@given(COUNTS, st.integers(1, 16))
def test_every_clip_is_planned_once(counts: list[int], workers: int) -> None:
    work = plan([(count, [WHOLE]) for count in counts], workers, STEP)
    for video, count in enumerate(counts):
        clip_ranges = sorted(piece.clip_range for piece in work if piece.video == video)
        assert [first for first, _ in clip_ranges] == [0, *(end for _, end in clip_ranges[:-1])]
        assert clip_ranges[-1][1] is None
        assert set().union(*(clips(clip_range, count) for clip_range in clip_ranges)) == set(range(count))
    assert [piece.cost for piece in work] == sorted((piece.cost for piece in work), reverse=True)


@given(COUNTS, st.integers(1, 16), st.integers(1, 500), st.sets(st.integers(0, 60)))
def test_dividing_never_ends_later(counts: list[int], hands: int, step: int, undivided: set[int]) -> None:
    videos: list[tuple[int, list[ClipRange]]] = [(count, [WHOLE]) for count in counts]
    whole, divided = plan(videos, 1, step), plan(videos, hands, step, undivided)
    assert makespan(divided, hands) <= makespan(whole, hands)
    assert [piece for piece in divided if piece.video in undivided] == [w for w in whole if w.video in undivided]
    leads = FROM_KEY_FRAME / step * (len(divided) - len(whole))
    assert sum(piece.cost for piece in divided) == pytest.approx(sum(piece.cost for piece in whole) + leads)


@given(st.integers(1, 32), st.integers(2 * SHORTEST, 400), st.integers(8, 500))
def test_one_long_video_keeps_all_decoders_busy(hands: int, each: int, step: int) -> None:
    [whole] = plan([(hands * each, [WHOLE])], 1, step)
    end = makespan(plan([(hands * each, [WHOLE])], hands, step), hands)
    assert end <= (whole.cost / hands + FROM_KEY_FRAME / step + 2) / GAIN


@given(COUNTS, st.integers(1, 16))
def test_shards_are_disjoint_and_all_of_it(counts: list[int], count: int) -> None:
    work = plan([(each, [WHOLE]) for each in counts], count, STEP)
    shards = [deal(work, Shard(index, count)) for index in range(count)]
    assert sorted((w.video, w.clip_range[0]) for shard in shards for w in shard) == sorted(
        (w.video, w.clip_range[0]) for w in work
    )
    assert max(sum(w.cost for w in shard) for shard in shards) == pytest.approx(makespan(work, count))


@given(BOUNDS, st.integers(1, 80))
def test_done_and_remaining_ranges_cover_every_clip(bounds: list[int], count: int) -> None:
    done: list[ClipRange] = [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
    left = without(WHOLE, done)
    covered = [clip for clip_range in [*done, *left] for clip in clips(clip_range, count)]
    assert sorted(covered) == list(range(count))
    for clip_range in done:
        assert not [clip for each in overlap(clip_range, left) for clip in clips(each, count)]
    assert overlap(WHOLE, left) == left


def test_a_long_video_is_split_where_that_helps() -> None:
    videos: list[tuple[int, list[ClipRange]]] = [(5000, [WHOLE]), *((10, [WHOLE]) for _ in range(100))]
    assert len(plan(videos, 1, STEP)) == 101
    split = plan(videos, 4, STEP)
    assert len([piece for piece in split if piece.video == 0]) > 3
    assert makespan(split, 4) < 0.26 * makespan(plan(videos, 1, STEP), 1)
    assert len(plan(videos, 4, STEP, undivided=[0])) == 101
    even: list[tuple[int, list[ClipRange]]] = [(50, [WHOLE])] * 400
    assert len(plan(even, 4, STEP)) == 400


def test_shards_are_written_from_zero() -> None:
    assert parse_shard("3/8") == Shard(3, 8)
    for text in ("8/8", "1", "a/b", "-1/3", "1/0", "/", ""):
        with pytest.raises(UsageError, match="shard"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("devices", "rate"),
    [
        (8, 20.0),
        pytest.param(8, 400.0, marks=pytest.mark.slow),
        pytest.param(64, 20.0, marks=pytest.mark.slow),
        pytest.param(64, 70.0, marks=pytest.mark.slow),
    ],
)
def test_devices_end_together(devices: int, rate: float) -> None:
    """Plan and dispatch with simulated devices: 500 videos for each, of up to three hours."""
    pool = Simulated(lengths(500 * devices, 0), devices, rate, converted=9.2, dropped=14.5)
    run(pool)
    assert pool.idle_tail() < 0.05
    assert pool.end < 1.05 * (pool.ideal() + STARTS)


@pytest.mark.parametrize("rate", [20.0, 400.0])
def test_films_keep_all_decoders_busy(rate: float) -> None:
    """30 films of half an hour to three hours, on 8 devices of 8 decoders."""
    pool = Simulated(lengths(0, 30), 8, rate, converted=9.2, dropped=14.5)
    run(pool)
    assert pool.ideal() / pool.end > 0.85


def test_films_are_divided_although_the_first_worker_could_take_all() -> None:
    pool = Simulated([3000] * 16, 8, 20.0, converted=9.2, dropped=14.5)
    run(pool)
    assert pool.end < 1.1 * (pool.ideal() + STARTS)
