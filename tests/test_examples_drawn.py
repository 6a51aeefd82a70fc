"""The committed example videos are what `examples/draw_videos.py` draws, and are as odd as they claim to be."""

import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("skimage")

VIDEOS = Path(__file__).parents[1] / "examples" / "videos"
NAMES = ("astronaut-pan.mp4", "chelsea-portrait.mp4", "clips/shapes.avi", "coffee-zoom.webm", "shapes.mkv")


@dataclass(frozen=True)
class Contents:
    codec: str
    rate: Fraction | None
    size: tuple[int, int]
    times: list[Fraction]
    thumbnails: NDArray[np.float64]
    """(frames, 8, 8)"""


def moment(frame: av.VideoFrame) -> Fraction:
    assert frame.pts is not None
    assert frame.time_base is not None
    return frame.pts * frame.time_base


def thumbnail(frame: av.VideoFrame) -> NDArray[np.float64]:
    """Mean grey levels of 8x8 parts, in which another build of an encoder hardly shows: (8, 8)."""
    grey = frame.to_ndarray(format="gray").astype(np.float64)
    means: NDArray[np.float64] = grey.reshape(8, frame.height // 8, 8, frame.width // 8).mean((1, 3))
    return means


def contents(path: Path) -> Contents:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return Contents(
            stream.codec_context.name,
            stream.average_rate,
            (frames[0].height, frames[0].width),
            [moment(frame) for frame in frames],
            np.stack([thumbnail(frame) for frame in frames]),
        )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("videos")
    script = VIDEOS.parent / "draw_videos.py"
    subprocess.run([sys.executable, script, "--out", out], check=True, capture_output=True, timeout=120)
    return out


def test_no_other_videos(drawn: Path) -> None:
    for folder in (drawn, VIDEOS):
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert files - {"README.md"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_again_it_is_the_same(name: str, drawn: Path) -> None:
    committed, again = contents(VIDEOS / name), contents(drawn / name)
    assert (committed.codec, committed.rate, committed.size) == (again.codec, again.rate, again.size)
    assert committed.times == again.times
    assert np.abs(committed.thumbnails - again.thumbnails).max() < 4  # grey levels


@pytest.mark.parametrize(
    ("name", "codec", "rate", "size", "frames"),
    [
        ("astronaut-pan.mp4", "h264", Fraction(30), (240, 320), 120),
        ("clips/shapes.avi", "mpeg4", Fraction(25, 2), (192, 256), 50),
        ("coffee-zoom.webm", "vp9", Fraction(25), (240, 320), 100),
        ("shapes.mkv", "h264", Fraction(24000, 1001), (240, 320), 120),
    ],
)
def test_regular_videos(name: str, codec: str, rate: Fraction, size: tuple[int, int], frames: int) -> None:
    found = contents(VIDEOS / name)
    assert (found.codec, found.rate, found.size, len(found.times)) == (codec, rate, size, frames)
    regular = [k / rate for k in range(frames)]
    assert max(abs(time - due) for time, due in zip(found.times, regular, strict=True)) <= Fraction(1, 1000)


def test_portrait_has_a_variable_frame_rate() -> None:
    found = contents(VIDEOS / "chelsea-portrait.mp4")
    gaps = {round((later - earlier) * 1000) for earlier, later in zip(found.times, found.times[1:], strict=False)}
    assert (found.codec, found.size, len(found.times)) == ("h264", (320, 240), 90)
    assert gaps == {20, 33, 34, 50, 83}


@pytest.mark.parametrize("name", NAMES)
def test_small(name: str) -> None:
    assert (VIDEOS / name).stat().st_size < 300_000
