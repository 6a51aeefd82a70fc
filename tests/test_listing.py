"""Pages of hostile servers: a listing ends within its bounds, odd links are skipped, and the rest is extracted."""

import time
import tracemalloc
from collections.abc import Iterator, Mapping

import pytest
from conftest import Run
from web import Web, serve

from vswin_extract.errors import UsageError
from vswin_extract.video import listing
from vswin_extract.video.videos import find_videos

HTML = {"Content-Type": "text/html; charset=utf-8"}


pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture
def web() -> Iterator[Web]:
    with serve(Web()) as web:
        yield web


def put(web: Web, pages: Mapping[str, list[str]]) -> None:
    """Give a server pages, each with its links."""
    for path, links in pages.items():
        web.files[path] = "".join(f'<a class="x" href="{link}">{link}</a>\n' for link in links).encode()
        web.headers[path] = HTML


def listed(url: str) -> tuple[list[str], str]:
    """Return the ids of the videos below an address, and what is said of links that were skipped."""
    said: list[str] = []
    return [video.id for video in find_videos([url], say=said.append)], " ".join(said)


class Everywhere(dict[str, bytes]):
    """The files of a server that answers every address with one page."""

    def __init__(self, page: str) -> None:
        self.page = page.encode()

    def get(self, path: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        return self.page


class Always(dict[str, dict[str, str]]):
    """Headers that say of every address that it is a page."""

    def get(self, path: str, default: dict[str, str] | None = None) -> dict[str, str]:  # type: ignore[override]
        return HTML


ODD = [
    "file:///x.mp4", "ftp://h/x.mp4", "javascript:x.mp4", "http://other.invalid/v/x.mp4", "//other.invalid/v/x.mp4",
    "http://me:secret@127.0.0.1/v/x.mp4", "/elsewhere/x.mp4", "../w/x.mp4", "%2e%2e/x.mp4", "a%2fb.mp4", "a%00.mp4",
    "http://[bad/x.mp4", "http://127.0.0.1:99999999/v/x.mp4", "?page=2", "sub/?page=2", "a%2Emp4",
    "x" * 5000 + ".mp4",
]  # fmt: skip


def test_odd_links_are_skipped_and_the_rest_is_found(web: Web) -> None:
    odd = [*ODD, "gone/", "moved/", "away/", "loop/"]
    put(web, {"/v/": ["a.mp4", *odd, "sub/", "../", "/", "#top", "?C=N;O=D", "./"], "/v/sub/": ["b.mp4", "..", "/v/"]})
    for path, target in (("moved/", "file:///etc/"), ("away/", f"{web.url}/elsewhere/"), ("loop/", "/v/loop/")):
        web.headers[f"/v/{path}"] = {"Location": target}
        web.always[f"/v/{path}"] = "302"
    put(web, {"/elsewhere/": ["c.mp4"]})
    ids, said = listed(f"{web.url}/v/")
    assert ids == ["a.mp4", "sub/b.mp4"]
    assert said.startswith(f"{len(odd)} links were skipped: ")
    for named in (f"{web.url}/v/", "file:///x.mp4", "http://other.invalid/v/x.mp4", "/elsewhere/x.mp4", "?page=2"):
        assert named in said
    assert "secret" not in said
    assert len(said) < 1000


def test_links_as_servers_write_them(web: Web) -> None:
    put(web, {
        "/v/": ["/v/a.mp4", f"{web.url}/v/b.mp4", "HTTP" + web.url[4:] + "/v/c.mp4", " d.mp4 ", "e%20f.mp4?token=1#t=3",
                "/v/a.mp4", "./a.mp4", ".//a.mp4", "/v/sub/", "sub", "g&amp;h.mp4", "/v/?C=M;O=A", ".hidden/"],
        "/v/sub/": ["../a.mp4", "i.mp4", "/v/sub/deep/"],
        "/v/sub/deep/": ["j.mp4"],
    })  # fmt: skip
    ids, said = listed(f"{web.url}/v/")
    assert ids == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e f.mp4", "g&h.mp4", "sub/deep/j.mp4", "sub/i.mp4"]
    assert said == ""
    assert web.gets("/v/.hidden/") == []


def test_a_password_stays_with_its_server_and_a_first_page_may_be_elsewhere(web: Web) -> None:
    put(web, {"/v/": ["a.mp4", f"{web.url}/v/b.mp4", "sub/"], "/v/sub/": ["c.mp4"]})
    web.headers["/old/"], web.always["/old/"] = {"Location": "/v/"}, "302"
    user = web.url.replace("://", "://me:secret@")
    for url in (f"{user}/v/", f"{user}/old/"):
        found = listing.list_files(url)
        assert isinstance(found, dict)
        assert {name: file.url for name, file in found.items()} == {
            name: f"{user}/v/{name}" for name in ("a.mp4", "b.mp4", "sub/c.mp4")
        }
    assert all("Authorization" in seen for seen in web.headers_seen)


def test_a_page_that_does_not_end(run: Run, web: Web, tmp_path: object) -> None:
    web.files["/v/"] = b"".join(b'<a href="%d.mp4">x</a>\n' % number for number in range(1000))
    web.headers["/v/"], web.always["/v/"] = HTML, "endless"
    tracemalloc.start()
    done = run("vswin-extract", f"{web.url}/v/", f"{tmp_path}/o.h5")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{web.url}/v/" in done.stderr
    assert "16.0 MB" in done.stderr
    assert most < 10 * listing.PAGE_BYTES


def test_directories_that_do_not_end(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "DEPTH", 5)
    web.files, web.headers = Everywhere('<a href="deeper/">d</a><a href="a.mp4">a</a>'), Always()
    ids, said = listed(f"{web.url}/")
    assert len(ids) == listing.DEPTH + 1
    assert f"{listing.DEPTH} directories" in said
    assert len(web.asked) == listing.DEPTH + 1


@pytest.mark.parametrize(
    ("bound", "value", "page", "named"),
    [
        ("PAGES", 20, '<a href="a/">a</a><a href="b/">b</a>', "20 directories"),
        ("LINKS", 20, '<a href="a/">a</a><a href="b.mp4">b</a>', "20 links"),
        ("LISTING_SECONDS", 0.3, '<a href="a/">a</a><a href="b/">b</a>', "0.3 s"),
        ("LONGEST_TAG", 1000, "<a " + "x" * 10_000, "1000 characters"),
    ],
)
def test_what_has_no_end_meets_a_bound(
    bound: str, value: float, page: str, named: str, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, bound, value)
    web.files, web.headers = Everywhere(page), Always()
    with pytest.raises(UsageError, match=named) as caught:
        listed(f"{web.url}/v/")
    assert f"{web.url}/v/" in str(caught.value)


def test_a_page_that_comes_byte_by_byte(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_SECONDS", 0.7)
    put(web, {"/v/": ["a.mp4"] * 10})
    web.always["/v/"] = "trickle"
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"0\.7 s"):
        listed(f"{web.url}/v/")
    assert time.monotonic() - begun < 5


def test_a_page_below_that_fails_is_not_left_out(web: Web) -> None:
    """It may have videos, and the server may answer later."""
    put(web, {"/v/": ["a.mp4", "sub/"]})
    web.always["/v/sub/"] = "503"
    with pytest.raises(UsageError, match="503"):
        listing.list_files(f"{web.url}/v/", waits=(0.01,) * 4)


@pytest.mark.parametrize(
    "name", ["a//b.mp4", "../b.mp4", "a/./b.mp4", "a.mp4/b.mp4"], ids=["empty", "above", "here", "inside"]
)
def test_odd_names_in_other_file_systems(name: str) -> None:
    """A store of objects may have any names."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    try:
        for each in ("a.mp4", name):
            memory.store[f"/v/{each}"] = memory.store.get(f"/v/{each}") or _content(memory)
        ids, said = listed("memory://v/")
        assert ids == ["a.mp4"]
        assert "1 name was skipped" in said
    finally:
        memory.store.clear()


def _content(memory: object) -> object:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(memory, "x", b"x")
