"""How many clips a run computes: estimated by the sizes of files, then by headers, then known as videos finish."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

from vswin_extract.errors import DecoderCrash, DecoderTimeout, VideoError, VswinError
from vswin_extract.feeding.messages import VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.job.events import ClipsDone, ClipsExpected, Event, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.run.clip_counts import header_task
from vswin_extract.run.work import RemainingWork
from vswin_extract.video.estimate import clips_per_byte
from vswin_extract.video.ranges import ClipRange
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import Video
from vswin_extract.worker.messages import Ready

log = logging.getLogger(__name__)

AFTER = 2.0
"""Seconds of a run after which headers are read: a shorter run needs no forecast."""
HEADER_TIMEOUT = 5.0
"""Seconds that a header may take."""
PRIOR = 2_000_000
"""Bytes of known videos from which on their clips per byte count more than those of usual videos."""
CHANGE = 0.01
"""A forecast is told again once it has changed by this share."""


class Forecast:
    """The clips of a run, of which videos become known one by one.

    `sizes`: bytes of each video, by its id. `ranges`: the clip ranges that this run computes of it. `usual`: clips per
    byte of usual videos.
    """

    def __init__(self, sizes: Mapping[str, int], ranges: Mapping[str, Sequence[ClipRange]], usual: float) -> None:
        self._sizes = dict(sizes)
        self._ranges = ranges
        self._usual = usual
        self._clips: dict[str, int] = {}
        self._finished: set[str] = set()
        self._known_clips, self._known_bytes = 0, 0
        self._unknown_bytes = sum(sizes.values())

    def count(self, video_id: str, clips: int) -> None:
        """Note how many clips a whole video has by its header."""
        if video_id in self._sizes and video_id not in self._finished:
            self._know(video_id, sum(_in_range(each, clips) for each in self._ranges[video_id]))

    def finish(self, video_id: str, clips: int) -> None:
        """Note how many clips of a video this run has computed."""
        if video_id in self._sizes:
            self._finished.add(video_id)
            self._know(video_id, clips)

    def _know(self, video_id: str, clips: int) -> None:
        if video_id not in self._clips:
            self._known_bytes += self._sizes[video_id]
            self._unknown_bytes -= self._sizes[video_id]
        self._known_clips += clips - self._clips.get(video_id, 0)
        self._clips[video_id] = clips

    @property
    def clips(self) -> int:
        """All clips of the run, with those that are computed."""
        per_byte = (self._known_clips + PRIOR * self._usual) / (self._known_bytes + PRIOR)
        unknown = len(self._sizes) - len(self._clips)
        return self._known_clips + max(unknown, round(self._unknown_bytes * per_byte))


def _in_range(clip_range: ClipRange, clips: int) -> int:
    first, end = clip_range
    return max(1, (clips if end is None else min(end, clips)) - first)


def _parts(videos: Mapping[str, Video], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of each video, by its id. Segments of a file have equal parts of it, since nothing says yet how
    long it is."""
    segments = Counter(video.location for video in videos.values() if _is_segment(video))
    return {
        name: sizes[name] // (segments[video.location] if _is_segment(video) else 1) for name, video in videos.items()
    }


def _is_segment(video: Video) -> bool:
    return video.start is not None or video.end is not None


class ForecastEvents:
    """Adds ClipsExpected to the events of a run: at its begin, and whenever the forecast has changed. Meanwhile a
    thread reads the headers of videos, the largest files first. Use it in a `with` block."""

    def __init__(self, work: RemainingWork, job: Job, ready: Ready) -> None:
        ranges: dict[str, list[ClipRange]] = {}
        for video in work.left:
            ranges.setdefault(video.id, []).append(video.clip_range)
        videos = {video.id: video for video in work.left}
        sizes = _parts(videos, work.sizes)
        self._forecast = Forecast(sizes, ranges, clips_per_byte(ready.sampling))
        for name, clips in work.counts.items():
            self._forecast.count(name, clips)
        local = [video for video in videos.values() if not isinstance(video.path, Address)]
        unknown = [video for video in local if video.id not in work.counts]
        self._unknown = sorted(unknown, key=lambda video: -sizes[video.id])
        self._job, self._ready = job, ready
        self._found: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._told = self._done = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_headers, name="headers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def after(self, event: Event | None) -> Iterable[ClipsExpected]:
        """Return what is to be told after an event; None: at the begin."""
        if isinstance(event, ClipsDone):
            self._done += event.clips
        if isinstance(event, VideoDone):
            self._forecast.finish(event.record.id, event.record.clips)
        while not self._found.empty():
            self._forecast.count(*self._found.get())
        clips = max(self._forecast.clips, self._done)
        if abs(clips - self._told) > CHANGE * self._told or self._told < self._done:
            self._told = clips
            yield ClipsExpected(clips)

    def _read_headers(self) -> None:
        if not self._unknown or self._over.wait(AFTER):
            return
        try:
            with closing(DecoderProcess("pyav", min(HEADER_TIMEOUT, self._job.timeout))) as process:
                for video in self._unknown:
                    if self._over.is_set():
                        return
                    self._read_header(video, process)
        except (OSError, VswinError) as error:  # the run goes on without: it only tells how long it takes
            log.debug("headers are not read for the forecast: %s", error)

    def _read_header(self, video: Video, process: DecoderProcess) -> None:
        process.submit(header_task(video, self._ready))
        try:
            end = process.read()
        except (DecoderTimeout, DecoderCrash):  # a slow disk or a busy machine: its size says more
            return
        except VideoError:  # the run will say why
            self._found.put((video.id, 1))
            return
        if isinstance(end, VideoEnd):
            self._found.put((video.id, end.clips))
