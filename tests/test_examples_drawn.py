"""The committed example videos are those that `examples/draw_videos.py` draws, with the properties that it names."""

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

import draw_videos

VIDEOS = Path(__file__).parents[1] / "examples" / "videos"
NAMES = ("astronaut-pan.mp4", "chelsea-portrait.mp4", "clips/shapes.avi", "coffee-zoom.webm", "shapes.mkv")
QUICK = ("clips/shapes.avi", "chelsea-portrait.mp4")
"""The videos that are drawn again quickly: one of textures, and one of a photograph with random time stamps."""


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
    """Return mean grey levels of 8x8 parts, (8, 8). They are nearly the same with every build of an encoder."""
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


def test_no_other_videos() -> None:
    files = {path.relative_to(VIDEOS).as_posix() for path in VIDEOS.rglob("*") if path.is_file()}
    assert files - {"README.md"} == set(NAMES) == {video.name for video in draw_videos.videos()}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_drawn_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    video = next(video for video in draw_videos.videos() if video.name == name)
    draw_videos.encode(video, tmp_path)
    committed, again = contents(VIDEOS / name), contents(tmp_path / name)
    assert (committed.codec, committed.rate, committed.size) == (again.codec, again.rate, again.size)
    assert committed.times == again.times
    assert np.abs(committed.thumbnails - again.thumbnails).max() < 4  # grey levels


@pytest.mark.slow
def test_the_script_draws_all_videos(tmp_path: Path) -> None:
    command = [sys.executable, str(VIDEOS.parent / "draw_videos.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    for name in NAMES:
        assert np.abs(contents(VIDEOS / name).thumbnails - contents(tmp_path / name).thumbnails).max() < 4, name


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
