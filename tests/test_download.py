"""`vswin weights pull`, from real servers on this machine that stall, redirect, disconnect and send wrong data."""

import hashlib
import http.client
import http.server
import json
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numbered
import pytest
from conftest import ROOT, Run, script
from web import Web, serve

from vswin_extract import load_model, locks, open_features
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.weights.cache import bundled_file, cached_file, find_weights, recorded_hash_file
from vswin_extract.weights.download import Patience
from vswin_extract.weights.pull import ANSWER, obtain_weights, pull_weights
from vswin_extract.weights.registry import Published, manifest

CONTENT = b"not really weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
QUICK = Patience(silence=10, pauses=(0.01, 0.01, 0.01), longest=1.5)
HASTY = replace(QUICK, silence=0.3)
PATH = "/weights.pth"
NAME = "b-k400"
"""Published weights without a hash, so that any content of a mirror is accepted."""
NOT_AS_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.getuid() == 0 else ()
"""Put before a command, so that it has no more rights than usual if the tests run as root."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "VSWIN_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve(Web(files={PATH: CONTENT})) as serving:
        yield serving


@pytest.fixture
def store(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that does not exist yet."""
    monkeypatch.setitem(environment, "VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


Offer = Callable[..., Published]


@pytest.fixture
def offer(web: Web, store: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """`offer(sha256)`: add a row "there" to the manifest, whose file is on the server."""

    def offered(sha256: str = SHA256, url: str = "") -> Published:
        row = replace(manifest()["t-k400"], name="there", url=url or web.url + PATH, sha256=sha256)
        monkeypatch.setitem(manifest(), "there", row)
        return row

    return offered


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8]])
def test_pull_checks_and_publishes(offer: Offer, store: Path, sha256: str) -> None:
    offer(sha256)
    seen: list[tuple[int, int]] = []
    path, notice = pull_weights("there", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert SHA256 in notice
    assert names(store) == ["weights.pth"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert find_weights("there") == path


def test_pull_records_the_first_hash_where_none_is_published(offer: Offer) -> None:
    row = offer("")
    path, notice = pull_weights("there")
    assert SHA256 in notice
    assert "recorded" in notice
    assert pull_weights("there")[0] == path
    path.write_bytes(b"changed later")
    with pytest.raises(WeightsError, match=SHA256):
        pull_weights("there")
    path.unlink()
    recorded_hash_file(row).write_text("0" * 64 + "  weights.pth\n")  # as if the first download had been another file
    with pytest.raises(WeightsError, match="0000"):
        pull_weights("there", patience=QUICK)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("short", f"{len(CONTENT) - 10} bytes .*{SHA256}"),
        ("404", "404 Not Found.*--from DIRECTORY"),
        ("403", "403 Forbidden"),
        ("204", "status 204"),
        ("500", "500 Internal Server Error"),
        ("enormous", "1125.9 TB.*130 MB"),
    ],
)
def test_a_bad_download_leaves_nothing(offer: Offer, web: Web, store: Path, fault: str, says: str) -> None:
    offer()
    web.always[PATH] = fault
    with pytest.raises((WeightsError, OSError), match=says) as raised:
        pull_weights("there", patience=QUICK)
    assert "\n" not in str(raised.value)
    assert names(store) == []
    assert len(web.gets(PATH)) == (4 if fault in ("500", "204") else 1)


@pytest.mark.parametrize("fault", ["cut", "hang", "chunked"])
def test_a_server_that_stops_is_asked_for_the_rest(offer: Offer, web: Web, fault: str) -> None:
    offer()
    web.faults[PATH] = [fault, fault]
    messages: list[str] = []
    path, _ = pull_weights("there", say=messages.append, patience=HASTY)
    assert path.read_bytes() == CONTENT
    if fault in ("cut", "hang"):
        assert web.gets(PATH) == [None, HALF, HALF + HALF // 2]
        reason = "stopped after" if fault == "cut" else "silent for 0.3 s"
        assert [reason in sentence for sentence in messages] == [True, True]
    else:
        assert web.gets(PATH) == [None]


def test_a_download_that_is_given_up_is_continued_later(offer: Offer, web: Web, store: Path) -> None:
    offer()
    web.faults[PATH] = ["cut", "503", "503", "503", "503"]
    with pytest.raises(WeightsError, match=r"503 Service Unavailable; 9.0 kB are kept"):
        pull_weights("there", patience=QUICK)
    assert names(store) == ["weights.pth.part", "weights.pth.part.json"]
    assert (store / "weights.pth.part").read_bytes() == CONTENT[:HALF]
    with pytest.raises(WeightsError, match=r"127.0.0.1:9"):
        pull_weights("there", source="http://127.0.0.1:9", patience=QUICK)
    assert (store / "weights.pth.part").read_bytes() == CONTENT[:HALF]  # it belongs to the first address
    seen: list[int] = []
    path, _ = pull_weights("there", lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert (web.gets(PATH)[-1], seen[0]) == (HALF, HALF)
    assert names(store) == ["weights.pth"]


@pytest.mark.parametrize("fault", ["no ranges", "any range"])
@pytest.mark.parametrize("change", [False, True])
def test_a_download_that_cannot_be_continued_begins_again(
    offer: Offer, web: Web, store: Path, fault: str, change: bool
) -> None:
    offer()
    if change:
        web.files[PATH] = bytes(byte ^ 1 for byte in CONTENT)
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    web.files[PATH] = CONTENT
    web.faults[PATH] = [fault]  # "no ranges" stops after half of the file, too
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT


def test_a_file_that_became_shorter_is_downloaded_again(offer: Offer, web: Web) -> None:
    offer()
    web.files[PATH] = CONTENT * 3
    web.faults[PATH] = ["cut", "416"]
    messages: list[str] = []

    def say(sentence: str) -> None:
        messages.append(sentence)
        web.files[PATH] = CONTENT

    assert pull_weights("there", say=say, patience=QUICK)[0].read_bytes() == CONTENT
    assert "shorter" in messages[1]


def test_without_a_strong_validator_nothing_is_continued(offer: Offer, web: Web, store: Path) -> None:
    offer()
    web.headers[PATH] = {"ETag": 'W/"weak"'}
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    assert names(store) == []
    web.headers[PATH] = {"ETag": 'W/"weak"', "Last-Modified": "Tue, 04 Feb 2025 10:00:00 GMT"}
    web.faults[PATH] = ["cut"]
    pull_weights("there", patience=QUICK)
    assert web.headers_seen[-1]["If-Range"] == "Tue, 04 Feb 2025 10:00:00 GMT"


def test_a_damaged_part_is_downloaded_again(offer: Offer, web: Web, store: Path) -> None:
    """After a power cut, a file may have zeros instead of its last bytes."""
    offer()
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    (store / "weights.pth.part").write_bytes(bytes(HALF))
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT
    assert web.gets(PATH)[-2:] == [HALF, None]


def test_a_complete_part_is_not_downloaded_again(offer: Offer, web: Web, store: Path) -> None:
    row = offer()
    store.mkdir()
    (store / "weights.pth.part").write_bytes(CONTENT)
    state = {"url": row.url, "validator": '"x"', "size": len(CONTENT)}
    (store / "weights.pth.part.json").write_text(json.dumps(state))
    assert pull_weights("there")[0].read_bytes() == CONTENT
    assert web.asked == []
    (store / "weights.pth").unlink()
    (store / "weights.pth.part").write_bytes(CONTENT[:10])
    (store / "weights.pth.part.json").write_text("{")  # as a full disk leaves it
    assert pull_weights("there")[0].read_bytes() == CONTENT


@pytest.mark.parametrize("page", [{"Content-Type": "text/html; charset=utf-8"}, {}])
def test_a_web_page_is_refused(offer: Offer, web: Web, store: Path, page: dict[str, str]) -> None:
    offer("")
    web.files[PATH], web.headers[PATH] = b"\n<!DOCTYPE html><html>Please log in</html>", page
    with pytest.raises(WeightsError, match="web page"):
        pull_weights("there")
    web.files[PATH], web.headers[PATH] = b"", {}
    with pytest.raises(WeightsError, match="0 of"):
        pull_weights("there", patience=QUICK)
    assert names(store) == []


def test_redirects(offer: Offer, web: Web) -> None:
    row = offer(url=f"{web.url}/v1/weights.pth")
    with serve(Web(files={"/there": CONTENT})) as other:
        web.headers["/v1/weights.pth"] = {"Location": f"{other.url}/there?signed=yes"}
        web.always["/v1/weights.pth"] = "302"
        other.faults["/there"] = ["cut"]
        assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT
        assert other.gets("/there") == [None, HALF]
        assert len(web.asked) == 2
        cached_file(row).unlink()
        web.headers["/v1/weights.pth"] = {"Location": row.url}
        with pytest.raises(WeightsError, match=r"302 .*infinite loop"):
            pull_weights("there", patience=QUICK)
        web.headers["/v1/weights.pth"] = {"Location": "ftp://127.0.0.1/weights.pth"}
        with pytest.raises(WeightsError, match=r"ftp://127.0.0.1/weights.pth"):
            pull_weights("there", patience=QUICK)


def test_the_pause_that_a_server_asks_for(offer: Offer, web: Web) -> None:
    offer()
    web.headers[PATH], web.faults[PATH] = {"Retry-After": "1"}, ["429"]
    messages: list[str] = []
    begun = time.monotonic()
    pull_weights("there", say=messages.append, patience=QUICK)
    assert time.monotonic() - begun > 1
    assert "429 Too Many Requests; trying again in 1 s" in messages[0]
    find_weights("there").unlink()
    for after, says in (("86400", "86400 s"), ("Fri, 31 Dec 2100 10:00:00 GMT", r"\d{9,} s")):
        web.headers[PATH], web.faults[PATH] = {"Retry-After": after}, ["503"]
        with pytest.raises(WeightsError, match=says):
            pull_weights("there", patience=QUICK)
    web.headers[PATH], web.faults[PATH] = {"Retry-After": "soon"}, ["503"]
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT


def test_no_network(offer: Offer, store: Path) -> None:
    offer(url="http://127.0.0.1:9/weights.pth")
    messages: list[str] = []
    with pytest.raises(WeightsError) as raised:
        pull_weights("there", say=messages.append, patience=QUICK)
    for part in ("http://127.0.0.1:9/weights.pth", "Connection refused", "there --from DIRECTORY", str(store)):
        assert part in str(raised.value)
    assert len(messages) == 1  # so it was tried twice
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        offer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth")
        with pytest.raises(WeightsError, match=r"silent for 0.3 s"):
            pull_weights("there", patience=HASTY)


def test_mirrors(offer: Offer, web: Web, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = offer(url="http://127.0.0.1:9/v1/weights.pth")
    mirror = tmp_path / "mirror of ours"
    mirror.mkdir()
    with pytest.raises(WeightsError, match=r"mirror of ours: .* weights.pth \(from http://127.0.0.1"):
        pull_weights("there", source=str(mirror))
    (mirror / "weights.pth").write_bytes(b"another")
    with pytest.raises(WeightsError, match=f"7 bytes .*{SHA256}"):
        pull_weights("there", source=str(mirror))
    assert names(store) == []
    (mirror / "weights.pth").write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    for source in (str(mirror), mirror.as_uri(), web.url, f"{web.url}/"):
        assert (
            pull_weights("there", lambda done, total: seen.append((done, total)), source=source)[0].read_bytes()
            == CONTENT
        )
        assert seen[-1] == (len(CONTENT), len(CONTENT))
        cached_file(row).unlink()
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", f"{web.url}/some")
    with pytest.raises(WeightsError, match=f"{web.url}/some/weights.pth: .*404"):
        pull_weights("there")
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", web.url)
    with pytest.raises(UsageError, match=r"--from: .*nowhere"):
        pull_weights("there", source="nowhere")
    with pytest.raises(UsageError, match=r"--from .*s3://bucket"):
        pull_weights("there", source="s3://bucket")
    with pytest.raises(UsageError, match=r"--from .*http://\[x"):
        pull_weights("there", source="http://[x")
    with pytest.raises(WeightsError, match=r"a\.\.b"):
        pull_weights("there", source="https://a..b")
    assert pull_weights("there")[0].read_bytes() == CONTENT
    assert pull_weights("there", source="nowhere")[0] == cached_file(
        row
    )  # the file is in the cache, so no source is needed


def test_the_password_of_a_mirror_is_sent_to_no_other_server(offer: Offer, web: Web, store: Path) -> None:
    offer(url="http://127.0.0.1:9/weights.pth")
    secret = web.url.replace("http://", "http://me:p%40ss@")
    web.faults[PATH] = ["cut", "401"]
    with pytest.raises(WeightsError, match=f"{web.url}{PATH}: .*401") as raised:
        pull_weights("there", source=secret, patience=QUICK)
    assert "ss@" not in str(raised.value)
    assert "ss@" not in (store / "weights.pth.part.json").read_text()
    assert web.headers_seen[-1]["Authorization"] == "Basic bWU6cEBzcw=="
    with serve(Web(files={"/there": CONTENT})) as other:
        web.headers[PATH], web.always[PATH] = {"Location": f"{other.url}/there"}, "302"
        pull_weights("there", source=secret, patience=QUICK)
        assert "Authorization" not in other.headers_seen[-1]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Forwards each request, and tunnels every connection to `port`."""

    asked: list[str]
    port: int

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = urlsplit(self.path)
        onward = http.client.HTTPConnection(parts.netloc)
        onward.request("GET", parts.path)
        answer = onward.getresponse()
        content = answer.read()
        onward.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        with socket.create_connection(("127.0.0.1", self.port)) as onward:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self.pump, args=(onward, self.connection))
            back.start()
            self.pump(self.connection, onward)
            back.join()

    @staticmethod
    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # one side has closed
            while block := source.recv(1 << 16):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *values: object) -> None:
        """Write nothing to standard error."""


@contextmanager
def running(server: http.server.HTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_proxies(offer: Offer, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from web import Handler

    row = offer(url="http://weights.example:81/weights.pth")
    asked: list[str] = []
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"weights.example:81 .* proxy 127.0.0.1:9: Connection refused"):
        pull_weights("there", patience=QUICK)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pull_weights("there", source=web.url)
    cached_file(row).unlink()
    monkeypatch.delenv("no_proxy")

    certificate(tmp_path / "certificate.pem", "weights.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    encrypted = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"web": web}))
    encrypted.socket = context.wrap_socket(encrypted.socket, server_side=True)
    handler = type("Proxying", (Proxy,), {"asked": asked, "port": encrypted.server_port})
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port, running(encrypted):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert pull_weights("there", source=web.url)[0].read_bytes() == CONTENT
        assert asked == [web.url + PATH]
        cached_file(row).unlink()
        offer(url="https://weights.example/weights.pth")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert pull_weights("there")[0].read_bytes() == CONTENT
        assert asked[1:] == ["weights.example:443"]
        cached_file(row).unlink()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(WeightsError, match=r"self-signed certificate .*SSL_CERT_FILE"):
            pull_weights("there", patience=QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        web.headers[PATH], web.always[PATH] = {"Location": f"{web.url}/else"}, "302"
        with pytest.raises(WeightsError, match="redirects to http://"):
            pull_weights("there", patience=QUICK)


def certificate(path: Path, host: str) -> None:
    """Write a key and its self-signed certificate."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))


@pytest.fixture
def mirror(web: Web) -> str:
    """The path on the server of a file that another process can pull as NAME."""
    path = f"/{manifest()[NAME].filename}"
    web.files[path] = CONTENT[:1500]
    return path


@pytest.fixture
def start(web: Web, store: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`start("pull", NAME)`: start `vswin weights pull` in a process of its own."""
    started = []

    def starting(*arguments: object, before: tuple[str, ...] = (), **environment: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [*before, script("vswin"), "weights", *map(str, arguments)],
                env={**os.environ, "VSWIN_WEIGHTS_MIRROR": web.url, "COLUMNS": "100", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield starting
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_several_processes_one_downloads(web: Web, mirror: str, start: Any, store: Path) -> None:
    web.always[mirror] = "drip"
    processes = [start("pull", NAME) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"{store}{mirror}\n"), err
    assert web.gets(mirror) == [None]
    assert names(store) == [mirror[1:], f"{mirror[1:]}.sha256"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_another_process_continues_after_a_kill(web: Web, mirror: str, start: Any, store: Path, number: int) -> None:
    web.faults[mirror], web.hang = ["hang"], 60
    part = store / f"{mirror[1:]}.part"
    killed = start("pull", NAME)
    wait_for(lambda: part.is_file() and part.stat().st_size == 750)
    waiting = start("pull", NAME)
    line = waiting.stderr.readline()
    killed.send_signal(number)
    assert f"process {killed.pid} on {os.uname().nodename}" in line
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, f"{store}{mirror}\n"), err
    assert web.gets(mirror) == [None, 750]
    assert (store / mirror[1:]).read_bytes() == CONTENT[:1500]
    assert names(store) == [mirror[1:], f"{mirror[1:]}.sha256"]
    if number == signal.SIGINT:
        assert killed.wait() == 130
        assert killed.stderr.read().startswith("Error: ")


def test_a_lock_of_another_host(offer: Offer, store: Path) -> None:
    offer()
    store.mkdir()
    lock = store / "weights.pth.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    messages: list[str] = []

    def say(sentence: str) -> None:
        messages.append(sentence)
        os.utime(lock, (time.time() - 130,) * 2)  # as if its process had ended

    pull_weights("there", say=say, poll=0.05)
    assert len(messages) == 1
    assert "process 1 on elsewhere" in messages[0]
    assert str(lock) in messages[0]
    assert names(store) == ["weights.pth"]


def test_a_held_lock_is_touched_and_only_the_own_lock_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    assert locks.acquire(lock, 1) is None
    with locks.held(lock, 0.02):
        os.utime(lock, (0, 0))
        wait_for(lambda: lock.stat().st_mtime > time.time() - 60)
        assert locks.acquire(lock, 1) == locks.Holder(os.uname().nodename, os.getpid())
    assert names(tmp_path) == []
    assert locks.acquire(lock, 1) is None
    others = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})
    with locks.held(lock, 9):
        lock.write_text(others)  # as a process does that took this lock for abandoned
    assert lock.read_text() == others

    def without_links(*_: object) -> None:
        raise OSError(locks.NO_LINKS[0], "no hard links here")

    monkeypatch.setattr(os, "link", without_links)
    assert str(locks.acquire(lock, 60)) == "process 1 on elsewhere"
    assert locks.acquire(lock, 0) is None
    with locks.held(lock, 9):
        assert str(locks.acquire(lock, 60)) == f"process {os.getpid()} on {os.uname().nodename}"
    assert names(tmp_path) == []


def test_a_process_whose_lock_was_taken_away(offer: Offer, web: Web, store: Path) -> None:
    """Both processes had the same part, and the other one published it first."""
    row = offer()

    def other(done: int, total: int) -> None:
        if done == total:
            (store / "weights.pth.lock").unlink()
            assert pull_weights("there")[0] == cached_file(row)

    assert pull_weights("there", other)[0].read_bytes() == CONTENT
    assert web.gets(PATH) == [None]
    assert names(store) == ["weights.pth"]


def test_a_process_whose_lock_was_taken_over_waits_for_the_other(offer: Offer, web: Web, store: Path) -> None:
    row, lock = offer(), store / "weights.pth.lock"
    theirs = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})
    said: list[str] = []

    def taken_over(done: int, total: int) -> None:
        if not said:
            lock.write_text(theirs)

    def say(sentence: str) -> None:
        said.append(sentence)
        assert lock.read_text() == theirs
        assert not (store / "weights.pth").exists()
        lock.unlink()  # the other one has ended

    assert pull_weights("there", taken_over, say, poll=0.05)[0] == cached_file(row)
    assert ["process 1 on elsewhere" in sentence for sentence in said] == [True]
    assert names(store) == ["weights.pth"]


def test_a_disk_that_is_too_small_or_fills_up(web: Web, mirror: str, start: Any, small_disk: Path) -> None:
    web.files[mirror] = content = os.urandom(2_500_000)

    def pulled() -> tuple[int, str]:
        process = start("pull", NAME, VSWIN_WEIGHTS_DIR=str(small_disk))
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    code, err = pulled()
    assert (code, err.count("\n")) == (1, 1)
    for part in ("2.5 MB", "2.1 MB", str(small_disk), "VSWIN_WEIGHTS_DIR"):
        assert part in err
    assert names(small_disk) == []
    web.faults[mirror] = ["chunked"]  # such an answer does not tell its size
    code, err = pulled()
    assert (code, "are kept" in err, len(err.splitlines())) == (1, True, 1), err
    came = (small_disk / f"{mirror[1:]}.part").stat().st_size
    assert came > 1_000_000
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    code, err = pulled()
    assert code == 0, err
    assert web.gets(mirror) == [None, None, came]
    assert (small_disk / mirror[1:]).read_bytes() == content


def test_a_part_of_another_user_in_a_shared_cache(web: Web, mirror: str, start: Any, store: Path) -> None:
    def pulled() -> tuple[int, str]:
        process = start("pull", NAME, before=NOT_AS_ROOT)
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    web.faults[mirror] = ["cut", "403"]
    assert pulled()[0] == 2
    part = store / f"{mirror[1:]}.part"
    part.chmod(0o444)
    code, err = pulled()
    assert code == 0, err
    assert web.gets(mirror) == [None, 750, None]
    assert names(store) == [mirror[1:], f"{mirror[1:]}.sha256"]


@pytest.mark.parametrize("suffix", [".part", ".part.json", ".sha256"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_what_is_planted_in_a_shared_cache_is_not_used(
    kind: str, suffix: str, offer: Offer, store: Path, tmp_path: Path
) -> None:
    """Another user may put it there under the names that a download will use."""
    offer("")
    store.mkdir()
    path = store / f"weights.pth{suffix}"
    if kind == "FIFO":
        os.mkfifo(path)
        (store / "weights.pth.part").touch()
    else:
        path.symlink_to(tmp_path / "new")
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT
    assert names(store) == ["weights.pth", "weights.pth.sha256"]
    assert not any((store / name).is_symlink() for name in names(store))
    assert not (tmp_path / "new").exists()


def test_a_part_of_another_user_is_not_continued(offer: Offer, web: Web, store: Path) -> None:
    """Nor is one that has a second name: its first bytes may be changed meanwhile."""
    offer("")
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError):
        pull_weights("there", patience=QUICK)
    part = store / "weights.pth.part"
    begun = part.stat().st_size
    assert begun > 0
    part.write_bytes(b"x" * begun)
    os.link(part, store.parent / "second")
    if os.getuid() == 0:
        os.chown(part, 65534, 65534)
    web.asked.clear()
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT
    assert web.gets(PATH) == [None]
    assert (store.parent / "second").read_bytes() == b"x" * begun


def test_shared_caches_that_cannot_be_written(web: Web, mirror: str, start: Any, tmp_path: Path) -> None:
    shared, empty, own = tmp_path / "shared", tmp_path / "empty", tmp_path / "own"
    for directory in (shared, empty):
        directory.mkdir()
    (shared / manifest()["t-k400"].filename).write_bytes(b"pulled by someone")
    shared.chmod(0o555)
    empty.chmod(0o555)

    def weights_command(*arguments: str, directories: tuple[Path, ...]) -> tuple[int, str, str]:
        process = start(*arguments, before=NOT_AS_ROOT, VSWIN_WEIGHTS_DIR=os.pathsep.join(map(str, directories)))
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err.strip()

    both = (empty, shared)
    assert weights_command("path", "t-k400", directories=both)[:2] == (0, str(shared / manifest()["t-k400"].filename))
    code, _, err = weights_command("pull", NAME, directories=both)
    assert code == 2
    assert f"VSWIN_WEIGHTS_DIR={empty}:{shared}:DIR" in err
    all_three = (*both, own)
    code, out, err = weights_command("path", NAME, directories=all_three)
    assert (code, out) == (2, "")
    assert f"{empty}:{shared}:{own}" in err
    assert f"vswin weights pull {NAME}" in err
    code, out, err = weights_command("pull", NAME, directories=all_three)
    assert (code, out) == (0, f"{own}{mirror}"), err
    assert weights_command("path", NAME, directories=all_three)[1] == out
    assert names(empty) == []


def test_several_names(run: Run, mirror: str, store: Path, tmp_path: Path) -> None:
    other = manifest()["b-k400-in22k"].filename
    for name in (mirror[1:], other, manifest()["t-k400"].filename):
        (tmp_path / name).write_bytes(CONTENT)
    unknown = run("vswin", "weights", "pull", NAME, "t-k40", "--from", tmp_path)
    assert (unknown.returncode, unknown.stdout, store.exists()) == (2, "", False)
    done = run("vswin", "weights", "pull", "nano", "t-k400", NAME, NAME, "b-k400-in22k", "--from", tmp_path)
    assert done.stdout.splitlines() == [str(bundled_file()), f"{store}{mirror}", str(store / other)]
    assert done.returncode == 2
    assert "9950e3be6b0b" in done.stderr.splitlines()[-1]
    assert run("vswin", "weights", "path", NAME).stdout == f"{store}{mirror}\n"


@pytest.fixture
def online(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are allowed, as they are for users; other tests would otherwise reach the network."""
    monkeypatch.delenv("VSWIN_OFFLINE")
    monkeypatch.delitem(environment, "VSWIN_OFFLINE")


@pytest.mark.usefixtures("online")
def test_a_run_downloads_the_weights_that_it_needs_once(
    run: Run, web: Web, mirror: str, store: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web.files[mirror] = small_weights.read_bytes()
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", web.url)
    numbered.write(tmp_path / "a.mp4", 20)
    for time_, notes in ((1, 1), (2, 0)):
        out = tmp_path / f"{time_}.h5"
        done = run("vswin-extract", tmp_path / "a.mp4", out, "--weights", NAME.upper(), "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"downloading the weights {NAME}") == notes
        with open_features(out) as features:
            assert features.info["model"] == NAME
    assert web.gets(mirror) == [None]
    assert (store / mirror[1:]).read_bytes() == small_weights.read_bytes()
    (store / mirror[1:]).unlink()
    assert load_model(NAME, device="cpu").name == NAME
    assert web.gets(mirror) == [None, None]


@pytest.mark.usefixtures("online")
def test_nothing_is_downloaded_for_a_run_that_cannot_begin(
    run: Run, web: Web, mirror: str, small_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web.files[mirror] = small_weights.read_bytes()
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", web.url)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "there.h5").write_text("mine")
    for output, device in (("out.h5", "gpu"), ("out.h5", "cuda:99"), ("there.h5", "cpu"), ("nowhere/out.h5", "cpu")):
        done = run("vswin-extract", tmp_path / "a.mp4", tmp_path / output, "--weights", NAME, "--device", device)
        assert (done.returncode, "downloading" in done.stderr) == (2, False), done.stderr
    assert web.gets(mirror) == []


def test_nothing_is_downloaded_offline(
    run: Run, web: Web, mirror: str, store: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", web.url)
    words = ("vswin-extract", "examples/videos", store.parent / "out.h5", "--weights", NAME)
    by_variable = run(*words, cwd=ROOT)
    monkeypatch.delenv("VSWIN_OFFLINE")
    monkeypatch.setitem(environment, "VSWIN_OFFLINE", "0")
    by_option = run(*words, "--offline", cwd=ROOT)
    for done, named in ((by_variable, "VSWIN_OFFLINE"), (by_option, "--offline")):
        assert (done.returncode, f"vswin weights pull {NAME}" in done.stderr, named in done.stderr) == (2, True, True)
        assert len(done.stderr.splitlines()) == 1
    assert web.asked == []


@pytest.mark.usefixtures("online", "mirror")
def test_without_a_network_the_error_comes_soon_and_names_the_command(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as behind a firewall: it never answers
        monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match=rf"within 0.3 s.*vswin weights pull {NAME}"):
            obtain_weights(NAME, answer=0.3)
    with pytest.raises(WeightsError, match=f"refused.*vswin weights pull {NAME}"):
        obtain_weights(NAME)
    assert ANSWER < 10
    assert names(store) == []


@pytest.mark.usefixtures("online")
def test_of_tasks_that_start_together_one_downloads(web: Web, mirror: str, store: Path) -> None:
    web.always[mirror] = "drip"
    code = f"from vswin_extract.weights.pull import obtain_weights; print(obtain_weights({NAME!r}, say=print))"
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "VSWIN_WEIGHTS_MIRROR": web.url},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for task in tasks:
        assert task.communicate(timeout=60)[0].splitlines()[-1] == f"{store}{mirror}"
    assert web.gets(mirror) == [None]


def test_list_shows_the_files_in_the_cache(run: Run, offer: Offer, web: Web, store: Path) -> None:
    def line() -> str:
        listed = run("vswin", "weights", "list").stdout.splitlines()
        return next(line.rstrip() for line in listed if line.startswith("there "))

    offer()
    assert line().endswith("MIT")
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    assert line().endswith(" 50%")
    pull_weights("there")
    assert line().endswith(" yes")
    assert run("vswin", "weights", "list").stdout.endswith(f"Cache: {store}\n")


def test_prune_removes_our_unfinished_files(run: Run, store: Path) -> None:
    file, busy = manifest()[NAME].filename, manifest()["t-k400"].filename
    ours = [f"{file}.part", f"{file}.part.json", f"{file}k7q2.part", f"{file}.lock.ab.tmp"]
    kept = [busy, f"{busy}.part", "mine.pth", f"{file}.bak", f"{file}.sha256"]
    (store / "folder").mkdir(parents=True)
    for name in (*ours, *kept):
        (store / name).write_bytes(bytes(1000))
    lock = store / f"{busy}.lock"
    assert locks.acquire(lock, 60) is None
    with locks.held(lock, 9):
        listed = run("vswin", "weights", "prune").stdout
        for part in ("4 unfinished files, 4.0 kB", f"{store / busy} by process {os.getpid()}", str(store / "mine.pth")):
            assert part in listed
        assert set(ours) <= set(names(store))
        assert "4 unfinished files, 4.0 kB" in run("vswin", "weights", "prune", "--yes").stdout
    assert names(store) == sorted([*kept, "folder"])
    assert "1 unfinished file, 1.0 kB" in run("vswin", "weights", "prune", "--yes").stdout
    assert names(store) == sorted({*kept, "folder"} - {f"{busy}.part"})


def test_the_progress_bar_begins_where_an_earlier_try_ended(web: Web, mirror: str, store: Path) -> None:
    web.files[mirror] = CONTENT
    web.faults[mirror] = ["cut", "403", "cut"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    for code in (2, 0):
        done = subprocess.run(
            [script("vswin"), "weights", "pull", NAME],
            env={**os.environ, "VSWIN_WEIGHTS_MIRROR": web.url},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
        )
        assert done.returncode == code
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert f"{NAME}:  50%" in shown.partition("403 Forbidden")[2]
    assert "13500 of 18000 bytes; trying again in 0.5 s, after 13.5 kB" in shown
