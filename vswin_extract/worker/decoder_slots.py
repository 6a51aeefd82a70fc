"""Decoder processes that work ahead, and the order in which their clips are taken."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from vswin_extract.errors import VideoError
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.writer import InFlightVideo

log = logging.getLogger(__name__)

AHEAD = 2
"""Videos that a decoder is given at a time, so that it need not wait between two."""
IDLE = 0.2
"""Seconds between two looks at `stopping` while there is nothing to do."""
MEASURED = 1.0
"""Seconds of work after which a decoder is added, if most of them were spent waiting for decoders."""
WAITING = 0.5
"""The share of the time from which on it is waited most of the time."""


class Decoding(Protocol):
    """What a slot needs of a decoder process."""

    def submit(self, task: Task) -> None: ...

    def read(self) -> DecodedClip | VideoEnd:
        """Return the next clip or the end of the oldest unfinished video. Raises VideoError, which ends that video."""
        ...

    def close(self) -> None: ...


@dataclass
class DecoderSlot:
    """A decoder process and the videos that it was given; `read` is about the first. `begun`: it has given anything."""

    decoder: Decoding
    videos: deque[InFlightVideo] = field(default_factory=deque)
    begun: bool = False


class DecoderSlots:
    """Several decoders, which are read in turn.

    The order depends on the numbers of clips of the videos and never on timing, so the same videos give the same order,
    as long as there are as many decoders. `most`: there may be so many; another one is started when most of the time is
    spent waiting for them. `waited` is the time that was spent waiting for decoders, in seconds. `decoders`: how many
    were started.
    """

    def __init__(
        self,
        queue: VideoQueue,
        decoders: int,
        open_decoder: Callable[[], Decoding],
        make_task: Callable[[Video], Task],
        most: int = 0,
    ) -> None:
        videos = queue.bound()
        self.decoders = decoders if videos is None else min(decoders, max(1, videos))
        self._most = most
        self._queue = queue
        self._open_decoder = open_decoder
        self._make_task = make_task
        self._slots = deque(DecoderSlot(open_decoder()) for _ in range(self.decoders))
        self.waited = 0.0
        self._measured = 0.0, 0.0  # since when it is measured, and `waited` at that time

    def read(
        self, stopping: threading.Event
    ) -> Iterator[tuple[InFlightVideo, DecodedClip | VideoEnd | VideoError] | None]:
        """Yield what decoders give, each with its video, until all videos are decoded. Yield None when there is no
        video to decode for now. Once `stopping` is set, no further video is begun."""
        for slot in list(self._slots) * AHEAD:
            self._fill(slot)
        while self._slots:
            slot = self._slots[0]
            if stopping.is_set():
                self._drop_videos_not_begun()
            if not slot.videos:
                self._fill(slot)
            if not slot.videos and self._queue.finished:
                slot.decoder.close()
                self._slots.popleft()
            elif not any(other.videos for other in self._slots):
                yield None
                self._queue.wait(IDLE)
            elif not slot.videos:
                self._slots.rotate(-1)
            else:
                video = slot.videos[0]
                arrived = self._wait(slot.decoder)
                slot.begun = True
                self._grow()
                if isinstance(arrived, DecodedClip):
                    self._slots.rotate(-1)
                else:
                    slot.videos.popleft()
                    self._fill(slot)
                yield video, arrived

    def close(self) -> None:
        for slot in self._slots:
            slot.decoder.close()

    def _fill(self, slot: DecoderSlot) -> None:
        """Give a decoder the next video, if there is one."""
        if (video := self._queue.take()) is not None:
            slot.videos.append(InFlightVideo(video, fingerprint(video)))
            slot.decoder.submit(self._make_task(video))

    def _grow(self) -> None:
        """Start another decoder if it was waited for decoders most of the time since the newest one has begun."""
        now, (since, before) = time.perf_counter(), self._measured
        begun = all(slot.begun for slot in self._slots)
        if begun and now - since < MEASURED:
            return
        self._measured = now, self.waited
        waits = self.waited - before > WAITING * (now - since)
        if not (begun and since and waits and self.decoders < self._most and len(self._queue)):
            return
        try:
            slot = DecoderSlot(self._open_decoder())
        except OSError as error:  # as many processes as this user may have
            log.warning("no further decoder process can be started: %s", error.strerror)
            self._most = self.decoders
            return
        self.decoders += 1
        self._slots.append(slot)
        for _ in range(AHEAD):
            self._fill(slot)

    def _wait(self, decoder: Decoding) -> DecodedClip | VideoEnd | VideoError:
        begun = time.perf_counter()
        try:
            return decoder.read()
        except VideoError as error:
            return error
        finally:
            self.waited += time.perf_counter() - begun

    def _drop_videos_not_begun(self) -> None:
        self._queue.clear()
        for slot in self._slots:
            while len(slot.videos) > 1:
                slot.videos.pop()
