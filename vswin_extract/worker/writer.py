"""Computed rows to the journal, and the records of videos that are through. One thread at a time calls it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.process import VideoEnd
from vswin_extract.errors import NonFiniteFeatures, VideoChanged, VideoError
from vswin_extract.job.events import Event, VideoDone
from vswin_extract.journal.journal import Journal
from vswin_extract.journal.parts import Part
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.videos import Video, file_state


@dataclass(eq=False)
class Passage:
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

    def rows(self, passages: Sequence[Passage], rows: Mapping[str, NDArray[Any]]) -> list[Event]:
        """The next rows of videos: row k belongs to `passages[k]`."""
        done: list[Event] = []
        for passage in dict.fromkeys(passages):
            mine = [k for k, other in enumerate(passages) if other is passage]
            done += self._append(passage, {name: values[mine] for name, values in rows.items()})
        return done

    def end(self, passage: Passage, end: VideoEnd) -> list[Event]:
        """All of a video has been decoded; its last rows may still come."""
        passage.end = end
        return self._finish(passage)

    def fail(self, passage: Passage, error: VideoError) -> list[Event]:
        """A video failed: what there is of it goes."""
        if passage.over:
            return []
        passage.over = True
        if passage.part is not None:
            passage.part.discard()
        record = record_of(passage, status="failed", error=type(error).__name__, message=str(error))
        self.journal.commit(record)
        return [VideoDone(record, max(passage.size, 0))]

    def _append(self, passage: Passage, rows: Mapping[str, NDArray[Any]]) -> list[Event]:
        if passage.over:
            return []
        for name, values in rows.items():
            if not np.isfinite(values).all():
                error = NonFiniteFeatures(
                    f"{name} has NaN or infinite values in precision {self.precision}, stored as {self.dtype}; "
                    "try --precision fp32 --dtype float32"
                )
                return self.fail(passage, error)
        if passage.part is None:
            passage.part = self.journal.part(passage.video)
        passage.part.append(rows)
        return self._finish(passage)

    def _finish(self, passage: Passage) -> list[Event]:
        end, part = passage.end, passage.part
        rows = 0 if part is None else part.rows
        if passage.over or end is None or rows < end.clips:
            return []
        if end.file is None and file_state(passage.video) != (passage.size, passage.mtime, passage.etag):
            return self.fail(passage, VideoChanged("its file changed while it was read"))
        passage.over = True
        size, mtime, etag = end.file or (passage.size, passage.mtime, passage.etag)
        record = record_of(
            passage,
            size=size,
            mtime=mtime,
            etag=etag,
            status="partial" if end.partial else "ok",
            clips=rows,
            span=(passage.video.span[0], None if end.last else passage.video.span[1]),
            fps=end.fps,
            frames=end.frames,
            duration=end.duration,
            width=end.width,
            height=end.height,
            message=end.trouble + (f" ({end.damaged} damaged packets)" if end.damaged else ""),
        )
        self.journal.commit(record, part)
        return [VideoDone(record, max(passage.size, 0))]


def record_of(passage: Passage, **found: Any) -> VideoRecord:
    """What became of a video: what was asked for and its file's state, and what was `found`."""
    video = passage.video
    return VideoRecord(
        id=video.id,
        path=video.location,
        start=video.start,
        end=video.end,
        **{"size": passage.size, "mtime": passage.mtime, "etag": passage.etag, "span": video.span, **found},
    )
