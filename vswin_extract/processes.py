"""Child processes of this package, and the messages that go to them and come from them.

    parent                                       child
    ChildProcess.send ───────messages──────────> Channel.receive
    inbox, a queue    <──reader thread─messages─ Channel.send

A message is any value that pickle knows. NumPy arrays in it are sent as they lie in memory, without a copy. Decoders
and workers of devices are such children. A child runs our own code as the same user, so its messages are trusted as
much as this process is; a child that sends anything else is ended.

No call blocks for ever: the parent reads in a thread of its own, and ends a child that does not read, or that begins a
message and does not end it. Bytes that are no message, as a native library may print them, are recognised at once.
"""

import logging
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from vswin_extract.errors import first_line

log = logging.getLogger(__name__)

MAGIC = b"\x89VSW"
"""Every message begins with these bytes."""
HEADER = struct.Struct("<4sIQI")
"""MAGIC, the number of parts, their bytes together, and the CRC-32 of the three."""
SIZE = struct.Struct("<Q")
SMALL = 1 << 16
"""Bytes that one call of the system sends or receives: each call costs more than a copy of so few bytes."""
MOST_PARTS = 1 << 16
MOST_BYTES = 1 << 30
"""A message has at most this many buffers, each of at most this many bytes. A header with larger numbers is
an error."""
SEND_TIMEOUT = 30
"""Seconds after which a child that does not read its messages is ended."""
RECEIVE_TIMEOUT = 30
"""Seconds without a byte after which a child that has begun a message is ended."""
SUSPENDED = 1.0
"""A wait that takes so many seconds longer than it should shows that this process was suspended meanwhile."""
MOST_LINE = 1 << 16
"""Bytes of a line that a child prints; a longer one is taken as several."""
KILL_TIMEOUT = 5.0
"""Seconds that the kernel has to end a process. On a network file system that hangs it may take for ever."""
IGNORED = "signal.SIGINT, signal.SIGTERM, signal.SIGUSR1"
"""Signals that are meant for the parent, which tells its children what to do. Slurm sends them to all processes."""


class Channel:
    """Messages over a connected socket. One thread may send while another one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._pending = memoryview(b"")  # received, and not read yet

    def send(self, message: object) -> None:
        """Send a message. Raises OSError where the other end is closed."""
        buffers: list[pickle.PickleBuffer] = []
        parts = [memoryview(pickle.dumps(message, 5, buffer_callback=buffers.append))]
        parts += [buffer.raw() for buffer in buffers]
        begin = pack_header([part.nbytes for part in parts])
        if len(parts) == 1 and len(parts[0]) <= SMALL:
            parts = [memoryview(begin + parts[0])]
        else:
            parts.insert(0, memoryview(begin))
        with self._sending:
            for part in parts:
                self._socket.sendall(part)

    def receive(self) -> Any:
        """Wait for the next message. Raises EOFError or OSError where the other end is closed, and any other exception
        where what comes is no message."""
        begin = self._read(1, begun=False)
        if begin != MAGIC[:1]:
            raise ValueError("it does not begin as a message")
        begin += self._read(HEADER.size - 1)
        magic, count, total, check = HEADER.unpack(begin)
        if magic != MAGIC or check != zlib.crc32(begin[:-4]):
            raise ValueError("the header of a message is damaged")
        if not 0 < count <= MOST_PARTS:
            raise ValueError(f"a message cannot have {count} parts")
        sizes = [size for (size,) in SIZE.iter_unpack(self._read(count * SIZE.size))]
        if max(sizes) > MOST_BYTES or sum(sizes) != total:
            raise ValueError(f"parts of a message cannot have {max(sizes)} bytes, and {total} together")
        data, *buffers = [self._read(size) for size in sizes]
        try:
            return pickle.loads(data, buffers=buffers)
        except (EOFError, OSError) as error:  # not the end of the connection
            raise ValueError(f"a message cannot be read: {first_line(error)}") from error

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int, begun: bool = True) -> bytearray:
        """Read so many bytes. Raises EOFError, and ValueError where a message has `begun` and does not go on for the
        timeout of the socket."""
        content = bytearray(size)
        left = memoryview(content)
        while left:
            if not self._pending:
                try:
                    self._pending = memoryview(self._socket.recv(SMALL))
                except BlockingIOError as error:
                    if begun:
                        raise ValueError("a message was begun and not ended") from error
                    continue
                if not self._pending:
                    raise EOFError
            count = min(len(left), len(self._pending))
            left[:count] = self._pending[:count]
            left, self._pending = left[count:], self._pending[count:]
        return content


def pack_header(sizes: Sequence[int]) -> bytes:
    """Return what a message of parts of these sizes begins with."""
    header = HEADER.pack(MAGIC, len(sizes), sum(sizes), 0)[:-4]
    return header + struct.pack("<I", zlib.crc32(header)) + b"".join(SIZE.pack(size) for size in sizes)


class Ended:
    """The last message of every child, made by the parent: the process is over. `reason` says how, with the last line
    that it printed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


Inbox = queue.Queue[tuple["ChildProcess", Any]]
"""Messages of children, each with the child that it is from. A bounded queue makes its children wait."""


class ChildProcess:
    """A process that runs `main(channel)` of a module of this package. Its messages arrive in `inbox`.

    `name` is for the log. Whatever the process prints is logged at level debug. `environment`: variables that it gets
    besides those of this process. `files`: open files that it gets too, under the same descriptors.
    """

    def __init__(
        self,
        module: str,
        name: str,
        inbox: Inbox,
        environment: Mapping[str, str] | None = None,
        send_timeout: int = SEND_TIMEOUT,
        receive_timeout: int = RECEIVE_TIMEOUT,
        files: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.inbox = inbox
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", send_timeout, 0))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", receive_timeout, 0))
        self._channel = Channel(ours)
        self._closed = threading.Event()
        self._last_line = ""
        with theirs:
            self._process = subprocess.Popen(
                _command(module, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # native libraries print to either
                pass_fds=[theirs.fileno(), *files],
                env={**os.environ, **(environment or {})},
                process_group=0,  # so that Ctrl-C reaches the parent alone
            )
        self._logger = threading.Thread(target=self._log_lines, args=(self._process.stdout,), daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._logger.start()
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message. A child that is over or does not read is reported by `Ended`, not here."""
        try:
            self._channel.send(message)
        except BlockingIOError:
            log.debug("%s does not read its messages; it is ended", self.name)
            self._process.kill()
        except OSError:
            log.debug("%s is over; its last message says why", self.name)

    def close(self) -> bool:
        """End the process at once. Return False where it cannot be ended."""
        self._closed.set()
        self._process.kill()
        try:
            self._process.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("process %d (%s) cannot be ended", self.pid, self.name)
            return False
        self._reader.join()
        self._logger.join()
        self._channel.close()
        return True

    def _read(self) -> None:
        """Put the child's messages into the inbox, and `Ended` after the last one."""
        reason = ""
        try:
            while True:
                self._put(self._channel.receive())
        except (EOFError, OSError):
            pass
        except BaseException as error:  # pickle raises whatever the bytes make it do
            reason = f"it sent bytes that are no message: {first_line(error)}"
            self._process.kill()
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._logger.join(1)
        reason = reason or describe_exit(status)
        self._put(Ended(f"{reason}; it printed: {self._last_line}" if self._last_line else reason))

    def _put(self, message: object) -> None:
        while not self._closed.is_set():
            try:
                self.inbox.put((self, message), timeout=0.1)
                return
            except queue.Full:
                continue

    def _log_lines(self, output: IO[bytes]) -> None:
        with output:
            for line in iter(lambda: output.readline(MOST_LINE), b""):
                if text := line.decode(errors="replace").strip():
                    self._last_line = text
                    log.debug("%s: %s", self.name, text)


def waited(begun: float, most: float) -> float:
    """Return for how many seconds a wait of at most `most`, begun at this time of time.monotonic, counts. If this
    process was suspended meanwhile (by Ctrl-Z, for example), it is 0: what was sent may arrive in the next moment."""
    took = time.monotonic() - begun
    return 0.0 if took > most + SUSPENDED else min(took, most)


def run_child(module: str, descriptor: int) -> None:
    """Run `main` of the module in this process, a child, with the channel to the parent. An exception in any thread
    ends the process; its last line is the reason that the parent gives."""
    threading.excepthook = _end_process
    import_module(module).main(Channel(socket.socket(fileno=descriptor)))


def _end_process(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is SystemExit:  # how a thread may end itself
        return
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def describe_exit(status: int) -> str:
    """Return how a process ended, by its exit status, as "exit status 1" or "signal SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _command(module: str, descriptor: int) -> list[str]:
    """Return the command line of a child. The working directory is not searched for modules (-P), and the directory of
    this package is searched last."""
    home = str(Path(__file__).parents[1])
    program = (
        f"import signal, sys; [signal.signal(number, signal.SIG_IGN) for number in ({IGNORED})]; "
        f"sys.path.append({home!r}); from vswin_extract.processes import run_child; run_child({module!r}, {descriptor})"
    )
    return [sys.executable, "-P", "-c", program]
