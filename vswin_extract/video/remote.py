"""Files at addresses that fsspec opens: their names, what file systems say of them, and what failures mean."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote

from vswin_extract.errors import UsageError, VideoError, VideoMissing, VideoUnreachable

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further try, after one that gave nothing new."""
PATIENCE = 20.0
"""Seconds of silence after which a request is given up and tried again."""
MOST_BYTES = 1 << 63
"""A file is smaller than this; outputs have no larger numbers."""
UNKNOWN = (-1, 0.0, "")
"""A size, a time of change or an etag that the server does not say, or that was not asked for."""


@dataclass(frozen=True)
class Address:
    """A file behind an address, with its fingerprint as far as it is known. `str` of it holds no secrets."""

    url: str
    size: int = -1
    mtime: float = 0.0
    etag: str = ""

    def __str__(self) -> str:
        return without_secrets(self.url)


def is_remote(name: str) -> bool:
    """True if it is an address, as s3://bucket/key, not a path."""
    return re.match(r"[A-Za-z][\w+.-]*(://|::.*://)", name) is not None


def same_fingerprint(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """True if two fingerprints (size, mtime, etag) agree as far as both are known."""
    return all(a == b or a in UNKNOWN or b in UNKNOWN for a, b in zip(one, other, strict=True))


def without_secrets(url: str) -> str:
    """Return an address without passwords. Web addresses also lose the user and the query, where signatures and
    tokens are."""
    chain, web = split_chain(url)
    if web:
        web = re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", web)[0])
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", chain) + web


def path_of(url: str) -> str:
    """Return the path of an address, without host or bucket. In web addresses %20 and the like are decoded."""
    chain, web = split_chain(without_secrets(url))
    shown = next((part for part in chain.split("::") if "://" in part), web)
    rest = shown.partition("://")[2]
    found = rest.partition("/")[2] if "/" in rest else rest
    return unquote(found, errors="surrogateescape") if shown == web else found


def split_chain(url: str) -> tuple[str, str]:
    """Split a chain of addresses, as zip://a.mp4::https://h/x.zip, before the web address that ends it. Either part may
    be empty."""
    web = re.search(r"(?:^|(?<=::))https?://", url, re.IGNORECASE)
    at = web.start() if web else len(url)
    return url[:at], url[at:]


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. Raises UsageError where there is none."""
    check_protocol(url)
    import fsspec

    chain, web = split_chain(url)
    try:
        if web and not chain:  # else fsspec would take any "::" in it for a chain
            return fsspec.filesystem(protocol := web.partition("://")[0], **_options(protocol)), web
        protocols = re.findall(r"(?:^|::)([\w+.-]+)://", url)
        filesystem, path = fsspec.core.url_to_fs(url, **{protocol: _options(protocol) for protocol in protocols})
    except Exception as error:  # the package of each protocol has a family of its own
        raise UsageError(f"{without_secrets(url)} cannot be opened: {_scrubbed(error)}") from error
    return filesystem, str(path)


def _options(protocol: str) -> dict[str, Any]:
    """Return the options of a file system that we set unlike its defaults. fsspec's configuration goes before them."""
    from fsspec.config import conf

    configured = conf.get(protocol, {})
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        # by default a download ends after five minutes, however well it goes, and proxies are ignored
        timeout = ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        return {"client_kwargs": {"timeout": timeout, "trust_env": True, **configured.get("client_kwargs", {})}}
    if protocol in ("s3", "s3a"):
        # by default a silent server is asked 25 times, for six minutes; with this, s3fs itself asks it five times
        limits = {"read_timeout": PATIENCE / 2, "retries": {"max_attempts": 0}}
        return {"config_kwargs": {**limits, **configured.get("config_kwargs", {})}}
    return {}


@cache
def _require_packages(protocols: str) -> None:
    """Raise UsageError unless the packages for a protocol, or for a chain as zip::s3, are installed."""
    install = "pip install 'vswin-extract[remote]'"
    try:
        from fsspec import get_filesystem_class
    except ImportError as error:
        raise UsageError(f"{protocols}:// needs the package fsspec: {install}") from error
    for protocol in protocols.split("::"):
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            hint = install if protocol in ("s3", "s3a", "http", "https") else "pip install it"
            raise UsageError(f"{protocol}:// needs a package that is not there ({error}): {hint}") from error
        except ValueError as error:
            raise UsageError(f"{protocol}:// is no protocol that fsspec knows") from error


def check_protocol(url: str) -> None:
    """Raise UsageError where the package that opens this address is not installed."""
    _require_packages(url.partition("://")[0])


def with_retries(
    call: Callable[[], T], sleep: Callable[[float], None] = time.sleep, waits: Sequence[float] = WAITS
) -> T:
    """Return what a call of a file system returns. Where it fails for a reason that may pass, it is tried again after
    each of the `waits`. Raises VideoError."""
    for wait in (*waits, None):
        try:
            return call()
        except Exception as error:  # the package of each protocol has a family of its own
            if failure := failure_of(error, last=wait is None):
                raise failure from error
        sleep(wait or 0.0)
    raise RuntimeError("the last try neither returned nor raised")


def failure_of(error: BaseException, last: bool) -> VideoError | None:
    """Return what an error of a file system means for a video; None where the call is worth another try. `last`: there
    is no other try."""
    status = status_of(error)
    # fsspec raises FileNotFoundError for any failure and keeps the cause
    while error.__cause__ is not None and not isinstance(error, UsageError):
        error = error.__cause__
        status = status or status_of(error)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return VideoMissing("is not there" + (f": the server answers with status {status}" if status else ""))
    if status is None:
        denied = isinstance(error, PermissionError | UsageError) or "Credential" in type(error).__name__
    else:
        denied = not is_temporary(status)
    if not (denied or last):
        return None
    reason = f"the server answers with status {status}" if status else _scrubbed(error)
    return VideoUnreachable(f"it could not be fetched: {reason}")


def is_temporary(status: int) -> bool:
    """True if a web server that answers with this status may soon answer with another."""
    return status >= 500 or status in (408, 412, 425, 429)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of aiohttp, botocore and the like carries, None without one."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(error, "status_code", None)
    return found if isinstance(found, int) and found >= 400 else None


def _scrubbed(error: BaseException) -> str:
    """Return the first line of an error's text, without the secrets in its addresses."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    text = re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+", lambda found: without_secrets(found[0]), text)
    return re.sub(r"\?[^\s'\"<>]*=[^\s'\"<>]*", "", text)  # a query without its address


def address_of(url: str, info: Mapping[str, Any]) -> Address:
    """Return an address with the fingerprint in `info`, which a file system gives of a file. Each file system has its
    own names for the same. Sizes and dates that cannot be count as unknown."""
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    found = {re.sub(r"[\W_]", "", key).lower(): value for key, value in info.items() if value}
    changed: Any = found.get("lastmodified") or found.get("mtime") or found.get("updated") or 0.0
    size, mtime = -1, 0.0
    with suppress(ValueError, OverflowError):
        if isinstance(changed, str):
            changed = (datetime.fromisoformat if changed[:1].isdigit() else parsedate_to_datetime)(changed)
        if isinstance(changed, datetime):
            changed = changed.timestamp()
        mtime = float(int(changed)) if isinstance(changed, int | float) else 0.0  # listings are finer than headers
    with suppress(ValueError, OverflowError, TypeError):
        given = int(info.get("size"))  # type: ignore[arg-type]
        size = given if 0 <= given < MOST_BYTES else -1
    return Address(
        url,
        size=size,
        mtime=mtime,
        etag=str(found.get("etag", "")).removeprefix("W/").strip('"'),
    )
