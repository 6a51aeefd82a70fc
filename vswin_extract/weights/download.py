"""Download one file over HTTP into FILE.part, and continue what an earlier try or an earlier process began.

This does not use fsspec, as videos do: weights must be available without the packages of the extra `remote`, and these
downloads can be continued by a later process.
"""

import os
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection, InvalidURL
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from vswin_extract.errors import WeightsError
from vswin_extract.formatting import human_bytes
from vswin_extract.video.remote import PATIENCE, WAITS, is_temporary, without_secrets
from vswin_extract.weights.part import (
    BLOCK,
    PartOrigin,
    ProgressCallback,
    continue_part,
    explain_disk_error,
    read_origin,
    remove_part,
    remove_unless_resumable,
    require_space,
    resumable_bytes,
    start_part,
    write_block,
)
from vswin_extract.weights.registry import MOST_BYTES

Say = Callable[[str], None]
"""Called with a sentence for the user."""
SLOWEST = 1000
"""Bytes a second. What brings less is given up: B would take four days."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for servers, in seconds.

    `silence`: after so long without a byte the connection is given up, and after twice as long with less than SLOWEST
    bytes a second. `pauses`: before each further try, counted from the first one again after tries that brought more.
    `longest`: the longest pause that a server may ask for.
    """

    silence: float = PATIENCE
    pauses: tuple[float, ...] = WAITS
    longest: float = 60.0


PATIENT = Patience()


class _TryFailed(Exception):
    """One try to download failed.

    `final`: another try cannot succeed. `reached`: the server answered. `gone`: the server does not have the rest of
    the part that is here. `pause`: seconds that the server asks to wait.
    """

    def __init__(
        self, why: str, final: bool = False, reached: bool = True, gone: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(why)
        self.final = final
        self.reached = reached
        self.gone = gone
        self.pause = pause


def download(
    url: str,
    part: Path,
    progress: ProgressCallback = lambda done, total: None,
    say: Say = lambda sentence: None,
    patience: Patience = PATIENT,
    most: int = MOST_BYTES,
) -> bool:
    """Download all bytes of a file into `part`. Return True if they came in more than one piece.

    `most`: how many bytes it may have. Nothing is kept of a file that has or announces more. Raise WeightsError with
    the bare reason; bytes that can be continued are kept. Raise OSError for errors of the disk, with ENOSPC if it is
    full.
    """
    furthest, since = resumable_bytes(part, url), time.monotonic()
    tries, reached, in_pieces = 0, False, furthest > 0
    while True:
        try:
            _try(url, part, progress, patience.silence, most)
            return in_pieces
        except _TryFailed as failure:
            if failure.gone:
                remove_part(part)
            kept = resumable_bytes(part, url)
            reached |= failure.reached
            in_pieces |= kept > 0
            if kept - furthest > SLOWEST * (time.monotonic() - since):
                furthest, since, tries = kept, time.monotonic(), 0
            # Without any answer so far, this machine may have no network. Then a second try is enough.
            last = tries >= (len(patience.pauses) if reached else 1)
            if failure.final or last or failure.pause > patience.longest:
                remove_unless_resumable(part, url)
                later = f", and asks to wait {failure.pause:.0f} s" if failure.pause else ""
                rest = f"; {human_bytes(kept)} are kept for a later try" if kept else ""
                raise WeightsError(f"{failure}{later}{rest}") from failure
            pause = max(patience.pauses[tries], failure.pause)
            say(f"{failure}; trying again in {pause:g} s" + (f", after {human_bytes(kept)}" if kept else ""))
            time.sleep(pause)
            tries += 1
        except OSError as error:
            remove_unless_resumable(part, url)
            raise explain_disk_error(error, part, resumable_bytes(part, url)) from None


def unreachable(url: str, seconds: float) -> str:
    """Return why the server of an address does not answer, or "" if it does, with whatever status."""
    with _Watch(seconds) as watch:
        try:
            _request(url, 0, "", seconds, watch, "HEAD").close()
        except _TryFailed as failure:
            return "" if failure.reached else str(failure)
    return ""


class _Watch:
    """Cuts the connections of a try that brings less than SLOWEST bytes a second, over twice the silence that is
    allowed. A timeout of a socket does not see a server that sends a byte now and then: of a header, of a line between
    chunks, or of the file. `received`: bytes of the file so far. `cut`: True once the connections were cut."""

    def __init__(self, silence: float) -> None:
        self.received = 0
        self.cut = False
        self.sockets: list[socket.socket] = []
        self._window = 2 * silence
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self.sockets:
            each.close()

    def explain(self, position: int) -> _TryFailed:
        after = f", after {human_bytes(position)}" if position else ""
        return _TryFailed(f"the server sent less than {SLOWEST} bytes a second for {self._window:g} s{after}")

    def _run(self) -> None:
        before, begun = 0, time.monotonic()
        while not self._over.wait(self._window):
            suspended = time.monotonic() - begun > 2 * self._window  # by Ctrl-Z, for example
            if self.received - before < SLOWEST * self._window and not suspended:
                self.cut = True
                for each in self.sockets:
                    with suppress(OSError):  # it is closed
                        each.shutdown(socket.SHUT_RDWR)
                return
            before, begun = self.received, time.monotonic()


class _WatchedConnection(HTTPConnection):
    """A connection that a watch can cut, also while a proxy or the server answers. `watch` is set in a subclass."""

    watch: _Watch

    def connect(self) -> None:
        create: Callable[..., socket.socket] = self._create_connection  # type: ignore[has-type]

        def created(*arguments: Any) -> socket.socket:
            connected: socket.socket = create(*arguments)
            self.watch.sockets.append(connected.dup())  # TLS takes the first one over
            return connected

        self._create_connection = created
        super().connect()


class _WatchedSecureConnection(_WatchedConnection, HTTPSConnection):
    """The same with TLS."""


def _try(url: str, part: Path, progress: ProgressCallback, silence: float, most: int) -> None:
    """Download a file or its rest in one request. Raise _TryFailed."""
    with _Watch(silence) as watch:
        try:
            _receive(url, part, progress, silence, most, watch)
        except _TryFailed as failure:
            if watch.cut:
                raise watch.explain(watch.received) from failure
            raise


def _receive(url: str, part: Path, progress: ProgressCallback, silence: float, most: int, watch: _Watch) -> None:
    origin, position = read_origin(part), resumable_bytes(part, url)
    if origin and position and position == origin.size:  # an earlier process ended before it could publish the file
        progress(position, position)
        return
    if position and not os.access(part, os.W_OK):  # it cannot be written: start again with a new file
        position = 0
    with closing(_request(url, position, origin.validator if origin else "", silence, watch)) as response:
        file, blocks, total = _open_target(response, url, part, position, origin, silence, most)
        with file:
            position = file.tell()
            require_space(part, total - position)
            progress(position, total)
            for block in blocks:
                if position + len(block) > (total or most):
                    announced = "announced" if total else "expected at most"
                    raise _TryFailed(
                        f"the server sends more than the {total or most} bytes that are {announced}", True, gone=True
                    )
                position = write_block(file, block)
                watch.received += len(block)
                progress(position, total)
    if position == 0 or total not in (0, position) or (watch.cut and not total):
        raise _TryFailed(f"the server stopped after {position} of {total or 'unknown'} bytes")


def _open_target(
    response: HTTPResponse,
    url: str,
    part: Path,
    position: int,
    origin: PartOrigin | None,
    silence: float,
    most: int,
) -> tuple[FileIO, Iterator[bytes], int]:
    """Return the opened part, the blocks that belong at its end, and the size of the complete file, 0 if unknown."""
    if encoding := response.headers.get("Content-Encoding", "identity").strip().lower().replace("identity", ""):
        raise _TryFailed(f"the server encodes the file by {encoding[:20]!r}, which was not asked for", final=True)
    blocks = _blocks(response, silence)
    if position and origin and (total := _size_if_rest(response, position, origin)) is not None:
        _require_size(total, most)
        return continue_part(part), blocks, total
    if response.status == 200:  # also from servers that ignore ranges, and if the file has changed
        total = response.length or 0  # before the first block is read, which counts down
        _require_size(total, most)
        first = next(blocks, b"")
        _refuse_web_page(response, first)
        file = start_part(part, PartOrigin(without_secrets(url), _validator(response.headers), total))
        return file, chain([first], blocks), total
    raise _TryFailed(f"the server answers with status {response.status}, which was not asked for", gone=True)


def _require_size(announced: int, most: int) -> None:
    if announced > most:
        expected = f"but at most {human_bytes(most)} are expected: another file"
        raise _TryFailed(f"the server announces {human_bytes(announced)}, {expected}", final=True, gone=True)


def _request(
    url: str, position: int, validator: str, silence: float, watch: _Watch, method: str = "GET"
) -> HTTPResponse:
    """Ask for a file, or for the rest of it from `position` on. Raise _TryFailed."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "vswin-extract", "Accept-Encoding": "identity"}
    if position:
        headers |= {"Range": f"bytes={position}-", "If-Range": validator}
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=headers, method=method)
    if user:  # not sent to other servers after a redirect
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    try:
        opener = build_opener(_Redirects, _WatchedHandler(watch), _WatchedSecureHandler(watch))
        response: HTTPResponse = opener.open(request, timeout=silence)
        return response
    except HTTPError as error:
        with closing(error):
            raise _refused(error, position) from error
    except URLError as error:
        raise _unreachable(error, host, request.host) from error
    except (OSError, HTTPException) as error:
        raise _connection_failed(error, silence) from error
    except ValueError as error:
        raise _TryFailed(f"{host} is not a valid host name", final=True) from error


def _refused(error: HTTPError, position: int) -> _TryFailed:
    if position and error.code == 416:
        return _TryFailed("the server has a shorter file now", gone=True)
    reason = next(iter(str(error.reason).splitlines()), "")
    passes = is_temporary(error.code)
    pause = _retry_after(error.headers) if passes else 0.0
    return _TryFailed(f"the server answers with {error.code} {reason}".rstrip(), final=not passes, pause=pause)


def _unreachable(error: URLError, host: str, asked: str) -> _TryFailed:
    """`asked`: the host that the request went to, which is a proxy or `host` itself."""
    why = error.reason
    if isinstance(why, ssl.SSLCertVerificationError):
        hint = "if a proxy has a certificate of its own, set SSL_CERT_FILE to its file"
        return _TryFailed(f"{why.verify_message} ({hint})", final=True)
    reason = "no connection" if isinstance(why, TimeoutError) else getattr(why, "strerror", None) or str(why)
    proxy = "" if asked == host else f" by the proxy {asked}"
    return _TryFailed(f"{host} cannot be reached{proxy}: {reason}", reached=False)


def _connection_failed(error: Exception, silence: float) -> _TryFailed:
    if isinstance(error, TimeoutError):
        return _TryFailed(f"the server was silent for {silence:g} s")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _TryFailed(f"the connection broke: {reason}", final=isinstance(error, InvalidURL))


class _WatchedHandler(HTTPHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._connection: Any = type("Connection", (_WatchedConnection,), {"watch": watch})

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req)


class _WatchedSecureHandler(HTTPSHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._connection: Any = type("Connection", (_WatchedSecureConnection,), {"watch": watch})

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req)


class _Redirects(HTTPRedirectHandler):
    """Follow redirects, also to other hosts, but not from https to http. Their bodies are not read: they may be
    endless."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in {"https", req.type}:
            reason = f"and redirects to {without_secrets(newurl)}, which is not followed"
            raise HTTPError(req.full_url, code, reason, headers, fp)
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _blocks(response: HTTPResponse, silence: float) -> Iterator[bytes]:
    try:
        while block := response.read1(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _connection_failed(error, silence) from error


def _retry_after(headers: Message) -> float:
    """Return the seconds that a server asks to wait. It gives a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _validator(headers: HTTPMessage) -> str:
    """Return what identifies this version of the file, so that its rest can be asked for; "" if there is nothing."""
    etag = str(headers.get("ETag", "")).strip()
    return etag if etag.startswith('"') else str(headers.get("Last-Modified", "")).strip()  # a weak ETag is no use


def _size_if_rest(response: HTTPResponse, position: int, origin: PartOrigin) -> int | None:
    """Return the size of the complete file (0 if unknown) if the answer is its rest from `position` on, else None.

    An answer can also be the complete file, or the rest of another version if the server ignores If-Range.
    """
    found = re.match(r"bytes (\d+)-\d*/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status != 206 or found is None or int(found[1]) != position:
        return None
    size = origin.size if found[2] == "*" else int(found[2])
    same = _validator(response.headers) in ("", origin.validator) and origin.size in (0, size)
    return size if same else None


def _refuse_web_page(response: HTTPResponse, first: bytes) -> None:
    kind = response.headers.get_content_type()
    if kind == "text/html" or re.match(rb"\s*<(!doctype html|html)", first[:200], re.IGNORECASE):
        raise _TryFailed("the server answers with a web page (such as a login page), not with a file", final=True)
