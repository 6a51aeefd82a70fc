"""The report: one page of limited size that needs no other file, whatever videos are called; some tests open it in
Chromium."""

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
from absent import without
from conftest import ROOT, Run
from outputs import make_embedded, make_output, random_embeddings, scenes, unit
from PIL import Image

from vswin_extract.cli import report as command
from vswin_extract.errors import UsageError
from vswin_extract.explore import report
from vswin_extract.explore.clip_map import make_map, principal
from vswin_extract.explore.page import Links
from vswin_extract.explore.report import choose_videos, histogram, write_report
from vswin_extract.explore.similarity import variety
from vswin_extract.explore.thumbnails import Pictures
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

VIDEOS = ROOT / "examples" / "videos"
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">.mkv'
NAMES = ["astronaut-pan.mp4", "chelsea-portrait.mp4", EVIL, "gone.mkv", "日本/прогулка é.avi", "{{ 7 * 7 }}.mkv"]
"""Ids of the videos of `page`."""


class Page(HTMLParser):
    """A page's elements, what they refer to, and its text but for scripts: of each table too, by rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.handlers: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run: Run, small_weights: Path) -> Path:
    """`out.h5` of `videos/`, of which one failed, one is gone since and one is no video any more; `out.html`."""
    here = tmp_path_factory.mktemp("report")
    for name in NAMES:
        source = VIDEOS / ("coffee-zoom.webm" if name == EVIL else name)
        path = here / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((source if source.exists() else VIDEOS / "shapes.mkv").read_bytes())
    (here / "videos" / "text.mp4").write_text("no video")
    options = ["--weights", small_weights, "--stride", 8, "--logits", "--precision", "fp32", "-q"]
    assert run("vswin-extract", here / "videos", here / "out.h5", *options).returncode == 3
    (here / "videos" / "gone.mkv").unlink()
    (here / "videos" / NAMES[-1]).write_text("no video")
    done = run("vswin", "report", here / "out.h5", "--videos", here / "videos", "-o", here / "out.html")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*out.html: \d\.\d MB, \d+ pictures; .*2 videos.*\n", done.stdout)
    return here


def test_a_page_holds_everything_and_names_are_text(folder: Path) -> None:
    page = Page((folder / "out.html").read_text())
    with open_features(folder / "out.h5") as features:
        failures, videos = page.tables
        assert [row[0] for row in videos[1:]] == list(features)
        assert [row[1] for row in videos[1:]] == [str(len(video)) for video in features.values()]
        assert failures[1:] == [[f["id"], f["error"], f["message"]] for f in features.failures]
        assert failures[1][:2] == ["text.mp4", "VideoUnreadable"]
        assert features.info["weights_sha256"][:8] in page.text
        assert features.info["created"] in page.text
    for name in NAMES:
        assert name in page.text
    assert not page.handlers
    library, drawing = (
        next(script for script in page.scripts if script.lstrip().startswith(begin))
        for begin in ("/* BEGIN bokeh", '{"target_id": "map"')
    )
    assert not [script for script in page.scripts if "alert(" in script and script not in (library, drawing)]
    assert "\\u003c/script\\u003e\\u003cscript\\u003ealert(1)" in drawing  # JSON
    assert page.text.count("No pictures: ") == 2  # one is gone, one is no video
    assert len(re.findall(r"\d+ segments?", page.text)) == len(NAMES)
    assert "one 3" in page.text or "one 4" in page.text  # a class of the weights, and its mean probability


def test_nothing_comes_from_elsewhere(folder: Path) -> None:
    page = Page((folder / "out.html").read_text())
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    own = re.compile(r"#\w+|data:image/(jpeg|png);base64,[A-Za-z0-9+/=]+|(?P<video>videos/[\w%./()-]+)#t=[\d.,]+")
    assert [source for source in page.sources if not own.fullmatch(source)] == []
    linked = {unquote(found["video"]) for source in page.sources if (found := own.fullmatch(source)) and found["video"]}
    assert linked == {f"videos/{name}" for name in NAMES if name not in ("gone.mkv", NAMES[-1])}
    text = (folder / "out.html").read_text()
    policy = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy[0].split("; ") == [
        "default-src 'none'", "img-src data:", "media-src 'self' file:", "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
    ]  # fmt: skip
    assert str(folder) not in text
    assert "url(" not in re.findall(r"<style>.*?</style>", text, re.DOTALL)[0]


def test_pictures_are_the_frames(folder: Path) -> None:
    text = (folder / "out.html").read_text()
    strips = re.findall(r'<div class="strip".*?</div>', text, re.DOTALL)
    assert sorted(strip.count("<img") for strip in strips) == [10, 10, 10, 16]  # two have none
    (strip,) = [strip for strip in strips if "astronaut" in strip]
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)', strip)
    means = []
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as picture:
            assert picture.width == 160
            means.append(np.asarray(picture, np.float64))
    assert max(np.abs(a - b).mean() for a, b in pairwise(means)) > 1  # which follow one another
    assert re.search(r'#t=0\.20".*alt="0:00\.2".*#t=3\.80".*alt="0:03\.8"', strip, re.DOTALL)


def test_size_is_limited_and_the_page_says_what_is_left_out(tmp_path: Path) -> None:
    videos = [(f"{number:05}.mp4", 40, 10.0) for number in range(200)]
    path = make_output(tmp_path / "out.h5", videos, Sampling(8, 2), failed=[f"bad{k}.mp4" for k in range(30)])
    with open_features(path) as features:
        write_report(features, tmp_path / "out.html", limit=5, spots=100)
        rows = features.clips
    page = Page((tmp_path / "out.html").read_text())
    assert (tmp_path / "out.html").stat().st_size < 2.2e6
    assert [row[0] for row in page.tables[1][1:]] == [name for name, *_ in videos]
    assert len(page.tables[0]) == 31
    assert "media-src" not in (tmp_path / "out.html").read_text()  # there are no videos
    assert "30 VideoUnreadable" in page.text
    assert "5 of 200 videos" in page.text
    assert f"100 of {rows:,} clips" in page.text
    with open_features(path) as features:
        write_report(features, tmp_path / "out.html", limit=1, spots=0, within="*99.mp4", table_rows=100)
    page = Page((tmp_path / "out.html").read_text())
    assert len(page.tables[1]) == 101
    assert "first 100 of 200 videos" in page.text
    assert "1 of 200 videos, of 2 whose ids match *99.mp4" in page.text
    assert "section" in page.tags
    assert "Bokeh" not in "".join(page.scripts)


@pytest.mark.slow
def test_ten_thousand_videos_make_a_page_that_opens(tmp_path: Path) -> None:
    names = [f"{number:05}.mkv" for number in range(10_000)]
    for name in names:
        (tmp_path / name).symlink_to(VIDEOS / "shapes.mkv")
    with open_features(make_output(tmp_path / "out.h5", [(n, 120, 24.0) for n in names], Sampling(16, 1))) as features:
        pictures = write_report(features, tmp_path / "out.html", tmp_path)
    assert not pictures.missing
    assert len(pictures.made) > 1500
    assert (tmp_path / "out.html").stat().st_size < 25e6


def test_the_map_is_that_of_all_clips_at_once(tmp_path: Path) -> None:
    drawn = random_embeddings(3, *[4] * 9)
    videos = {f"{group}/{number}.mp4": clips for group in "ab" for number, clips in enumerate(drawn.values())}
    everything = unit(np.concatenate(list(videos.values())))
    centred = everything - everything.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        by_blocks = [principal(features, block) for block in (3, 7, 100)]
        files = {"b/6.mp4": tmp_path / "b" / "6.mp4"}
        drawn_map = make_map(features, range(0, 72, 2), Pictures({}, {}, files), Links(tmp_path / "x.html"))
    for mean, axes, shares in by_blocks:
        assert np.allclose(mean, everything.mean(0), atol=1e-6)
        assert np.allclose(np.abs(axes.T @ directions[:2].T), np.eye(2), atol=1e-5)
        assert np.allclose(shares, (values**2 / (values**2).sum())[:2], atol=1e-6)
    assert list(drawn_map["groups"]) == ["a", "b"]  # 18 videos are too many to tell apart
    x = json.dumps(drawn_map["item"])
    assert x.count("6.mp4") >= 2
    assert x.count("b/6.mp4#t=") == 2
    assert '"match_aspect": true' in x


def test_variety_is_that_of_all_pairs_of_clips(tmp_path: Path) -> None:
    videos = random_embeddings(7, 1, 4, 9, 2)
    expected = [1 - float((unit(rows) @ unit(rows).T).mean()) for rows in videos.values()]
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        for block in (1, 3, 5, 100):
            assert np.allclose(variety(features, block), expected, atol=1e-6)


def test_videos_with_problems_and_varied_ones_come_first(tmp_path: Path) -> None:
    path = make_embedded(tmp_path / "out.h5", random_embeddings(1, *[1] * 6))
    with h5py.File(path, "r+") as file:
        for row in (0, 3, 4):
            file["videos_table/status"][row] = "partial"
    varied = [0.1, 0.5, 0.2, 0.3, 0.4, 0.6]
    with open_features(path) as features:
        ids = list(features)
        chosen = [choose_videos(features, ids, varied, limit) for limit in range(8)]
        unordered = choose_videos(features, ids, [], 6)
    assert [[ids.index(name) for name in names] for names in chosen] == [
        [], [4], [4, 5], [4, 3, 5], [4, 3, 5, 1], [4, 3, 0, 5, 1], [4, 3, 0, 5, 1, 2], [4, 3, 0, 5, 1, 2],
    ]  # fmt: skip
    assert [ids.index(name) for name in unordered] == [0, 3, 4, 1, 2, 5]


def test_a_colour_is_the_same_cosine_in_all_videos(tmp_path: Path) -> None:
    videos = {
        "a.mp4": np.array([[1, 0], [0.6, 0.8], [1, 0]], np.float32),  # cosines 0.6 and 1
        "b.mp4": np.array([[1, 0], [0.6, 0.8], [-0.28, 0.96]], np.float32),  # 0.6, -0.28 and 1
    }
    with open_features(make_embedded(tmp_path / "out.h5", videos)) as features:
        write_report(features, tmp_path / "out.html", spots=0)
    text = (tmp_path / "out.html").read_text()
    pictures = []
    for uri in re.findall(r'<figure class="matrix"><img src="data:image/png;base64,([^"]+)', text):
        with Image.open(io.BytesIO(base64.b64decode(uri))) as picture:
            pictures.append(np.asarray(picture))
    high, wide = (slice(110, 130), slice(0, 60)), (slice(0, 20), slice(220, 240))
    b, a = pictures  # b is more varied
    assert len({*a[high].flat, *b[high].flat}) == 1
    assert b[wide].max() < a[high].min() < a[wide].min() == 255
    assert text.count("cosine -0.3") == 2


def test_an_index_of_shards_reads_the_same(tmp_path: Path) -> None:
    videos = {"é.mp4": scenes(9, 6), **random_embeddings(4, 3, 5, channels=64)}
    texts = []
    for layout in ("single", "sharded"):
        (tmp_path / layout).mkdir()
        with open_features(
            make_embedded(tmp_path / layout / "out.h5", videos, layout=layout, shard_videos=2)
        ) as features:
            assert bool(features.linked) == (layout == "sharded")
            write_report(features, tmp_path / layout / "out.html")
        texts.append(Page((tmp_path / layout / "out.html").read_text()).text)
    assert texts[0] == texts[1]
    assert "2 segments" in texts[0]
    assert "0:09" in texts[0]


def test_files_without_embedding_or_videos(tmp_path: Path) -> None:
    whole, none = make_embedded(tmp_path / "out.h5", random_embeddings(1, 3)), tmp_path / "none.h5"
    with h5py.File(whole, "r+") as file:
        del file["embedding"]
    make_output(none, [], Sampling(8, 2), failed=["text.mp4"])
    for path, text in ((whole, "--no-embedding"), (none, "1 VideoUnreadable")):
        with open_features(path) as features:
            write_report(features, tmp_path / "x.html")
        page = Page((tmp_path / "x.html").read_text())
        assert text in page.text
        assert "Bokeh" not in "".join(page.scripts)
        assert page.tags.count("section") == (path == whole)


def test_the_histogram_counts_every_duration() -> None:
    for lengths in ([], [0.0], [4.0], [1.0, 2.0, 2.0], [0.04] * 30 + [3600.0], [5.0] * 9):
        bars = histogram(np.array(lengths, np.float64))
        assert sum(count for *_, count in bars) == len(lengths)
        assert all(low < high for low, high, _ in bars)


def test_the_page_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "out.html").write_text("before")

    def facts() -> Iterator[tuple[str, str]]:
        yield "file", "out.h5"
        raise OSError(28, "No space left on device")

    with open_features(make_embedded(tmp_path / "out.h5", random_embeddings(1, 3, 4))) as features:
        with pytest.raises(OSError, match="No space left"):
            write_report(features, tmp_path / "out.html", facts=facts(), overwrite=True)
        assert (tmp_path / "out.html").read_text() == "before"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "out.html"]
        write_report(features, tmp_path / "out.html", overwrite=True)
    assert "v/0.mp4" in (tmp_path / "out.html").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5", "out.html"]


def test_errors_are_one_line_that_names_the_value(folder: Path, tmp_path: Path, run: Run) -> None:
    here = ["--videos", folder / "videos"]
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none.h5", "-o", tmp_path / "x.html"], "none.h5"),
        ([folder / "out.h5", "-o", tmp_path / "y" / "x.html"], f"{tmp_path / 'y'}"),
        ([folder / "out.h5", "-o", tmp_path / "x.html", "--within", "x*"], "'x*'"),
    ]
    for arguments, value in cases:
        done = run("vswin", "report", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), arguments
        assert value in done.stderr
    for module in ("bokeh", "jinja2", "PIL"):
        with without(module):
            done = run("vswin", "report", folder / "out.h5", *here, "-o", tmp_path / "x.html")
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), module
        assert "pip install 'vswin-extract[report]'" in done.stderr
    assert not list(tmp_path.iterdir())
    with open_features(folder / "out.h5") as features, pytest.raises(UsageError, match="y"):
        write_report(features, tmp_path / "y" / "x.html")


def test_the_command_offers_what_the_library_does() -> None:
    assert (command.LIMIT, command.SPOTS) == (report.LIMIT, report.SPOTS)


@pytest.fixture(scope="module")
def browse() -> Iterator[Callable[..., "Chrome"]]:
    """`browse(scripts=True)`: a headless Chromium of this machine, which has its own driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    lacking = [name for name, path in found.items() if path is None]
    assert not lacking, f"reports are opened in Chromium; there is no {lacking}: apt-get install chromium-driver"
    opened: list[Chrome] = []

    def start(scripts: bool = True) -> "Chrome":
        options = webdriver.ChromeOptions()
        options.binary_location = str(found["chromium"])
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if not scripts:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        opened.append(webdriver.Chrome(options, Service(found["chromedriver"])))
        return opened[-1]

    yield start
    for each in opened:
        each.quit()


def look(browser: "Chrome", page: Path, width: int, scheme: str) -> None:
    """Open a page in a window of so many pixels."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


@pytest.mark.slow
def test_it_opens_in_chromium_at_any_width_in_light_and_dark(folder: Path, browse: Callable[..., "Chrome"]) -> None:
    browser = browse()
    grounds = set()
    for width in (400, 1600):
        for scheme in ("light", "dark"):
            look(browser, folder / "out.html", width, scheme)
            wide = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
            assert max(browser.execute_script(wide)) <= width
            grounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
            errors = [line for line in browser.get_log("browser") if line["level"] != "INFO"]
            assert errors == []
            broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert browser.execute_script(broken) == 0
            assert browser.execute_script("return document.scripts.length") == 6  # ours and Bokeh's
    assert len(grounds) == 2
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 4
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


POINT = """
const view = Object.values(Bokeh.index)[0], data = view.model.renderers[0].data_source.data
const row = data.video.indexOf(arguments[0]), box = document.getElementById("map").getBoundingClientRect()
if (arguments.length > 1) document.getElementById("map").scrollIntoView({block: "center", behavior: "instant"})
return [box.left + view.frame.x_scale.compute(data.x[row]), box.top + view.frame.y_scale.compute(data.y[row])]
"""
"""Where on the screen the map has the first clip of a video."""
TIP = """
function* all(root) {
  for (const each of root.querySelectorAll("*")) {
    yield each
    if (each.shadowRoot) yield* all(each.shadowRoot)
  }
}
const picture = [...all(document.body)].find(each => each.localName === "img" && each.getRootNode() !== document)
if (!picture) return null
const tip = picture.parentElement
return [picture.naturalWidth, tip.innerText, tip.querySelectorAll("img, script").length]
"""
"""The picture that the map shows under the pointer, and what it says."""


@pytest.mark.slow
def test_the_map_shows_the_frame_under_the_pointer(folder: Path, browse: Callable[..., "Chrome"]) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    browser = browse()
    look(browser, folder / "out.html", 1200, "light")
    for name in (EVIL, "astronaut-pan.mp4"):
        for _ in range(20):  # until it is drawn
            browser.execute_script(POINT, name, "scroll")
            x, y = browser.execute_script(POINT, name)
            pointer = ActionBuilder(browser)
            pointer.pointer_action.move_to_location(5, 5).move_to_location(round(x), round(y))
            pointer.perform()
            time.sleep(0.2)
            tip = browser.execute_script(TIP)
            if tip and tip[1].startswith(name):
                break
        wide, label, elements = tip
        assert wide == 160
        assert elements == 1
        assert re.search(r"\d:\d\d\.\d$", label.strip())
        assert label.splitlines()[0] == name
    pointer = ActionBuilder(browser)
    pointer.pointer_action.click()
    pointer.perform()
    time.sleep(0.5)
    is_open, source, *_ = browser.execute_script(PLAYING)
    assert is_open
    assert re.fullmatch(r".*/videos/astronaut-pan.mp4#t=0.00,\d.\d\d", source)
    assert [line for line in browser.get_log("browser") if line["level"] != "INFO"] == []


@pytest.mark.slow
def test_a_click_on_the_map_shows_the_video_if_the_page_does_not_link_it(
    folder: Path, tmp_path: Path, browse: Callable[..., "Chrome"]
) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    with open_features(folder / "out.h5") as features:
        write_report(features, tmp_path / "out.html", limit=1)
        names = list(features)
        (chosen,) = choose_videos(features, names, variety(features).tolist(), 1)
    browser = browse()
    look(browser, tmp_path / "out.html", 1200, "light")
    other = next(name for name in names if name != chosen)
    shown = []
    for name in (chosen, other):
        for _ in range(20):  # until it is drawn
            browser.execute_script("location.hash = ''")
            browser.execute_script(POINT, name, "scroll")
            x, y = browser.execute_script(POINT, name)
            pointer = ActionBuilder(browser)
            pointer.pointer_action.move_to_location(round(x), round(y)).click()
            pointer.perform()
            time.sleep(0.2)
            if place := browser.execute_script("return location.hash"):
                break
        shown.append(place)
    assert shown == [f"#v{names.index(chosen)}", f"#r{names.index(other)}"]
    assert browser.execute_script("return document.querySelector('dialog')") is None


@pytest.mark.slow
def test_tables_sort_and_are_there_without_scripts(folder: Path, browse: Callable[..., "Chrome"]) -> None:
    from selenium.webdriver.common.by import By

    with open_features(folder / "out.h5") as features:
        seconds = [f"{video.info['duration']:.2f}" for video in features.values()]
        names = list(features)
    browser = browse()
    look(browser, folder / "out.html", 1600, "light")

    def column(number: int) -> list[str]:
        return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f"#videos + .card td:nth-child({number})")]

    count = len(names)
    assert column(1)[:count] == names
    title = browser.find_elements(By.CSS_SELECTOR, "#videos + .card th button")[2]
    title.click()
    assert column(3)[:count] == sorted(seconds, key=float)
    title.click()
    assert column(3)[:count] == sorted(seconds, key=float, reverse=True)
    assert browser.find_elements(By.CSS_SELECTOR, "#videos + .card th")[2].get_attribute("aria-sort") == "descending"
    browser.find_elements(By.CSS_SELECTOR, "#videos + .card th button")[0].click()
    assert sorted(column(1)[:count]) == sorted(names)

    browser = browse(scripts=False)
    look(browser, folder / "out.html", 400, "dark")
    assert not browser.find_elements(By.CSS_SELECTOR, "th button")
    assert column(1)[:count] == names
    assert "The map needs JavaScript" in browser.find_element(By.ID, "map").text


PLAYING = """
const video = document.querySelector("dialog video")
return [document.querySelector("dialog").open, decodeURIComponent(video.src), video.currentTime, video.error?.message]
"""


@pytest.mark.slow
def test_a_click_plays_the_clip(folder: Path, browse: Callable[..., "Chrome"]) -> None:
    from selenium.webdriver.common.by import By

    browser = browse()
    look(browser, folder / "out.html", 400, "light")
    links = [
        link
        for link in browser.find_elements(By.CSS_SELECTOR, ".strip a.play")
        if unquote(str(link.get_attribute("href"))).endswith(f"{EVIL}#t=1.80")
    ]
    browser.execute_script("arguments[0].click()", links[0])
    for _ in range(50):
        is_open, source, seconds, error = browser.execute_script(PLAYING)
        if seconds >= 1.8 or error:
            break
        time.sleep(0.1)
    assert (is_open, error) == (True, None)
    assert source == f"file://{folder}/videos/{EVIL}#t=1.80"
    assert seconds >= 1.8
    assert browser.find_element(By.CSS_SELECTOR, "dialog a").text == EVIL.rpartition("/")[2]
    browser.find_element(By.CSS_SELECTOR, "dialog button").click()
    assert browser.execute_script(PLAYING)[0] is False
    assert [line for line in browser.get_log("browser") if line["level"] != "INFO"] == []


@pytest.mark.slow
def test_the_filter_hides_other_videos_and_links_unfold_theirs(folder: Path, browse: Callable[..., "Chrome"]) -> None:
    from selenium.webdriver.common.by import By

    browser = browse()
    look(browser, folder / "out.html", 400, "dark")
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = false")
    with open_features(folder / "out.h5") as features:
        row = list(features).index("chelsea-portrait.mp4")
    browser.execute_script("location.hash = arguments[0]", f"v{row}")
    time.sleep(0.2)
    opened = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "section > details[open] h3")]
    assert opened == ["chelsea-portrait.mp4"]
    box = browser.find_element(By.CSS_SELECTOR, "nav input")
    box.send_keys("CHELSEA")
    shown = browser.find_elements(By.CSS_SELECTOR, "section:not([hidden]) h3")
    assert [each.text for each in shown] == ["chelsea-portrait.mp4"]
    assert browser.find_element(By.CSS_SELECTOR, "nav output").text == "1 found"
    box.clear()
    box.send_keys(" ", "\b")
    assert len(browser.find_elements(By.CSS_SELECTOR, "section:not([hidden])")) == len(NAMES)
