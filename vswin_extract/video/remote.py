"""Files at addresses that fsspec reaches: their names, listing them, what is known of them, what failures mean."""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote

from vswin_extract.errors import UsageError, VideoError, VideoMissing, VideoUnreachable

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, when one brought nothing new."""
PATIENCE = 20.0
"""Seconds of silence after which a server is asked again."""
UNKNOWN = (-1, 0.0, "")
"""A size, a time of change or an etag that a server does not say, or that nobody has asked for."""


@dataclass(frozen=True)
class Address:
    """A file behind an address, and what is known of it. As text, nothing secret is in it."""

    url: str
    size: int = -1
    mtime: float = 0.0
    etag: str = ""

    def __str__(self) -> str:
        return public(self.url)


def is_remote(name: str) -> bool:
    """Whether it is an address, as s3://bucket/key, and no path."""
    return re.match(r"[A-Za-z][\w+.-]*(://|::.*://)", name) is not None


def alike(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether two states of a file, as sizes, times and etags, are the same as far as both are known."""
    return all(a == b or a in UNKNOWN or b in UNKNOWN for a, b in zip(one, other, strict=True))


def public(url: str) -> str:
    """An address without what may be secret in it: passwords, and of the web's addresses users and queries, where
    signatures and tokens are."""
    chain, web = _split(url)
    if web:
        web = re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", web)[0])
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", chain) + web


def name(url: str) -> str:
    """The path of an address, without host or bucket. On the web, percent signs are undone."""
    chain, web = _split(public(url))
    shown = next((part for part in chain.split("::") if "://" in part), web)
    rest = shown.partition("://")[2]
    found = rest.partition("/")[2] if "/" in rest else rest
    return unquote(found, errors="surrogateescape") if shown == web else found


def _split(url: str) -> tuple[str, str]:
    """What it is within, as "zip://a.mp4::", and the web's address, which ends a chain: either may be empty."""
    web = re.search(r"(?:^|(?<=::))https?://", url, re.IGNORECASE)
    at = web.start() if web else len(url)
    return url[:at], url[at:]


def look(url: str) -> Address | dict[str, Address]:
    """A file, or all files below a directory by their paths in it. Raises UsageError where there is neither."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    try:
        if not url.endswith("/"):
            info = patiently(lambda: filesystem.info(path))
            if info["type"] != "directory":
                return known(url, info)
        below = patiently(lambda: filesystem.find(path, detail=True))
    except VideoMissing as error:
        raise UsageError(f"no such file or directory: {public(url)}") from error
    except VideoError as error:
        raise UsageError(f"cannot look at {public(url)}: {error}") from error
    start = len(path.rstrip("/")) + 1
    base = name(url.rstrip("/") + "/")
    found = [known(f"{url.rstrip('/')}/{each[start:]}", info) for each, info in below.items() if each[start:]]
    return {name(file.url).removeprefix(base): file for file in found}


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it. Raises UsageError where that cannot be had."""
    check_protocol(url)
    import fsspec

    chain, web = _split(url)
    try:
        if web and not chain:  # else fsspec would take any "::" in it for a chain
            return fsspec.filesystem(protocol := web.partition("://")[0], **_options(protocol)), web
        protocols = re.findall(r"(?:^|::)([\w+.-]+)://", url)
        filesystem, path = fsspec.core.url_to_fs(url, **{protocol: _options(protocol) for protocol in protocols})
    except Exception as error:  # the package of each protocol has a family of its own
        raise UsageError(f"{public(url)} cannot be opened: {_scrubbed(error)}") from error
    return filesystem, str(path)


def _options(protocol: str) -> dict[str, Any]:
    """What a file system is to do otherwise than of its own accord, unless fsspec's configuration says so."""
    from fsspec.config import conf

    configured = conf.get(protocol, {})
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        # else a stream ends after five minutes, however well it goes, and proxies are not known
        timeout = ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        return {"client_kwargs": {"timeout": timeout, "trust_env": True, **configured.get("client_kwargs", {})}}
    if protocol in ("s3", "s3a"):
        # else a server that is silent is asked 25 times, for six minutes; s3fs still does so five times
        patience = {"read_timeout": PATIENCE / 2, "retries": {"max_attempts": 0}}
        return {"config_kwargs": {**patience, **configured.get("config_kwargs", {})}}
    return {}


@cache
def _need(protocols: str) -> None:
    """Raise UsageError unless there are packages for a protocol, or for several as zip::s3."""
    install = "pip install 'vswin-extract[remote]'"
    try:
        from fsspec import get_filesystem_class
    except ImportError as error:
        raise UsageError(f"{protocols}:// needs the package fsspec: {install}") from error
    for protocol in protocols.split("::"):
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            brings = install if protocol in ("s3", "s3a", "http", "https") else "pip install it"
            raise UsageError(f"{protocol}:// needs a package that is not there ({error}): {brings}") from error
        except ValueError as error:
            raise UsageError(f"{protocol}:// is no protocol that fsspec knows") from error


def check_protocol(url: str) -> None:
    """Raise UsageError where this address cannot be opened for want of a package."""
    _need(url.partition("://")[0])


def patiently(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """What a call of a file system returns, tried again where it may be luckier. Raises VideoError."""
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:  # each package's family again
            if refused := refusal(error, last=wait is None):
                raise refused from error
        sleep(wait or 0.0)
    raise RuntimeError("the last try neither returned nor raised")


def refusal(error: BaseException, last: bool) -> VideoError | None:
    """What a failure means for a video; None where another try, if this was not the last, may be luckier."""
    status = _status(error)
    # fsspec says FileNotFoundError for whatever comes in between
    while error.__cause__ is not None and not isinstance(error, UsageError):
        error = error.__cause__
        status = status or _status(error)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return VideoMissing("is not there" + (f": the server answers with status {status}" if status else ""))
    if status is None:
        denied = isinstance(error, PermissionError | UsageError) or "Credential" in type(error).__name__
    else:
        denied = not passing(status)
    if not (denied or last):
        return None
    said = f"the server answers with status {status}" if status else _scrubbed(error)
    return VideoUnreachable(f"it could not be fetched: {said}")


def passing(status: int) -> bool:
    """Whether a web server that answers so may answer otherwise before long."""
    return status >= 500 or status in (408, 412, 425, 429)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, botocore or others like them carries."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(error, "status_code", None)
    return found if isinstance(found, int) and found >= 400 else None


def _scrubbed(error: BaseException) -> str:
    """The first line of what an error says, with no secrets in its addresses."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    text = re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+", lambda found: public(found[0]), text)
    return re.sub(r"\?[^\s'\"<>]*=[^\s'\"<>]*", "", text)  # a query without its address


def known(url: str, info: Mapping[str, Any]) -> Address:
    """What a file system says of a file. Each has names of its own for the same."""
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    found = {re.sub(r"[\W_]", "", key).lower(): value for key, value in info.items() if value}
    changed: Any = found.get("lastmodified") or found.get("mtime") or found.get("updated") or 0.0
    if isinstance(changed, str):
        with suppress(ValueError):
            changed = (datetime.fromisoformat if changed[:1].isdigit() else parsedate_to_datetime)(changed)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    size = info.get("size")
    return Address(
        url,
        size=-1 if size is None else int(size),
        mtime=float(int(changed)) if isinstance(changed, int | float) else 0.0,  # listings are finer than headers
        etag=str(found.get("etag", "")).removeprefix("W/").strip('"'),
    )
