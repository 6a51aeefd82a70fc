"""The parent's side of a decoder's process: tasks in, clips out; watched, replaced when it hangs or dies."""

import contextlib
import fcntl
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vswin_extract.decoding.child import LENGTH, Header, Task
from vswin_extract.errors import VIDEO_ERRORS, DecoderCrash, DecoderTimeout, VswinError
from vswin_extract.video.fetch import Cache, sweep
from vswin_extract.video.geometry import Pixels

log = logging.getLogger(__name__)

IMPORTS = {"pyav": "av", "decord": "decord"}
"""What each decoder needs."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # processes are the parallelism
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # else glibc gives each frame's memory back, only to take it anew
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
Arrival = tuple[Header, Pixels | None] | None
"""A message, or None where the process ended."""


@dataclass(frozen=True)
class DecodedClip:
    """A clip's pixels and what they are.

    `views`: its crops, each T frames of (size, size, 3) uint8, which overlapping clips share. `frames` [first, end) in
    source frames, `times` [start, end) in seconds, `valid` frames that are not repeats.
    """

    index: int
    views: list[list[Pixels]]
    frames: tuple[int, int]
    times: tuple[float, float]
    valid: int


@dataclass(frozen=True)
class VideoEnd:
    """The video, or the clip_range of it, is over, after `clips`. `frames` were decoded of it, `width` x `height` upright, in
    `cpu` seconds of the processor; `damaged` packets were not. `trouble`: what is odd about it, if anything; `partial`:
    something of it is missing; `last`: it was decoded to its end, so that the figures are those of the whole video.
    `file`: size, mtime and etag, if it was fetched."""

    width: int
    height: int
    clips: int
    frames: int
    fps: float
    duration: float
    damaged: int
    trouble: str
    partial: bool
    last: bool
    cpu: float
    file: tuple[int, float, str] | None = None


class DecoderProcess:
    """Decodes submitted videos one after another, a bounded number of messages ahead of `read`.

    `timeout`: seconds without a message after which a video is given up. `ahead`: messages that may wait; one holds no
    more pixels than a clip has.
    """

    def __init__(self, decoder: str, timeout: float, ahead: int = 8) -> None:
        self.decoder = decoder
        self.timeout = timeout
        self.ahead = ahead
        self.tasks: deque[Task] = deque()
        self._start()

    cache: Cache | None = None
    ready: bool
    chatter: threading.Thread
    listener: threading.Thread

    def submit(self, task: Task) -> None:
        """Queue a video. Its clips come out of `read` after those of the videos before it."""
        self.tasks.append(task)
        self.cache = task.cache or self.cache
        self._write(task)

    def read(self) -> DecodedClip | VideoEnd:
        """The next clip of the oldest unfinished video, or its end. Raises VideoError, which also ends that video."""
        while True:
            try:
                arrival = self._wait()
            except queue.Empty:
                self._finish_video()
                self._restart()
                raise DecoderTimeout(f"the decoder made no progress for {self.timeout:g} s and was stopped") from None
            if arrival is None:
                how = cause_of_death(self.process.wait())
                self.chatter.join()
                words = "".join(f"; its last words: {line}" for line in self.last_words)
                if not self.ready:
                    raise VswinError(f"the decoder {self.decoder} cannot be started: {how}{words}")
                self._finish_video()
                self._restart()
                raise DecoderCrash(f"the decoder's process died: {how}{words}")
            header, pixels = arrival
            self.ready = True
            for frame in () if pixels is None else pixels:
                self.slots[next(self.numbers)] = frame
            if "ended" in header:
                self._finish_video()
                ended = header["ended"]
                return VideoEnd(**{**ended, "file": ended["file"] and tuple(ended["file"])})
            if "failed" in header:
                self._finish_video()
                kind, message = header["failed"]
                raise VIDEO_ERRORS[kind](message)
            if clip := header.get("clip"):
                views = self.tasks[0].geometry.views([self.slots[slot] for slot in clip["slots"]])
                for slot in [slot for slot in self.slots if slot < clip["oldest"]]:
                    del self.slots[slot]
                return DecodedClip(clip["index"], views, tuple(clip["frames"]), tuple(clip["times"]), clip["valid"])

    def _wait(self) -> Arrival:
        """The next message. Raises queue.Empty after `timeout` seconds, less those for which we were suspended."""
        waited, step = 0.0, min(1.0, self.timeout)
        while True:
            try:
                return self.arrivals.get(timeout=step)
            except queue.Empty:
                waited += step
                if waited >= self.timeout:
                    raise

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # the kernel does not let it go, as when a network file system hangs
            log.warning("process %d of the decoder cannot be ended", self.process.pid)
            return
        if self.cache is not None:
            sweep(self.cache.directory)
        while self.listener.is_alive():  # it may be waiting for room
            with contextlib.suppress(queue.Empty):
                self.arrivals.get(timeout=0.01)
        self.chatter.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a task that it did not read any more
                    pipe.close()

    def _finish_video(self) -> None:
        self.tasks.popleft()
        self._forget_frames()

    def _forget_frames(self) -> None:
        self.slots: dict[int, Pixels] = {}
        self.numbers = count()

    def _start(self) -> None:
        # its own process group, so that Ctrl-C reaches us alone
        self.process = subprocess.Popen(
            python_command("vswin_extract.decoding.child", IMPORTS[self.decoder]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            process_group=0,
        )
        if self.process.stdout is not None:
            with contextlib.suppress(OSError):  # where the system allows it: fewer turns between it and us
                fcntl.fcntl(self.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
        self.ready = False
        self.arrivals: queue.Queue[Arrival] = queue.Queue(self.ahead)
        self._forget_frames()
        self.last_words: deque[str] = deque(maxlen=1)
        self.listener = threading.Thread(target=_listen, args=(self.process.stdout, self.arrivals), daemon=True)
        self.chatter = threading.Thread(
            target=log_lines, args=(self.process.stderr, self.last_words, "decoder"), daemon=True
        )
        self.listener.start()
        self.chatter.start()

    def _restart(self) -> None:
        self.close()
        self._start()
        for task in self.tasks:
            self._write(task)

    def _write(self, task: Task) -> None:
        if self.process.stdin is not None:
            try:
                self.process.stdin.write(task.to_json().encode() + b"\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                log.debug("the decoder's process is gone; `read` will find out")


def _listen(pipe: BinaryIO, arrivals: queue.Queue[Arrival]) -> None:
    """Take messages off the pipe, so that the process can go on while the network computes."""
    while len(length := pipe.read(LENGTH.size)) == LENGTH.size:
        encoded = pipe.read(LENGTH.unpack(length)[0])
        try:
            header = json.loads(encoded)
        except ValueError:  # it died while writing
            break
        pixels = None
        if header.get("shape", [0])[0]:
            pixels = np.empty(header["shape"], np.uint8)
            if pipe.readinto(pixels.data.cast("B")) < pixels.size:  # type: ignore[attr-defined]
                break
        arrivals.put((header, pixels))
    arrivals.put(None)


def log_lines(pipe: BinaryIO, last_words: deque[str], who: str) -> None:
    """Native libraries' own words, for whoever wants to see them."""
    for line in pipe:
        if text := line.decode(errors="replace").strip():
            last_words.append(text)
            log.debug("%s: %s", who, text)


def python_command(module: str, argument: object) -> list[str]:
    """What runs `main(argument)` of a module of ours in a process of its own.

    Where this package is comes last on its path, and the working directory (-P) not at all. Signals that are meant for
    the run, which says what to do, are ignored: Slurm sends them to all processes of a job.
    """
    home = str(Path(__file__).parents[2])
    program = (
        "import signal, sys; "
        "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]; "
        f"sys.path.append({home!r}); from {module} import main; main({argument!r})"
    )
    return [sys.executable, "-P", "-c", program]


def cause_of_death(status: int) -> str:
    """A process's exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
