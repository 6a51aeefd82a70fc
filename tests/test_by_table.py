"""Decoding what clips show, by a table of all frames, gives what a pass from the beginning gives."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numbered
import numpy as np
import pytest
from conftest import granted_slots
from hard_videos import HARD
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.decoding.bitstreams import ENTRY, HIDDEN, UNUSED, packet_reader, read_av1, read_vp8, read_vp9
from vswin_extract.decoding.decoders import open_decoder
from vswin_extract.decoding.frame_table import ROW, Coding, FrameTable, coding, load_table, plan_packets
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.errors import FrameTableWrong, VideoError
from vswin_extract.feeding.child import decode_video
from vswin_extract.feeding.frame_memory import frames_of
from vswin_extract.feeding.messages import DecodedFrames, FromChild, Task, VideoEnd
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.rows import ClipRow
from vswin_extract.video.sampling import Sampling

GEOMETRY = Geometry(64, 64)
H264 = {"g": "30", "bf": "3", "preset": "medium", "crf": "18"}


@dataclass(frozen=True)
class Decoded:
    """The rows of a task, a checksum of each frame that was sent, the end, and whether a table was used."""

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
    compared = {"cpu": 0.0, "skipped": 0, "clips": 0}
    assert replace(found[-1].end, **compared) == replace(whole.end, **compared)
    assert sum(piece.end.clips for piece in found) == whole.end.clips


def pieces_at(frames: Sequence[int], sampling: Sampling) -> list[ClipRange]:
    """Return clip ranges that begin with the first clip at or after each of these frames."""
    cuts = sorted({-(-frame // sampling.step) for frame in frames} | {0})
    return [(first, last) for first, last in zip(cuts, [*cuts[1:], None], strict=True)]  # type: ignore[list-item]


EVERY = Sampling(1, 1)


@pytest.mark.parametrize("kind", HARD)
def test_hard_videos_in_as_many_pieces_as_they_have_key_frames(tmp_path: Path, kind: str) -> None:
    path = HARD[kind](tmp_path).path
    begin = entries(path)
    check_pieces(path, EVERY, pieces_at([*begin, 7, 31], EVERY))
    check_pieces(path, Sampling(2, 2, 3), pieces_at([*begin, 7, 31], Sampling(2, 2, 3)))
    check_pieces(path, Sampling(4, 2), [WHOLE])
