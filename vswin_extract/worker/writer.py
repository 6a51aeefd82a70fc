"""Computed rows to the journal, and the records of videos that are through. One thread at a time calls it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.messages import VideoEnd
from vswin_extract.errors import NonFiniteFeatures, VideoChanged, VideoError
from vswin_extract.job.events import Event, VideoDone
from vswin_extract.journal.journal import Journal
from vswin_extract.journal.parts import Part
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.videos import Video, fingerprint


@dataclass(eq=False)
class InFlightVideo:
    """A video on its way: its file's state when it was begun, the part that its rows go to, and what is known of it.

    Once it is `over`, finished or failed, whatever else arrives of it is dropped.
    """

    video: Video
    size: int
    mtime: float
    etag: str = ""
    part: Part | None = None
    end: VideoEnd | None = None
    over: bool = False


class Writer:
    """Every method returns what has come of it: VideoDone for each video that is through, or failed."""

    def __init__(self, journal: Journal, precision: str, dtype: str) -> None:
        self.journal = journal
        self.precision = precision
        self.dtype = dtype

    def rows(self, in_flight_videos: Sequence[InFlightVideo], rows: Mapping[str, NDArray[Any]]) -> list[Event]:
        """The next rows of videos: row k belongs to `in_flight_videos[k]`."""
        done: list[Event] = []
        for in_flight in dict.fromkeys(in_flight_videos):
            mine = [k for k, other in enumerate(in_flight_videos) if other is in_flight]
            done += self._append(in_flight, {name: values[mine] for name, values in rows.items()})
        return done

    def end(self, in_flight: InFlightVideo, end: VideoEnd) -> list[Event]:
        """All of a video has been decoded; its last rows may still come."""
        in_flight.end = end
        return self._finish(in_flight)

    def fail(self, in_flight: InFlightVideo, error: VideoError) -> list[Event]:
        """A video failed: what there is of it goes."""
        if in_flight.over:
            return []
        in_flight.over = True
        if in_flight.part is not None:
            in_flight.part.discard()
        record = record_of(in_flight, status="failed", error=type(error).__name__, message=str(error))
        self.journal.commit(record)
        return [VideoDone(record, max(in_flight.size, 0))]

    def _append(self, in_flight: InFlightVideo, rows: Mapping[str, NDArray[Any]]) -> list[Event]:
        if in_flight.over:
            return []
        for name, values in rows.items():
            if not np.isfinite(values).all():
                error = NonFiniteFeatures(
                    f"{name} has NaN or infinite values in precision {self.precision}, stored as {self.dtype}; "
                    "try --precision fp32 --dtype float32"
                )
                return self.fail(in_flight, error)
        if in_flight.part is None:
            in_flight.part = self.journal.part(in_flight.video)
        in_flight.part.append(rows)
        return self._finish(in_flight)

    def _finish(self, in_flight: InFlightVideo) -> list[Event]:
        end, part = in_flight.end, in_flight.part
        rows = 0 if part is None else part.rows
        if in_flight.over or end is None or rows < end.clips:
            return []
        if end.file is None and fingerprint(in_flight.video) != (in_flight.size, in_flight.mtime, in_flight.etag):
            return self.fail(in_flight, VideoChanged("its file changed while it was read"))
        in_flight.over = True
        size, mtime, etag = end.file or (in_flight.size, in_flight.mtime, in_flight.etag)
        record = record_of(
            in_flight,
            size=size,
            mtime=mtime,
            etag=etag,
            status="partial" if end.partial else "ok",
            clips=rows,
            clip_range=(in_flight.video.clip_range[0], None if end.last else in_flight.video.clip_range[1]),
            fps=end.fps,
            frames=end.frames,
            duration=end.duration,
            width=end.width,
            height=end.height,
            message=end.trouble + (f" ({end.damaged} damaged packets)" if end.damaged else ""),
        )
        self.journal.commit(record, part)
        return [VideoDone(record, max(in_flight.size, 0))]


def record_of(in_flight: InFlightVideo, **found: Any) -> VideoRecord:
    """What became of a video: what was asked for and its file's state, and what was `found`."""
    video = in_flight.video
    return VideoRecord(
        id=video.id,
        path=video.location,
        start=video.start,
        end=video.end,
        **{
            "size": in_flight.size,
            "mtime": in_flight.mtime,
            "etag": in_flight.etag,
            "clip_range": video.clip_range,
            **found,
        },
    )
