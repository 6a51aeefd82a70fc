"""Frames by PyAV (FFmpeg), read packet by packet: the default decoder."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vswin_extract.decoding.decoders import Frame, Stream, not_decoded
from vswin_extract.errors import VideoUnreadable
from vswin_extract.video.geometry import Pixels

# Containers that hold the video themselves: no playlists, scripts or images, which could name other files.
FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,webm,wtv"
)
LOSSY_ENDS = frozenset(("matroska", "webm", "avi", "flv", "asf"))
"""Formats whose reader ends without an error where the file was cut off or has a hole."""
TRIES = 16
"""Errors in a row after which a damaged file is not read further."""


class PyavDecoder:
    def __init__(self, path: Path, on_progress: Callable[[], None]) -> None:
        self.on_progress = on_progress
        # "file:" and an absolute path, so that no part of a name like a:b.mp4 is taken for a protocol
        address = "file:" + os.path.abspath(path)
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        try:
            self.container = av.open(address, "r", options=options)
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoUnreadable(f"no video container that can be read: {_reason(error)}") from error
        streams = self.container.streams.video
        videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        if not videos:
            self.container.close()
            raise VideoUnreadable("no video stream" + (", only cover art" if streams else ""))
        self.video = max(videos, key=_preference)
        self.video.codec_context.thread_count = 1  # processes are the parallelism
        self.stream = Stream(
            fps=float(self.video.average_rate or 0),
            tick=float(self.video.time_base or 0),
            declared=self._declared(),
            header_seconds=self._header_seconds(),
        )
        self.begins: float | None = None
        self.damaged = 0
        self.trouble = ""

    def __enter__(self) -> "PyavDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        for packet in self._packets():
            if self.begins is None and packet.pts is not None and not packet.is_discard:
                self.begins = packet.pts * float(packet.time_base or 0)
            if packet.is_corrupt:
                self.damaged += 1
                self.trouble = "packets were lost or damaged"
            try:
                decoded = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:  # the next packets may be sound
                self.damaged += 1
                self.trouble = _reason(error)
                continue
            for frame in decoded:
                if isinstance(frame, VideoFrame):
                    yield self._frame(frame)

    @staticmethod
    def set_up_process() -> None:
        """Have FFmpeg print its warnings, which PyAV suppresses. The parent logs what this process prints."""
        av.logging.set_libav_level(av.logging.WARNING)
        av.logging.restore_default_callback()

    def _packets(self) -> "Iterator[av.Packet[VideoStream]]":
        """Yield packets of the stream, and at last an empty one, which flushes the decoder. Damage is skipped as long
        as packets follow."""
        errors = 0
        while errors < TRIES:
            try:
                for packet in self.container.demux(self.video):
                    errors = 0
                    self.on_progress()
                    yield packet
                return
            except av.error.FFmpegError as error:
                self.damaged += 1
                self.trouble = _reason(error)
                errors += 1

    def _header_seconds(self) -> float:
        """Return the seconds that the header says, of the stream or else of the file."""
        if self.video.duration:
            return float(self.video.duration * (self.video.time_base or 0))
        return self.container.duration / av.time_base if self.container.duration else 0.0

    def _declared(self) -> float:
        """Return the declared seconds of formats whose reader ends early without an error, 0 for other formats."""
        if not LOSSY_ENDS & set(self.container.format.name.split(",")):
            return 0.0
        if self.video.duration:
            return self._header_seconds()
        return max(0.0, self._declared_end() - float((self.video.start_time or 0) * (self.video.time_base or 0)))

    def _declared_end(self) -> float:
        """Return the same from the beginning of the file, for formats that count so."""
        tag = self.video.metadata.get("DURATION", "")
        if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag):
            return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        alone = len(self.container.streams) == 1  # else it may be another stream's
        return self.container.duration / av.time_base if alone and self.container.duration else 0.0

    def scan(self) -> Iterable[Frame]:
        clock = float(self.video.time_base or 0)
        shown = []
        for packet in self._packets():
            if packet.size and not packet.is_discard:
                time = packet.dts if packet.pts is None else packet.pts
                shown.append((None if time is None else time * clock, (packet.duration or 0) * clock))
        shown.sort(key=lambda frame: frame[0] or 0.0)  # packets come in decoding order
        return [Frame(time, duration, not_decoded) for time, duration in shown]

    def _frame(self, frame: VideoFrame) -> Frame:
        clock = float(frame.time_base or self.video.time_base or 0)
        return Frame(
            time=None if frame.pts is None else frame.pts * clock,
            duration=(frame.duration or 0) * clock,
            rgb=lambda: upright(frame),
        )


def upright(frame: VideoFrame) -> Pixels:
    """Return a frame as RGB, turned and mirrored by its display matrix, which decoders do not apply.

    The matrix maps stored x, y to shown x', y': x' = a x + c y, y' = b x + d y. It begins with the 16.16 integers
    a b u c d v. Only quarter turns and mirrors are applied.
    """
    rgb: Pixels = frame.to_ndarray(format="rgb24", threads=1)  # type: ignore[assignment]
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return rgb
    a, b, _, c, d, _ = np.frombuffer(cast(bytes, matrix), np.int32)[:6].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return rgb.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def _preference(stream: VideoStream) -> int:
    """Return a key by which the largest is chosen as ffmpeg does: the default stream, else the largest picture."""
    return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)


def _reason(error: Exception) -> str:
    """Return FFmpeg's text without the path, which the caller knows."""
    return str(getattr(error, "strerror", None) or error)
