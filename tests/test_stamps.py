"""When frames are shown, in every codec, container and rate that FFmpeg can write: each frame shows its own number."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numbered
import numpy as np
import pytest
from av.container import Flags
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.decoding.stamps import DisplayTimes, PacketStamps, StampedFrame
from vswin_extract.decoding.timeline import timeline
from vswin_extract.errors import VideoUnreadable
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.videos import EXTENSIONS

FRAMES = 36
X264 = {"preset": "medium", "crf": "12"}
CODECS: dict[str, dict[str, Any]] = {
    "h264, no B": {"codec": "libx264", "options": {"bf": "0"}},
    "h264, 3 B": {"codec": "libx264", "options": {**X264, "bf": "3", "g": "30"}},
    "h264, 1 B": {"codec": "libx264", "options": {**X264, "x264-params": "bframes=1:b-adapt=0:b-pyramid=none"}},
    "h264, 8 B, open GOP": {
        "codec": "libx264",
        "options": {**X264, "x264-params": "bframes=8:b-adapt=0:open-gop=1:keyint=20"},
    },
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg4, no B": {"codec": "mpeg4", "options": {"q": "3"}},
    "mpeg4, 2 B": {"codec": "mpeg4", "options": {"q": "3", "bf": "2"}},
    "mpeg2, no B": {"codec": "mpeg2video", "options": {"b": "3M"}},
    "mpeg2, 2 B": {"codec": "mpeg2video", "options": {"b": "3M", "bf": "2"}},
    "mpeg1, 2 B": {"codec": "mpeg1video", "options": {"b": "3M", "bf": "2"}},
    "vp8": {"codec": "libvpx", "options": {"b": "2M", "auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"crf": "20", "deadline": "realtime"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "wmv2": {"codec": "wmv2", "options": {"b": "2M"}},
    "msmpeg4": {"codec": "msmpeg4", "options": {"b": "2M"}},
    "prores": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "ffv1": {"codec": "ffv1"},
}
CONTAINERS = ("avi", "mp4", "mov", "mkv", "ts", "m2ts", "mpg", "flv", "wmv", "mxf", "nut", "webm", "3gp")
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(50), Fraction(15), Fraction(5))
NOT_IN_MPG = ("h264", "hevc", "mpeg4")
"""The muxer of program streams gives their frames the time stamps of other frames."""
SHORT = [
    *product(("h264, 3 B",), ("avi", "mp4", "mkv", "ts", "flv", "wmv", "mov", "nut"), RATES[:1]),
    *product(("mpeg4, 2 B",), ("avi", "mp4", "mkv", "ts", "wmv", "mov", "nut"), RATES[:1]),
    *product(("h264, 1 B", "h264, 8 B, open GOP"), ("avi", "mp4", "wmv", "mxf"), RATES[1:2]),
    *product(("mpeg2, 2 B", "mpeg1, 2 B"), ("avi", "mpg", "wmv", "ts"), RATES[:1]),
    ("h264, 3 B", "avi", Fraction(5)),
    ("hevc", "mp4", Fraction(24)),
    ("mjpeg", "avi", Fraction(15)),
    ("wmv2", "wmv", Fraction(25)),
]


def read(path: Path) -> tuple[list[int], list[float], list[float], str]:
    """Return the numbers of a video's frames, when they begin and end, and what is odd about it."""
    geometry = Geometry(64, 64)
    with PyavDecoder(path, lambda: None) as decoder:
        shown = [
            (numbered.read(geometry.apply(frame.picture())[0]), frame.start, frame.end)
            for frame in timeline(decoder, decoder)
        ]
        trouble = decoder.trouble
    assert shown
    numbers, starts, ends = zip(*shown, strict=True)
    return list(numbers), list(starts), list(ends), trouble


def check(path: Path, rate: Fraction, count: int = FRAMES) -> None:
    """Compare each frame with the time that its number stands for. A clock of milliseconds may round once or twice."""
    numbers, starts, ends, trouble = read(path)
    assert trouble == ""
    assert numbers == list(range(count))
    assert starts == pytest.approx([float(number / rate) for number in numbers], abs=0.0021)
    assert ends[:-1] == starts[1:]


def write(path: Path, codec: str, rate: Fraction, count: int = FRAMES, **how: Any) -> Path:
    return numbered.write(path, count, rate=rate, size=(128, 96), **{**CODECS[codec], **how})


@pytest.mark.parametrize(("codec", "container", "rate"), SHORT)
def test_frames_are_shown_when_their_numbers_say(tmp_path: Path, codec: str, container: str, rate: Fraction) -> None:
    check(write(tmp_path / f"video.{container}", codec, rate), rate)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_the_full_product(tmp_path: Path, codec: str) -> None:
    """Every container and rate, as far as FFmpeg writes them, and knows what it wrote."""
    checked, unknown, wrong = 0, set(), []
    for container, rate in product(CONTAINERS, RATES):
        if container == "mpg" and codec.startswith(NOT_IN_MPG):
            continue
        try:
            path = write(tmp_path / f"{rate.numerator}-{rate.denominator}.{container}", codec, rate)
        except (av.error.FFmpegError, ValueError):
            continue
        try:
            check(path, rate)
        except VideoUnreadable:
            unknown.add(container)
        except AssertionError as error:
            wrong.append(f"{path.name}: {error}")
        checked += 1
    assert not wrong
    assert unknown <= {"ts", "m2ts", "mpg"}  # muxers that write what no standard knows
    assert checked >= 2 * len(RATES)


def copy_as_coded(source: Path, target: Path) -> None:
    """Copy a video without its pts: each packet gets its dts as pts, as `ffmpeg -fflags +genpts -c copy` does."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copied = writer.add_stream_from_template(stream)
        for number, packet in enumerate(reader.demux(stream)):
            if packet.size:
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, 25), copied
                writer.mux(packet)


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        *product(("h264, 1 B", "h264, 3 B", "h264, 8 B, open GOP", "hevc"), ("mp4", "mkv", "mov", "flv", "ts", "nut")),
        *product(("mpeg4, 2 B",), ("mp4", "mkv", "mov", "nut")),
    ],
)
def test_pts_that_are_dts_are_not_believed(tmp_path: Path, codec: str, container: str) -> None:
    source = write(tmp_path / "source.mkv", codec, Fraction(25))
    copy_as_coded(source, tmp_path / f"video.{container}")
    check(tmp_path / f"video.{container}", Fraction(25))


def test_b_frames_that_begin_late_are_noticed_in_time(tmp_path: Path) -> None:
    """Until the first B-frame, pts in coding order look right. The frames before the first wrong one are right, too."""
    headers = "repeat-headers=1:keyint=200"
    plain, late = (
        numbered.write(
            tmp_path / f"{first}.h264", count, rate=25, size=(128, 96), first=first,
            options={**X264, "x264-params": f"{headers}:bframes={bframes}:b-adapt=0"},
        )
        for first, count, bframes in ((0, 100, 0), (100, 40, 3))
    )  # fmt: skip
    raw = tmp_path / "raw.h264"
    raw.write_bytes(plain.read_bytes() + late.read_bytes())
    copy_as_coded(raw, tmp_path / "video.nut")
    numbers, starts, _, trouble = read(tmp_path / "video.nut")
    assert (numbers, trouble) == (list(range(140)), "")
    assert starts == pytest.approx([number / 25 for number in range(140)], abs=0.0011)


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov", "ts"])
def test_a_variable_rate_with_b_frames_is_kept(tmp_path: Path, container: str) -> None:
    gaps = np.random.default_rng(1).integers(1, 9, 59) * 20
    ticks = [0, *np.cumsum(gaps).tolist()]
    path = numbered.write(
        tmp_path / f"video.{container}", 60, ticks=ticks, size=(128, 96), options={**X264, "bf": "3", "g": "30"}
    )
    numbers, starts, _, trouble = read(path)
    assert (numbers, trouble) == (list(range(60)), "")
    assert starts == pytest.approx([tick / 1000 for tick in ticks], abs=0.0011)


def test_a_packed_bitstream_of_divx(tmp_path: Path) -> None:
    """DivX put a P-frame and the B-frame before it into one chunk of an AVI file, and an empty frame into the next."""
    source = write(
        tmp_path / "source.avi", "mpeg4, 2 B", Fraction(25), options={"q": "3", "bf": "1", "b_strategy": "0"}
    )
    target = tmp_path / "packed.avi"
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copied = writer.add_stream_from_template(stream)
        packets = [bytes(packet) for packet in reader.demux(stream) if packet.size]
        chunks = pack(packets)
        for number, content in enumerate(chunks):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), copied
            packet.is_keyframe = number == 0
            writer.mux(packet)
    numbers, starts, _, trouble = read(target)
    assert (numbers[:-1], trouble) == (list(range(len(numbers) - 1)), "")
    assert len(numbers) >= FRAMES - 2
    assert starts == pytest.approx([number / 25 for number in range(len(numbers))], abs=0.0011)


VOP = b"\0\0\1\xb6"
USER_DATA = b"\0\0\1\xb2"


def pack(packets: Sequence[bytes]) -> list[bytes]:
    """Return the chunks of a packed bitstream: I, P+B, empty, P+B, empty…"""
    head = packets[0]
    at = head.index(VOP) if USER_DATA not in head else head.index(USER_DATA)
    chunks = [head[:at] + USER_DATA + b"DivX503b1393p\0" + head[head.index(VOP) :]]
    empty = VOP + bytes([0b01_0_1_0000, 0b0_1_0_11111])
    for p_frame, b_frame in zip(packets[1::2], packets[2::2], strict=False):
        chunks += [p_frame + b_frame, empty]
    return chunks


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(50), Fraction(5), Fraction(120)])
@pytest.mark.parametrize(
    ("ending", "codec"), [("h264", "h264, 3 B"), ("264", "h264, no B"), ("hevc", "hevc"), ("h265", "hevc")]
)
def test_raw_streams_have_the_rate_that_they_say(tmp_path: Path, ending: str, codec: str, rate: Fraction) -> None:
    check(write(tmp_path / f"video.{ending}", codec, rate, format="hevc" if codec == "hevc" else "h264"), rate)


AS_WRITTEN: dict[str, dict[str, Any]] = {
    ".divx": {"codec": "mpeg4", "format": "avi"},
    ".dv": {"codec": "dvvideo", "size": (720, 576), "pix_fmt": "yuv420p"},
    ".f4v": {"format": "flv"},
    ".gif": {"codec": "gif", "pix_fmt": "gray"},
    ".264": {"format": "h264"},
    ".265": {"codec": "libx265", "format": "hevc", "options": {"x265-params": "log-level=none"}},
    ".h265": {"codec": "libx265", "format": "hevc", "options": {"x265-params": "log-level=none"}},
    ".hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    ".ivf": {"codec": "libvpx-vp9"},
    ".m1v": {"codec": "mpeg1video"},
    ".m2t": {"format": "mpegts"},
    ".m2v": {"codec": "mpeg2video", "options": {"b": "3M"}},
    ".m4v": {"format": "mp4"},
    ".mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    ".mjpg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "format": "mjpeg"},
    ".mpe": {"codec": "mpeg1video", "format": "mpeg", "options": {"b": "3M"}},
    ".mpeg": {"codec": "mpeg1video", "options": {"b": "3M"}},
    ".mpg": {"codec": "mpeg1video", "options": {"b": "3M"}},
    ".mts": {"format": "mpegts"},
    ".mxf": {"codec": "mpeg2video", "options": {"b": "3M"}},
    ".obu": {"codec": "libsvtav1", "options": {"preset": "10", "crf": "20"}},
    ".ogm": {"codec": "libvpx", "format": "ogg", "options": {"b": "2M"}},
    ".ogv": {"codec": "libvpx", "format": "ogg", "options": {"b": "2M"}},
    ".qt": {"format": "mov"},
    ".rm": {"codec": "rv20", "options": {"b": "2M"}},
    ".rmvb": {"codec": "rv20", "format": "rm", "options": {"b": "2M"}},
    ".vob": {"codec": "mpeg2video", "options": {"b": "3M"}},
    ".webm": {"codec": "libvpx-vp9", "options": {"crf": "20", "deadline": "realtime"}},
    ".wmv": {"codec": "wmv2", "options": {"b": "2M"}},
}
"""How the files of an ending are written where H.264 in the container of that name is not what they hold."""


@pytest.mark.parametrize("ending", sorted(EXTENSIONS))
def test_every_ending_of_the_list_is_a_video(tmp_path: Path, ending: str) -> None:
    how = {"size": (128, 96), **AS_WRITTEN.get(ending, {})}
    numbers, starts, _, trouble = read(numbered.write(tmp_path / f"video{ending}", 12, rate=25, **how))
    assert (numbers, trouble) == (list(range(12)), "")
    assert starts == pytest.approx([number / 25 for number in range(12)], abs=0.0011)


def stamped(stamps: Sequence[tuple[int | None, int | None]]) -> list[int | None]:
    frame: Any = None
    frames = iter([StampedFrame(frame, pts, dts) for pts, dts in stamps])
    return [tick for _, tick in DisplayTimes(frames, PacketStamps(), tolerance=0)]


def test_the_example_of_the_docstring() -> None:
    assert stamped([(0, 1), (1, 2), (2, None)]) == [0, 1, 2]
    assert stamped([(0, 1), (2, 2), (1, None)]) == [0, 1, None]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(0, 4))
def test_pts_that_rise_are_the_times(steps: list[int], delay: int) -> None:
    pts = np.cumsum([0, *steps]).tolist()
    dts = [*pts[delay:], *[None] * min(delay, len(pts))]
    assert stamped(list(zip(pts, dts, strict=True))) == pts


@given(st.data(), st.integers(2, 60), st.integers(1, 4))
def test_times_of_a_constant_rate_rise_by_one_whatever_the_coding_order(data: Any, count: int, bframes: int) -> None:
    """Any division into groups of B-frames, coded after the frame behind them, with the dts as pts."""
    shown, coded = 0, [0]
    while shown + 1 < count:
        group = min(data.draw(st.integers(0, bframes)), count - 2 - shown)
        coded += [shown + group + 1, *range(shown + 1, shown + group + 1)]
        shown += group + 1
    place = {frame: number for number, frame in enumerate(coded)}
    dts = [number + 1 if number + 1 < count else None for number in range(count)]
    ticks = stamped([(place[number], dts[number]) for number in range(count)])
    known = [(number, tick) for number, tick in enumerate(ticks) if tick is not None]
    assert all(tick == number for number, tick in known)
    assert len(known) >= count - 1


def test_pyav_still_makes_up_pts_unless_it_is_told(tmp_path: Path) -> None:
    """The flag that the decoder clears. If this fails, PyAV has changed, and the decoder need not clear it."""
    with av.open(str(write(tmp_path / "a.avi", "h264, 3 B", Fraction(25)))) as container:
        assert container.flags & Flags.gen_pts.value  # type: ignore[operator]
