"""Listing the files below an address. What a server lists is not trusted: a listing has bounds, and a link that cannot
be a video below the address is skipped.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from html.parser import HTMLParser
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from vswin_extract.errors import UsageError, VideoError, VideoMissing
from vswin_extract.formatting import human_bytes, plural
from vswin_extract.video.remote import (
    WAITS,
    Address,
    T,
    address_of,
    is_temporary,
    open_filesystem,
    path_of,
    split_chain,
    status_of,
    with_retries,
    without_secrets,
)

Say = Callable[[str], None]
"""Called with a sentence for the user."""
log = logging.getLogger(__name__)

PAGE_BYTES = 16_000_000
"""Bytes of a page that lists files, at most."""
PAGE_SECONDS = 60.0
"""Seconds until all of a page is there, or the header of a file, at most."""
PAGES = 10_000
"""Pages below an address that are read, at most."""
DEPTH = 32
"""Directories below an address, one in another, that are looked into, at most."""
LINKS = 1_000_000
"""Links on all pages, or files below an address, at most."""
LISTING_SECONDS = 600.0
"""Seconds that it may take to list all files below an address."""
TOO_LONG = "it takes longer than {} s to list all files"
LONGEST_LINK = 4000
"""Characters of a link, at most."""
LONGEST_TAG = 1_000_000
"""Characters of a page that belong together, as a tag or a script, at most."""


class OutOfBounds(UsageError):
    """A listing has more than one of the bounds above."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; give the addresses of the videos instead, one a line, on standard input (-)")


class Skipped:
    """Counts links or names that were skipped, by reason, with an example of each."""

    def __init__(self, thing: str) -> None:
        self.thing = thing
        self.examples: dict[str, tuple[str, int]] = {}

    def add(self, reason: str, example: str) -> None:
        shown = re.sub(r"(?s)(?<=.)[?#].*", "", without_secrets(example))[:80]  # what follows may be a signature
        first, count = self.examples.get(reason, (shown, 0))
        self.examples[reason] = first, count + 1

    def __str__(self) -> str:
        reasons = [f"{count} {reason} ({example})" for reason, (example, count) in self.examples.items()]
        count = sum(count for _, count in self.examples.values())
        return f"{plural(count, self.thing)} {'was' if count == 1 else 'were'} skipped: {', '.join(reasons)}"


def list_files(url: str, waits: Sequence[float] = WAITS, say: Say = log.warning) -> Address | dict[str, Address]:
    """Return the file at an address or, where it is a directory, all files below it by their paths in it. Names that
    cannot be such paths are skipped, and `say` is called. Raises UsageError where there is neither, and where there is
    more than the bounds above."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    on_web = not split_chain(url)[0]
    skipped = Skipped("link" if on_web else "name")
    try:
        if not url.endswith("/"):
            info = with_retries(lambda: info_of(filesystem, path), waits=waits)
            if info["type"] != "directory":
                return address_of(url, info)
        if on_web:
            found = Pages(filesystem, path, skipped, waits).walk()
        else:
            found = with_retries(lambda: find_files(filesystem, path, url, skipped), waits=waits)
    except VideoMissing as error:
        raise UsageError(f"no such file or directory: {without_secrets(url)}") from error
    except (VideoError, OutOfBounds) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OutOfBounds) else error
        raise UsageError(f"cannot look at {without_secrets(url)}: {reason}") from error
    if skipped.examples:
        say(f"{skipped} below {without_secrets(url)}")
    return found


def info_of(filesystem: Any, path: str) -> Any:
    """Return what a file system says of a path, a web server within PAGE_SECONDS."""
    if not path.startswith(("http://", "https://")):
        return filesystem.info(path)
    return _within(filesystem, PAGE_SECONDS, "a server does not say within {} s what is there", filesystem._info, path)


def _within(filesystem: Any, seconds: float, what: str, call: Callable[..., Awaitable[T]], *values: object) -> T:
    """Return what a coroutine of a file system returns. Raises OutOfBounds where it takes longer."""
    import asyncio

    from fsspec.asyn import sync

    async def limited() -> T:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await call(*values)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise OutOfBounds(what.format(f"{seconds:g}")) from error

    found: T = sync(filesystem.loop, limited)
    return found


def find_files(filesystem: Any, path: str, url: str, skipped: Skipped) -> dict[str, Address]:
    """Return the files below a path of a file system that is no web server."""
    start, base = len(path.rstrip("/")) + 1, path_of(url.rstrip("/") + "/")
    found: dict[str, Address] = {}

    def add(info: Mapping[str, Any]) -> None:
        rest = info["name"][start:]
        if not rest or rest.endswith("/"):
            return
        file = address_of(f"{url.rstrip('/')}/{rest}", info)
        name = path_of(file.url).removeprefix(base)
        if any(map(_is_odd, name.split("/"))) or name in found:
            skipped.add("whose names cannot be ids", file.url)
        else:
            found[name] = file

    async def add_all(bucket: str, prefix: str) -> None:
        count = 0
        async for info in filesystem._iterdir(bucket, delimiter="", prefix=prefix):
            count += 1
            _expect_few(count)
            add(info)

    if hasattr(filesystem, "_iterdir") and (bucket := filesystem.split_path(path)[0]):  # page by page, as S3 gives them
        key = filesystem.split_path(path)[1].rstrip("/")
        _within(filesystem, LISTING_SECONDS, TOO_LONG, add_all, bucket, f"{key}/" if key else "")
        return dict(sorted(found.items()))
    below = filesystem.find(path, detail=True)
    _expect_few(len(below))
    for name, info in below.items():
        add({**info, "name": name})
    return found


def _expect_few(count: int) -> None:
    if count > LINKS:
        raise OutOfBounds(f"there are more than {LINKS} files")


def _is_odd(name: str) -> bool:
    """True if the name of a file or directory cannot be part of an id."""
    return name in ("", ".", "..") or "/" in name or "\0" in name


class _Links(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if (tag, name) == ("a", "href") and value]

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        return self.parse_bogus_comment(i)  # the inherited one raises an AssertionError for most of them


class Pages:
    """Reads a page of a web server that lists files, and the pages of the directories in it. `base`: the address of the
    first one. Links that lead elsewhere are skipped."""

    def __init__(self, filesystem: Any, url: str, skipped: Skipped, waits: Sequence[float]) -> None:
        self.filesystem = filesystem
        self.base = urlsplit(url)
        self.skipped = skipped
        self.waits = waits
        self.deadline = time.monotonic() + LISTING_SECONDS
        self.files: dict[str, Address] = {}
        self.links = 0
        self.seen: set[tuple[str, ...]] = {()}
        self.left = deque([url])

    def walk(self) -> dict[str, Address]:
        """Return the files by their paths. Raises VideoError, with an OutOfBounds as its cause where that is why."""
        first = True
        while self.left:
            url = self.left.popleft()
            try:
                page, links = with_retries(partial(self._read, url), waits=self.waits)
            except VideoError as error:
                status = status_of(error.__cause__) if error.__cause__ else None
                final = isinstance(error, VideoMissing) or isinstance(error.__cause__, PermissionError)
                if first or not (final or (status and not is_temporary(status))):
                    raise
                self.skipped.add("to pages that cannot be read", url)
                continue
            if first and page != url:
                self._move(urlsplit(page))
            elif self._place(page) is None:
                self.skipped.add("to pages that lead elsewhere", url)
                continue
            first = False
            for link in links:
                self._follow(page, link)
        return self.files

    def _move(self, base: SplitResult) -> None:
        """Take where the first page was found for the base. The password that was given is for its host only."""
        user, at, _ = self.base.netloc.rpartition("@")
        if base.hostname == self.base.hostname and base.scheme in (self.base.scheme, "https"):
            base = base._replace(netloc=user + at + base.netloc)
        self.base = base

    def _read(self, url: str) -> tuple[str, list[str]]:
        """Return the address of a page, which is another one after a redirect, and its links."""
        late = f"{without_secrets(url)} does not come within {{}} s"
        page, text = _within(self.filesystem, PAGE_SECONDS, late, _page, self.filesystem, url)
        self._expect_time()
        links, step = _Links(), 1 << 16
        for at in range(0, len(text), step):
            links.feed(text[at : at + step])
            if len(links.rawdata) > LONGEST_TAG:
                raise OutOfBounds(f"{without_secrets(url)} has a tag or a script of more than {LONGEST_TAG} characters")
            self._expect_time()
            if self.links + len(links.found) > LINKS:
                raise OutOfBounds(f"there are more than {LINKS} links")
        self.links += len(links.found)
        return page, links.found

    def _expect_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfBounds(TOO_LONG.format(f"{LISTING_SECONDS:g}"))

    def _place(self, url: str) -> tuple[str, ...] | None:
        """Return the names of directories and file from the base to an address; the last one is empty for a directory.
        None where it is not below the base."""
        at, base = urlsplit(url), self.base
        names, above = (
            [unquote(name, errors="surrogateescape") for name in each.path.split("/")] for each in (at, base)
        )
        same = _server(at) == _server(base) and names[: len(above) - 1] == above[:-1]
        return tuple(names[len(above) - 1 :]) if same else None

    def _follow(self, page: str, link: str) -> None:
        """Add the file or directory that a link on a page leads to, or skip the link."""
        try:
            url = urlsplit(urljoin(page, link.strip()[: LONGEST_LINK + 1]))
            server = _server(url)
            self.filesystem.encode_url(urlunsplit(url))
        except ValueError:
            return self.skipped.add("that are no addresses", link)
        if url.scheme not in ("http", "https"):
            return self.skipped.add(f"of another kind than {self.base.scheme}", link)
        if server != _server(self.base) or (url.username and url.netloc != urlsplit(page).netloc):
            return self.skipped.add("to another server, or as another user", link)
        target = urlunsplit((self.base.scheme, self.base.netloc, url.path, url.query, ""))
        if url.path == urlsplit(page).path:  # the page itself; Apache's pages can be sorted
            if url.query and not re.fullmatch("C=[NMSD][;&]O=[AD]", url.query):
                self.skipped.add("to another view of a page", link)
            return None
        if url.path.endswith("/") and self.base.path.startswith(url.path):
            return None  # a directory above
        names = self._place(target)
        if names is None:
            return self.skipped.add("to elsewhere on the server", link)
        parts = names[:-1] if names[-1] == "" else names
        if any(map(_is_odd, parts)) or len(link) > LONGEST_LINK:
            return self.skipped.add("whose names cannot be ids", link)
        if names[-1]:
            if self.files.setdefault("/".join(names), Address(target)).url != target:
                self.skipped.add("with the name of another one", link)
        elif url.query:
            self.skipped.add("to another view of a page", link)
        elif len(parts) > DEPTH:
            self.skipped.add(f"more than {DEPTH} directories deep", link)
        elif names not in self.seen and not any(name.startswith(".") for name in parts):
            if len(self.seen) == PAGES:
                raise OutOfBounds(f"there are more than {PAGES} directories")
            self.seen.add(names)
            self.left.append(target)
        return None


async def _page(filesystem: Any, url: str) -> tuple[str, str]:
    """Return where a page was found, and its text: empty where it is no HTML."""
    from aiohttp import ClientConnectionError, ClientError, ClientPayloadError

    session = await filesystem.set_session()
    content = bytearray()
    try:
        async with session.get(filesystem.encode_url(url), **filesystem.kwargs) as answer:
            answer.raise_for_status()
            if "html" in answer.headers.get("Content-Type", "text/html").lower():
                async for block in answer.content.iter_any():
                    content += block
                    if len(content) > PAGE_BYTES:
                        raise OutOfBounds(f"{without_secrets(url)} is longer than {human_bytes(PAGE_BYTES)}")
            page = str(answer.url) if answer.history else url
            encoding = answer.charset or "utf-8"
    except (OutOfBounds, ClientConnectionError, ClientPayloadError):
        raise
    except (ClientError, ValueError) as error:
        if status_of(error):
            raise
        raise PermissionError(str(error)) from None  # a redirect to a file, or in a circle: no further try helps
    try:
        return page, content.decode(encoding, "replace")
    except LookupError:  # no such encoding
        return page, content.decode("utf-8", "replace")


def _server(url: SplitResult) -> tuple[str, int]:
    """Return the host and the port of a web address; 0 for the usual port. Raises ValueError."""
    port = url.port
    return url.hostname or "", 0 if port in (None, 80, 443) else int(port or 0)
