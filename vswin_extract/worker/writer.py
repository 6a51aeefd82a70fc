"""Rows into the journal, or into memory, and a record of every video that is finished or failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import (
    FrameTableWrong,
    NonFiniteFeatures,
    VideoChanged,
    VideoError,
    VideoTimestamps,
    VideoUnreadable,
)
from vswin_extract.feeding.messages import VideoEnd
from vswin_extract.job.events import VideoDone
from vswin_extract.store.schema import LONGEST, VideoRecord, number_out_of_range
from vswin_extract.video.videos import Video, fingerprint


class RowSink(Protocol):
    """Takes the rows of a video, in order: a part of the journal, or memory. `rows`: their number so far."""

    rows: int

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None: ...

    def discard(self) -> None: ...


class RecordSink(Protocol):
    """Takes finished videos: the shard directory of a process in the journal, or memory."""

    def part(self, video: Video) -> Any:
        """Return a RowSink for the rows of a video."""
        ...

    def commit(self, record: VideoRecord, part: Any = None) -> None:
        """Take a finished video with the part that its rows are in, or a failed one without."""
        ...


@dataclass(eq=False)
class InFlightVideo:
    """A video between its queue and its record: the fingerprint of its file when it was begun, the sink that its rows
    go to, and its end once that is decoded. What still arrives after it is `done` is dropped."""

    video: Video
    fingerprint: tuple[int, float, str]
    part: RowSink | None = None
    end: VideoEnd | None = None
    done: bool = False


class Writer:
    """Writes for one thread at a time. Every method returns a VideoDone for each video that it finished."""

    def __init__(self, sink: RecordSink, precision: str, dtype: str) -> None:
        self._sink = sink
        self._precision = precision
        self._dtype = dtype

    def rows(self, videos: Sequence[InFlightVideo], rows: Mapping[str, NDArray[Any]]) -> list[VideoDone]:
        """Write the next rows of videos: row k belongs to `videos[k]`."""
        done: list[VideoDone] = []
        for video in dict.fromkeys(videos):
            mine = [k for k, other in enumerate(videos) if other is video]
            done += self._append(video, {name: values[mine] for name, values in rows.items()})
        return done

    def end(self, video: InFlightVideo, end: VideoEnd) -> list[VideoDone]:
        """Note that all of a video is decoded. Its last rows may still come."""
        video.end = end
        return self._finish_if_complete(video)

    def fail(self, video: InFlightVideo, error: VideoError) -> list[VideoDone]:
        """Record that a video failed, and drop its rows."""
        if video.done:
            return []
        return [VideoDone(self._drop(video, error), max(video.fingerprint[0], 0))]

    def drop(self, video: InFlightVideo, error: FrameTableWrong) -> list[VideoDone]:
        """Drop the rows of a piece. The journal keeps that those of other clip ranges of this video do not count."""
        if not video.done:
            self._drop(video, error)
        return []

    def _drop(self, video: InFlightVideo, error: VideoError) -> VideoRecord:
        video.done = True
        if video.part is not None:
            video.part.discard()
        record = failed_record(video.video, video.fingerprint, error)
        self._sink.commit(record)
        return record

    def _append(self, video: InFlightVideo, rows: Mapping[str, NDArray[Any]]) -> list[VideoDone]:
        if video.done:
            return []
        for name, values in rows.items():
            if not np.isfinite(values).all():
                error = NonFiniteFeatures(
                    f"{name} has NaN or infinite values in precision {self._precision}, stored as {self._dtype}; "
                    f"{larger_numbers(self._precision, self._dtype)}"
                )
                return self.fail(video, error)
        if "clips/times" in rows and np.abs(rows["clips/times"]).max(initial=0) > LONGEST:
            return self.fail(video, VideoTimestamps(f"its time stamps are above {LONGEST:g} s"))
        if video.part is None:
            video.part = self._sink.part(video.video)
        video.part.append(rows)
        return self._finish_if_complete(video)

    def _finish_if_complete(self, video: InFlightVideo) -> list[VideoDone]:
        end, part = video.end, video.part
        rows = 0 if part is None else part.rows
        if video.done or end is None or rows < end.clips:
            return []
        if end.file is None and fingerprint(video.video) != video.fingerprint:
            return self.fail(video, VideoChanged("its file changed while it was read"))
        first, last = video.video.clip_range
        record = make_record(
            video.video,
            end.file or video.fingerprint,
            status="partial" if end.partial else "ok",
            clips=rows,
            clip_range=(first, None if end.last else last),
            fps=end.fps,
            frames=end.frames,
            skipped=end.skipped,
            duration=end.duration,
            width=end.width,
            height=end.height,
            transfer=end.transfer,
            matrix=end.matrix,
            message=end.trouble + (f" ({end.damaged} damaged packets)" if end.damaged else ""),
        )
        if wrong := number_out_of_range(record):
            return self.fail(video, VideoUnreadable(f"it has the {wrong}, which an output cannot hold"))
        video.done = True
        self._sink.commit(record, part)
        return [VideoDone(record, max(video.fingerprint[0], 0))]


def larger_numbers(precision: str, dtype: str) -> str:
    """Return what to do about features that are not finite."""
    advice = [] if precision == "fp32" else ["--precision fp32"]
    advice += [] if dtype == "float32" else ["--dtype float32"]
    if advice:
        return f"try {' '.join(advice)}"
    return "numbers in the network are too large for 32 bits, so look at the weights: vswin weights verify"


def failed_record(video: Video, fingerprint: tuple[int, float, str], error: VideoError) -> VideoRecord:
    """Return the record of a video that failed."""
    return make_record(video, fingerprint, status="failed", error=type(error).__name__, message=str(error))


def make_record(video: Video, fingerprint: tuple[int, float, str], **found: Any) -> VideoRecord:
    """Return the record of a video: what was asked for, the fingerprint of its file, and what was `found`."""
    size, mtime, etag = fingerprint
    known = {"size": size, "mtime": mtime, "etag": etag, "clip_range": video.clip_range}
    return VideoRecord(id=video.id, path=video.location, start=video.start, end=video.end, **{**known, **found})
