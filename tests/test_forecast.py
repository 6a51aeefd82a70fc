"""How many clips a run has, and how long it takes: by arithmetic, on sets of videos that differ much."""

import random
import threading
from dataclasses import dataclass
from pathlib import Path

import numbered
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from vswin_extract import extract
from vswin_extract.cli.progress import Pace, QuietProgress
from vswin_extract.formatting import clock, human_seconds, parse_clock
from vswin_extract.job.events import ClipsDone, ClipsExpected, Event
from vswin_extract.job.job import Job
from vswin_extract.run import forecast
from vswin_extract.run.forecast import AFTER, Forecast, ForecastEvents
from vswin_extract.run.work import RemainingWork
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.messages import Ready

USUAL = 30 / 64 / 250_000
"""Clips per byte: a clip of 64 frames, 30 frames and 250 kB a second."""


@dataclass(frozen=True)
class Simulated:
    """A video that takes `seconds` to extract; the set's longest has most of the work."""

    name: str
    size: int
    clips: int
    seconds: float


def skewed(seed: int, count: int) -> list[Simulated]:
    """Videos whose lengths differ by factors of hundreds, and whose bytes and times per clip differ, too."""
    chance = random.Random(seed)
    videos = []
    for number in range(count):
        clips = max(1, round(chance.lognormvariate(4, 1.8)))
        size = round(clips / USUAL * chance.lognormvariate(0, 0.7))
        videos.append(Simulated(str(number), size, clips, clips * chance.uniform(0.02, 0.03)))
    return videos


def batches(clips: int) -> list[int]:
    """About 20 parts of a video."""
    size = max(1, clips // 20)
    return [min(size, clips - first) for first in range(0, clips, size)]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([5, 50, 300]))
def test_the_time_left_is_right_within_half_after_a_tenth_of_a_run(seed: int, count: int) -> None:
    videos = skewed(seed, count)
    duration = 3.0 + sum(video.seconds for video in videos)  # with a slow start
    ahead = Forecast({video.name: video.size for video in videos}, {video.name: [WHOLE] for video in videos}, USUAL)
    headers = iter(sorted(videos, key=lambda video: -video.size))
    pace, now, clips, read = Pace(), 3.0, 0, 0
    for video in videos:
        for done in batches(video.clips):
            now += video.seconds * done / video.clips
            clips += done
            while read < (now - AFTER) * 100 and (known := next(headers, None)):
                ahead.count(known.name, round(known.clips * 1.02))
                read += 1
            pace.note(now, clips)
            if 0.1 * duration < now < 0.95 * duration and now > AFTER + 3 + count / 100:
                left = pace.left(now, clips, ahead.clips)
                assert left is not None
                assert 1 / 1.5 < (left + 1) / (duration - now + 1) < 1.5
        ahead.finish(video.name, video.clips)
    assert ahead.clips == clips


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**5), st.booleans()), min_size=1, max_size=20))
def test_a_forecast_ends_at_what_was_computed(videos: list[tuple[int, int, bool]]) -> None:
    names = {str(number): size for number, (size, _, _) in enumerate(videos)}
    ahead = Forecast(names, {name: [WHOLE] for name in names}, USUAL)
    assert ahead.clips >= len(videos)
    for name, (_, clips, by_header) in zip(names, videos, strict=True):
        if by_header:
            ahead.count(name, clips + 1)
        ahead.finish(name, clips)
        ahead.count(name, clips + 5)  # a header that is read too late
    assert ahead.clips == sum(clips for _, clips, _ in videos)
    ahead.finish("another", 3)
    assert ahead.clips == sum(clips for _, clips, _ in videos)


def test_a_run_that_continues_expects_the_rest_of_its_clips() -> None:
    ahead = Forecast({"a": 10**6, "b": 10**6}, {"a": [(60, None)], "b": [(0, 10), (30, 50)]}, USUAL)
    ahead.count("a", 100)
    ahead.count("b", 40)
    assert ahead.clips == 40 + 10 + 10


def test_a_run_tells_how_many_clips_it_expects(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First by the sizes of the files, then by headers, which a thread reads at once here, and by finished videos."""
    monkeypatch.setattr(forecast, "AFTER", 0.0)
    for name, frames in (("a", 300), ("b", 30)):
        numbered.write(tmp_path / f"{name}.mp4", frames)
    (tmp_path / "c.mp4").write_bytes(b"\x00 no video" * 1000)
    events: list[Event] = []
    done = extract(tmp_path, tmp_path / "out.h5", weights=small_weights, stride=4, on_event=events.append)
    expected = [event.clips for event in events if isinstance(event, ClipsExpected)]
    assert isinstance(events[1], ClipsExpected)
    assert abs(expected[-1] - done.clips) <= forecast.CHANGE * done.clips
    assert [thread.name for thread in threading.enumerate() if thread.name == "headers"] == []


def expected_at_once(videos: list[Video], *events: Event) -> list[int]:
    """Return the numbers of clips that are told at the begin and after these events, before any header is read."""
    ready = Ready({}, Arrays({}), Sampling(32, 2), Geometry(32, 32), {}, (), 0, (), decoders=1)
    work = RemainingWork(videos, videos, {video.id: fingerprint(video) for video in videos})
    told = ForecastEvents(work, Job(tuple(videos), Path("out.h5")), ready)
    return [each.clips for event in (None, *events) for each in told.after(event)]


def test_the_segments_of_a_file_share_its_size(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(10_000_000))
    whole = Video("a", tmp_path / "a.mp4")
    segments = [Video(str(k), whole.path, start=k, end=k + 1) for k in range(10)]
    (alone,) = expected_at_once([whole])
    assert alone == pytest.approx(10_000_000 * USUAL, abs=1)
    assert expected_at_once(segments) == [pytest.approx(alone, abs=1)]
    assert expected_at_once([whole, *segments]) == [pytest.approx(2 * alone, abs=1)]


def test_no_fewer_clips_are_expected_than_are_done(tmp_path: Path) -> None:
    videos = [Video("a", tmp_path / "missing.mp4")]
    assert expected_at_once(videos, ClipsDone(1), ClipsDone(200), ClipsDone(1)) == [1, 201, 202]


def test_one_clip_is_no_clips() -> None:
    progress = QuietProgress(Console())
    for clips, words in ((1, "1 of about 1 clip"), (2000, "2,000 of about 2,000 clips")):
        progress.clips = clips
        assert progress.amount == words


@given(st.integers(0, 10**6))
def test_times_are_read_as_they_are_written(tenths: int) -> None:
    assert parse_clock(clock(tenths / 10)) == pytest.approx(tenths / 10)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("65.3", 65.3), ("65.3s", 65.3), ("1:05.3", 65.3), ("125:10", 7510), ("1:02:03", 3723), ("0", 0)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_clock(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "-1", "nan", "1:", ":5", "1:234:5", "inf", "1:99", "1:75:10"])
def test_other_words_are_no_times(text: str) -> None:
    assert parse_clock(text) is None


def test_durations_in_words() -> None:
    assert [human_seconds(each) for each in (0.4, 99, 100, 754, 6030, 12600)] == [
        "0 s", "99 s", "2 min", "13 min", "1 h 40 min", "3 h 30 min",
    ]  # fmt: skip
