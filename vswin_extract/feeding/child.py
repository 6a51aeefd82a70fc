"""The decoder's process: it receives tasks, decodes them one after another, and sends frames and clips.

    listening thread  ──tasks──> main thread: file_of -> Decoder -> Positions -> FrameSender -> parent
                      ├─> GrantedSlots, in which the main thread writes frames
                      └─> Fetch, which copies the next video here while one is decoded

Imports no torch.
"""

import contextlib
import os
import queue
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from vswin_extract.decoding.decoders import Decoder, decoder_class, open_decoder
from vswin_extract.errors import DecoderCrash, VideoError, VideoMissing, first_line
from vswin_extract.feeding.by_table import send_by_table
from vswin_extract.feeding.frame_memory import GrantedSlots
from vswin_extract.feeding.messages import (
    DecoderReady,
    Grant,
    Progress,
    Setup,
    Task,
    VideoEnd,
)
from vswin_extract.feeding.positions import Positions
from vswin_extract.feeding.sender import Send, send_clips
from vswin_extract.processes import Channel
from vswin_extract.system import limit_memory
from vswin_extract.video.estimate import USUAL_BYTES, estimate_clips
from vswin_extract.video.fetch import Fetch
from vswin_extract.video.ranges import WHOLE

MOST_MEMORY = 8 << 30
"""Bytes of address space, besides the frame memory. If a video needs more, for example one made to exhaust memory, only
that video fails."""
PROGRESS_INTERVAL = 1.0
"""Seconds between two messages that there is progress."""

Waiting = queue.SimpleQueue[tuple[Task, Fetch | None]]


def decode_video(task: Task, send: Send, granted: GrantedSlots, fetch: Fetch | None = None) -> VideoEnd:
    """Decode one video and send all of it, except its end, which is returned. Raises VideoError."""
    if task.moments:
        return decode_pictures(task, send)
    before = time.process_time()
    on_progress = progress_sender(send)
    name = "pyav" if task.guess else task.decoder
    end: VideoEnd | None
    with file_of(task, on_progress, fetch) as path:
        with open_decoder(name, path, on_progress) as decoder:
            if task.guess:
                seconds = decoder.stream.header_seconds or path.stat().st_size / USUAL_BYTES
                clips = estimate_clips(seconds, task.sampling, task.start, task.end, decoder.stream.fps)
                end = VideoEnd(clips=clips)
            elif task.count:
                end = count_clips(decoder, task)
            else:
                end = send_by_table(decoder, task, send, granted)
                if end is None and not decoder.packets:
                    end = send_clips(decoder, task, send, granted)
        if end is None:  # packets of it were read in vain
            with open_decoder(name, path, on_progress) as decoder:
                end = send_clips(decoder, task, send, granted)
    file = (fetch.found.size, fetch.found.mtime, fetch.found.etag) if fetch else None
    return replace(end, cpu=time.process_time() - before, file=file)


def decode_pictures(task: Task, send: Send) -> VideoEnd:
    from vswin_extract.feeding.pictures import pictures_at  # only pages need it

    on_progress = progress_sender(send)
    with file_of(task, on_progress, None) as path:
        return VideoEnd(pictures=pictures_at(path, task.moments, task.picture_size, on_progress))


def count_clips(decoder: Decoder, task: Task) -> VideoEnd:
    positions = Positions(decoder, task)
    for _ in positions:
        pass
    return positions.video_end(task.sampling.count(positions.seen), size=(0, 0), complete=False)


@contextlib.contextmanager
def file_of(task: Task, on_progress: Callable[[], None], fetch: Fetch | None) -> Iterator[Path]:
    """Give the video's file on this machine. Raises VideoError."""
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
        raise VideoMissing(f"{path} cannot be opened: {error.strerror}") from error
    if not regular:
        raise VideoMissing(f"{path} is not a regular file")
    yield path


def progress_sender(send: Send, interval: float = PROGRESS_INTERVAL) -> Callable[[], None]:
    """Return a progress callback that sends Progress at most once in `interval` seconds."""
    last = time.monotonic()

    def on_progress() -> None:
        nonlocal last
        if time.monotonic() - last > interval:
            send(Progress())
            last = time.monotonic()

    return on_progress


def run_task(task: Task, send: Send, granted: GrantedSlots, fetch: Fetch | None = None) -> None:
    """Decode one video and send all of it, then its end or its error. Every exception fails only this video, also the
    SystemExit or KeyboardInterrupt of a library: no signal of the user's raises one here."""
    outcome: VideoEnd | VideoError
    try:
        outcome = decode_video(task, send, granted, fetch)
    except VideoError as error:
        outcome = error
    except BaseException as error:  # a bug here or in a library; the next video may still work
        with contextlib.suppress(MemoryError):  # the frames of the failed video are still there
            traceback.print_exc()
        outcome = DecoderCrash(f"the decoder failed: {type(error).__name__}: {first_line(error)}")
    send(outcome)


def receive_tasks(
    receive: Callable[[], Any], waiting: Waiting, granted: GrantedSlots, leave: Callable[[int], object] = os._exit
) -> None:
    """Receive granted slots, and tasks, whose files are fetched from now on. Ends the process when the parent is gone,
    whatever it is doing."""
    last: Fetch | None = None
    try:
        while True:
            message: Task | Grant = receive()
            if isinstance(message, Grant):
                granted.add(message.slots)
                continue
            task = message
            fetch = None
            if task.address is not None and task.cache is not None:
                fetch = last = Fetch(task.address, task.cache, exact=task.clip_range != WHOLE, after=last)
                fetch.start()
            waiting.put((task, fetch))
    except (EOFError, OSError):
        leave(0)
    except BaseException:  # the last line that is printed is the reason that the parent gives
        traceback.print_exc()
        sys.stderr.flush()
        leave(1)


def main(channel: Channel) -> None:
    """Serve tasks for the decoder that the first message names."""
    setup: Setup = channel.receive()
    limit_memory(MOST_MEMORY + setup.slots * setup.slot_bytes)
    cv2.setNumThreads(1)  # processes are the parallelism
    decoder_class(setup.decoder).set_up_process()
    granted = GrantedSlots(setup.file, setup.slots, setup.slot_bytes)
    channel.send(DecoderReady())
    waiting: Waiting = queue.SimpleQueue()
    threading.Thread(target=receive_tasks, args=(channel.receive, waiting, granted), daemon=True).start()
    while True:
        task, fetch = waiting.get()
        run_task(task, channel.send, granted, fetch)
