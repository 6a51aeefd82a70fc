"""Videos at addresses: they give the features of the same files on this machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import fsspec
import h5py
import numbered
import numpy as np
import pytest
from conftest import Run, read_video, script, start_decoder
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer
from test_many import expect_equal
from web import Web, held, serve

from vswin_extract.checks.output import verify_output
from vswin_extract.cli.extract_options import parse_bytes
from vswin_extract.errors import DecoderTimeout, UsageError
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.job.job import Job
from vswin_extract.journal.journal import Journal
from vswin_extract.run.run import run as run_job
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video import listing, remote
from vswin_extract.video.fetch import Cache
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, find_videos

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short videos and two files that are none, in two folders."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "b c").mkdir()
    for number in range(8):
        numbered.write(folder / ("b c" if number % 3 else "") / f"{number:02}.mp4", 40 + number, first=10 * number)
    (folder / "b c" / "bad.mp4").write_text("no video")
    (folder / "b c" / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture
def web(videos: Path) -> Iterator[Web]:
    """The videos and a small file on the web."""
    files = {f"/v/{path.relative_to(videos)}": path.read_bytes() for path in videos.rglob("*.mp4")}
    with serve(
        Web(files={**{name.replace(" ", "%20"): content for name, content in files.items()}, "/x": b"content"})
    ) as it:
        yield it


@pytest.fixture(scope="module")
def s3(videos: Path) -> Iterator[str]:
    """The videos in a bucket of an S3 server."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        bucket = fsspec.filesystem("s3")
        bucket.mkdir("bucket")
        for path in videos.rglob("*.*"):
            bucket.pipe(f"bucket/my videos/{path.relative_to(videos)}", path.read_bytes())
        yield "s3://bucket/my videos"
    server.stop()


def test_a_slow_server_is_not_taken_for_a_decoder_that_hangs(web: Web, tmp_path: Path) -> None:
    web.always["/v/00.mp4"] = "drip"
    address = Address(f"{web.url}/v/00.mp4")
    task = Task("x", "pyav", Sampling(8, 2), Geometry(32, 32), address=address, cache=Cache(str(tmp_path), 10**6))
    assert len(web.files["/v/00.mp4"]) / 300 * 0.4 > 3.6  # seconds that it takes
    with closing(start_decoder("pyav", timeout=2.5)) as process:
        clips, end = read_video(process, task)
    assert (len(clips), end.frames) == (end.clips, 40)
    assert end.file is not None
    assert end.file[0] == len(web.files["/v/00.mp4"])


@pytest.mark.slow
def test_a_server_that_gives_a_byte_now_and_then_does_not_hold_a_decoder(web: Web, tmp_path: Path) -> None:
    web.always["/v/00.mp4"] = "trickle"
    cache = Cache(str(tmp_path), 10**6)
    task = Task("x", "pyav", Sampling(8, 2), Geometry(32, 32), address=Address(f"{web.url}/v/00.mp4"), cache=cache)
    with closing(start_decoder("pyav", timeout=3)) as process:
        begun = time.monotonic()
        process.submit(task)
        process.submit(replace(task, address=Address(f"{web.url}/v/03.mp4")))
        with pytest.raises(DecoderTimeout, match="256 bytes a second"):
            process.read()
        assert time.monotonic() - begun < 8
        while not isinstance(end := process.read(), VideoEnd):
            pass
    assert end.frames == 43
    assert not os.listdir(tmp_path)


def test_a_decoder_that_is_stopped_leaves_nothing_in_the_cache(web: Web, tmp_path: Path) -> None:
    web.always["/v/00.mp4"] = "drip"
    task = Task("x", "pyav", Sampling(8, 2), Geometry(32, 32), address=Address(f"{web.url}/v/00.mp4"),
                cache=Cache(str(tmp_path), 10**6))  # fmt: skip
    with closing(start_decoder("pyav", timeout=30)) as process:
        process.submit(task)
        while not held(tmp_path):
            time.sleep(0.01)
    assert not os.listdir(tmp_path)


def test_the_next_file_is_fetched_while_one_is_decoded(web: Web, tmp_path: Path) -> None:
    numbered.write(tmp_path / "long.mp4", 2400)
    cache = Cache(str(tmp_path / "cache"), 10**6)
    task = Task(str(tmp_path / "long.mp4"), "pyav", Sampling(8, 2), Geometry(64, 64))
    with closing(start_decoder("pyav", timeout=30)) as process:
        process.submit(task)  # more than socket and queue hold, so that it is not complete before it is read
        process.submit(replace(task, path="x", address=Address(f"{web.url}/v/00.mp4"), cache=cache))
        deadline = time.monotonic() + 20
        while held(tmp_path / "cache") < len(web.files["/v/00.mp4"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held(tmp_path / "cache") == len(web.files["/v/00.mp4"])
        ends: list[VideoEnd] = []
        while len(ends) < 2:
            arrived = process.read()
            ends += [arrived] if isinstance(arrived, VideoEnd) else []
    assert [end.frames for end in ends] == [2400, 40]
    assert not os.listdir(tmp_path / "cache")


def test_a_bucket_gives_what_a_directory_gives(
    run: Run, videos: Path, options: list[str], single: Path, s3: str, tmp_path: Path
) -> None:
    out, cache = tmp_path / "out.h5", tmp_path / "cache"
    seen, done_watching = [0], threading.Event()

    def watch() -> None:
        while not done_watching.wait(0.002):
            seen.append(held(cache))

    watching = threading.Thread(target=watch)
    watching.start()
    limit = 5 * max(path.stat().st_size for path in videos.rglob("*.mp4"))
    done = run("vswin-extract", s3, out, *options, "--cache-dir", cache, "--cache-size", limit)
    done_watching.set()
    watching.join()
    assert done.returncode == 3, done.stderr
    assert 0 < max(seen) <= limit
    assert not os.listdir(cache)
    expect_equal(single, out)
    with h5py.File(out) as file:
        table = {name: column[:] for name, column in file["videos_table"].items()}
        assert table["path"][0].decode() == f"{s3}/{table['id'][0].decode()}"
        assert all(len(etag) == 32 for etag in table["etag"])
        assert file["failures/error"][:].tolist() == [b"VideoUnreadable"]
    assert verify_output(out, find_videos([s3])).problems == ()
    assert next(video.id for video in find_videos(["s3://bucket"])) == "my videos/00.mp4"
    bucket = fsspec.filesystem("s3")
    bucket.pipe("bucket/my videos/00.mp4", (videos / "b c" / "01.mp4").read_bytes())
    try:
        (problem,) = verify_output(out, find_videos([s3 + "/"])).problems
        assert (problem.where, problem.what) == ("00.mp4", "has changed since it was extracted")
    finally:
        bucket.pipe("bucket/my videos/00.mp4", (videos / "00.mp4").read_bytes())


def test_addresses_in_lists_and_manifests_and_nothing_secret_anywhere(
    run: Run, videos: Path, options: list[str], web: Web, s3: str, tmp_path: Path
) -> None:
    out, manifest = tmp_path / "out.h5", tmp_path / "list.csv"
    signed = "?X-Amz-Signature=SECRET&token=SECRET"
    user = web.url.replace("://", "://me:SECRET@")
    manifest.write_text(
        "path,id,start,end\n"
        f"{web.url}/v/00.mp4{signed},first,0,0.7\n{web.url}/v/00.mp4{signed},second,0.7,\n{s3}/03.mp4,third,,\n"
        f"{videos}/06.mp4,here,,\n"
    )
    listed = f"{user}/v/b%20c/01.mp4{signed}#part\n{web.url}/gone.mp4{signed}\n{web.url}/refused.mp4{signed}\n"
    web.always["/refused.mp4"] = "403"
    done = run("vswin-extract", "-", "--manifest", manifest, out, *options, "-v",
               "--cache-dir", tmp_path / "cache", input=listed)  # fmt: skip
    assert done.returncode == 3, done.stderr
    with h5py.File(out) as file:
        ids = [name.decode() for name in file["videos_table/id"]]
        assert ids == ["first", "second", "third", "here", "v/b c/01.mp4"]
        failures = {key: [value.decode() for value in file[f"failures/{key}"]] for key in ("id", "error", "path")}
        assert failures["error"] == ["VideoMissing", "VideoUnreachable"]
        assert failures["path"] == [f"{web.url}/gone.mp4", f"{web.url}/refused.mp4"]
        assert file["videos_table/frames"][:2].tolist() == [21, 19]
    for text in (done.stdout, done.stderr, *(path.read_bytes().decode("latin-1") for path in tmp_path.glob("out*"))):
        assert "SECRET" not in text


def test_a_killed_run_fetches_only_what_is_missing(
    run: Run, environment: dict[str, str], options: list[str], web: Web, tmp_path: Path
) -> None:
    out, cache = tmp_path / "out.h5", tmp_path / "cache"
    paths = sorted(path for path in web.files if path.startswith("/v/"))
    listed = "".join(f"{web.url}{path}?signature=1\n" for path in paths)
    arguments = ["-", str(out), *options, "--cache-dir", str(cache), "--workers", "1"]
    web.always[paths[4]] = "drip"
    process = subprocess.Popen(
        [script("vswin-extract"), *arguments], env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(listed.encode())
    while not web.gets(paths[4]) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert held(cache)  # what it was fetching
    begun = len(list((tmp_path / "out.h5.parts").glob("shard-*/*.json")))
    assert begun >= 2
    web.asked.clear()
    web.always.clear()
    again = run("vswin-extract", *arguments, input=listed.replace("=1", "=2"))
    assert again.returncode == 3, again.stderr
    assert f"{begun} of them done before" in again.stderr
    assert sorted({path for method, path, _ in web.asked}) == paths[begun:]
    assert not os.listdir(cache)
    with h5py.File(out) as file:
        assert len(file["videos_table/id"]) == len(paths) - 1


def test_what_counts_as_done(tmp_path: Path) -> None:
    """A listing tells what has changed; of an address in a list nothing is known before it is fetched."""
    journal = Journal(tmp_path / "o.h5", tmp_path, Arrays({}), "run")
    writer = journal.writer()
    seen, unseen = Address("s3://b/v", 5, 1.0, "e"), Address("s3://b/v")
    for name, clip_range in (("v", WHOLE), ("cut", (0, 4))):
        part = writer.part(Video(name, seen, clip_range=clip_range))
        part.append(
            {
                f"clips/{column}": np.zeros((4, *shape))
                for column, shape in (("frames", (2,)), ("times", (2,)), ("valid", ()))
            }
        )
        record = VideoRecord(name, "s3://b/v", "ok", clips=4, size=5, mtime=1.0, etag="e", clip_range=clip_range)
        writer.commit(record, part)
    writer.commit(VideoRecord("late", "s3://b/v", "failed", error="VideoUnreachable"))
    journal.load()
    for address, missing in ((seen, []), (unseen, []), (replace(seen, etag="f"), [WHOLE])):
        video = Video("v", address)
        assert journal.missing(video, address.size, address.mtime, address.etag) == missing
        assert journal.complete("v") is not None
    assert journal.missing(Video("cut", seen), 5, 1.0, "e") == [(4, None)]
    assert journal.missing(Video("cut", unseen), -1, 0.0) == [WHOLE]
    assert journal.missing(Video("late", unseen), -1, 0.0) == [WHOLE]


@pytest.mark.parametrize(
    ("url", "is_called", "is_shown"),
    [
        ("https://h/a.mp4?X-Amz-Signature=s", "a.mp4", "https://h/a.mp4"),
        ("https://u:p@h:8/d/a%20%23.mp4#t=5", "d/a #.mp4", "https://h:8/d/a%20%23.mp4"),
        ("https://h/a@b.mp4", "a@b.mp4", "https://h/a@b.mp4"),
        ("https://h/x?to=me@there", "x", "https://h/x"),
        ("HTTPS://u@h/x?p", "x", "HTTPS://h/x"),
        ("https://[::1]/x?a::b://c", "x", "https://[::1]/x"),
        ("s3://bucket/d/a?b%20.mp4", "d/a?b%20.mp4", "s3://bucket/d/a?b%20.mp4"),
        ("abfs://container@account/a.mp4", "a.mp4", "abfs://container@account/a.mp4"),
        ("sftp://me:p@host/d/a.mp4", "d/a.mp4", "sftp://me@host/d/a.mp4"),
        ("zip://a.mp4::https://u:p@h/x.zip?s", "a.mp4", "zip://a.mp4::https://h/x.zip"),
    ],
)
def test_names(url: str, is_called: str, is_shown: str) -> None:
    assert remote.is_remote(url)
    assert (remote.path_of(url), remote.without_secrets(url), str(Address(url))) == (is_called, is_shown, is_shown)


@pytest.mark.parametrize(
    ("says", "size", "mtime"),
    [
        ({"Last-Modified": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, -1, 0.0),
        ({"Last-Modified": "9" * 30 + "-01-01"}, -1, 0.0),
        ({"mtime": float("inf"), "size": 5}, 5, 0.0),
        ({"mtime": float("nan"), "size": None}, -1, 0.0),
        ({"mtime": 12.5, "size": 10**30}, -1, 12.0),
        ({"mtime": "yesterday", "size": -5}, -1, 0.0),
        ({"size": "many"}, -1, 0.0),
        ({"size": "7", "updated": "2024-01-01T00:00:00+00:00"}, 7, 1704067200.0),
    ],
)
def test_what_servers_say_that_cannot_be(says: dict[str, object], size: int, mtime: float) -> None:
    found = remote.address_of("https://h/a.mp4", says)
    assert (found.size, found.mtime) == (size, mtime)


def test_a_path_is_no_address(tmp_path: Path) -> None:
    for name in ("a:b.mp4", "/a//b", "C:x", "s3:/x", "a b://c"):
        assert not remote.is_remote(name)


def test_a_page_that_lists_files_is_a_directory(tmp_path: Path) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    for name in ("b.mp4", "a b/c.mp4", "a b/.hidden.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        found = find_videos([f"http://127.0.0.1:{server.server_port}/"])
        assert [video.id for video in found] == ["a b/c.mp4", "b.mp4"]
        server.shutdown()


def test_addresses_without_a_video(web: Web, s3: str) -> None:
    for url in (f"{web.url}/gone.mp4?secret", f"{s3}/gone.mp4", "s3://nobucket/x"):
        with pytest.raises(UsageError, match=url.partition("?")[0]) as caught:
            find_videos([url])
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="s3://bucket/nothing/"):
        find_videos(["s3://bucket/nothing/"])
    web.always["/x"] = "503"
    with pytest.raises(UsageError, match=r"/x: .* 503"):
        listing.list_files(f"{web.url}/x", waits=(0.01,) * 4)
    with pytest.raises(UsageError, match="'x'"):
        find_videos(listed=["https://h/x?video=1", "https://h/x?video=2"])


def test_a_bucket_with_more_files_than_the_bound(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LINKS", 3)
    with pytest.raises(UsageError, match="3 files"):
        find_videos([s3])


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nosuch://"):
        find_videos(listed=["nosuch://x/y.mp4"])
    remote._require_packages.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"s3fs.*vswin-extract\[remote\]"):
        find_videos(listed=["s3://b/x.mp4"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"fsspec.*vswin-extract\[remote\]"):
        find_videos(listed=["s3://b/x.mp4"])


def test_commands_that_cannot_work(run: Run, videos: Path, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, says in (
        (["s3://bucket/videos"], "the last argument is the file to write"),
        ([videos, "s3://bucket/out.h5"], "the last argument is the file to write"),
        ([f"{web.url}/x", tmp_path / "o.h5", "--cache-dir", tmp_path / "file"], "no cache can be kept in "),
        ([videos, tmp_path / "o.h5", "--cache-size", "much"], "'much' is no size"),
    ):
        done = run("vswin-extract", *arguments)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_dry_run_counts_what_is_elsewhere(run: Run, options: list[str], web: Web, tmp_path: Path) -> None:
    web.faults["/v/03.mp4"] = ["500"]
    arguments = [f"{web.url}/v/00.mp4", f"{web.url}/v/03.mp4", tmp_path / "o.h5", *options]
    done = run("vswin-extract", *arguments, "--dry-run", "--cache-dir", tmp_path / "cache")
    assert (done.returncode, "2 videos, about 11 clips" in done.stdout) == (0, True), done.stdout
    assert not os.listdir(tmp_path / "cache")


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("5", "10GB", "1.5 kB", "2t", "7mb")] == [
        5,
        10**10,
        1500,
        2 * 10**12,
        7 * 10**6,
    ]


@pytest.mark.slow
def test_clip_ranges_of_a_remote_video_are_clips_of_the_whole(
    run: Run, options: list[str], s3: str, tmp_path: Path
) -> None:
    here = numbered.write(tmp_path / "long.mp4", 1200)
    with here.open("ab") as file:  # so large that by its size it is worth splitting
        file.write((1 << 23).to_bytes(4, "big") + b"free" + bytes((1 << 23) - 8))
    fsspec.filesystem("s3").pipe("bucket/alone/long.mp4", here.read_bytes())
    assert run("vswin-extract", here, tmp_path / "here.h5", *options).returncode == 0
    job = Job(find_videos(["s3://bucket/alone"]), tmp_path / "o.h5", options[1], stages=(4,), stride=6, device="cpu:2",
              cache_dir=tmp_path / "cache")  # fmt: skip
    files = 0
    for _ in run_job(job):
        files = max(files, len(list((tmp_path / "o.h5.parts").glob("shard-*/*.rows*"))))
    assert files >= 2
    expect_equal(tmp_path / "here.h5", tmp_path / "o.h5")
    assert not os.listdir(tmp_path / "cache")


@pytest.mark.slow
def test_two_runs_share_a_cache_and_one_of_them_is_killed(
    environment: dict[str, str], options: list[str], single: Path, s3: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        command = [script("vswin-extract"), s3, str(tmp_path / name), *options, "--cache-dir", str(cache), *more]
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return subprocess.Popen(command, env={**environment, **aws}, stderr=subprocess.DEVNULL)

    runs = [start("a.h5", "--cache-size", "8kB"), start("b.h5", "--device", "cpu:2")]
    while not list((tmp_path / "b.h5.parts").glob("shard-*/*.json")) and runs[1].poll() is None:
        time.sleep(0.005)
    runs[1].send_signal(signal.SIGKILL)
    assert runs[0].wait(120) == 3
    runs[1].wait()
    assert start("b.h5").wait(120) == 3
    expect_equal(single, tmp_path / "a.h5")
    expect_equal(single, tmp_path / "b.h5")
    assert not os.listdir(cache)
