"""`vswin weights pull` from servers that send more than they should, or hardly anything, and never end."""

import gzip
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vswin_extract.errors import WeightsError
from vswin_extract.weights.download import Patience, download
from vswin_extract.weights.pull import pull_weights
from vswin_extract.weights.registry import MOST_BYTES, SIZE_TOLERANCE, manifest

CONTENT = b"not really weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTY = Patience(silence=0.2, pauses=(0.01, 0.01), longest=1.5)
MOST = 30_000
"""Bytes that a download may have here."""
OK = b"HTTP/1.1 200 OK\r\n"

Answer = Callable[[socket.socket, threading.Event], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Give the address of a server, and the requests that it got. It answers each in a thread."""
    asked: list[str] = []
    over = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked.append(connection.recv(1 << 16).decode())
            answer(connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=talk, args=(listening.accept()[0],))
                thread.start()
                threads.append(thread)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/weights.pth", asked
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def endless(before: bytes, again: bytes, pause: float = 0.0) -> Answer:
    """Return an answer that begins so and repeats some bytes until the client has enough."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(before)
        while not over.wait(pause):
            connection.sendall(again)

    return answer


def once(content: bytes) -> Answer:
    return lambda connection, over: connection.sendall(content)


BLOCK = b"x" * 5000
HOSTILE: dict[str, tuple[Answer, str]] = {
    "no length": (endless(OK + b"\r\n", BLOCK), f"more than the {MOST} bytes"),
    "chunked": (endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1388\r\n" + BLOCK + b"\r\n"), str(MOST)),
    "announced": (endless(OK + b"Content-Length: 40000\r\n\r\n", BLOCK), r"40\.0 kB.*30\.0 kB"),
    "gzip": (
        once(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10_000_000))),
        "encodes the file by 'gzip'",
    ),
    "headers": (endless(OK, b"X-More: " + BLOCK + b"\r\n"), "more than 100 headers"),
    "a header": (endless(OK + b"X: ", BLOCK), "header line"),
    "trailers": (
        endless(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n", b"X: y\r\n", 0.01),
        "1000 bytes",
    ),
    "continue": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "1000 bytes a second"),
    "drip of a header": (endless(OK, b"x", 0.02), "1000 bytes a second"),
    "drip of a chunk": (endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0", 0.02), "1000 bytes a second"),
    "drip": (endless(OK + b"Content-Length: 20000\r\n\r\n", b"x", 0.02), "1000 bytes a second"),
    "redirect": (
        endless(b"HTTP/1.1 302 Found\r\nLocation: /weights.pth\r\n\r\n", BLOCK),
        "infinite loop",
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("no length", "announced", "redirect") else pytest.mark.slow)
        for kind in HOSTILE
    ],
)
def test_every_download_ends_and_keeps_nothing(kind: str, tmp_path: Path) -> None:
    answer, says = HOSTILE[kind]
    part, begun = tmp_path / "weights.pth.part", time.monotonic()
    most = [0]
    with serving(answer) as (url, _), pytest.raises(WeightsError, match=says) as caught:
        download(url, part, lambda done, total: most.append(done), patience=HASTY, most=MOST)
    assert "\n" not in str(caught.value)
    assert max(most) <= MOST
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - begun < 30


def test_a_drip_that_is_continued_ends_too(tmp_path: Path) -> None:
    """Each try brings a byte. They are kept, and a later command may have a better server."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        begin = int(asked[-1].partition("Range: bytes=")[2].partition("-")[0] or 0)
        status = b"206 Partial Content" if begin else b"200 OK"
        head = b'HTTP/1.1 %s\r\nETag: "x"\r\nContent-Length: %d\r\n' % (status, len(CONTENT) - begin)
        head += b"Content-Range: bytes %d-/%d\r\n" % (begin, len(CONTENT)) if begin else b""
        connection.sendall(head + b"\r\n" + CONTENT[begin : begin + 1])

    with serving(answer) as (url, asked), pytest.raises(WeightsError, match="kept for a later try"):
        download(url, tmp_path / "w.part", patience=replace(HASTY, pauses=(0.05, 0.05)), most=MOST)
    assert len(asked) == 3


@pytest.mark.parametrize(("begin", "size"), [(9000, 10**12), (9000, 9500), (0, 18000)])
def test_a_rest_that_lies_about_its_place_is_not_appended(begin: int, size: int, tmp_path: Path) -> None:
    part = tmp_path / "w.part"
    answer = endless(
        b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Range: bytes %d-/%d\r\n\r\n' % (begin, size), BLOCK
    )
    with serving(answer) as (url, _):
        part.write_bytes(CONTENT[:9000])
        origin = {"url": url, "validator": '"x"', "size": 0}
        Path(f"{part}.json").write_text(json.dumps(origin))
        with pytest.raises(WeightsError):
            download(url, part, patience=HASTY, most=MOST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("megabytes", "most"), [(0.02, 20_400), (0, MOST_BYTES)])
def test_the_manifest_says_how_much_a_file_may_have(
    megabytes: float, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with serving(once(OK + b"Content-Length: %d\r\n\r\n" % (most + 1))) as (url, asked):
        row = replace(manifest()["t-k400"], name="there", url=url, sha256=SHA256, megabytes=megabytes)
        monkeypatch.setitem(manifest(), "there", row)
        assert row.most_bytes == most == int(megabytes * 1e6 * (1 + SIZE_TOLERANCE)) or MOST_BYTES
        with pytest.raises(WeightsError, match="announces"):
            pull_weights("there", patience=HASTY)
        assert len(asked) == 1
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with (mirror / row.filename).open("wb") as file:
        file.truncate(most + 1)
    with pytest.raises(WeightsError, match="the file has"):
        pull_weights("there", source=str(mirror))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name != "weights.pth.lock"]
