"""Which bytes of a file its packets cover. A damaged or joined file is told by the bytes that no packet covers: readers
of many formats skip them without an error.

    |header|packet|packet|   hole: cannot be read   |packet|packet|   tail: was not read   |
"""

from pathlib import Path
from typing import BinaryIO

BETWEEN_PACKETS = {
    "matroska": 64, "webm": 64, "avi": 64, "flv": 64, "nut": 64, "mpeg": 4096, "mxf": 4096, "ogg": 4096, "asf": 8192,
    "mpegts": 16384,
}  # fmt: skip
"""By format, most bytes that are usual between two packets. Readers of other formats report holes, or there are no time
stamps in them by which a hole could be told."""
AT_END = {"mpegts": 65536, "flv": 64, "mpeg": 4096, "ogg": 65536, "asf": 65536}
"""By format, most bytes that are usual behind the last packet. Other formats have an index there."""
UNREAD_SHARE = 0.05
"""A tail counts if it is a larger share of the file than this."""


class Coverage:
    """Takes the packets of all streams of a file, in the order in which they are read.

    `formats`: the names of the file's format. `size` of the file in bytes. `stream`: the number of the stream that is
    decoded.
    """

    def __init__(self, path: Path, formats: frozenset[str], size: int, stream: int) -> None:
        self._path = path
        self._formats = formats
        self._size = size
        self._stream = stream
        self._between = max((BETWEEN_PACKETS[name] for name in formats & BETWEEN_PACKETS.keys()), default=size)
        self._position = -1  # of the last packet
        self._end = 0
        self._extent: dict[int, tuple[int, int]] = {}  # of each stream: where its first packet begins, its last ends

    def add(self, stream: int, position: int | None, size: int) -> int:
        """Take the next packet. Return how many bytes before it are in a hole, or 0."""
        if position is None or position < 0 or not size:
            return 0
        if position == self._position:  # several packets in one block of the file, one after another
            self._end += size
            return 0
        self._position = position
        hole = position - self._end if self._end else 0
        self._end = max(self._end, position + size)
        first, end = self._extent.get(stream, (position, 0))
        self._extent[stream] = first, max(end, position + size)
        return hole if hole > self._between else 0

    def tail(self) -> int:
        """Return how many bytes at the end are not of this recording, or 0."""
        if self._stream not in self._extent:
            return 0
        if "mp4" in self._formats:
            second, usual = _second_movie(self._path, self._size), 0
            tail = self._size - second if self._extent[self._stream][1] <= second else 0  # else all is one recording
        elif known := self._formats & AT_END.keys():
            last = self._extent[self._stream][1]  # streams that begin after this one has ended are another recording's
            tail = self._size - max(end for first, end in self._extent.values() if first < last)
            usual = max(AT_END[name] for name in known)
        else:
            return 0
        return tail if tail > max(usual, UNREAD_SHARE * self._size) else 0


def _second_movie(path: Path, size: int) -> int:
    """Return where a second movie begins in an MP4 or MOV file, or else the size. Raises OSError."""
    with path.open("rb") as file:
        at = movies = 0
        while at < size:
            kind, length = _box(file, at, size)
            movies += kind == b"ftyp"
            if movies > 1:
                return at
            at += length
    return size


def _box(file: BinaryIO, at: int, size: int) -> tuple[bytes, int]:
    """Return the kind and the length of the box at `at`. Where there is no box, it is as long as the rest."""
    file.seek(at)
    header = file.read(16)
    length, kind = int.from_bytes(header[:4], "big"), header[4:8]
    if length == 1:
        length = int.from_bytes(header[8:], "big")
    return kind, length if length >= 8 else size - at
