"""Videos through a worker into memory, in the order in which they are given.

    videos ──a few ahead──> video queue ──> pipeline of a worker ──> records in memory ──in order──> caller

The worker is that of a run, so features, times and failures are those that a run would write.
"""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import VIDEO_ERRORS, FrameTableWrong, UsageError, VideoError
from vswin_extract.python.memory import VideoInMemory
from vswin_extract.store.schema import Arrays, VideoRecord, row_types
from vswin_extract.video.remote import is_remote
from vswin_extract.video.videos import Video, find_videos
from vswin_extract.worker.messages import VIDEOS_PER_DECODER, Dropped
from vswin_extract.worker.settings import feature_arrays
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.worker import Worker
from vswin_extract.worker.writer import Writer

Inputs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""Files, directories and addresses of videos, or one of these."""
Found = TypeVar("Found")


class VideoStream(Iterator[Found]):
    """The features of videos, one after another. `Model.stream` makes it.

    Its decoder processes end when the videos are over, when an exception leaves `next`, as Ctrl-C does, when the stream
    is closed or no longer used. `with` closes it, and so does `close()`.

        >>> videos = model.stream("examples/videos", stride=64, size=64, workers=1)
        >>> next(videos)
        <VideoInMemory 'astronaut-pan.mp4', 2 clips of embedding>
        >>> videos.close()
    """

    def __init__(self, found: Generator[Found, None, None]) -> None:
        self._found = found

    def __next__(self) -> Found:
        return next(self._found)

    def close(self) -> None:
        """End the decoder processes. The stream yields nothing more."""
        self._found.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryPart:
    """The rows of a video while they are computed."""

    def __init__(self, arrays: Arrays) -> None:
        self.rows = 0
        self._blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in row_types(arrays)}
        self._types = row_types(arrays)

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, values in rows.items():
            self._blocks[name].append(values)
        self.rows += len(next(iter(rows.values())))

    def discard(self) -> None:
        for blocks in self._blocks.values():
            blocks.clear()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all rows, in the types that an output has."""
        return {
            name: np.concatenate(self._blocks[name]).astype(dtype, copy=False)
            for name, (_, dtype) in self._types.items()
        }


class MemoryRecords:
    """Finished videos by id. A thread of the pipeline puts them in."""

    def __init__(self, arrays: Arrays) -> None:
        self.finished: dict[str, tuple[VideoRecord, MemoryPart | None]] = {}
        self._arrays = arrays

    def part(self, video: Video) -> MemoryPart:
        return MemoryPart(self._arrays)

    def commit(self, record: VideoRecord, part: MemoryPart | None = None) -> None:
        if record.error == FrameTableWrong.__name__:  # it is extracted again
            return
        self.finished[record.id] = record, part


def videos_of(inputs: Inputs) -> Iterator[Video]:
    """Yield the videos that are named: of files, directories and addresses, with the ids that a run gives them. Unlike
    in a run, a file may be missing, which is an error of that video, and two may have the same id. Raises UsageError
    where a directory or an address has no videos."""
    for given in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        path = os.fspath(given)
        if not is_remote(path) and path and not os.path.isdir(path):
            yield Video(Path(path).name, Path(path))
        else:
            yield from find_videos([path])


def extract_in_order(worker: Worker, videos: Iterator[Video]) -> Generator[VideoInMemory | VideoError, None, None]:
    """Yield the features of each video, or its error, in the order of the videos. A few videos are taken ahead, so that
    decoders have work; but no more, so that a long video does not let many short ones wait in memory."""
    records = MemoryRecords(feature_arrays(worker.job, worker.backbone))
    queue, waiting = VideoQueue(), deque[tuple[str, Video]]()
    numbers = count()
    crops = worker.geometry.crops if worker.job.crop_pool == "none" else 0

    def fill() -> None:
        while len(waiting) < worker.decoders * VIDEOS_PER_DECODER:
            if (video := next(videos, None)) is None:
                queue.close()
                return
            key = str(next(numbers))  # two videos may have the same id
            waiting.append((key, video))
            queue.put(replace(video, id=key))

    fill()
    if not waiting:
        return
    pipeline = worker.pipeline(queue, Writer(records, worker.backbone.precision, worker.job.dtype))
    with closing(pipeline.run(threading.Event())) as events:
        for event in events:
            if isinstance(event, Dropped):
                queue.put(replace(event.piece, sequential=True))
            while waiting and waiting[0][0] in records.finished:
                key, video = waiting.popleft()
                record, part = records.finished.pop(key)
                yield in_memory(replace(record, id=video.id), part, crops)
                fill()


def in_memory(record: VideoRecord, part: MemoryPart | None, crops: int) -> VideoInMemory | VideoError:
    """Return the features of a video that was extracted, or the error of one that failed. Its text names the video.
    `crops`: how many of each clip are kept, 0 if they are averaged."""
    if part is None:
        named = record.message if record.path in record.message else f"{record.path}: {record.message}"
        return VIDEO_ERRORS[record.error](named)
    return VideoInMemory(record, part.arrays(), crops)


def or_raise(found: Generator[VideoInMemory | VideoError, None, None]) -> Generator[VideoInMemory, None, None]:
    """Yield the same, but raise the first error."""
    with closing(found):
        for each in found:
            if isinstance(each, VideoError):
                raise each
            yield each


def only(videos: Iterator[Video], path: object) -> Iterator[Video]:
    """Return the same videos if it is one. Raises UsageError."""
    found = list(videos)
    if len(found) != 1:
        raise UsageError(f"{path} has {len(found)} videos; give them to stream, which yields one after another")
    return iter(found)
