"""Decoding what clips show, by a table of all frames, gives what a pass from the beginning gives."""

import itertools
import os
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numbered
import numpy as np
import pytest
from conftest import granted_slots
from fake_decoder import FakeDecoder
from hard_videos import HARD
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.decoding.bitstreams import (
    ENTRY,
    HIDDEN,
    UNUSED,
    PacketReader,
    packet_reader,
    read_av1,
    read_vp8,
    read_vp9,
)
from vswin_extract.decoding.frame_table import ROW, Coding, FrameTable, coding, load_table, plan_packets
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.decoding.timeline import timeline
from vswin_extract.errors import FrameTableWrong, VideoError
from vswin_extract.feeding.child import decode_video
from vswin_extract.feeding.frame_memory import frames_of
from vswin_extract.feeding.messages import DecodedFrames, FromChild, Task, VideoEnd
from vswin_extract.feeding.positions import Positions
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.rows import ClipRow
from vswin_extract.video.sampling import Sampling

GEOMETRY = Geometry(64, 64)
H264 = {"g": "30", "bf": "3", "preset": "medium", "crf": "18"}


@dataclass(frozen=True)
class Decoded:
    """The rows of a task, a checksum of each frame that was sent, and the end."""

    rows: Sequence[ClipRow]
    frames: dict[int, int]
    end: VideoEnd


def task(path: Path, sampling: Sampling, clip_range: ClipRange = WHOLE, **how: Any) -> Task:
    return Task(os.fspath(path), "pyav", sampling, GEOMETRY, clip_range=clip_range, **how)


def decode(wanted: Task) -> Decoded:
    memory, granted = granted_slots(400)
    content = frames_of(memory.content, GEOMETRY.shape)
    rows: list[ClipRow] = []
    frames: dict[int, int] = {}

    def send(message: FromChild) -> None:
        if isinstance(message, DecodedFrames):
            for number, slot in message.slots.items():
                assert number not in frames, "a frame was sent twice"
                frames[number] = zlib.crc32(content[slot].tobytes())
            granted.add(message.slots.values())
            if message.row is not None:
                assert set(message.row.shown) <= frames.keys()
                rows.append(message.row)

    return Decoded(rows, frames, decode_video(wanted, send, granted))


def entries(path: Path) -> list[int]:
    """Return the frames at which decoding can begin by the packets, none where they prove nothing."""
    with PyavDecoder(path, lambda: None) as decoder:
        table = decoder.read_table()
    assert table is not None
    if table.doubt:
        return []
    known = coding(table.rows)
    return [int(frame) for frame in known.frame[known.entry]]


def check_pieces(path: Path, sampling: Sampling, pieces: Sequence[ClipRange], **how: Any) -> None:
    """Compare clip ranges with a pass from the beginning: rows, pixels, and the figures of the video."""
    whole = decode(task(path, sampling, sequential=True, **how))
    found = [decode(task(path, sampling, piece, table=f"{path}.frames/table.npy", **how)) for piece in pieces]
    assert [row for piece in found for row in piece.rows] == list(whole.rows)
    shown = {number for row in whole.rows for number in row.shown}
    for piece in found:
        for number in piece.frames.keys() & shown:
            assert piece.frames[number] == whole.frames[number], f"frame {number} has other pixels"
    assert figures(found[-1].end) == figures(whole.end)
    assert sum(piece.end.clips for piece in found) == whole.end.clips


def figures(end: VideoEnd) -> VideoEnd:
    return replace(end, cpu=0.0, skipped=0, clips=0)


def pieces_at(frames: Sequence[int], sampling: Sampling) -> list[ClipRange]:
    """Return clip ranges that begin with the first clip at or after each of these frames."""
    cuts = sorted({-(-frame // sampling.step) for frame in frames} | {0})
    return [(first, last) for first, last in zip(cuts, [*cuts[1:], None], strict=True)]


EVERY = Sampling(1, 1)


LARGE = ("4K", "h264 GOP of 300", "hevc 10 bit", "h264 10 bit", "h264 yuv444")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in LARGE else []) for kind in HARD]
)
def test_hard_videos_in_as_many_pieces_as_they_have_key_frames(tmp_path: Path, kind: str) -> None:
    path = HARD[kind](tmp_path).path
    begin = entries(path)
    check_pieces(path, EVERY, pieces_at([*begin, 7, 31], EVERY))
    check_pieces(path, Sampling(2, 2, 3), pieces_at([*begin, 7, 31], Sampling(2, 2, 3)))
    check_pieces(path, Sampling(4, 2), [WHOLE])


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:keyint=24:bframes=5:b-pyramid=2:ref=6"},
        {"x264-params": "intra-refresh=1:keyint=24"},
        {"x264-params": "repeat-headers=1:keyint=24"},
        {"x264-params": "tff=1:keyint=24:open-gop=1"},
    ],
    ids=lambda options: options["x264-params"],
)
@pytest.mark.parametrize("ending", ["mp4", pytest.param("mkv", marks=pytest.mark.slow), "ts"])
def test_pixels_are_the_same_after_every_kind_of_key_frame(
    tmp_path: Path, ending: str, options: dict[str, str]
) -> None:
    """The pictures change in every frame, so a frame that was decoded from another reference would show."""
    path = numbered.write(
        tmp_path / f"a.{ending}", 150, rate=25, size=(128, 96), options={"preset": "medium", "crf": "30", **options}
    )
    begin = entries(path)
    assert len(begin) > 1 or "intra-refresh" in options["x264-params"]
    check_pieces(path, EVERY, pieces_at(begin, EVERY))


SETTINGS: list[dict[str, Any]] = [
    {"start": 1.5},
    {"start": 1.5, "end": 3.02},
    {"start": 11.0, "end": 11.3},
    {"start": 3.9, "end": 100.0},
]


@pytest.mark.parametrize(
    "how",
    [SETTINGS[1], *(pytest.param(how, marks=pytest.mark.slow) for how in SETTINGS if how != SETTINGS[1])],
    ids=str,
)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(4, 2),
        Sampling(4, 1, 40, tail="drop"),
        Sampling(4, 3, 5, tail="shift"),
        Sampling(4, 2, 7, align="center"),
        Sampling(3, 2, fps=Fraction(4)),
        Sampling(3, 2, 20, fps=Fraction(30000, 1001)),
    ],
    ids=str,
)
def test_segments_gaps_and_rates_give_the_same(long_video: Path, sampling: Sampling, how: dict[str, Any]) -> None:
    whole = decode(task(long_video, sampling, sequential=True, **how))
    middle = len(whole.rows) // 2
    for pieces in (
        [WHOLE],
        [(0, middle), (middle, middle), (middle, None)],
        [(0, len(whole.rows)), (len(whole.rows), None)],
    ):
        check_pieces(long_video, sampling, pieces, **how)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by-table")
    path = numbered.write(folder / "long.mp4", 320, rate=25, size=(64, 64), options=H264)
    with PyavDecoder(path, lambda: None) as decoder:
        table = decoder.read_table()
    assert table is not None
    table.save(folder / "long.mp4.frames" / "table.npy")
    return path


def test_frames_that_no_clip_shows_are_not_decoded(long_video: Path) -> None:
    end = decode(task(long_video, Sampling(4, 1, 150, tail="drop"), table=f"{long_video}.frames/table.npy")).end
    assert end.skipped > 250
    assert decode(task(long_video, EVERY, table=f"{long_video}.frames/table.npy")).end.skipped == 0
    unused = decode(task(long_video, Sampling(8, 2))).end.skipped
    assert 40 < unused < 160


@pytest.mark.parametrize("change", ["size", "pts", "end"])
def test_a_table_of_another_video_is_noticed(long_video: Path, tmp_path: Path, change: str) -> None:
    table = load_table(Path(f"{long_video}.frames/table.npy"))
    assert table is not None
    rows = table.rows.copy()
    if change == "size":
        rows["size"][200] += 1
    elif change == "pts":
        rows["pts"] += 1
    else:
        rows = np.append(rows, rows[-1:])
        rows["pts"][-1] += 512
        rows["start"][-1], rows["end"][-1] = rows["end"][-2], rows["end"][-2] + 0.04
    FrameTable(rows).save(tmp_path / "frames" / "table.npy")
    with pytest.raises(FrameTableWrong):
        decode(task(long_video, Sampling(4, 1), table=str(tmp_path / "frames" / "table.npy")))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"frames 1\0\0\0\1", b"frames 1" + bytes(400)])
def test_a_table_that_cannot_be_read_is_made_again(
    long_video: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vswin_extract.feeding.by_table.KEPT", 100)
    path = tmp_path / "frames" / "table.npy"
    path.parent.mkdir()
    path.write_bytes(content)
    found = decode(task(long_video, Sampling(4, 1), (20, 22), table=str(path)))
    assert [row.frames for row in found.rows] == [(80, 84), (84, 88)]
    table = load_table(path)
    assert table is not None
    assert table.frames == 320


@pytest.mark.parametrize("drop", [30, 25, 90])
def test_a_lost_packet_is_noticed_by_its_time(tmp_path: Path, drop: int) -> None:
    """What a decoder shows in place of lost references depends on all that it has decoded before."""
    path = copy_without(
        numbered.write(tmp_path / "whole.mp4", 150, rate=25, size=(64, 64), options={**H264, "g": "25"}),
        tmp_path / "a.mkv",
        lambda number, packet: number == drop,
    )
    assert entries(path) == []


def test_a_cut_before_a_key_frame_of_an_open_group_is_read_in_sequence(tmp_path: Path) -> None:
    """Its first frames refer to frames that are not there."""
    options = {"preset": "medium", "x264-params": "open-gop=1:keyint=24:bframes=3"}
    whole = numbered.write(tmp_path / "whole.mkv", 100, rate=25, size=(64, 64), options=options)
    keys = itertools.count()
    path = copy_without(
        whole, tmp_path / "a.mkv", lambda _, packet: next(keys) < 1 if packet.is_keyframe else next(copy(keys)) < 2
    )
    check_pieces(path, Sampling(4, 1), [(0, 5), (5, 10), (10, None)])
    check_pieces(path, Sampling(8, 2), [WHOLE])


def copy_without(source: Path, target: Path, leave_out: Callable[[int, Any], bool]) -> Path:
    """Copy a video without the packets for which `leave_out` is true."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copied:
        stream = copied.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(container.streams.video[0])):
            if packet.size and not leave_out(number, packet):
                packet.stream = stream
                copied.mux(packet)
    return target


def test_time_stamps_in_the_order_of_decoding_prove_nothing(tmp_path: Path) -> None:
    whole = numbered.write(tmp_path / "whole.mp4", 100, rate=25, size=(64, 64), options=H264)
    path = tmp_path / "a.mkv"
    with av.open(str(whole)) as container, av.open(str(path), "w") as copied:
        stream = copied.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.pts, packet.stream = packet.dts, stream
                copied.mux(packet)
    assert entries(path) == []


def test_a_piece_of_a_video_that_packets_do_not_prove_asks_for_the_whole(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.avi", 60, rate=25, codec="mpeg4", options={"q": "3"})
    whole = decode(task(path, Sampling(4, 1), divided=True))
    assert len(whole.rows) == 15
    with pytest.raises(FrameTableWrong, match="mpeg4"):
        decode(task(path, Sampling(4, 1), (5, None), divided=True))
    assert decode(task(path, Sampling(4, 1), (5, None))).rows == whole.rows[5:]


def test_an_index_that_leads_elsewhere_costs_time_only(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where seeking fails, the packets before are read and dropped."""
    monkeypatch.setattr("vswin_extract.decoding.chosen.SEEK_FROM", 50)
    rightly = decode(task(long_video, Sampling(4, 1, 100)))
    monkeypatch.setattr("vswin_extract.decoding.chosen.BY_PTS", frozenset(("mp4",)))
    monkeypatch.setattr("vswin_extract.decoding.chosen.NO_DTS", 0)
    assert decode(task(long_video, Sampling(4, 1, 100))).frames == rightly.frames


def test_damage_that_the_packets_hide_is_noticed(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.mkv", 200, rate=25, size=(320, 256), options=H264)
    with PyavDecoder(path, lambda: None) as decoder:
        packets = [(packet.pos or 0, packet.size) for packet in decoder.container.demux(decoder.video)]
    content = bytearray(path.read_bytes())
    at, size = packets[90]
    content[at + 12 : at + size] = bytes(size - 12)
    path.write_bytes(content)
    wanted = task(path, Sampling(4, 1), (20, 30))
    try:
        found = decode(wanted)
    except FrameTableWrong:
        return
    assert [row.frames for row in found.rows] == [row.frames for row in decode(replace(wanted, sequential=True)).rows]


IN_SEQUENCE = {
    "h264 in avi", "mpeg1 in mpg", "mpeg2 in mpg", "mpeg2 in ts", "mpeg4 in avi", "wmv", "flv1", "gif",
    "odd sizes", "raw h264", "edit list", "resolution change midway",
}  # fmt: skip
"""Videos whose packets do not prove their frames: without pts, with hidden frames, of other codecs."""


@pytest.mark.parametrize("kind", HARD)
def test_videos_are_read_in_sequence_where_packets_prove_nothing(tmp_path: Path, kind: str) -> None:
    assert bool(entries(HARD[kind](tmp_path).path)) == (kind not in IN_SEQUENCE)


@st.composite
def codings(draw: st.DrawFn) -> tuple[Coding, list[set[int]]]:
    """Draw groups of pictures in the order of decoding, and the packets that each packet refers to."""
    frames: list[int] = []
    entry: list[bool] = []
    unused: list[bool] = []
    refers: list[set[int]] = []
    first = 0
    for _ in range(draw(st.integers(1, 4))):
        last = first  # the entry before
        first, begin = len(frames), max(frames, default=-1) + 1
        leading = draw(st.integers(0, 2)) if first else 0
        frames.append(begin + leading)
        entry.append(True)
        unused.append(False)
        refers.append(set())
        before = [place for place in range(last, first) if frames[place] >= frames[last]] if first else []
        for number in range(begin, begin + leading):  # decoded after the entry, shown before it
            refers.append({place for place in (*before, first) if not unused[place]})
            frames.append(number)
            entry.append(False)
            unused.append(draw(st.booleans()))
        rest = draw(st.integers(0, 5))
        for number in draw(st.permutations(range(begin + leading + 1, begin + leading + 1 + rest))):
            known = [
                first,
                *range(first + 1 + leading, len(frames)),
            ]  # what follows an entry does not refer further back
            refers.append({place for place in known if not unused[place]})
            frames.append(number)
            entry.append(False)
            unused.append(draw(st.booleans()))
    return Coding(np.array(frames), np.array(entry), np.array(unused)), refers


@given(codings(), st.data())
def test_what_is_sent_is_all_that_the_needed_frames_refer_to(
    drawn: tuple[Coding, list[set[int]]], data: st.DataObject
) -> None:
    known, refers = drawn
    count = len(known.frame)
    needed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    plan = plan_packets(known, needed)
    begun = -1
    inside: set[int] = set()
    for packet in np.flatnonzero(plan.send).tolist():
        if plan.begin[packet]:
            assert known.entry[packet]
            begun, inside = int(known.frame[packet]), set()
        inside.add(packet)
        if known.frame[packet] >= begun:
            assert refers[packet] <= inside
    shown = {int(known.frame[packet]) for packet in np.flatnonzero(plan.send)}
    assert set(np.flatnonzero(needed)) <= shown
    assert not any(
        known.unused[packet] and not needed[known.frame[packet]] for packet in np.flatnonzero(plan.send).tolist()
    )


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=80),
    st.none() | st.floats(0.0, 4.0),
    st.none() | st.floats(0.1, 4.0),
    st.none() | st.sampled_from([Fraction(1), Fraction(30000, 1001), Fraction(200)]),
)
def test_positions_of_a_table_are_those_of_a_pass(
    lasts: list[int], start: float | None, length: float | None, fps: Fraction | None
) -> None:
    decoder = FakeDecoder([sum(lasts[:number]) / 1000 for number in range(len(lasts))])
    end = None if length is None else (start or 0.0) + length
    wanted = Task("", "pyav", Sampling(1, 1, fps=fps), GEOMETRY, start, end)
    shown = list(timeline(decoder, decoder))
    rows = np.zeros(len(shown), ROW)
    rows["start"], rows["end"] = [frame.start for frame in shown], [frame.end for frame in shown]
    passed, taken = Positions(decoder, wanted), Positions(decoder, wanted)
    known = taken.take_table(FrameTable(rows))
    try:
        found = [(frame.index, begin) for frame, begin in passed]
    except VideoError:
        assert known is None
        return
    if known is None:  # a segment shorter than one period has one position
        assert len(found) == 1
        return
    frames, begins = known
    assert list(zip(frames.tolist(), begins.tolist(), strict=True)) == [*found, (passed.frames, passed.seconds)]
    assert taken.video_end(1, (8, 8), False) == passed.video_end(1, (8, 8), False)


@pytest.mark.parametrize(
    ("read", "packet", "says"),
    [
        (read_vp8, b"", HIDDEN),
        (read_vp8, b"\x10", ENTRY),
        (read_vp8, b"\x11", 0),
        (read_vp8, b"\x00", HIDDEN),
        (read_vp9, b"", HIDDEN),
        (read_vp9, b"\x82\x49", ENTRY),  # profile 0, key frame, shown
        (read_vp9, b"\x86\x00", 0),  # inter frame
        (read_vp9, b"\x80\x49", HIDDEN),  # key frame that is not shown, alone
        (read_vp9, b"\x80\x49\xc0", 0),  # the same, and more frames in the packet
        (read_vp9, b"\xb1\x24", ENTRY),  # profile 3
        (read_av1, b"", HIDDEN),
        (read_av1, b"\x12\x00", HIDDEN),
        (read_av1, b"\x0a\xff\xff\xff\xff", HIDDEN),
        (read_av1, b"\x32\x01\x10", 0),  # a key frame without a sequence header
    ],
)
def test_first_bytes(read: PacketReader, packet: bytes, says: int) -> None:
    assert read(memoryview(packet))[0] == says


@given(st.sampled_from(["h264", "hevc", "vp8", "vp9", "av1"]), st.binary(max_size=60), st.binary(max_size=30))
def test_any_bytes_can_be_read(codec: str, packet: bytes, extradata: bytes) -> None:
    read = packet_reader(codec, extradata)
    assert read is not None
    assert read(memoryview(packet))[0] & UNUSED in (0, UNUSED)


@given(
    st.sampled_from(["h264", "hevc"]),
    st.lists(st.binary(min_size=2, max_size=9).filter(lambda unit: b"\0" not in unit), max_size=6),
)
def test_start_codes_and_lengths_give_the_same_units(codec: str, parts: list[bytes]) -> None:
    codes = packet_reader(codec, b"")
    lengths = packet_reader(codec, b"\1" + bytes(3) + b"\3" + bytes(16) + b"\3" + bytes(9))
    assert codes is not None
    assert lengths is not None
    by_codes = b"".join(b"\0\0\0\1" + part for part in parts)
    by_lengths = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert codes(memoryview(by_codes)) == lengths(memoryview(by_lengths))
