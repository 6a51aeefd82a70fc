"""A ring of frames on a device, to which each frame of the memory that decoders share is uploaded once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.process import DecodedClip

SPARE, SPARE_BYTES = 512, 256 << 20
"""Frames that the ring holds besides those of two batches, and their bytes, at most: frames that clips of later batches
show, too."""
REGISTERED_AT_ONCE = 64
"""Slots of the memory that CUDA is told of at a time, and so the most that are copied at a time."""


class FrameRing:
    """Frames on a device, uint8. A new frame takes the place of the oldest one.

    On CUDA, copies have a stream of their own, so that the frames of the next batch are uploaded while the network
    computes. On other devices, copies are done when they are called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._source: SharedSource | None = None
        self.uploaded = 0  # frames, all together
        self.clear()

    def clear(self) -> None:
        """Give the memory of the ring back."""
        self._content = torch.empty((0, 0), dtype=torch.uint8, device=self._device)  # (places, bytes of a slot)
        self._places: dict[int, int] = {}  # the place of a frame, by the serial of its slot
        self._serials: list[int | None] = []  # the frame in each place
        self._next = 0  # the place to fill next, unless it is in use
        self._before: set[int] = set()  # places of the batch before, which the device may be reading now
        self._read: torch.cuda.Event | None = None  # marks the end of the batch before that one

    def close(self) -> None:
        self.clear()
        if self._source is not None:
            self._source.close()
            self._source = None

    def load(self, clips: Sequence[DecodedClip]) -> tuple[Tensor, Tensor]:
        """Upload the frames of clips that are not in the ring. Return the frames of the ring, (places, crops, size,
        size, 3), and which of them each clip shows, (N, T). Clips must be of one shape, and stay until the device has
        computed them. The result is valid until the next batch but one is loaded."""
        slots = {slot.serial: slot.number for clip in clips for slot in clip.slots}
        source = self._prepare(clips[0].memory, len(slots))
        missing = sorted(slots.keys() - self._places.keys(), key=slots.__getitem__)
        in_use = self._before.union(self._places[serial] for serial in slots if serial in self._places)
        moves = [(slots[serial], self._place(serial, in_use)) for serial in missing]
        self._upload(source, moves)
        self._before = {self._places[serial] for serial in slots}
        index = torch.tensor([[self._places[slot.serial] for slot in clip.slots] for clip in clips])
        shape = clips[0].shape
        frames = self._content[:, : math.prod(shape)].view(-1, *shape)
        return frames, index.to(self._device, non_blocking=self._copies is not None)

    def _prepare(self, memory: FrameMemory, count: int) -> "SharedSource":
        """Return the source of frames. Make the ring larger where it does not hold `count` frames for each of two
        batches."""
        if self._source is None or self._source.memory is not memory:
            self.close()
            self._source = SharedSource(memory, self._device)
        if len(self._content) < 2 * count:
            self.clear()
            size = 2 * count + min(SPARE, SPARE_BYTES // memory.slot_bytes)
            self._content = torch.empty((size, memory.slot_bytes), dtype=torch.uint8, device=self._device)
            self._serials = [None] * size
            if self._copies is not None:  # what was in this memory before may still be in use
                self._copies.wait_stream(torch.cuda.current_stream(self._device))
        return self._source

    def _place(self, serial: int, in_use: set[int]) -> int:
        """Give a frame the next place that is not in use."""
        while self._next in in_use:
            self._next = (self._next + 1) % len(self._serials)
        place, self._next = self._next, (self._next + 1) % len(self._serials)
        old = self._serials[place]
        if old is not None:
            del self._places[old]
        self._serials[place] = serial
        self._places[serial] = place
        return place

    def _upload(self, source: "SharedSource", moves: Sequence[tuple[int, int]]) -> None:
        self.uploaded += len(moves)
        with self._copying():
            for slot, place, count in runs(moves):
                self._content[place : place + count].copy_(source.rows(slot, count), non_blocking=True)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        """Queue copies so that they overwrite nothing that is still read, and let the next batch wait for them. Places
        of the batch before are not filled, so copies wait for the batch before that one alone."""
        if self._copies is None:
            yield
            return
        now = torch.cuda.current_stream(self._device)
        if self._read is not None:
            self._copies.wait_event(self._read)
        self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._read.record(now)
        try:
            with torch.cuda.stream(self._copies):
                yield
        finally:  # also where some copies were queued, and the next one failed
            now.wait_stream(self._copies)


class SharedSource:
    """A frame memory as the source of copies. Where CUDA allows it, the pages of slots that are used are registered
    (pinned), so that the device reads them by itself; else the driver copies them twice."""

    def __init__(self, memory: FrameMemory, device: torch.device) -> None:
        self.memory = memory
        self._device = device
        self._rows = torch.from_numpy(memory.content)
        self._pinned: dict[int, bool] = {}  # by the number of a part: REGISTERED_AT_ONCE slots
        self._refused = device.type != "cuda"

    def rows(self, slot: int, count: int) -> Tensor:
        """Return slots, (count, bytes of a slot), which must be of one part."""
        part = slot // REGISTERED_AT_ONCE
        if not self._refused and part not in self._pinned:
            self._pinned[part] = self._register(part)
        return self._rows[slot : slot + count]

    def close(self) -> None:
        """Take back what CUDA was told."""
        registered = [part for part, done in self._pinned.items() if done]
        self._pinned = {}
        if not registered:
            return
        with torch.cuda.device(self._device):  # the thread that closes may have another
            torch.cuda.synchronize()
            for part in registered:
                torch.cuda.cudart().cudaHostUnregister(self._part(part).data_ptr())  # type: ignore[no-untyped-call]

    def _part(self, part: int) -> Tensor:
        return self._rows[part * REGISTERED_AT_ONCE : (part + 1) * REGISTERED_AT_ONCE]

    def _register(self, part: int) -> bool:
        rows = self._part(part)
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(rows.data_ptr(), rows.nbytes, 0)) == 0:
            return True
        self._refused = True
        with suppress(RuntimeError):  # CUDA reports the error once more, at the next kernel
            torch.empty(1, device=self._device).fill_(0)
        return False


def runs(moves: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Join moves from slots to places that follow one another, within a part of the memory: first slot, first place,
    count."""
    begun = 0
    for end in range(1, len(moves) + 1):
        slot, place = moves[end - 1]
        if end == len(moves) or moves[end] != (slot + 1, place + 1) or (slot + 1) % REGISTERED_AT_ONCE == 0:
            yield *moves[begun], end - begun
            begun = end
