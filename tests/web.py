"""A web server with faults: its files can be late, cut off, changed or refused."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vswin_extract.video.fetch import PREFIX


@dataclass
class Web:
    """The files and faults of a server, and what clients asked it.

    `files`: by path. `faults`: what happens to the next GETs of a path, one after another, see `Handler.answer`.
    `always`: what happens to all other requests of a path. `asked`: method, path, and the begin of the range.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Headers of all answers for a path, in addition to the usual ones or instead of them."""
    asked: list[tuple[str, str, int | None]] = field(default_factory=list)
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    """The headers of all requests."""
    hang: float = 1.5
    """Seconds that the fault "hang" lasts."""
    over: threading.Event = field(default_factory=threading.Event)

    def gets(self, path: str) -> list[int | None]:
        """Return the begins of the ranges of all GETs of a path, None for a GET without a range."""
        return [begin for method, asked, begin in self.asked if (method, asked) == ("GET", path)]


@contextmanager
def serve(web: Web) -> Iterator[Web]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"web": web}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        web.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web
    extra: dict[str, str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else None
        web.asked.append((self.command, path, begin))
        web.headers_seen.append(dict(self.headers))
        self.extra = web.headers.get(path, {})
        head = self.command == "HEAD"
        fault = web.always.get(path, "")
        if not head and not fault and web.faults.get(path):
            fault = web.faults[path].pop(0)
        if fault.isdecimal():
            self.refuse(int(fault))
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/moved{path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = web.files.get(path.removeprefix("/moved"))
        if content is None:
            self.refuse(404)
            return
        etag = self.extra.get("ETag", f'"{hashlib.sha256(content).hexdigest()[:8]}"')
        ranges = fault not in ("no ranges", "chunked")
        same = fault == "any range" or self.headers.get("If-Range", etag) == etag
        if begin is not None and ranges and same:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            content = content[begin:]
        else:
            self.send_response(200)
        for name, value in {"ETag": etag, **self.extra}.items():
            self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, 0 if head else len(content), 500):
                piece = content[at : at + 500]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"" if head else b"0\r\n\r\n")
            return
        if fault == "short" and not head:
            content = content[:-10]
        announced = 1 << 50 if fault in ("enormous", "endless") else len(content)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if not head:
            self.send(content, fault, path)

    def send(self, content: bytes, fault: str, path: str) -> None:
        if fault in ("cut", "no ranges", "change", "hang"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "change":  # at the same length
                self.web.files[path] = bytes(byte ^ 1 for byte in self.web.files[path])
            self.web.over.wait(self.web.hang if fault == "hang" else 0.05)  # let the client read what was sent
            self.close_connection = True
        elif fault == "drip":
            for at in range(0, len(content), 300):
                self.wfile.write(content[at : at + 300])
                time.sleep(0.4)
        elif fault == "trickle":
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.web.over.wait(0.3):
                    break
        elif fault == "one byte":
            self.wfile.write(content[:1])
            self.close_connection = True
        elif fault == "endless":  # until the client has enough
            with suppress(OSError):
                while not self.web.over.is_set():
                    self.wfile.write(content)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def refuse(self, status: int) -> None:
        self.send_response(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Write nothing to standard error."""


def held(cache: Path) -> int:
    """Return how many bytes the files in a cache have."""
    found = 0
    for path in cache.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # dropped meanwhile
            found += path.stat().st_size
    return found
