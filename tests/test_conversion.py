"""A part of a frame is converted to the same RGB as the whole frame, in every format that decoders give."""

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.decoding.pictures import FrameConverter, Turn
from vswin_extract.video.geometry import Box, Pixels

FORMATS = (
    "yuv420p yuvj420p yuv422p yuvj422p yuv444p yuv411p yuv410p yuv440p nv12 nv21 yuv420p10le yuv422p10le yuv444p10le "
    "yuv420p12le p010le yuva420p yuyv422 uyvy422 rgb24 bgr24 rgba bgra rgb0 gbrp gbrp10le gbrap gray gray10le gray16le "
    "rgb565le rgb555le monob monow ya8"
).split()
SIZES = [(240, 320), (240, 322), (241, 320), (240, 321), (91, 57), (66, 66), (258, 344)]


def frame_of(layout: str, height: int, width: int) -> VideoFrame:
    """A frame with blocks of colors and noise."""
    chance = np.random.default_rng(height * width)
    blocks = chance.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3)).repeat(6, 0).repeat(6, 1)[:height, :width]
    picture = (blocks + chance.integers(-20, 20, blocks.shape)).clip(0, 255).astype(np.uint8)
    return VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=layout)


@pytest.mark.parametrize("layout", FORMATS)
def test_a_part_is_that_part_of_the_whole(layout: str) -> None:
    chance = np.random.default_rng(len(layout))
    converter = FrameConverter()
    for height, width in SIZES:
        frame = frame_of(layout, height, width)
        whole: Pixels = frame.to_ndarray(format="rgb24", threads=1)  # type: ignore[assignment]
        picture = converter.picture(frame)
        assert (picture.height, picture.width) == (height, width)
        assert np.array_equal(picture.rgb(), whole)
        for _ in range(6):
            top, bottom = sorted(chance.choice(height + 1, 2, replace=False).tolist())
            left, right = sorted(chance.choice(width + 1, 2, replace=False).tolist())
            part = picture.read(Box(top, bottom, left, right))
            assert np.array_equal(part, whole[top:bottom, left:right]), (height, width, top, bottom, left)


@given(
    st.builds(Turn, st.booleans(), st.sampled_from([1, -1]), st.sampled_from([1, -1])),
    st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True).map(sorted),
    st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_a_part_of_a_turned_frame_is_where_it_is_stored(turn: Turn, rows: list[int], columns: list[int]) -> None:
    shown_size = (12, 9)
    stored = np.arange(12 * 9 * 3).astype(np.uint8).reshape(9 if turn.transposed else 12, -1, 3)
    shown = turn.apply(stored)
    assert shown.shape[:2] == shown_size
    box = Box(*rows, *columns)
    top, bottom, left, right = turn.stored(box, *shown_size)
    assert np.array_equal(turn.apply(stored[top:bottom, left:right]), shown[slice(*rows), slice(*columns)])


def test_frames_whose_colors_change_are_converted_by_their_own() -> None:
    """The filter that crops is made anew for frames of other colors or sizes, and says nothing."""
    converter, box = FrameConverter(), Box(40, 80, 60, 90)
    for layout in ("yuv420p", "nv12", "yuv420p"):
        for height, width in ((240, 320), (120, 160)):
            for space, extent in ((1, 1), (5, 1), (9, 2), (2, 0)):
                frame = frame_of(layout, height, width)
                frame.colorspace, frame.color_range = space, extent
                whole = frame.to_ndarray(format="rgb24", threads=1)
                assert np.array_equal(converter.picture(frame).read(box), whole[40:80, 60:90])
