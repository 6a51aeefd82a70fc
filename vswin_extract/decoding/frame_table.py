"""Which frames a video has, by its packets alone: the number and the seconds of each, and where decoding can begin.

Packets come in the order in which they are decoded, frames are numbered in the order in which they are shown:

    packet   0   1   2   3   4   5   6   7   8
    shows    I0  P3  b1  b2  I4  P8  B6  b5  b7      B6 is referred to by b5 and b7; nothing refers to b
    entry    x               x
    unused           x   x               x   x

To decode frame 6 alone, packets 4, 5 and 6 are enough. To decode frames 0, 2, 4, 6, 8, packets 2, 7 and 8 are not
needed.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.bitstreams import ENTRY, HIDDEN, JOINED, LAYER, PARAMETERS, UNUSED
from vswin_extract.decoding.stamps import REORDERED
from vswin_extract.files import atomic_write

ROW = np.dtype(
    [("pts", "<i8"), ("dts", "<i8"), ("size", "<i4"), ("says", "<i2"), ("key", "?"), ("start", "<f8"), ("end", "<f8")]
)
PACK_ROW = struct.Struct("<qqih?dd").pack
MAGIC = b"frames 1"
"""The first bytes of a file with a table. The number changes with the rules by which tables are made."""
NO_DTS = -(1 << 63)
REGULAR_SHARE = 0.95
"""The rate of a video is constant if a larger share of its frames last equally long."""
MOST_PACKETS = 1 << 26
"""A longer table is not read from a file."""


@dataclass(frozen=True)
class FrameTable:
    """The N packets and N frames of a video.

    `rows`: (N,) of `ROW`. By packet, in the order of decoding: its time stamps in ticks, bytes, what it says, and
    whether its container calls it a key frame. By frame: when it is shown, in seconds after the first frame. `doubt`:
    why the packets do not prove which frames there are; there are no rows then.
    """

    rows: NDArray[Any]
    doubt: str = ""

    @property
    def frames(self) -> int:
        return len(self.rows)

    @cached_property
    def pts(self) -> NDArray[np.int64]:
        """The time stamps by frame, which rise."""
        return np.sort(self.rows["pts"])

    @cached_property
    def coding(self) -> "Coding":
        """How its frames are coded, if the pts are all different."""
        return coding(self.rows)

    @property
    def starts(self) -> NDArray[np.float64]:
        return self.rows["start"]

    @property
    def ends(self) -> NDArray[np.float64]:
        return self.rows["end"]

    def save(self, path: Path) -> None:
        """Write it to a file. Raises OSError."""
        path.parent.mkdir(exist_ok=True)
        content = self.rows.tobytes()
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(MAGIC + zlib.crc32(content).to_bytes(4, "little") + content)


def doubtful(doubt: str) -> FrameTable:
    return FrameTable(np.empty(0, ROW), doubt)


def load_table(path: Path) -> FrameTable | None:
    """Read a table that was saved. Return None where there is none that can be read."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_PACKETS * ROW.itemsize:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    begin, rows = content[: len(MAGIC) + 4], content[len(MAGIC) + 4 :]
    if begin != MAGIC + zlib.crc32(rows).to_bytes(4, "little") or len(rows) % ROW.itemsize:
        return None
    doubt = "" if rows else "its packets did not prove its frames when they were read before"
    return FrameTable(np.frombuffer(rows, ROW), doubt)


def pack_row(pts: int, dts: int | None, size: int, says: int, key: bool) -> bytes:
    """Return the bytes of a row whose seconds are not known yet."""
    return PACK_ROW(pts, NO_DTS if dts is None else dts, size, says, key, 0.0, 0.0)


def set_times(table: FrameTable, clock: float, lasts: float) -> None:
    """Set the seconds of the frames of a table, as `timeline` gives them where all time stamps are known.

    `clock`: seconds of a tick. `lasts`: seconds of the last frame, 0 where they are unknown.
    """
    times = table.pts * clock
    starts = times - times[0]
    table.starts[:], table.ends[:-1] = starts, starts[1:]
    table.ends[-1] = starts[-1] + (lasts or (starts[-1] - starts[-2] if len(starts) > 1 else 0.0))


@dataclass(frozen=True)
class Coding:
    """How the frames of a table are coded. `frame`: the number of the frame that each packet shows. `entry`: decoding
    can begin at it. `unused`: no other frame refers to its frame. All are by packet."""

    frame: NDArray[np.int64]
    entry: NDArray[np.bool_]
    unused: NDArray[np.bool_]


def coding(rows: NDArray[Any]) -> Coding:
    """Derive it from the rows of a table, whose pts must all be different."""
    count = len(rows)
    frame = np.empty(count, np.int64)
    frame[np.argsort(rows["pts"], kind="stable")] = np.arange(count)
    says = rows["says"]
    layer = says // LAYER
    parameters = says & PARAMETERS != 0
    # at an entry, every frame that was decoded before is shown before, and the parameter sets are known
    latest = np.maximum.accumulate(np.concatenate(([-1], frame[:-1])))
    entry = (says & ENTRY != 0) & rows["key"] & (frame > latest) & (parameters | ~parameters.any())
    unused = (says & UNUSED != 0) & (layer == layer.max(initial=0))
    return Coding(frame, entry, unused)


def find_doubt(table: FrameTable, reorder_depth: int) -> str:
    """Return why the packets of a video do not prove its frames; an empty text where they do.

    `reorder_depth`: by how many packets the decoder lets a frame wait. The seconds of the table are not looked at.
    """
    says = table.rows["says"]
    lasts = np.diff(table.pts)
    if not table.frames:
        return "it has no packets"
    if (says & (HIDDEN | JOINED) != 0).any():
        return "a packet shows no frame, or streams are joined"
    if not lasts.all():
        return "two packets have the same time stamp"
    known = table.coding
    late = np.arange(table.frames) - known.frame  # a frame that is shown early and decoded late
    if np.abs(late).max() > REORDERED:
        return "its time stamps jump back"
    if not known.entry[0] or known.frame[0]:
        return "it does not begin with a frame at which decoding can begin, or frames before it would not decode"
    if late.max() > reorder_depth:
        return "the decoder does not wait long enough for frames that are shown earlier"
    if reorder_depth and not late.any():
        return "its time stamps may be in the order of decoding"
    if has_gap(lasts):
        return "packets may be missing: there is a gap in time stamps that are regular otherwise"
    return ""


def has_gap(lasts: NDArray[np.int64]) -> bool:
    """Return True if some of the ticks that frames last are more than usual, in a video whose rate is constant."""
    if not len(lasts):
        return False
    usual = np.median(lasts)
    regular = np.abs(lasts - usual) <= 0.25 * usual
    return bool(regular.mean() >= REGULAR_SHARE and (lasts > 1.5 * usual).any())


@dataclass(frozen=True)
class Plan:
    """The packets to decode, by packet: `send` marks them; `begin` marks those of them before which the decoder must be
    empty, because packets before them that belong together with them are left out."""

    send: NDArray[np.bool_]
    begin: NDArray[np.bool_]


def plan_packets(known: Coding, needed: NDArray[np.bool_]) -> Plan:
    """Choose the packets that give the frames that are `needed`, by frame: from the last entry before each, all but
    unused ones that show another frame."""
    count = len(known.frame)
    numbers = np.arange(count)
    wanted = numbers[needed[known.frame]]
    entry = np.maximum.accumulate(np.where(known.entry, numbers, 0))
    first = entry[wanted]
    # a frame that is decoded after an entry and shown before it also refers to frames before the entry
    while (leading := (known.frame[wanted] < known.frame[first]) & (first > 0)).any():
        first[leading] = entry[first[leading] - 1]
    change = np.zeros(count + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, wanted + 1, -1)
    covered = change[:-1].cumsum() > 0
    before = np.concatenate(([False], covered[:-1]))
    begin = covered & ~before
    return Plan(covered & ~(known.unused & ~needed[known.frame]), begin)
