"""Memory for frames, which decoder processes and their parent share. A decoder writes each frame there once.

    parent                                                 child
    FrameMemory.take -> FrameSlot ───numbers, granted───>  GrantedSlots.write
    DecodedClip refers to slots   <──numbers, filled─────  DecodedFrames

It is a file without a name, see `system.anonymous_file`, so nothing of it is left when its processes are gone, however
they end. Pages of the file take memory from when they are first written. The lowest free slot is taken first, so the
memory follows what is used at a time.
"""

import errno
import heapq
import math
import mmap
import os
import queue
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import count

import numpy as np

from vswin_extract.errors import VswinError
from vswin_extract.formatting import human_bytes
from vswin_extract.system import anonymous_file
from vswin_extract.video.geometry import Geometry, Picture, Pixels
from vswin_extract.video.rows import most_kept
from vswin_extract.video.sampling import Sampling

FRAMES_AHEAD = 128
"""Slots that a decoder process may fill before its parent takes them. It has at least half of them
at any time, more than FRAMES_AT_ONCE of child.py, so it always has one slot left until it sends frames."""
LOST = 8 * FRAMES_AHEAD
"""Slots in reserve for those of processes that cannot be ended, as when their file system hangs."""
MOST_BYTES = 64 << 30
"""Bytes of a memory, used or not. Only very large frames, or clips of thousands of them, need more."""

_SERIALS = count()


class FrameSlot:
    """The slot of one frame, in the parent. It is free for another frame once nothing refers to this object.

    `serial`: no other frame in this process has this number.
    """

    __slots__ = ("_freed", "number", "serial")

    def __init__(self, number: int, freed: deque[int]) -> None:
        self.number = number
        self.serial = next(_SERIALS)
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(self.number)  # without a lock: this may run in any thread, at any time


class FrameMemory:
    """The parent's side: `slots` slots, each for a frame of up to `frame_bytes` bytes. One thread may call `take`."""

    def __init__(self, slots: int, frame_bytes: int) -> None:
        self.slot_bytes = -(-frame_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.slots = slots
        size = self.slots * self.slot_bytes
        try:
            self.file = anonymous_file("vswin-frames", size)
        except OSError as error:
            limit = "the limit of file sizes (ulimit -f) is too low: " if error.errno == errno.EFBIG else ""
            raise VswinError(
                f"there are no {human_bytes(size)} of memory for frames: {limit}{error.strerror}"
            ) from error
        weakref.finalize(self, os.close, self.file)
        self.content = map_slots(self.file, self.slots, self.slot_bytes)
        self._begun = 0  # slots from here on were never taken
        self._free: list[int] = []  # a heap
        self._freed: deque[int] = deque()  # free too, but not in the heap yet
        self._lost: list[FrameSlot] = []

    @classmethod
    def for_clips(cls, sampling: Sampling, geometry: Geometry, decoders: int, clips: int) -> "FrameMemory":
        """Return a memory that is large enough for so many decoder processes, and for `clips` clips that were read and
        are still in use."""
        slots = decoders * slots_of_decoder(sampling) + slots_of_clips(sampling, clips)
        frame_bytes = math.prod(geometry.shape)
        if (needed := slots * frame_bytes) > MOST_BYTES:
            raise VswinError(
                f"{decoders} decoders with {human_bytes(frame_bytes)} a frame need {human_bytes(needed)} of memory for "
                "frames; use a smaller --size, --batch-size or --clip-len, or fewer --workers"
            )
        return cls(slots, frame_bytes)

    def take(self) -> FrameSlot:
        """Return the lowest free slot. Raises VswinError where none is free."""
        while self._freed:
            heapq.heappush(self._free, self._freed.popleft())
        if self._free:
            return FrameSlot(heapq.heappop(self._free), self._freed)
        if self._begun == self.slots:
            raise VswinError(
                f"all {self.slots} frames of the memory that decoders share are in use, {len(self._lost)} of them by "
                "processes that cannot be ended"
            )
        self._begun += 1
        return FrameSlot(self._begun - 1, self._freed)

    def lose(self, slots: Iterable[FrameSlot]) -> None:
        """Never use these slots again: a process that cannot be ended may still write to them."""
        self._lost += slots

    def frames(self, shape: tuple[int, ...]) -> Pixels:
        """Return all slots as frames of this shape, (slots, *shape), without a copy."""
        return frames_of(self.content, shape)


def most_decoders(sampling: Sampling, geometry: Geometry, clips: int) -> int:
    """Return for how many decoder processes a memory can be made that also holds `clips` clips in use; perhaps none."""
    slots = MOST_BYTES // math.prod(geometry.shape) - slots_of_clips(sampling, clips)
    return max(0, slots // slots_of_decoder(sampling))


def slots_of_decoder(sampling: Sampling) -> int:
    return FRAMES_AHEAD + most_kept(sampling)


def slots_of_clips(sampling: Sampling, clips: int) -> int:
    """Return how many slots `clips` clips in use need, with those that may be lost."""
    return clips * sampling.clip_len + LOST


class GrantedSlots:
    """The child's side: the slots that the parent has granted to this process and that no frame fills yet."""

    def __init__(self, file: int, slots: int, slot_bytes: int) -> None:
        self._content = map_slots(file, slots, slot_bytes)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()

    def add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._free.put(number)

    def write(self, picture: Picture, geometry: Geometry) -> int:
        """Write the crops of a picture into a slot, and return its number. Waits until there is a slot."""
        number = self._free.get()
        try:
            geometry.apply(picture, out=frames_of(self._content, geometry.shape)[number])
        except BaseException:
            self._free.put(number)
            raise
        return number


def map_slots(file: int, slots: int, slot_bytes: int) -> Pixels:
    """Map the file of a frame memory: (slots, slot_bytes)."""
    return np.frombuffer(mmap.mmap(file, slots * slot_bytes), np.uint8).reshape(slots, slot_bytes)


def frames_of(content: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Return the first bytes of each slot as a frame of this shape, without a copy."""
    row, *strides = np.empty((1, *shape), np.uint8).strides
    if row > content.shape[1]:
        raise ValueError(f"a frame of {row} bytes does not fit into a slot of {content.shape[1]} bytes")
    return np.lib.stride_tricks.as_strided(content, (len(content), *shape), (content.strides[0], *strides))
