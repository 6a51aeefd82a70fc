"""The parent's side of a decoder process: tasks in, clips out. It is watched, and replaced when it hangs or dies."""

import queue
import time
from collections import deque
from dataclasses import dataclass

from vswin_extract.errors import DecoderCrash, DecoderTimeout, VideoError, VswinError
from vswin_extract.feeding.messages import DecodedFrames, DecoderReady, Progress, Task, VideoEnd
from vswin_extract.processes import ChildProcess, Ended, Inbox, waited
from vswin_extract.video.fetch import SLOWEST, Cache, sweep
from vswin_extract.video.geometry import Pixels
from vswin_extract.video.rows import ClipRow

CHILD = "vswin_extract.feeding.child"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # processes are the parallelism
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # else glibc gives each frame's memory back, only to take it anew
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}


@dataclass(frozen=True)
class DecodedClip:
    """A clip's pixels and what they are.

    `views`: its crops, each T frames of (size, size, 3) uint8, which overlapping clips share. `frames`: [first, end) in
    source frames. `times`: [start, end) in seconds. `valid`: how many of its frames are real, not repeated.
    """

    index: int
    views: list[list[Pixels]]
    frames: tuple[int, int]
    times: tuple[float, float]
    valid: int


class DecoderProcess:
    """Decodes submitted videos one after another, a bounded number of messages ahead of `read`.

    `timeout`: seconds without a message after which a video is given up. `ahead`: messages that may wait here; each has
    few frames, see FRAMES_AT_ONCE in child.py.
    """

    def __init__(self, decoder: str, timeout: float, ahead: int = 8) -> None:
        self.decoder = decoder
        self.timeout = timeout
        self.ahead = ahead
        self._tasks: deque[Task] = deque()
        self._frames: dict[int, Pixels] = {}  # frames of the current video that later clips may show
        self._begun = False  # frames of the current video have come
        self._cache: Cache | None = None
        self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def submit(self, task: Task) -> None:
        """Queue a video. Its clips come out of `read` after those of the videos before it."""
        self._tasks.append(task)
        self._cache = task.cache or self._cache
        self._child.send(task)

    def read(self) -> DecodedClip | VideoEnd:
        """Return the next clip of the oldest unfinished video, or its end. Raises VideoError, which also ends that
        video, and VswinError where the decoder cannot be started."""
        while True:
            match self._wait():
                case DecodedFrames(pixels, row, oldest):
                    self._begun = True
                    self._frames.update(pixels)
                    if row is not None:
                        return self._clip(row, oldest)
                case VideoEnd() as end:
                    self._finish_video()
                    return end
                case VideoError() as error:
                    self._finish_video()
                    raise error
                case DecoderReady():
                    self._ready = True
                case Progress():
                    pass  # it has started the time limit anew
                case Ended(reason=reason) if not self._ready:
                    raise VswinError(f"the decoder {self.decoder} cannot be started: {reason}")
                case Ended(reason=reason):
                    self._restart()
                    raise DecoderCrash(f"the decoder's process died: {reason}")
                case other:
                    self._restart()
                    raise DecoderCrash(f"the decoder's process sent a {type(other).__name__}, which is no message")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._child.close()
        if self._cache is not None:
            sweep(self._cache.directory)

    def _wait(self) -> object:
        """Return the next message. Raises DecoderTimeout after `timeout` seconds, not counting those for which this
        process was suspended."""
        silence, step = 0.0, min(1.0, self.timeout / 4)
        while silence < self.timeout:
            begun = time.monotonic()
            try:
                return self._inbox.get(timeout=step)[1]
            except queue.Empty:
                silence += waited(begun, step)
        fetching = self._tasks[0].address is not None and not self._begun
        self._restart()
        slow = f"; perhaps its file came by less than {SLOWEST} bytes a second, or not at all" if fetching else ""
        raise DecoderTimeout(f"the decoder made no progress for {self.timeout:g} s and was stopped{slow}")

    def _clip(self, row: ClipRow, oldest: int) -> DecodedClip:
        frames = [self._frames[number] for number in row.shown]
        for number in [number for number in self._frames if number < oldest]:
            del self._frames[number]
        views = [[frame[crop] for frame in frames] for crop in range(len(frames[0]))]
        return DecodedClip(row.index, views, row.frames, row.times, row.valid)

    def _finish_video(self) -> None:
        self._tasks.popleft()
        self._frames = {}
        self._begun = False

    def _start(self) -> None:
        self._ready = False
        self._inbox: Inbox = queue.Queue(self.ahead)
        self._child = ChildProcess(CHILD, "decoder", self._inbox, ENVIRONMENT)
        self._child.send(self.decoder)

    def _restart(self) -> None:
        """Give up the video that `read` is at, and go on with the next one in a new process."""
        self._finish_video()
        self.close()
        self._start()
        for task in self._tasks:
            self._child.send(task)
