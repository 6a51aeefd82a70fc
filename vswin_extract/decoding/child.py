"""The decoder's process: reads tasks, decodes, cuts clips, sends frames and clips. Imports no torch.

    standard input     one JSON line a task (`Task`); its end means that nobody wants anything any more
    standard output    messages: 4 bytes of length, a JSON header, then the pixels of header["shape"] in uint8

A header is one of
    {"shape": [n, h, w, 3], "clip": {index, slots, oldest, frames, times, valid} or null}
                n new frames, which fill the next n slots, and a clip made of slots; slots before `oldest` are over
    {"ended": {width, height, clips, frames, fps, duration, damaged, trouble, partial, last, cpu, file}}
    {"failed": [class name, message]}
    {}          something was read or fetched, though no frame that a clip shows
    {"ready": true}     first of all, once the decoder has been imported
"""

import contextlib
import json
import os
import queue
import resource
import stat
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

from vswin_extract.decoding.decoders import Decoder, Shown, open_decoder, timeline
from vswin_extract.errors import VideoError, VideoMissing, VideoTimestamps, VideoUnreadable
from vswin_extract.video.fetch import Cache, Fetch
from vswin_extract.video.geometry import Geometry, Pixels
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Clip, ClipCutter, Resampler, Sampling

LENGTH = struct.Struct("<I")
LONGEST_STILL = 600.0
"""Seconds that one frame may be shown where time stamps are resampled; behind a longer gap they are not trusted."""
FRAMES_AT_ONCE = 16
"""So many new frames are sent at the latest, not only when a clip is whole."""
MOST_MEMORY = 8 << 30
"""Bytes of address space: what asks for more, as a bomb does, dies alone."""
USUAL_BYTES = 250_000
"""A second of video, as it is found on the web."""
USUAL_RATE = 30
"""Frames of such a second."""
HEARTBEAT = 1.0
"""Seconds after which frames that no clip shows are a message too."""

Header = dict[str, Any]
NOTHING: Header = {
    **dict.fromkeys(("width", "height", "frames", "fps", "duration", "damaged", "cpu"), 0), "trouble": "",
    "partial": False, "last": True, "file": None,
}  # fmt: skip
"""The end of a video that was not decoded."""
Send = Callable[[Header, list[Pixels]], None]


@dataclass(frozen=True)
class Task:
    """One video to be decoded, or its segment from `start` to `end` seconds; of its clips, those of `clip_range`.

    `count`: only count its clips, by its packets. `guess`: only say about how many there are, by its header.
    `address`: it has to be fetched first, into the cache.
    """

    path: str
    decoder: str
    sampling: Sampling
    geometry: Geometry
    start: float | None = None
    end: float | None = None
    clip_range: ClipRange = WHOLE
    count: bool = False
    guess: bool = False
    address: Address | None = None
    cache: Cache | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)  # fps as "30000/1001"

    @classmethod
    def from_json(cls, line: bytes) -> "Task":
        read = json.loads(line)
        fps = read["sampling"]["fps"]
        read["sampling"] = Sampling(**{**read["sampling"], "fps": fps and Fraction(fps)})
        read["geometry"] = Geometry(**read["geometry"])
        read["clip_range"] = tuple(read["clip_range"])
        read["address"] = read["address"] and Address(**read["address"])
        read["cache"] = read["cache"] and Cache(**read["cache"])
        return cls(**read)


@dataclass
class Position:
    """A frame of the (resampled) video: its source frame, when it begins, and where its pixels went, if anywhere."""

    source: int
    time: float
    slot: int | None


class ClipCounter:
    """Takes positions and only counts them."""

    last: Shown
    through = False

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.seen = 0
        self.size = (0, 0)

    @property
    def clips(self) -> int:
        return self.sampling.count(self.seen)

    def add(self, shown: Shown, begin: float) -> None:
        self.seen += 1

    def finish(self, end: float) -> None:
        """Nothing is left to send."""


class ClipSender:
    """Takes positions one by one, converts the frames that clips show, once each, and sends frames and clips.

    `last`: the last frame of the video so far, whether a position shows it or not. Of a clip_range of clips the positions
    before it are counted, and no more; it is `through` once its last clip is sent.
    """

    last: Shown

    def __init__(self, sampling: Sampling, geometry: Geometry, send: Send, clip_range: ClipRange = WHOLE) -> None:
        self.first, self.end = clip_range
        self.sampling = sampling
        self.geometry = geometry
        self.send = send
        self.cutter = ClipCutter(sampling)
        self.track: deque[Position] = deque()  # what later clips may show; ends at position cutter.seen - 1
        self.fresh: list[Pixels] = []
        self.slots = 0
        self.size = (0, 0)

    @property
    def seen(self) -> int:
        return self.cutter.seen

    @property
    def clips(self) -> int:
        """So many have been sent."""
        return max(0, (self.cutter.next if self.end is None else min(self.cutter.next, self.end)) - self.first)

    @property
    def through(self) -> bool:
        return self.end is not None and self.cutter.next >= self.end

    def add(self, shown: Shown, begin: float) -> None:
        used = self.sampling.uses(self.cutter.seen, self.first, self.end)
        previous = self.track[-1] if self.track else None
        same = previous is not None and previous.source == shown.index
        position = Position(shown.index, begin, previous.slot if previous and same else None)
        self.newest = shown
        if used and position.slot is None:
            self._convert(position, shown)
        self.track.append(position)
        for clip in self.cutter.arrived():
            self._send_wanted(clip, end=None)
        for _ in range(len(self.track) - (self.cutter.seen - self.cutter.oldest)):
            self.track.popleft()
        if len(self.fresh) >= FRAMES_AT_ONCE:
            self._send(None, end=None)

    def finish(self, end: float) -> None:
        """The video is over; its last position ends at `end` seconds."""
        if self.track and self.track[-1].slot is None:
            self._convert(self.track[-1], self.newest)  # clips that reach over the end repeat it
        for clip in self.cutter.ended():
            self._send_wanted(clip, end)

    def _send_wanted(self, clip: Clip, end: float | None) -> None:
        if self.first <= clip.index and (self.end is None or clip.index < self.end):
            self._send(clip, end)

    def _convert(self, position: Position, shown: Shown) -> None:
        rgb = shown.rgb()
        if not self.slots:
            self.size = rgb.shape[1], rgb.shape[0]
        pixels = self.geometry.apply(rgb)
        if self.fresh and pixels.shape != self.fresh[0].shape:  # the resolution changed midway
            self._send(None, end=None)
        self.fresh.append(pixels)
        position.slot = self.slots
        self.slots += 1

    def _send(self, clip: Clip | None, end: float | None) -> None:
        header: Header = {"shape": [len(self.fresh), *self.fresh[0].shape] if self.fresh else [0], "clip": None}
        if clip is not None:
            base = self.cutter.seen - len(self.track)
            behind = clip.end - base
            header["clip"] = {
                "index": clip.index,
                "slots": [self.track[p - base].slot for p in clip.positions],
                "oldest": next((p.slot for p in self._later(base) if p.slot is not None), self.slots),
                # up to the frame that the next position shows: what is on screen meanwhile is covered, too
                "frames": [
                    self.track[clip.first - base].source,
                    max(
                        self.track[clip.end - 1 - base].source + 1,
                        self.track[behind].source if behind < len(self.track) else self.last.index + 1,
                    ),
                ],
                "times": [
                    self.track[clip.first - base].time,
                    self.track[behind].time if behind < len(self.track) else end,
                ],
                "valid": clip.valid,
            }
        self.send(header, self.fresh)
        self.fresh = []

    def _later(self, base: int) -> Iterator[Position]:
        """The positions that clips to come may show."""
        for position in range(max(self.cutter.oldest, base), self.cutter.seen):
            yield self.track[position - base]


def decode(task: Task, send: Send, fetch: Fetch | None = None) -> None:
    """Decode one video and send all of it. Raises VideoError."""
    before = time.process_time()
    with file_of(task, heartbeat(send), fetch) as path:
        if task.guess:
            with open_decoder("pyav", path, heartbeat(send)) as decoder:
                ended = {**NOTHING, "clips": guess(decoder, task, path.stat().st_size)}
        else:
            with open_decoder(task.decoder, path, heartbeat(send)) as decoder:
                counter, sender = (
                    ClipCounter(task.sampling),
                    ClipSender(task.sampling, task.geometry, send, task.clip_range),
                )
                ended = cut(decoder, task, counter if task.count else sender)
    file = fetch and (fetch.found.size, fetch.found.mtime, fetch.found.etag)
    send({"ended": {**ended, "cpu": time.process_time() - before, "file": file}}, [])


@contextlib.contextmanager
def file_of(task: Task, on_progress: Callable[[], None], fetch: Fetch | None) -> Iterator[Path]:
    """The video's file on this machine. Raises VideoError."""
    if fetch is not None:
        try:
            yield fetch.wait(on_progress)
        finally:
            fetch.drop()
        return
    path = Path(task.path)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # opening a FIFO would wait for ever
    except OSError as error:
        raise VideoMissing(f"cannot be opened: {error.strerror}") from error
    if not regular:
        raise VideoMissing("is not a regular file")
    yield path


def guess(decoder: Decoder, task: Task, size: int) -> int:
    """About how many clips a video has, as its header has it; where that says nothing, by the size of its file."""
    seconds = decoder.stream.about or size / USUAL_BYTES
    return clips_in(seconds, task.sampling, task.start, task.end, decoder.stream.fps)


def clips_in(seconds: float, sampling: Sampling, start: float | None, end: float | None, fps: float = 0.0) -> int:
    """About how many clips there are between `start` and `end` of a video of so many seconds."""
    shown = min(seconds, seconds if end is None else end) - (start or 0.0)
    return max(1, sampling.count(round(shown * float(sampling.fps or fps or USUAL_RATE))))


def heartbeat(send: Send) -> Callable[[], None]:
    """What tells the parent now and then that there is progress, however often it is called."""
    last = time.monotonic()

    def on_progress() -> None:
        nonlocal last
        if time.monotonic() - last > HEARTBEAT:
            send({}, [])
            last = time.monotonic()

    return on_progress


def cut(decoder: Decoder, task: Task, clips: ClipCounter | ClipSender) -> Header:
    """Cut the frames that are shown between the task's start and end into clips; what the video turned out to be."""
    origin = task.start or 0.0
    tolerance = min(decoder.stream.tick / 2, 0.0005)
    fps = task.sampling.fps
    resampler = Resampler(fps, decoder.stream.tick) if fps else None
    first: Shown | None = None
    last: Shown | None = None
    for shown in timeline(decoder, decoder.scan() if task.count else decoder):
        if task.end is not None and shown.start >= task.end - tolerance:
            break
        last = shown
        clips.last = shown
        if task.start and shown.end <= task.start + tolerance:
            continue
        first = first or shown
        if resampler is None or fps is None:
            clips.add(shown, shown.start)
            if clips.through:
                break
            continue
        if shown.end - shown.start > LONGEST_STILL:
            raise VideoTimestamps(
                f"time stamps jump from {shown.start:.3f} s to {shown.end:.3f} s at frame {shown.index + 1}, "
                "too far to resample; extract it without --fps"
            )
        for _ in repeat(None, resampler.repeats(min(shown.end, task.end or shown.end) - origin)):
            clips.add(shown, origin + float(clips.seen / fps))
        if clips.through:
            break
    if last is None:
        if not decoder.damaged and task.end is not None:
            raise VideoUnreadable(f"nothing of it is shown between {origin:g} s and {task.end:g} s")
        why = f": {decoder.trouble}" if decoder.trouble else ""
        raise VideoUnreadable(f"no frame of it decodes ({decoder.damaged} damaged packets{why})")
    if first is None:
        raise VideoUnreadable(f"it ends at {last.end:.3f} s, before its segment starts at {origin:g} s")
    if not clips.seen:  # shorter than one period of fps
        clips.add(first, origin)
    broken_off = clips.through  # what follows is another clip_range's
    trouble = decoder.trouble
    missing = decoder.stream.declared - last.end
    cut_short = (
        not broken_off
        and (task.end is None or last.end < task.end)
        and missing > max(0.5, 0.05 * decoder.stream.declared)
    )
    if cut_short:
        trouble = f"it ends after {last.end:.2f} of the {decoder.stream.declared:.2f} s that it declares"
    end = min(last.end, task.end) if task.end is not None and resampler else last.end
    if not broken_off:
        clips.finish(end)
    frames, duration = last.index + 1 - first.index, last.end - first.start
    measured = frames / duration if duration else 0.0
    nominal = decoder.stream.fps
    return {
        "width": clips.size[0],
        "height": clips.size[1],
        "clips": clips.clips,
        "frames": frames,
        # containers with a coarse clock make the measured rate of a constant one a little off
        "fps": nominal if nominal and abs(measured - nominal) < 0.01 * nominal else measured,
        "duration": duration,
        "damaged": decoder.damaged,
        "trouble": trouble,
        "partial": bool(cut_short or decoder.damaged),
        "last": not broken_off,
    }


def serve(tasks: BinaryIO, messages: BinaryIO) -> None:
    """Work through tasks until there are no more. When their source closes, whatever is being decoded is given up."""

    def send(header: Header, pixels: list[Pixels]) -> None:
        encoded = json.dumps(header).encode()
        messages.write(LENGTH.pack(len(encoded)) + encoded)
        for frame in pixels:
            messages.write(frame.data)
        messages.flush()

    waiting: queue.SimpleQueue[tuple[Task, Fetch | None]] = queue.SimpleQueue()

    def listen() -> None:
        last: Fetch | None = None
        for line in tasks:
            task, fetch = Task.from_json(line), None
            if task.address is not None and task.cache is not None:  # fetched while videos before it are decoded
                fetch = last = Fetch(task.address, task.cache, exact=task.clip_range != WHOLE, after=last)
                fetch.start()
            waiting.put((task, fetch))
        os._exit(0)  # the parent is gone, or done with us

    threading.Thread(target=listen, daemon=True).start()
    send({"ready": True}, [])
    while True:
        task, fetch = waiting.get()
        try:
            decode(task, send, fetch)
        except VideoError as error:
            send({"failed": [type(error).__name__, str(error)]}, [])
        except Exception:  # a bug: its last line reaches the user, since Python's own way out would wait for `listen`
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def main(decoder: str) -> None:
    """Serve tasks for this decoder on standard input and output."""
    limit = MOST_MEMORY
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force, or the system has none
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Native libraries print where they like: keep the message pipe to ourselves, give them standard error.
    pipe = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    imported = import_module(decoder)
    if decoder == "av":  # which keeps FFmpeg silent; the parent logs standard error for those who ask
        imported.logging.set_libav_level(imported.logging.WARNING)
        imported.logging.restore_default_callback()
    serve(sys.stdin.buffer, pipe)
