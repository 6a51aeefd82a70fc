"""One file from the web into FILE.part, continued where an earlier try, or an earlier process, left off.

Beside FILE.part lies FILE.part.json: where its bytes are from, and what the server calls the file that they are of, its
validator (ETag or Last-Modified). Bytes of a file without one are of no use later.

Not by `fetch`: weights come without the packages of the extra `remote`, and a download here outlives its process.
"""

import errno
import json
import os
import re
import shutil
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from vswin_extract import files
from vswin_extract.errors import WeightsError
from vswin_extract.video.remote import PATIENCE, WAITS, is_temporary, without_secrets

BLOCK = 1 << 20
"""Bytes that are read at most at once."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk answers."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and all that there will be, 0 where the server does not say."""
Say = Callable[[str], None]
"""Called with a sentence for the user."""


@dataclass(frozen=True)
class Patience:
    """With servers, in seconds: how long one may be `silent`, the pauses before further tries, when one brought nothing
    new, and the `longest` pause that a server may ask for."""

    silent: float = PATIENCE
    pauses: tuple[float, ...] = WAITS
    longest: float = 60.0


PATIENT = Patience()


@dataclass(frozen=True)
class State:
    """What FILE.part has bytes of: an address, what its server calls the file, and its size, 0 where unknown."""

    url: str
    validator: str
    size: int


class _Failure(Exception):
    """A try failed: why, whether another can be luckier, whether there was a server, whether it no longer has the file
    that is kept a part of, and the pause that it asks for."""

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
    progress: Progress = lambda done, total: None,
    say: Say = lambda sentence: None,
    patience: Patience = PATIENT,
) -> bool:
    """Have all bytes of a file in `part`; whether they came in pieces.

    Raises WeightsError with the reason alone; what came is kept where it can be continued. Raises OSError for whatever
    goes wrong on the disk, with ENOSPC where it has no room.
    """
    furthest = kept(part, url)
    tries, reached, continued = 0, False, furthest > 0
    while True:
        try:
            _try(url, part, progress, patience.silent)
            return continued
        except _Failure as failure:
            if failure.gone:
                remove(part)
            at = kept(part, url)
            reached |= failure.reached
            continued |= at > 0
            if at > furthest:
                furthest, tries = at, 0
            # a machine without a network need not be told so five times
            last = tries >= (len(patience.pauses) if reached else 1)
            if failure.final or last or failure.pause > patience.longest:
                _drop(part, url)
                after = f", and wants to be asked again in {failure.pause:.0f} s" if failure.pause else ""
                raise WeightsError(f"{failure}{after}" + (f"; {_megabytes(at)} are kept" if at else "")) from failure
            pause = max(patience.pauses[tries], failure.pause)
            say(f"{failure}; trying again in {pause:g} s" + (f", from {_megabytes(at)} on" if at else ""))
            time.sleep(pause)
            tries += 1
        except OSError as error:
            _drop(part, url)
            raise _explained(error, part, kept(part, url)) from None


def copy(source: Path, part: Path, progress: Progress = lambda done, total: None) -> None:
    """Have all bytes of a file on a disk in `part`. Raises OSError."""
    with source.open("rb") as file, _begin(part) as target:
        size = os.fstat(file.fileno()).st_size
        try:
            _expect_room(part, size)
            while block := file.read(BLOCK):
                progress(_write(target, block), size)
        except OSError as error:
            remove(part)
            raise _explained(error, part) from None


def kept(part: Path, url: str) -> int:
    """How many bytes of this file there are from an earlier try, to be continued."""
    state = read_state(part)
    return part.stat().st_size if state and state.url == without_secrets(url) and state.validator else 0


def _drop(part: Path, url: str) -> None:
    """Remove a part that nobody can continue: another address's may be continued from there."""
    state = read_state(part)
    if state is None or (state.url == without_secrets(url) and not kept(part, url)):
        remove(part)


def read_state(part: Path) -> State | None:
    """What a part is of; None where it is not there, or nothing tells."""
    try:
        state = State(**json.loads(_beside(part).read_text("utf-8")))
        return state if part.is_file() else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remove(part: Path) -> None:
    """A part, and what is beside it, if they are there."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def publish(part: Path, path: Path) -> None:
    """Rename a part that is whole into place, so that it survives a power cut; others may read it."""
    with suppress(PermissionError):  # another user began it
        part.chmod(0o644)
    files.publish(part, path)
    _beside(part).unlink(missing_ok=True)


def _try(url: str, part: Path, progress: Progress, silent: float) -> None:
    state, at = read_state(part), kept(part, url)
    if state and at and at == state.size:  # its process died before it could rename it
        progress(at, at)
        return
    if at and not os.access(part, os.W_OK):  # another user's, in a shared cache: it can be replaced
        at = 0
    with closing(_ask(url, at, state.validator if state else "", silent)) as response:
        blocks = _blocks(response, silent)
        if at and state and (rest := _size_by_rest(response, at, state)) is not None:
            total, file = rest, FileIO(part, "ab")
        elif response.status == 200:  # also where ranges are ignored, or the file is another now
            total, first = response.length or 0, next(blocks, b"")
            _refuse_page(response, first)
            blocks = chain([first], blocks)
            file = _begin(part, State(without_secrets(url), _validator(response.headers), total))
        else:
            said = f"the server answers with status {response.status} and not with what was asked for"
            raise _Failure(said, gone=True)
        with file:
            at = file.tell()
            _expect_room(part, total - at)
            progress(at, total)
            for block in blocks:
                at = _write(file, block)
                progress(at, total)
    if at == 0 or total not in (0, at):
        raise _Failure(f"the server stopped after {at} of {total or 'unknown many'} bytes")


def _ask(url: str, at: int, validator: str, silent: float) -> HTTPResponse:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "vswin-extract", "Accept-Encoding": "identity"}
    if at:
        headers |= {"Range": f"bytes={at}-", "If-Range": validator}
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    if user:  # a mirror's, and nobody's to whom it redirects
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    try:
        response: HTTPResponse = build_opener(_Redirects).open(request, timeout=silent)
        return response
    except HTTPError as error:
        with error:
            said = f"the server answers with {error.code} {next(iter(str(error.reason).splitlines()), '')}".rstrip()
            if at and error.code == 416:
                raise _Failure("the server has a shorter file now", gone=True) from error
            pause = _retry_after(error.headers) if is_temporary(error.code) else 0.0
        raise _Failure(said, final=not is_temporary(error.code), pause=pause) from error
    except URLError as error:
        why = error.reason
        if isinstance(why, ssl.SSLCertVerificationError):
            hint = "where a proxy has a certificate of its own, name its file by SSL_CERT_FILE"
            raise _Failure(f"{why.verify_message} ({hint})", final=True) from error
        said = "no connection" if isinstance(why, TimeoutError) else getattr(why, "strerror", None) or str(why)
        by = "" if request.host == host else f" by the proxy {request.host}"
        raise _Failure(f"{host} cannot be reached{by}: {said}", reached=False) from error
    except (OSError, HTTPException) as error:
        raise _broken(error, silent) from error
    except ValueError as error:
        raise _Failure(f"{host} is no name that a host can have", final=True) from error


class _Redirects(HTTPRedirectHandler):
    """To other hosts, too, but not from what is encrypted to what is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in {"https", req.type}:
            shown = without_secrets(newurl)
            raise HTTPError(req.full_url, code, f"and leads to {shown}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _blocks(response: HTTPResponse, silent: float) -> Iterator[bytes]:
    try:
        while block := response.read1(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _broken(error, silent) from error


def _broken(error: Exception, silent: float) -> _Failure:
    if isinstance(error, TimeoutError):
        return _Failure(f"the server is silent for {silent:g} s")
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _Failure(f"the connection broke: {said}", final=isinstance(error, InvalidURL))


def _retry_after(headers: Message) -> float:
    """Seconds, which a server may say as a date."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def _validator(headers: HTTPMessage) -> str:
    """What a server calls this very file, by which its rest can be asked for; "" where it has no such name."""
    etag = str(headers.get("ETag", "")).strip()
    return etag if etag.startswith('"') else str(headers.get("Last-Modified", "")).strip()


def _size_by_rest(response: HTTPResponse, at: int, state: State) -> int | None:
    """The size of the file whose rest it is; None where it is all of it, or another's, as a server may send it that
    knows no If-Range."""
    found = re.match(r"bytes (\d+)-\d*/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status != 206 or found is None or int(found[1]) != at:
        return None
    size = state.size if found[2] == "*" else int(found[2])
    same = _validator(response.headers) in ("", state.validator) and state.size in (0, size)
    return size if same else None


def _refuse_page(response: HTTPResponse, first: bytes) -> None:
    kind = response.headers.get_content_type()
    if kind == "text/html" or re.match(rb"\s*<(!doctype html|html)", first[:200], re.IGNORECASE):
        raise _Failure("the server answers with a web page, as for a login, and not with a file", final=True)


def _begin(part: Path, state: State | None = None) -> FileIO:
    """An empty part. What is said of it is never said of other bytes, whenever the process dies."""
    remove(part)  # it may be another user's
    file = FileIO(part, "wb")
    if state:
        _beside(part).write_text(json.dumps(asdict(state)))
    return file


def _beside(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _expect_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        said = f"{_megabytes(needed)} are needed, and {_megabytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {said}")


def _write(file: FileIO, block: bytes) -> int:
    """Where the file ends now."""
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]
    return file.tell()


def _explained(error: OSError, part: Path, at: int = 0) -> OSError:
    """The same error, where the disk is full with what can be done."""
    if error.errno not in FULL:
        return error
    left = f"{_megabytes(at)} are kept, to be continued, and `vswin weights prune --yes` removes them; " if at else ""
    hint = f"{left}free some room, or name another directory by VSWIN_WEIGHTS_DIR"
    return OSError(error.errno, f"{error.strerror}, in {part.parent}; {hint}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
