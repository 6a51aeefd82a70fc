"""The parent's side of a decoder process: tasks in, clips out. It is watched, and replaced when it hangs or dies."""

import queue
import time
from collections import deque
from dataclasses import dataclass

from vswin_extract.errors import DecoderCrash, DecoderTimeout, VideoError, VswinError
from vswin_extract.feeding.frame_memory import FRAMES_AHEAD, FrameMemory, FrameSlot
from vswin_extract.feeding.messages import DecodedFrames, DecoderReady, Grant, Progress, Setup, Task, VideoEnd
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


GRANTED_AT_ONCE = 64
"""Slots that are granted by one message, at least. Without them, a child needs more than FRAMES_AT_ONCE of child.py."""


@dataclass(frozen=True)
class DecodedClip:
    """A clip: where its pixels are, and what they are.

    `slots`: those of its T frames in the `memory`, which overlapping clips share; a frame is of `shape`, (crops, size,
    size, 3). `frames`: [first, end) in source frames. `times`: [start, end) in seconds. `valid`: how many of its frames
    are real, not repeated. The pixels stay as they are as long as the clip is there.
    """

    index: int
    memory: FrameMemory
    shape: tuple[int, int, int, int]
    slots: tuple[FrameSlot, ...]
    frames: tuple[int, int]
    times: tuple[float, float]
    valid: int

    @property
    def views(self) -> Pixels:
        """A copy of its pixels: (crops, T, size, size, 3)."""
        return self.memory.frames(self.shape)[[slot.number for slot in self.slots]].swapaxes(0, 1)


class DecoderProcess:
    """Decodes submitted videos one after another, a bounded number of messages ahead of `read`.

    `timeout`: seconds without a message after which a video is given up. `memory`: for the frames of clips, see
    `FrameMemory.for_clips`; a process that makes no clips needs none. `ahead`: messages that may wait here.
    """

    def __init__(self, decoder: str, timeout: float, memory: FrameMemory | None = None, ahead: int = 8) -> None:
        self.decoder = decoder
        self.timeout = timeout
        self.ahead = ahead
        self._tasks: deque[Task] = deque()
        self._memory = memory or FrameMemory(1, 1)
        self._frames_ahead = FRAMES_AHEAD if memory else 0
        self._frames: dict[int, FrameSlot] = {}  # frames of the current video that later clips may show
        self._granted: dict[int, FrameSlot] = {}  # slots that the child may fill, or has filled in unread messages
        self._begun = False  # frames of the current video have come
        self._cache: Cache | None = None
        self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def submit(self, task: Task) -> None:
        """Queue a video. Its clips come out of `read` after those of the videos before it. Raises ValueError where its
        frames do not fit into the memory."""
        if task.makes_clips:
            if not self._frames_ahead:
                raise ValueError("a decoder process without memory only counts clips and takes pictures")
            self._memory.frames(task.geometry.shape)
        self._tasks.append(task)
        self._cache = task.cache or self._cache
        self._child.send(task)

    def read(self) -> DecodedClip | VideoEnd:
        """Return the next clip of the oldest unfinished video, or its end. Raises VideoError, which also ends that
        video, and VswinError where the decoder cannot be started."""
        while True:
            match self._wait():
                case DecodedFrames() as message:
                    self._begun = True
                    if (clip := self._take(message)) is not None:
                        return clip
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
        if not self._child.close():
            self._memory.lose(self._granted.values())
        self._granted = {}
        self._frames = {}
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

    def _take(self, message: DecodedFrames) -> DecodedClip | None:
        """Take new frames, and return the clip that they complete. Raises DecoderCrash where the child filled a slot
        that it was not granted, or names a frame that it did not send."""
        try:
            for number, slot in message.slots.items():
                self._frames[number] = self._granted.pop(slot)
            clip = None if message.row is None else self._clip(message.row)
        except (KeyError, TypeError) as error:
            self._restart()
            raise DecoderCrash(f"the decoder's process sent a clip of frames that are not there: {error}") from error
        for number in [number for number in self._frames if number < message.oldest]:
            del self._frames[number]
        self._grant()
        return clip

    def _clip(self, row: ClipRow) -> DecodedClip:
        slots = tuple([self._frames[number] for number in row.shown])
        return DecodedClip(
            row.index, self._memory, self._tasks[0].geometry.shape, slots, row.frames, row.times, row.valid
        )

    def _grant(self) -> None:
        """Let the child fill more slots, once it is worth a message."""
        if len(self._granted) > self._frames_ahead - GRANTED_AT_ONCE:
            return
        slots = [self._memory.take() for _ in range(self._frames_ahead - len(self._granted))]
        self._granted.update((slot.number, slot) for slot in slots)
        self._child.send(Grant(tuple(slot.number for slot in slots)))

    def _finish_video(self) -> None:
        self._tasks.popleft()
        self._frames = {}
        self._begun = False

    def _start(self) -> None:
        self._ready = False
        self._inbox: Inbox = queue.Queue(self.ahead)
        memory = self._memory
        self._child = ChildProcess(CHILD, "decoder", self._inbox, ENVIRONMENT, files=[memory.file])
        self._child.send(Setup(self.decoder, memory.file, memory.slots, memory.slot_bytes))
        self._grant()

    def _restart(self) -> None:
        """Give up the video that `read` is at, and go on with the next one in a new process."""
        self.close()
        self._finish_video()
        self._start()
        for task in self._tasks:
            self._child.send(task)
