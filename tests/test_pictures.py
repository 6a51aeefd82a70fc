"""What search and plot draw: pages whose names are text, pictures of the right frame, segments of a video."""

import base64
import io
import os
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from outputs import make_embedded, random_embeddings, scenes
from PIL import Image

from vswin_extract.errors import VideoMissing, VideoUnreadable
from vswin_extract.explore import similarity, thumbnails
from vswin_extract.explore.near_copies import near_copies
from vswin_extract.explore.page import Links, breakable, page_of_copies, page_of_results
from vswin_extract.explore.plot import plot_similarity
from vswin_extract.explore.query import find_query
from vswin_extract.explore.search import nearest
from vswin_extract.explore.similarity import boundaries, novelty, self_similarity
from vswin_extract.explore.thumbnails import PictureProcess
from vswin_extract.feeding.pictures import pictures_at
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
            page_of_results(features, query, nearest(features, query), tmp_path, Links(tmp_path / "pages" / "x.html")),
            page_of_copies(features, near_copies(features), tmp_path, Links(tmp_path / "x.html", play=False)),
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
        made = pictures_at(path, list(moments), (320, 180), ahead=ahead)
        assert list(made) == [*chain(*(pictures_at(path, [seconds], (320, 180)) for seconds in moments))]
        for content, number in zip(made, moments.values(), strict=True):
            with Image.open(io.BytesIO(content)) as picture:
                assert (picture.format, picture.size) == ("JPEG", (320, 160))
                assert np.asarray(picture).mean() == pytest.approx(20 + 4 * number, abs=1.9), (ahead, number)
    (tmp_path / "text.mp4").write_text("no video")
    with PictureProcess((320, 180)) as process:
        for name, error in {"none.mp4": VideoMissing, "text.mp4": VideoUnreadable}.items():
            with pytest.raises(error):
                process.take(tmp_path / name, [1.0])
        (uri,) = process.take(path, [0.55])  # after a video that failed
    assert base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")) == made[2]


FAILS_ONCE = """
import os, sys, time

mark = {mark!r}
if not os.path.exists(mark):
    open(mark, "w").close()
    {fails}
sys.path.remove({folder!r})
del sys.modules["PIL"]
import PIL
"""


@pytest.mark.parametrize(
    ("fails", "why"),
    [("os._exit(7)", "exit status 7"), pytest.param("time.sleep(60)", "8 s", marks=pytest.mark.slow)],
)
def test_a_video_that_hangs_or_ends_its_decoder_has_no_picture_and_the_next_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, why: str
) -> None:
    false, mark = tmp_path / "false", tmp_path / "mark"
    (false / "PIL").mkdir(parents=True)
    (false / "PIL" / "__init__.py").write_text(FAILS_ONCE.format(mark=str(mark), folder=str(false), fails=fails))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(false), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(thumbnails, "TIMEOUT", 8.0)  # the next process has to start in this time
    rows = random_embeddings(1, 2)["v/0.mp4"]
    for name in ("a.mkv", "b.mkv"):
        (tmp_path / name).symlink_to(VIDEOS / "shapes.mkv")
    with open_features(make_embedded(tmp_path / "out.h5", {"a.mkv": rows, "b.mkv": rows})) as features:
        pictures = thumbnails.take_pictures(
            features, tmp_path, {"a.mkv": {1.0}, "b.mkv": {1.0}}, (160, 120), lambda done, total: None
        )
    assert mark.exists()
    assert list(pictures.made) == [("b.mkv", 1.0)]
    assert list(pictures.missing) == ["a.mkv"]
    assert why in pictures.missing["a.mkv"]


def test_a_page_links_videos_below_its_folder_and_others_if_asked(tmp_path: Path) -> None:
    page = tmp_path / "pages" / "x.html"
    beside, elsewhere = page.parent / "a b" / '100%#?"<.mkv', tmp_path / "home" / "é.mkv"
    assert Links(page).find(beside, 1.0, 2.5) == "a%20b/100%25%23%3F%22%3C.mkv#t=1.00,2.50"
    assert Links(page).find(page.parent / "javascript:alert(1)", 1.0) == "javascript%3Aalert%281%29#t=1.00"
    assert Links(page).find(elsewhere, 1.0) is None
    assert Links(page, play=True).find(elsewhere, 1.0) == "../home/%C3%A9.mkv#t=1.00"
    for way in (Links(page, play=False).find(beside, 1.0), Links(page, play=True).find(None, 1.0)):
        assert way is None


def test_a_page_that_plays_has_its_links_and_one_that_does_not_has_no_path(tmp_path: Path) -> None:
    both = scenes(2, 2)
    videos = {
        name: np.concatenate([both[:2], scenes(6, seed=seed), both[2:]])
        for seed, name in enumerate(("secret-a.mkv", "secret-b.mkv"), 1)
    }
    for name in videos:
        (tmp_path / name).symlink_to(VIDEOS / "shapes.mkv")
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        copies = near_copies(features)
        plays, plain = (
            page_of_copies(features, copies, tmp_path, Links(page))
            for page in (tmp_path / "x.html", tmp_path / "pages" / "x.html")
        )
    assert len({(pair.one.video, pair.other.video) for pair in copies}) == 1
    assert len(copies) > 1
    for text in (plays, plain):
        assert Page(text).tags.count("details") == 1  # of both videos, with all that they share
        assert Page(text).tags.count("li") == len(copies)
    links = [source for source in Page(plays).sources if not source.startswith("data:")]
    assert links == [f"{m.video}#t={m.start:.2f},{m.end:.2f}" for pair in copies for m in (pair.one, pair.other)]
    assert "media-src 'self' file:" in plays
    assert "script" not in Page(plain).tags
    assert "media-src" not in plain
    assert str(tmp_path) not in plays + plain


def test_names_break_between_words_and_stay_the_same_text() -> None:
    marked = {
        "clips/cut-off_shapes.avi": "clips/<wbr>cut-<wbr>off_<wbr>shapes.avi",
        "dQw4w9WgXcQ.mp4": "dQw4w9WgXcQ.mp4",
        "a\n<b>  c": "a\n<wbr>&lt;b&gt;  <wbr>c",
        f"{'x' * 64}/日本.avi": f'<span class="long">{"x" * 64}/</span><wbr>日本.avi',
        "--": "--",
        "": "",
    }
    assert {name: str(breakable(name)) for name in marked} == marked


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
