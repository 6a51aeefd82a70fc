"""Files that are fetched into a bounded cache: whole, never mixed, whatever the server does."""

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientTimeout
from conftest import Run
from fsspec.config import conf
from web import Web, held, serve

from vswin_extract.errors import VideoChanged, VideoMissing, VideoUnreachable
from vswin_extract.video.fetch import PREFIX, Cache, Fetch, cache_directory
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import find_videos

CONTENT = bytes(range(256)) * 40
AT_ONCE = (0.01,) * 4
"""Seconds before further tries."""


pytestmark = pytest.mark.usefixtures("no_proxy")


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
        ("enormous", VideoUnreachable, "1125.9 TB", 0),
    ],
)
def test_what_cannot_be_fetched_says_why(
    always: str, error: type[Exception], named: str, most: int, web: Web, tmp_path: Path
) -> None:
    web.always["/x"] = always
    with pytest.raises(error, match=named):
        fetched(f"{web.url}/x?signature=secret", tmp_path)
    assert len(web.gets("/x")) <= most


def test_bytes_that_come_too_slowly_are_no_progress(web: Web, tmp_path: Path) -> None:
    web.always["/x"], web.files["/x"] = "trickle", CONTENT[:5]
    fetching, calls = Fetch(Address(f"{web.url}/x"), Cache(str(tmp_path), 10**6)), 0

    def on_progress() -> None:
        nonlocal calls
        calls += 1

    fetching.start()
    assert fetching.wait(on_progress).read_bytes() == CONTENT[:5]
    fetching.drop()
    assert calls <= 2  # the first byte may come at once


def test_a_server_that_gives_one_byte_at_a_time_is_given_up(web: Web, tmp_path: Path) -> None:
    web.always["/x"], web.files["/x"] = "one byte", CONTENT[:60]
    with pytest.raises(VideoUnreachable):
        fetched(f"{web.url}/x", tmp_path)
    assert len(web.gets("/x")) < 10


def test_a_cache_on_a_full_disk(web: Web, small_disk: Path) -> None:
    """What does not fit fails, and what fits is fetched."""
    cache = cache_directory(small_disk)
    web.files["/large"] = bytes(3 << 20)
    for fault in ("", "chunked"):
        web.always["/large"] = fault
        with pytest.raises(VideoUnreachable, match=str(cache)):
            fetched(f"{web.url}/large", cache, size=10**8)
        assert fetched(f"{web.url}/x", cache)[0] == CONTENT
    (small_disk / "filling").write_bytes(bytes(1 << 20))
    ahead = Fetch(Address(f"{web.url}/large2"), Cache(str(cache), 10**8))
    web.files["/large2"] = bytes(3 << 19)
    ahead.start()
    ahead.join(0.3)
    assert ahead.is_alive()  # read-ahead waits for room
    (small_disk / "filling").unlink()
    ahead.join(5)
    assert len(ahead.wait(lambda: None).read_bytes()) == 3 << 19
    ahead.drop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(VideoUnreachable, match=rf"{cache}.*[Rr]ead-only"):
        fetched(f"{web.url}/x", cache)


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


def foretold(web: Web, cache: Path) -> Path:
    """Return the name that the file of /x gets in a cache, as anybody may know."""
    fetching = Fetch(Address(f"{web.url}/x"), Cache(str(cache), 10**6))
    fetching.start()
    path = fetching.wait(lambda: None)
    fetching.drop()
    return path


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a link to a file that is not there": lambda path, precious: path.symlink_to(precious.with_name("new")),
    "a link to a file": lambda path, precious: path.symlink_to(precious),
    "a second name of a file": lambda path, precious: path.hardlink_to(precious),
    "a FIFO": lambda path, precious: os.mkfifo(path),
    "a directory": lambda path, precious: path.mkdir(),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_a_cache_is_not_used(what: str, web: Web, tmp_path: Path) -> None:
    cache, precious = tmp_path / "c", tmp_path / "precious"
    cache.mkdir(0o700)
    precious.write_text("precious")
    path = foretold(web, cache)
    PLANTED[what](path, precious)
    with contextlib.chdir(cache):
        PLANTED[what](Path(f"{PREFIX}left"), precious)
    fetching = Fetch(Address(f"{web.url}/x"), Cache(str(cache), 10**6))
    fetching.start()
    found = fetching.wait(lambda: None)
    assert (found.read_bytes(), found.stat().st_mode & 0o777) == (CONTENT, 0o600)
    assert found != path
    fetching.drop()
    assert not found.exists()
    assert len(os.listdir(cache)) == 2
    assert precious.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["c", "precious"]


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@as_root
def test_a_file_of_another_user_is_not_taken_for_a_complete_one(web: Web, tmp_path: Path) -> None:
    """The other one holds the lock that complete files have, and does not end."""
    path = foretold(web, tmp_path)
    path.write_bytes(b"forged")
    os.chown(path, 65534, 65534)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert fetched_beside(web, tmp_path, path) == CONTENT
        fcntl.flock(file, fcntl.LOCK_EX)
        assert fetched_beside(web, tmp_path, path) == CONTENT


def fetched_beside(web: Web, cache: Path, other: Path) -> bytes:
    """Fetch /x and drop it. Expect that the other file stays."""
    fetching = Fetch(Address(f"{web.url}/x"), Cache(str(cache), 10**6))
    fetching.start()
    content = fetching.wait(lambda: None).read_bytes()
    fetching.drop()
    assert os.listdir(cache) == [other.name]
    return content


@pytest.mark.parametrize(
    ("mode", "own"), [(0o700, True), (0o755, False), (0o775, False), (0o777, False), (0o1777, False)]
)
def test_a_cache_that_others_may_enter_has_a_directory_for_each_user(mode: int, own: bool, tmp_path: Path) -> None:
    given = tmp_path / "cache"
    given.mkdir()
    given.chmod(mode)
    found = cache_directory(given)
    assert found == (given if own else given / f"vswin-extract-{os.geteuid()}")
    assert found.stat().st_mode & 0o777 == 0o700
    assert cache_directory(given) == found
    assert cache_directory(tmp_path / "new" / "cache") == tmp_path / "new" / "cache"


def give_away(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, 65534, 65534)


TAKEN: dict[str, Callable[[Path, Path], object]] = {
    "a link to nothing": lambda own, elsewhere: own.symlink_to(elsewhere / "nothing"),
    "a link to a directory": lambda own, elsewhere: own.symlink_to(elsewhere),
    "a file": lambda own, elsewhere: own.touch(),
    "a FIFO": lambda own, elsewhere: os.mkfifo(own),
    "another user's": lambda own, elsewhere: give_away(own),
}


@pytest.mark.parametrize("what", [*list(TAKEN)[:-1], pytest.param("another user's", marks=as_root)])
def test_a_directory_that_was_planted_is_refused(
    what: str, run: Run, web: Web, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    TAKEN[what](shared / f"vswin-extract-{os.geteuid()}", elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    for given in ([], ["--cache-dir", shared]):
        done = run("vswin-extract", f"{web.url}/x", tmp_path / "o.h5", "--weights", small_weights, *given)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert str(shared) in done.stderr
        assert "--cache-dir" in done.stderr
    assert os.listdir(elsewhere) == []


def test_a_cache_that_is_replaced_is_not_used(web: Web, tmp_path: Path) -> None:
    cache, elsewhere = tmp_path / "c", tmp_path / "elsewhere"
    for directory in (cache, elsewhere):
        directory.mkdir(0o700)
    fetches = begin(web, 2, Cache(str(cache), 10**6))
    fetches[0].wait(lambda: None)
    fetches[1].join()
    cache.rename(tmp_path / "away")
    cache.symlink_to(elsewhere)
    with pytest.raises(VideoUnreachable, match="removed"):
        fetches[1].wait(lambda: None)
    for each in fetches:
        each.drop()
    with pytest.raises(VideoUnreachable, match=str(cache)):
        fetched(f"{web.url}/x", cache)
    assert os.listdir(elsewhere) == []
