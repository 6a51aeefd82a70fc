"""The queue of videos of a pipeline."""

import threading
from collections import deque
from collections.abc import Iterable

from vswin_extract.video.videos import Video


class VideoQueue:
    """Videos in order, until the queue is closed. Any thread may put videos in. A video that comes after that is taken,
    too, if decoders still take videos then."""

    def __init__(self, videos: Iterable[Video] = (), closed: bool = False) -> None:
        self._videos = deque(videos)
        self._closed = closed
        self._changed = threading.Condition()

    @property
    def finished(self) -> bool:
        """True if the queue is empty and no more videos will come."""
        return self._closed and not self._videos

    def __len__(self) -> int:
        return len(self._videos)

    def bound(self) -> int | None:
        """Return how many videos will still come, or None while the queue is open."""
        return len(self) if self._closed else None

    def put(self, video: Video) -> None:
        with self._changed:
            self._videos.append(video)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def clear(self) -> None:
        """Close the queue and drop the videos in it."""
        self.close()
        self._videos.clear()

    def take(self) -> Video | None:
        """Return the next video, or None where the queue is empty now."""
        with self._changed:
            return self._videos.popleft() if self._videos else None

    def wait(self, seconds: float) -> None:
        """Wait until there is a video or the queue is closed, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: self._videos or self._closed, seconds)
