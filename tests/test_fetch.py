"""Files that are fetched into a bounded cache: whole, never mixed, whatever the server does."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientTimeout
from fsspec.config import conf
from web import Web, held, serve

from vswin_extract.errors import VideoChanged, VideoMissing, VideoUnreachable
from vswin_extract.video.fetch import PREFIX, Cache, Fetch
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import find_videos

CONTENT = bytes(range(256)) * 40
AT_ONCE = (0.01,) * 4
"""Seconds before further tries."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is on this machine, whatever proxy is set."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def web() -> Iterator[Web]:
    """CONTENT on the web."""
    with serve(Web(files={"/x": CONTENT})) as web:
        yield web


def fetched(url: str, cache: Path, size: int = 10**6) -> tuple[bytes, Address]:
    """Fetch a file and drop it. Return its content and its address with the fingerprint that was found."""
    fetching = Fetch(Address(url), Cache(str(cache), size), waits=AT_ONCE)
    fetching.start()
    try:
        return fetching.wait(lambda: None).read_bytes(), fetching.found
    finally:
        fetching.drop()
        assert not os.listdir(cache)


def test_what_is_cut_off_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.faults["/x"] = ["cut", "500", "cut"]
    content, found = fetched(f"{web.url}/x", tmp_path)
    assert content == CONTENT
    assert (found.size, len(found.etag)) == (len(CONTENT), 8)
    half = len(CONTENT) // 2
    assert web.gets("/x") == [None, half, half, half + half // 2]


@pytest.mark.parametrize(
    ("faults", "always"),
    [(["no ranges", "no ranges", ""], ""), (["500", "503", "429", ""], ""), (["short", "", ""], ""), ([], "redirect"),
     ([], "chunked"), (["hang", ""], "")],
)  # fmt: skip
def test_what_can_be_fetched_is_fetched_whole(
    faults: list[str], always: str, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence is given up after half a second here: what fsspec's configuration says is heeded."""
    timeout = ClientTimeout(total=None, sock_read=0.5)
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"timeout": timeout}})
    web.faults["/x"] = faults
    web.always |= {"/x": always} if always else {}
    content, found = fetched(f"{web.url}/x", tmp_path)
    assert content == CONTENT
    assert found.size == len(CONTENT)


@pytest.mark.parametrize(
    ("always", "error", "named", "most"),
    [
        ("404", VideoMissing, "404", 1),
        ("403", VideoUnreachable, "403", 1),
        ("503", VideoUnreachable, "503", 5),
        ("short", VideoUnreachable, "10230 .*10240", 6),
        ("enormous", VideoUnreachable, "1125899906842624", 0),
    ],
)
def test_what_cannot_be_fetched_says_why(
    always: str, error: type[Exception], named: str, most: int, web: Web, tmp_path: Path
) -> None:
    web.always["/x"] = always
    with pytest.raises(error, match=named):
        fetched(f"{web.url}/x?signature=secret", tmp_path)
    assert len(web.gets("/x")) <= most


def test_a_server_that_is_not_there(web: Web, tmp_path: Path) -> None:
    with pytest.raises(VideoUnreachable, match="Connect call failed"):
        fetched("http://127.0.0.1:9/x?signature=secret", tmp_path)


def test_a_file_that_changes_is_begun_again_and_never_mixed(web: Web, tmp_path: Path) -> None:
    web.faults["/x"] = ["change"]
    content, found = fetched(f"{web.url}/x", tmp_path)
    assert content == bytes(byte ^ 1 for byte in CONTENT)
    assert found.etag != Address("", etag="x").etag
    web.always["/x"] = "change"
    with pytest.raises(VideoChanged):
        fetched(f"{web.url}/x", tmp_path)


def test_a_clip_range_is_of_the_file_that_was_looked_at(web: Web, tmp_path: Path) -> None:
    (video,) = find_videos([f"{web.url}/x"])
    assert isinstance(video.path, Address)
    for address, same in ((video.path, True), (replace(video.path, etag="other"), False)):
        fetching = Fetch(address, Cache(str(tmp_path), 10**6), exact=True)
        fetching.start()
        if same:
            assert fetching.wait(lambda: None).read_bytes() == CONTENT
        else:
            with pytest.raises(VideoChanged):
                fetching.wait(lambda: None)
        fetching.drop()


def test_without_a_length_the_cache_is_the_limit(web: Web, tmp_path: Path) -> None:
    web.always["/x"] = "chunked"
    with pytest.raises(VideoUnreachable, match="--cache-size"):
        fetched(f"{web.url}/x", tmp_path, size=5000)


def test_other_protocols(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(CONTENT)
    (tmp_path / "cache").mkdir()
    assert fetched(f"file://{tmp_path}/x.mp4", tmp_path / "cache")[0] == CONTENT


def begin(web: Web, count: int, cache: Cache) -> list[Fetch]:
    fetches: list[Fetch] = []
    for number in range(count):
        web.files[f"/{number}"] = CONTENT
        fetches.append(Fetch(Address(f"{web.url}/{number}"), cache))
        fetches[-1].start()
    return fetches


def test_read_ahead_waits_for_room_and_what_is_wanted_does_not(web: Web, tmp_path: Path) -> None:
    limit = 2 * len(CONTENT) + 100
    fetches = begin(web, 4, Cache(str(tmp_path), limit))
    deadline = time.monotonic() + 5
    while sum(each.is_alive() for each in fetches) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    waiting = [each for each in fetches if each.is_alive()]
    complete = [each for each in fetches if not each.is_alive()]
    assert (len(complete), held(tmp_path)) == (2, 2 * len(CONTENT))
    waiting[0].wait(lambda: None)  # beyond the limit: a decoder gets what it needs now
    assert held(tmp_path) == 3 * len(CONTENT)
    complete[0].drop()
    time.sleep(0.2)
    assert waiting[1].is_alive()
    complete[1].drop()
    waiting[1].join(5)
    assert not waiting[1].is_alive()
    assert held(tmp_path) == 2 * len(CONTENT)
    for each in waiting:
        each.drop()
    assert not os.listdir(tmp_path)


def test_segments_of_a_video_share_its_file(web: Web, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 10**6)
    fetches: list[Fetch] = []
    for _ in range(3):
        fetches.append(Fetch(Address(f"{web.url}/x"), cache, after=fetches[-1] if fetches else None))
        fetches[-1].start()
    (path,) = {each.wait(lambda: None) for each in fetches}
    assert len(web.gets("/x")) == 1
    for each in fetches:
        assert (path.read_bytes(), each.found.size) == (CONTENT, len(CONTENT))
        each.drop()
    assert not os.listdir(tmp_path)


def test_two_that_begin_at_once_have_a_file_each(web: Web, tmp_path: Path) -> None:
    web.always["/x"], web.files["/x"] = "drip", CONTENT[:700]
    fetches = [Fetch(Address(f"{web.url}/x"), Cache(str(tmp_path), 10**6)) for _ in range(2)]
    for each in fetches:
        each.start()
    assert [each.wait(lambda: None).read_bytes() for each in fetches] == [CONTENT[:700]] * 2
    for each in fetches:
        each.drop()
    assert not os.listdir(tmp_path)


def test_files_of_ended_processes_are_removed_and_other_files_stay(web: Web, tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}left.mp4").write_bytes(bytes(10**6))
    (tmp_path / "thesis.txt").write_text("precious")
    fetching = Fetch(Address(f"{web.url}/x"), Cache(str(tmp_path), len(CONTENT)))
    fetching.start()
    fetching.join(5)
    assert not fetching.is_alive()
    assert held(tmp_path) == len(CONTENT)
    fetching.drop()
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, MemoryError])
def test_whatever_a_library_raises_reaches_the_decoder(
    raised: type[BaseException], web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Fetch, "_download", fail)
    with pytest.raises(raised):
        fetched(f"{web.url}/x", tmp_path)
