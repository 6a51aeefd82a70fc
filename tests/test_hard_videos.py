"""Hard videos, decoded by a decoder process: the right frames, at the right times, upright."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import av
import numbered
import numpy as np
import pytest
from conftest import read_video, start_decoder
from hard_videos import BROKEN, HARD, read_all

from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.errors import VideoError, VideoMissing, VideoUnreadable
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

DECODERS = get_args(DecoderName)
EVERY_FRAME = Sampling(1, 1)

DECORD_IS_WRONG = {
    "h264 in avi",
    "mpeg1 in mpg",
    "mpeg2 in mpg",
    "mpeg2 in ts",
    "raw h264",
    "edit list",
    "two video streams",
    "resolution change midway",
    *(kind for kind in HARD if "mirrored" in kind),
}
"""Videos that decord decodes wrongly; see docs/speed.md, "Decoders"."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = start_decoder("pyav", timeout=60)
    yield process
    process.close()


def every_frame(process: DecoderProcess, path: Path, name: str) -> tuple[list[DecodedClip], VideoEnd]:
    return read_video(process, Task(os.fspath(path), name, EVERY_FRAME, Geometry(64, 64)))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_videos(decoder: DecoderProcess, tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "video.mp4"
    BROKEN[kind](path)
    with pytest.raises((VideoUnreadable, VideoMissing), match=r".{10}"):
        every_frame(decoder, path, name)


def test_a_corrupt_first_key_frame_costs_the_frames_up_to_the_next(decoder: DecoderProcess, tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.mkv", 60, rate=25, size=(320, 256), options={"g": "20"})
    with av.open(str(path)) as container:
        first = next(container.demux(container.streams.video[0]))
        assert first.is_keyframe
        start, length = first.pos or 0, first.size
    content = bytearray(path.read_bytes())
    at = start + length // 4  # behind the headers that are in the first packet, too
    content[at : at + length // 2] = np.random.default_rng(0).bytes(length // 2)
    path.write_bytes(content)
    clips, end = every_frame(decoder, path, "pyav")
    found = read_all([clip.views[0][0] for clip in clips])
    assert found[-40:] == list(range(20, 60))
    assert clips[-1].times[1] == pytest.approx(2.4, abs=0.01)
    assert end.partial


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", HARD)
def test_hard_videos(decoder: DecoderProcess, tmp_path: Path, kind: str, name: str) -> None:
    truth = HARD[kind](tmp_path)
    try:
        clips, end = every_frame(decoder, truth.path, name)
        assert read_all([clip.views[0][0] for clip in clips]) == list(truth.numbers)
        assert (end.width, end.height) == truth.size
        assert end.trouble == ""
        if truth.times:
            assert [clip.times[0] for clip in clips] == pytest.approx(truth.times, abs=0.0011)
    except (AssertionError, VideoError):
        if name == "decord" and kind in DECORD_IS_WRONG:
            pytest.xfail("a known bug of decord")
        raise
