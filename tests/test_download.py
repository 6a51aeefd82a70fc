"""`vswin weights pull`, from real servers on this machine that stall, lie, redirect and go away."""

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
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Run, script
from web import Web, serve

from vswin_extract import locks
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.weights.cache import bundled_file, cached_file, find_weights, recorded_hash_file
from vswin_extract.weights.download import Patience
from vswin_extract.weights.pull import pull_weights
from vswin_extract.weights.registry import Published, manifest

CONTENT = b"not really weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
QUICK = Patience(silence=10, pauses=(0.01, 0.01, 0.01), longest=1.5)
HASTY = replace(QUICK, silence=0.3)
PATH = "/weights.pth"
NAME = "b-k400"
"""Published without a hash, so that whatever a mirror has is taken."""
NOT_AS_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.getuid() == 0 else ()
"""Before a command that may not be allowed more than others because tests run as root."""


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "VSWIN_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve(Web(files={PATH: CONTENT})) as serving:
        yield serving


@pytest.fixture
def store(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, not yet made."""
    monkeypatch.setitem(environment, "VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


Offer = Callable[..., Published]


@pytest.fixture
def offer(web: Web, store: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """`offer(sha256)`: a manifest with one row, "there", that points at the server."""

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
    path, said = pull_weights("there", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert "as published" in said
    assert names(store) == ["weights.pth"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert find_weights("there") == path


def test_pull_records_the_first_hash_where_none_is_published(offer: Offer) -> None:
    row = offer("")
    path, said = pull_weights("there")
    assert f"sha256 {SHA256}: none is published, recorded" in said
    assert pull_weights("there")[0] == path
    path.write_bytes(b"changed later")
    with pytest.raises(WeightsError, match=f"{SHA256} is expected"):
        pull_weights("there")
    path.unlink()
    recorded_hash_file(row).write_text("0" * 64 + "  weights.pth\n")  # at the first download it was another file
    with pytest.raises(WeightsError, match="where 0000"):
        pull_weights("there", patience=QUICK)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("short", f"has {len(CONTENT) - 10} bytes of sha256 [0-9a-f]* where {SHA256} is expected"),
        ("404", "the server answers with 404 Not Found; on a machine without"),
        ("403", "403 Forbidden"),
        ("204", "status 204 and not with what was asked for"),
        ("500", "500 Internal Server Error"),
        ("enormous", "No space left on device: 1125899906.8 MB are needed, .* name another directory"),
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
    said: list[str] = []
    path, _ = pull_weights("there", say=said.append, patience=HASTY)
    assert path.read_bytes() == CONTENT
    if fault in ("cut", "hang"):
        assert web.gets(PATH) == [None, HALF, HALF + HALF // 2]
        reason = "the server stopped" if fault == "cut" else "the server is silent for 0.5 s; trying again in 0.01 s"
        assert [sentence.startswith(reason) for sentence in said] == [True, True]
    else:
        assert web.gets(PATH) == [None]


def test_one_that_stops_again_and_again_is_given_up_and_continued_later(offer: Offer, web: Web, store: Path) -> None:
    offer()
    web.faults[PATH] = ["cut", "503", "503", "503", "503"]
    with pytest.raises(WeightsError, match=r"503 Service Unavailable; 0.0 MB are kept; on a machine without"):
        pull_weights("there", patience=QUICK)
    assert names(store) == ["weights.pth.part", "weights.pth.part.json"]
    assert (store / "weights.pth.part").read_bytes() == CONTENT[:HALF]
    with pytest.raises(WeightsError, match="cannot be reached"):
        pull_weights("there", source="http://127.0.0.1:9", patience=QUICK)
    assert (store / "weights.pth.part").read_bytes() == CONTENT[:HALF]  # whoever else has nothing takes nothing away
    seen: list[int] = []
    path, _ = pull_weights("there", lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert (web.gets(PATH)[-1], seen[0]) == (HALF, HALF)
    assert names(store) == ["weights.pth"]


@pytest.mark.parametrize("fault", ["no ranges", "any range"])
@pytest.mark.parametrize("change", [False, True])
def test_what_cannot_be_continued_begins_anew(offer: Offer, web: Web, store: Path, fault: str, change: bool) -> None:
    offer()
    if change:
        web.files[PATH] = bytes(byte ^ 1 for byte in CONTENT)
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    web.files[PATH] = CONTENT
    web.faults[PATH] = [fault]  # "no ranges" ends after half of it, too
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT


def test_a_shorter_file_begins_anew(offer: Offer, web: Web) -> None:
    offer()
    web.files[PATH] = CONTENT * 3
    web.faults[PATH] = ["cut", "416"]
    short: list[str] = []

    def say(sentence: str) -> None:
        short.append(sentence)
        web.files[PATH] = CONTENT

    assert pull_weights("there", say=say, patience=QUICK)[0].read_bytes() == CONTENT
    assert "a shorter file now" in short[1]


def test_without_a_name_of_the_file_nothing_is_continued(offer: Offer, web: Web, store: Path) -> None:
    offer()
    web.headers[PATH] = {"ETag": 'W/"weak"'}
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    assert names(store) == []
    web.headers[PATH] = {"ETag": 'W/"weak"', "Last-Modified": "Tue, 04 Feb 2025 10:00:00 GMT"}
    web.faults[PATH] = ["cut"]
    pull_weights("there", patience=QUICK)
    assert web.said[-1]["If-Range"] == "Tue, 04 Feb 2025 10:00:00 GMT"


def test_a_part_that_was_spoiled_begins_anew(offer: Offer, web: Web, store: Path) -> None:
    """As by a power cut, after which a file may have zeros where nothing was written yet."""
    offer()
    web.faults[PATH] = ["cut", "403"]
    with pytest.raises(WeightsError, match="403"):
        pull_weights("there", patience=QUICK)
    (store / "weights.pth.part").write_bytes(bytes(HALF))
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT
    assert web.gets(PATH)[-2:] == [HALF, None]


def test_a_part_that_is_whole_is_not_asked_for_again(offer: Offer, web: Web, store: Path) -> None:
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
def test_a_web_page_is_no_file(offer: Offer, web: Web, store: Path, page: dict[str, str]) -> None:
    offer("")
    web.files[PATH], web.headers[PATH] = b"\n<!DOCTYPE html><html>Please log in</html>", page
    with pytest.raises(WeightsError, match="a web page, as for a login"):
        pull_weights("there")
    web.files[PATH], web.headers[PATH] = b"", {}
    with pytest.raises(WeightsError, match="stopped after 0 of"):
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
        with pytest.raises(WeightsError, match=r"answers with 302 .*infinite loop"):
            pull_weights("there", patience=QUICK)
        web.headers["/v1/weights.pth"] = {"Location": "ftp://127.0.0.1/weights.pth"}
        with pytest.raises(WeightsError, match=r"leads to ftp://127.0.0.1/weights.pth, which is not followed"):
            pull_weights("there", patience=QUICK)


def test_how_long_a_server_wants_to_be_left_alone(offer: Offer, web: Web) -> None:
    offer()
    web.headers[PATH], web.faults[PATH] = {"Retry-After": "1"}, ["429"]
    said: list[str] = []
    begun = time.monotonic()
    pull_weights("there", say=said.append, patience=QUICK)
    assert time.monotonic() - begun > 1
    assert said == ["the server answers with 429 Too Many Requests; trying again in 1 s"]
    find_weights("there").unlink()
    for after, says in (("86400", "asked again in 86400 s"), ("Fri, 31 Dec 2100 10:00:00 GMT", r"again in \d{9,} s")):
        web.headers[PATH], web.faults[PATH] = {"Retry-After": after}, ["503"]
        with pytest.raises(WeightsError, match=says):
            pull_weights("there", patience=QUICK)
    web.headers[PATH], web.faults[PATH] = {"Retry-After": "soon"}, ["503"]
    assert pull_weights("there", patience=QUICK)[0].read_bytes() == CONTENT


def test_no_network(offer: Offer, store: Path) -> None:
    offer(url="http://127.0.0.1:9/weights.pth")
    said: list[str] = []
    with pytest.raises(WeightsError) as raised:
        pull_weights("there", say=said.append, patience=QUICK)
    assert str(raised.value) == (
        "cannot download http://127.0.0.1:9/weights.pth: 127.0.0.1:9 cannot be reached: Connection refused; on a "
        "machine without that network, have the file in a directory and: vswin weights pull there --from DIRECTORY; "
        f"or put it into {store}"
    )
    assert len(said) == 1  # so it was tried twice
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        offer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth")
        with pytest.raises(WeightsError, match=r"the server is silent for 0.5 s"):
            pull_weights("there", patience=HASTY)


def test_mirrors(offer: Offer, web: Web, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = offer(url="http://127.0.0.1:9/v1/weights.pth")
    mirror = tmp_path / "mirror of ours"
    mirror.mkdir()
    with pytest.raises(
        WeightsError, match=r"is not in .*mirror of ours: there is no weights.pth, from http://127.0.0.1"
    ):
        pull_weights("there", source=str(mirror))
    (mirror / "weights.pth").write_bytes(b"another")
    with pytest.raises(WeightsError, match=f"has 7 bytes of sha256 [0-9a-f]* where {SHA256}"):
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
    with pytest.raises(WeightsError, match=f"cannot download {web.url}/some/weights.pth: .*404"):
        pull_weights("there")
    monkeypatch.setenv("VSWIN_WEIGHTS_MIRROR", web.url)
    with pytest.raises(UsageError, match="--from: no directory nowhere"):
        pull_weights("there", source="nowhere")
    with pytest.raises(UsageError, match="begins with http://, https:// or file:///, not s3://bucket"):
        pull_weights("there", source="s3://bucket")
    with pytest.raises(UsageError, match=r"--from is no address: Invalid IPv6 URL: http://\[x"):
        pull_weights("there", source="http://[x")
    with pytest.raises(WeightsError, match=r"a\.\.b is no name that a host can have"):
        pull_weights("there", source="https://a..b")
    assert pull_weights("there")[0].read_bytes() == CONTENT
    assert pull_weights("there", source="nowhere")[0] == cached_file(row)  # which is there, so nothing is looked for


def test_what_is_secret_in_a_mirror_stays_with_it(offer: Offer, web: Web, store: Path) -> None:
    offer(url="http://127.0.0.1:9/weights.pth")
    secret = web.url.replace("http://", "http://me:p%40ss@")
    web.faults[PATH] = ["cut", "401"]
    with pytest.raises(WeightsError, match=f"cannot download {web.url}{PATH}: .*401") as raised:
        pull_weights("there", source=secret, patience=QUICK)
    assert "ss@" not in str(raised.value)
    assert "ss@" not in (store / "weights.pth.part.json").read_text()
    assert web.said[-1]["Authorization"] == "Basic bWU6cEBzcw=="
    with serve(Web(files={"/there": CONTENT})) as other:
        web.headers[PATH], web.always[PATH] = {"Location": f"{other.url}/there"}, "302"
        pull_weights("there", source=secret, patience=QUICK)
        assert "Authorization" not in other.said[-1]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes on what is asked of it, and tunnels wherever it is told to `port`."""

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
        with suppress(OSError):  # one of them has gone
            while block := source.recv(1 << 16):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing on standard error."""


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
    with pytest.raises(
        WeightsError, match=r"weights.example:81 cannot be reached by the proxy 127.0.0.1:9: Connection"
    ):
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
        with pytest.raises(WeightsError, match=r"leads to http://.*, which is not followed"):
            pull_weights("there", patience=QUICK)


def certificate(path: Path, host: str) -> None:
    """A key and its certificate, signed by itself."""
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
    """The path at `web` of a file that a process of its own can pull as NAME."""
    path = f"/{manifest()[NAME].filename}"
    web.files[path] = CONTENT[:1500]
    return path


@pytest.fixture
def start(web: Web, store: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`start("pull", NAME)`: a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what is in the background ignore it
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
def test_another_continues_what_a_killed_process_began(
    web: Web, mirror: str, start: Any, store: Path, number: int
) -> None:
    web.faults[mirror], web.hang = ["hang"], 60
    part = store / f"{mirror[1:]}.part"
    killed = start("pull", NAME)
    wait_for(lambda: part.is_file() and part.stat().st_size == 750)
    waiting = start("pull", NAME)
    said = waiting.stderr.readline()
    killed.send_signal(number)
    assert f"{NAME} is being downloaded by process {killed.pid} on {os.uname().nodename}; waiting for it" in said
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, f"{store}{mirror}\n"), err
    assert web.gets(mirror) == [None, 750]
    assert (store / mirror[1:]).read_bytes() == CONTENT[:1500]
    assert names(store) == [mirror[1:], f"{mirror[1:]}.sha256"]
    if number == signal.SIGINT:
        assert (killed.wait(), killed.stderr.read()) == (130, "Error: stopped; the same command continues\n")


def test_a_lock_of_another_host(offer: Offer, store: Path) -> None:
    offer()
    store.mkdir()
    lock = store / "weights.pth.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        os.utime(lock, (time.time() - 130,) * 2)  # it has not been touched since

    pull_weights("there", say=say, poll=0.05)
    assert said == [f"there is being downloaded by process 1 on elsewhere; waiting for it (its lock is {lock})"]
    assert names(store) == ["weights.pth"]


def test_who_holds_a_lock_touches_it_and_gives_back_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        lock.write_text(others)  # as one does who took this process for dead
    assert lock.read_text() == others

    def without_links(*_: object) -> None:
        raise OSError(locks.NO_LINKS[0], "no hard links here")

    monkeypatch.setattr(os, "link", without_links)
    assert str(locks.acquire(lock, 60)) == "process 1 on elsewhere"
    assert locks.acquire(lock, 0) is None
    with locks.held(lock, 9):
        assert str(locks.acquire(lock, 60)) == f"process {os.getpid()} on {os.uname().nodename}"
    assert names(tmp_path) == []


def test_a_process_that_another_took_for_dead(offer: Offer, web: Web, store: Path) -> None:
    """Both had the same part, and the other one published it first."""
    row = offer()

    def other(done: int, total: int) -> None:
        if done == total:
            (store / "weights.pth.lock").unlink()
            assert pull_weights("there")[0] == cached_file(row)

    assert pull_weights("there", other)[0].read_bytes() == CONTENT
    assert web.gets(PATH) == [None]
    assert names(store) == ["weights.pth"]


def test_a_disk_that_is_too_small_or_fills_up(web: Web, mirror: str, start: Any, small_disk: Path) -> None:
    web.files[mirror] = content = os.urandom(2_500_000)

    def pulled() -> tuple[int, str]:
        process = start("pull", NAME, VSWIN_WEIGHTS_DIR=str(small_disk))
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    code, err = pulled()
    assert (code, err) == (
        1,
        f"Error: No space left on device: 2.5 MB are needed, and 2.1 MB are free, in {small_disk}; free some room, or "
        "name another directory by VSWIN_WEIGHTS_DIR\n",
    )
    assert names(small_disk) == []
    web.faults[mirror] = ["chunked"]  # which does not say how much will come
    code, err = pulled()
    assert (code, "are kept, to be continued" in err, len(err.splitlines())) == (1, True, 1), err
    came = (small_disk / f"{mirror[1:]}.part").stat().st_size
    assert came > 1_000_000
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    code, err = pulled()
    assert code == 0, err
    assert web.gets(mirror) == [None, None, came]
    assert (small_disk / mirror[1:]).read_bytes() == content


def test_what_another_user_began_in_a_shared_cache(web: Web, mirror: str, start: Any, store: Path) -> None:
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


def test_shared_caches_that_cannot_be_written(web: Web, mirror: str, start: Any, tmp_path: Path) -> None:
    shared, empty, own = tmp_path / "shared", tmp_path / "empty", tmp_path / "own"
    for directory in (shared, empty):
        directory.mkdir()
    (shared / manifest()["t-k400"].filename).write_bytes(b"pulled by someone")
    shared.chmod(0o555)
    empty.chmod(0o555)

    def said(*arguments: str, directories: tuple[Path, ...]) -> tuple[int, str, str]:
        process = start(*arguments, before=NOT_AS_ROOT, VSWIN_WEIGHTS_DIR=os.pathsep.join(map(str, directories)))
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err.strip()

    both = (empty, shared)
    assert said("path", "t-k400", directories=both)[:2] == (0, str(shared / manifest()["t-k400"].filename))
    code, _, err = said("pull", NAME, directories=both)
    assert code == 2
    assert err == (
        f"Error: nothing can be written to the weights cache {empty}:{shared}; add a directory of your own, as in: "
        f"export VSWIN_WEIGHTS_DIR={empty}:{shared}:$HOME/weights"
    )
    all_three = (*both, own)
    assert said("path", NAME, directories=all_three) == (
        2,
        "",
        f"Error: {NAME} is not in the weights cache {empty}:{shared}:{own}; get it with: vswin weights pull {NAME}",
    )
    code, out, err = said("pull", NAME, directories=all_three)
    assert (code, out) == (0, f"{own}{mirror}"), err
    assert said("path", NAME, directories=all_three)[1] == out
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
    assert "where 9950e3be6b0b" in done.stderr.splitlines()[-1]
    assert run("vswin", "weights", "path", NAME).stdout == f"{store}{mirror}\n"


def test_list_says_what_is_there(run: Run, offer: Offer, web: Web, store: Path) -> None:
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


def test_prune_removes_what_is_ours_and_unfinished(run: Run, store: Path) -> None:
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
        assert "4 unfinished files, 4.0 kB, to be removed by --yes" in listed
        assert f"being downloaded, and left: {store / busy} by process {os.getpid()}" in listed
        assert f"not of the published weights, and left: {store / 'mine.pth'}" in listed
        assert set(ours) <= set(names(store))
        assert "4 unfinished files, 4.0 kB, removed" in run("vswin", "weights", "prune", "--yes").stdout
    assert names(store) == sorted([*kept, "folder"])
    assert "1 unfinished file, 1.0 kB, removed" in run("vswin", "weights", "prune", "--yes").stdout


def test_the_bar_on_a_terminal_begins_where_an_earlier_try_ended(web: Web, mirror: str, store: Path) -> None:
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
    assert "the server stopped after 13500 of 18000 bytes; trying again in 0.5 s, from 0.0 MB on" in shown
