"""The manifest, the cache, and downloads from a real server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vswin_extract import checkpoints, weights
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.variants import VARIANTS
from vswin_extract.weights import Published, find, load, manifest, published, pull

CONTENT = b"not really weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_the_manifest_names_all_published_weights() -> None:
    rows = manifest()
    assert len(rows) == 16
    for row in rows.values():
        assert row.url.startswith("https://")
        assert row.url.endswith(".pth")
        assert row.variant in VARIANTS
        assert row.layout in checkpoints.LAYOUTS
        assert row.license
        assert row.classes in (174, 400, 600, 700, 710)
        assert 50 < row.accuracy[0] < row.accuracy[1] < 100
        assert len(row.sha256) in (0, 8, 64)
        assert set(row.sha256) <= set("0123456789abcdef")
    assert len({row.file.name for row in rows.values()}) == len(rows)
    kinds = {(row.layout, row.variant, row.classes) for row in rows.values()}
    assert {("official", v, 400) for v in "tsb"} | {("official", "b", 600), ("official", "b", 174)} <= kinds
    assert {("torchvision", v, 400) for v in "tsb"} <= kinds
    assert {("mmaction2", v, 400) for v in "tsbl"} | {("mmaction2", "l", 700), ("mmaction2", "s", 710)} <= kinds
    assert {row.resize for row in rows.values() if row.layout == "torchvision"} == {256}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:5000] if "short" in self.path else CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def offer(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`offer("file.pth", sha256)`: a manifest with one row, "there", that points at the server."""
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path / "cache"))

    def offered(file: str, sha256: str) -> Published:
        row = replace(manifest()["t-k400"], name="there", url=f"{server}/{file}", sha256=sha256)
        monkeypatch.setattr(weights, "manifest", lambda: {"there": row})
        return row

    return offered


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8]])
def test_pull_checks_and_publishes(offer: Any, sha256: str) -> None:
    row = offer("weights.pth", sha256)
    seen: list[tuple[int, int]] = []
    path, said = pull("there", lambda done, total: seen.append((done, total)))
    assert path == row.file
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert "as published" in said
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]
    assert find("there") == path


def test_pull_records_the_first_hash_where_none_is_published(offer: Any) -> None:
    row = offer("weights.pth", "")
    path, said = pull("there")
    assert f"sha256 {SHA256}: none is published, recorded" in said
    assert pull("there")[0] == path
    path.write_bytes(b"changed later")
    with pytest.raises(WeightsError, match=f"{SHA256} is expected"):
        pull("there")
    assert row.record.is_file()


@pytest.mark.parametrize(
    ("file", "sha256", "says"),
    [
        ("weights.pth", "0" * 64, "where 0000"),
        ("short.pth", SHA256, "short.pth"),
        ("missing.pth", SHA256, "404"),
    ],
)
def test_a_bad_download_leaves_nothing(offer: Any, file: str, sha256: str, says: str) -> None:
    row = offer(file, sha256)
    with pytest.raises(WeightsError, match=says):
        pull("there")
    assert list(row.file.parent.iterdir()) == []


def test_no_server(offer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = offer("weights.pth", SHA256)
    gone = replace(row, url="http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(weights, "manifest", lambda: {"there": gone})
    with pytest.raises(WeightsError, match="cannot download"):
        pull("there")


def test_names_that_are_not_known(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(cache))
    with pytest.raises(UsageError, match=r"unknown model 't-k40'.*did you mean t-k400"):
        find("t-k40")
    with pytest.raises(UsageError, match="there are nano, t-k400"):
        published("zzzzzzzz")
    with pytest.raises(WeightsError, match="vswin weights pull t-k400"):
        find("t-k400")
    with pytest.raises(WeightsError, match="no weights at"):
        find(str(tmp_path / "x.pth"))


def test_a_file_of_the_cache_must_have_its_hash(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_WEIGHTS_DIR", str(tmp_path))
    manifest()["t-k400-torchvision"].file.write_bytes(small_weights.read_bytes())
    with pytest.raises(WeightsError, match="7615ae03"):
        load("t-k400-torchvision")
    record = manifest()["b-k400"].record
    record.write_text("")  # as a full disk leaves it
    manifest()["b-k400"].file.write_bytes(small_weights.read_bytes())
    assert load("b-k400")[0] == "b-k400"


def test_a_name_alone_proves_nothing(small_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / manifest()["t-k400-torchvision"].file.name
    path.write_bytes(small_weights.read_bytes())
    assert load(str(path))[0] == path.name
    assert load(str(path))[1].source == ""


def test_the_bundled_weights_are_nano() -> None:
    name, checkpoint = load("nano")
    assert (name, checkpoint.variant) == ("nano", VARIANTS["nano"])
    assert checkpoint.classes
    assert weights.bundled_file().stat().st_size < 6_000_000
