"""Child processes: messages both ways, and children that die, hang or send what is no message."""

import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vswin_extract.processes import SIZE, Channel, ChildProcess, Ended, Inbox, pack_header

CHILD = """
import os, sys, threading, time

def fail():
    raise RuntimeError("on purpose")

def main(channel):
    while True:
        message = channel.receive()
        match message if isinstance(message, str | tuple) else None:
            case "print": print("a line"); sys.stdout.flush()
            case "fail": raise RuntimeError("on purpose")
            case "sleep": time.sleep(3600)
            case "garbage": os.write(channel._socket.fileno(), b"\\xff" * 64); time.sleep(3600)
            case "half": os.write(channel._socket.fileno(), b"\\x89VSW"); time.sleep(3600)
            case "print into": os.write(channel._socket.fileno(), b"w"); time.sleep(3600)
            case "thread": threading.Thread(target=fail).start(); time.sleep(3600)
            case "thread ends": threading.Thread(target=sys.exit).start(); channel.send("ended")
            case ("send", content): os.write(channel._socket.fileno(), content); time.sleep(3600)
            case _: channel.send(("echo", message))
"""
Start = Callable[..., ChildProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a child that sends back what it receives, and does what it is told."""
    (tmp_path / "echoing_child.py").write_text(CHILD)
    children = []
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def begin(inbox: Inbox, send_timeout: int = 30, receive_timeout: int = 30) -> ChildProcess:
        environment = {"PYTHONPATH": path}
        children.append(ChildProcess("echoing_child", "child", inbox, environment, send_timeout, receive_timeout))
        return children[-1]

    yield begin
    for child in children:
        child.close()


def receive(inbox: Inbox) -> Any:
    return inbox.get(timeout=20)[1]


def test_messages_and_arrays_go_both_ways(start: Start) -> None:
    inbox: Inbox = queue.Queue()
    child = start(inbox)
    pixels = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7)
    for message in ([{"a": 1}], [pixels], [pixels, pixels[1], pixels[:, ::2]], ["word", None], [np.zeros((0, 3))]):
        child.send(message)
        word, found = receive(inbox)
        assert word == "echo"
        assert len(found) == len(message)
        for one, other in zip(found, message, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("fail", "on purpose"),
        ("thread", "RuntimeError: on purpose"),
        ("garbage", "no message"),
        ("print into", "no message"),
        (("send", pack_header([4])[:-12] + b"\0" * 12), "no message"),  # a CRC-32 that does not fit
        (("send", pack_header([4, 8])[:-8] + SIZE.pack(9)), "no message"),  # sizes that do not fit
        (("send", pack_header([4]) + b"junk"), "no message"),
    ],
)
def test_a_child_that_fails_says_why(start: Start, order: object, reason: str) -> None:
    inbox: Inbox = queue.Queue()
    start(inbox, receive_timeout=3600).send(order)  # all these are recognised without waiting
    ended = receive(inbox)
    assert isinstance(ended, Ended)
    assert reason in ended.reason


@pytest.mark.parametrize("size", [1, 24])
def test_a_message_that_does_not_end_is_an_end(start: Start, size: int) -> None:
    """A child that begins a message, or promises more bytes than come, is ended with a reason."""
    inbox: Inbox = queue.Queue()
    child = start(inbox, receive_timeout=1)
    child.send(1)
    assert receive(inbox) == ("echo", 1)
    time.sleep(1.5)  # a child that has nothing to say is left alone
    child.send(2)
    assert receive(inbox) == ("echo", 2)
    child.send(("send", (pack_header([1 << 20]) + b"\x80" * 9)[:size]))
    ended = receive(inbox)
    assert isinstance(ended, Ended)
    assert "not ended" in ended.reason


def test_a_thread_that_ends_itself_is_no_failure(start: Start) -> None:
    inbox: Inbox = queue.Queue()
    child = start(inbox)
    child.send("thread ends")
    assert receive(inbox) == "ended"
    child.send(1)
    assert receive(inbox) == ("echo", 1)


def test_a_killed_child_ends_with_its_signal_and_last_line(start: Start) -> None:
    inbox: Inbox = queue.Queue()
    child = start(inbox)
    child.send("print")
    child.send(1)
    receive(inbox)
    os.kill(child.pid, signal.SIGSEGV)
    assert receive(inbox).reason == "signal SIGSEGV; it printed: a line"


@pytest.mark.parametrize("order", ["sleep", "half"])
def test_a_child_that_hangs_is_closed_at_once(start: Start, order: str) -> None:
    inbox: Inbox = queue.Queue()
    child = start(inbox)
    child.send(1)
    receive(inbox)
    child.send(order)
    begun = time.monotonic()
    child.close()
    assert time.monotonic() - begun < 5
    assert inbox.empty()  # what is closed reports nothing more


def test_a_full_inbox_holds_the_child_up_and_does_not_keep_it_from_closing(start: Start) -> None:
    inbox: Inbox = queue.Queue(1)
    child = start(inbox)
    for number in range(5):
        child.send(number)
    assert receive(inbox) == ("echo", 0)
    child.close()


def test_a_child_that_does_not_read_is_ended(start: Start) -> None:
    inbox: Inbox = queue.Queue()
    child = start(inbox, send_timeout=1)
    child.send("sleep")
    begun = time.monotonic()
    while inbox.empty() and time.monotonic() - begun < 20:
        child.send(np.zeros(1 << 20, np.uint8))
    assert isinstance(receive(inbox), Ended)


def test_sizes_that_no_message_has_are_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for header in (
            b"\0" * 8,
            b"\xff" * 8,
            pack_header([]),
            pack_header([1 << 62]),
            pack_header([1, (1 << 32) + 1]),
        ):
            ours.sendall(header)
            with pytest.raises(ValueError, match="message"):
                Channel(theirs).receive()
            theirs.setblocking(False)
            with suppress(BlockingIOError):
                theirs.recv(1 << 10)
            theirs.setblocking(True)
