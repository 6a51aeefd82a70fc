"""Videos whose numbers an output cannot hold fail when they are extracted: what was written is always readable."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numbered
import numpy as np
import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from journals import ARRAYS, ATTRIBUTES, SETTINGS

from vswin_extract import open_features
from vswin_extract.feeding.messages import VideoEnd
from vswin_extract.journal.journal import open_journal
from vswin_extract.store.schema import LONGEST, MOST_FRAMES
from vswin_extract.video.videos import Video
from vswin_extract.worker.writer import InFlightVideo, Writer

ROWS = {
    "embedding": np.zeros((1, 64), np.float32),
    "stage4": np.zeros((1, 2, 3, 3, 64), np.float32),
    "clips/frames": np.array([[0, 8]]),
    "clips/valid": np.array([8]),
}
seconds = st.floats(0) | st.sampled_from([LONGEST, 2e9, 1e300, float("inf"), float("nan")])
counts = st.integers(0, 1 << 70) | st.sampled_from([MOST_FRAMES, 1 << 31, (1 << 31) - 1])


Odd = tuple[dict[str, Any], tuple[int, float], float | None, float]
"""What a decoder finds, size and mtime, the start that was asked for, and when the last clip ends."""

odds: st.SearchStrategy[Odd] = st.tuples(
    st.fixed_dictionaries({"duration": seconds, "fps": seconds, "frames": counts, "width": counts, "height": counts}),
    st.tuples(st.integers(0, (1 << 63) - 1), st.floats(-(2.0**63), 2.0**63)),
    st.none() | st.floats(0, allow_infinity=False),
    seconds,
)
HELD: list[Odd] = [({"duration": 2e9, "fps": 2e9, "frames": 9}, ((1 << 63) - 1, 2.0**63), None, 2e9)]
NOT_HELD: list[Odd] = [
    ({"duration": 2e10}, (1, 0.0), None, 1.0),
    ({"fps": float("inf")}, (1, 0.0), None, 1.0),
    ({"fps": float("nan")}, (1, 0.0), None, 1.0),
    ({"width": 1 << 31}, (1, 0.0), None, 1.0),
    ({}, (1, 0.0), 1e300, 1.0),
    ({}, (1, 0.0), None, 2e10),
]


def write(output: Path, videos: list[Odd]) -> None:
    """Make an output of these videos, named by their numbers."""
    names = [str(number) for number in range(len(videos))]
    with open_journal(output, SETTINGS, ARRAYS, False, names) as journal:
        with journal.writer() as own:
            writer = Writer(own, "fp32", "float32")
            for name, (found, (size, mtime), start, end) in zip(names, videos, strict=True):
                video = InFlightVideo(Video(name, Path(name), start=start), (size, mtime, ""))
                done = writer.rows([video], {**ROWS, "clips/times": np.array([[0.0, end]])})
                done += writer.end(video, VideoEnd(clips=1, file=(size, mtime, ""), **found))
                assert len(done) == 1
        journal.load()
        journal.publish(names, ATTRIBUTES)


def test_what_an_output_cannot_hold_fails_its_video_alone(tmp_path: Path) -> None:
    write(tmp_path / "out.h5", HELD + NOT_HELD)
    with open_features(tmp_path / "out.h5") as features:
        assert [*features] == [str(number) for number in range(len(HELD))]
        assert len(features.failures) == len(NOT_HELD)
        assert features.times.max() == 2e9


@pytest.mark.slow
@given(videos=st.lists(odds, min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, videos: list[Odd]) -> None:
    output = tmp_path_factory.mktemp("odd") / "out.h5"
    write(output, videos)
    with open_features(output) as features:
        assert len(features) + len(features.failures) == len(videos)
        assert features.times.shape == (len(features), 2)


def write_jump(path: Path, seconds: int) -> None:
    """A video whose last time stamps are so many seconds later."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("ffv1", 8, width=32, height=32, pix_fmt="yuv420p")
        for k in range(12):
            frame = av.VideoFrame.from_ndarray(numbered.draw(k, 32, 32)).reformat(format="yuv420p")
            frame.pts = k
            for packet in stream.encode(frame):
                packet.pts = packet.dts = k * 125 + 1000 * seconds * (k > 9)
                packet.time_base, packet.duration = Fraction(1, 1000), 125
                container.mux(packet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "jump", "kept"),
    [("mkv", 2_000_000_000, True), ("nut", 2_000_000_000, True), ("nut", 20_000_000_000, False)],
)
def test_a_video_whose_times_jump(
    run: Run, small_weights: Path, tmp_path: Path, ending: str, jump: int, kept: bool
) -> None:
    write_jump(tmp_path / f"odd.{ending}", jump)
    write_jump(tmp_path / "sound.mkv", 0)
    output = tmp_path / "out.h5"
    done = run("vswin-extract", tmp_path, output, "--weights", small_weights, "--frame-interval", "1", "--stride", "4")
    assert done.returncode == (0 if kept else 3), done
    shown = json.loads(run("vswin", "inspect", output, "--json").stdout)
    assert {"sound.mkv", *[f"odd.{ending}"] * kept} == {video["id"] for video in shown["videos"]}
    assert run("vswin", "check", output).returncode == 0
