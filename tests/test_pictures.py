"""What search and plot draw: pages whose names are text, pictures of the right frame, segments of a video."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from outputs import make_embedded, random_embeddings, scenes
from PIL import Image

from vswin_extract.explore import similarity
from vswin_extract.explore.near_copies import near_copies
from vswin_extract.explore.page import page_of_copies, page_of_results
from vswin_extract.explore.plot import plot_similarity
from vswin_extract.explore.query import find_query
from vswin_extract.explore.search import nearest
from vswin_extract.explore.similarity import boundaries, novelty, self_similarity
from vswin_extract.explore.thumbnails import thumbnail, thumbnails
from vswin_extract.store.features import open_features

VIDEOS = ROOT / "examples" / "videos"


class Page(HTMLParser):
    """A page's elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "onerror")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_its_pictures_and_names_are_text(tmp_path: Path) -> None:
    evil, other = '<script>alert(1)<|script> "><img src=x onerror=alert(1)>.mkv', "{{ 7 * 7 }}.mkv"
    rows = random_embeddings(6, 4)["v/0.mp4"]
    for name in (evil, other):
        (tmp_path / name).write_bytes((VIDEOS / "shapes.mkv").read_bytes())
    with open_features(make_embedded(tmp_path / "out.h5", {evil: rows, other: rows, "gone.mp4": rows})) as features:
        query = find_query(features, other)
        pages = [
            page_of_results(features, query, nearest(features, query), tmp_path),
            page_of_copies(features, near_copies(features), tmp_path),
        ]
    for page in map(Page, pages):
        assert "script" not in page.tags
        assert evil in page.text
        assert other in page.text
        assert "not there" in page.text  # gone.mp4
        assert page.tags.count("img") >= 2
        assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "default-src 'none'" in pages[0]


def test_a_thumbnail_is_the_frame_on_screen(tmp_path: Path) -> None:
    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "12", "qmin": "1", "qmax": "1"})
        stream.width, stream.height = 640, 320
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((320, 640, 3), 20 + 4 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    moments = {0.0: 0, 0.3: 3, 0.55: 5, 0.56: 5, 3.05: 30, 4.0: 40, 99.0: 49}
    for ahead in (0.2, 1.0, 5.0):  # by seeking, and by decoding on
        made = thumbnails(path, list(moments), ahead=ahead)
        assert made == [thumbnail(path, seconds) for seconds in moments]
        for uri, number in zip(made, moments.values(), strict=True):
            with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
                assert (picture.format, picture.size) == ("JPEG", (320, 160))
                assert np.asarray(picture).mean() == pytest.approx(20 + 4 * number, abs=1.9), (ahead, number)
    assert thumbnail(tmp_path / "none.mp4", 1) is None
    (tmp_path / "text.mp4").write_text("no video")
    assert thumbnail(tmp_path / "text.mp4", 1) is None


def test_segments_begin_where_scenes_do() -> None:
    assert boundaries(self_similarity(scenes(30, 12, 25, 9))) == [30, 42, 67]
    assert boundaries(self_similarity(scenes(2, 3))) == [2]
    assert boundaries(self_similarity(scenes(40))) == []  # nothing changes but noise
    assert boundaries(self_similarity(scenes(1))) == []
    assert boundaries(self_similarity(np.zeros((5, 8)))) == []
    assert novelty(self_similarity(scenes(50, 50)))[50] > 0.8
    assert self_similarity(scenes(5000, 5000)).shape == (similarity.SHOWN, similarity.SHOWN)
    assert boundaries(self_similarity(scenes(4990, 5010))) == [similarity.SHOWN // 2 - 1]


@pytest.mark.parametrize("clips", [1, 2, 60, pytest.param(1500, marks=pytest.mark.slow)])
def test_plot_draws_a_picture(tmp_path: Path, clips: int) -> None:
    name = "$a_b$\n<x>日本.mp4"
    half = clips // 2
    rows = scenes(*([half, clips - half] if half else [clips]))
    with open_features(make_embedded(tmp_path / "out.h5", {name: rows})) as features:
        starts = plot_similarity(features, name, tmp_path / "x.png", dpi=100)
    assert starts == ([pytest.approx(half + 0.5, abs=1)] if half else [])
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (700, 740)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "x.png"]
