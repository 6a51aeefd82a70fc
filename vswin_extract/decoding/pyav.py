"""Frames by PyAV (FFmpeg), read packet by packet: the default decoder."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.container import Flags, InputContainer
from av.format import Flags as FormatFlags
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vswin_extract.decoding.bitstreams import INTRA_CODECS, UNUSED, packet_reader
from vswin_extract.decoding.chosen import PyavFrames
from vswin_extract.decoding.coverage import Coverage
from vswin_extract.decoding.decoders import Frame, Stream, not_decoded
from vswin_extract.decoding.frame_table import NO_DTS, ROW, FrameTable, doubtful, find_doubt, pack_row, set_times
from vswin_extract.decoding.pictures import FrameConverter
from vswin_extract.decoding.stamps import REORDERED, DisplayTimes, PacketStamps, StampedFrame
from vswin_extract.errors import VideoUnreadable
from vswin_extract.video.color import MATRICES, TRANSFERS

# Containers that hold the video themselves: no playlists, scripts or images, which could name other files.
FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,webm,wtv"
)
MJPEG_STREAMS = (".mjpeg", ".mjpg")
LOSSY_ENDS = frozenset(("matroska", "webm", "avi", "flv", "asf", "mxf"))
"""Formats whose reader ends without an error where the file was cut off or has a hole."""
LOOSE = frozenset(("mpegts", "mpeg", "avi"))
LOOSE_GAP = 0.5
"""Seconds that must be missing at a hole in these formats. Packets overlap in them, or have padding or
indexes between them, also where a recorder has left out frames."""
ROUNDING = 0.0015
"""Seconds by which a clock of milliseconds moves a time stamp, at most."""
MISSING_AT_END = 0.5
"""Seconds that an index may go on after the last packet: it may be of another stream's time stamps."""
UNKNOWN_FRAMES = 1 << 30
"""Recorders that do not know the number of frames write numbers as large as this."""
AVI_CHUNK_HEADER = 8
"""Bytes from where the index of an AVI file says that a packet is to its content."""
PROBED = 128
"""Packets at the beginning by which it is decided whether reading the others pays."""
TRIES = 16
"""Errors in a row after which a damaged file is not read further."""


class PyavDecoder:
    def __init__(self, path: Path, on_progress: Callable[[], None]) -> None:
        self.on_progress = on_progress
        self._path = path
        self.container = _open(path)
        streams = self.container.streams.video
        videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        known = [stream for stream in videos if stream.codec_context is not None]
        if not known:
            self.container.close()
            raise VideoUnreadable(_why_no_stream(streams, videos))
        self.video = max(known, key=_preference)
        self.video.codec_context.thread_count = 1  # processes are the parallelism
        self._formats = frozenset(self.container.format.name.split(","))
        self._has_side_data = "matroska" in self._formats  # in the block of a packet, beside its data
        self.stream = Stream(
            fps=float(self._rate() or 0),
            tick=float(self.video.time_base or 0),
            declared=self._declared(),
            header_seconds=self._header_seconds(),
            transfer=TRANSFERS.get(self.video.codec_context.color_trc, ""),
            matrix=MATRICES.get(self.video.codec_context.colorspace, ""),
        )
        self._converter = FrameConverter()
        self._stamps = PacketStamps()
        self._coverage = Coverage(path, self._formats, self.container.size, self.video.index)
        self._hole = 0, 0  # the bytes of the last hole in the file, and how many packets came before it
        # the last jumps of time stamps: how many packets came before, and seconds
        self._jumps: deque[tuple[int, float]] = deque(maxlen=REORDERED)
        self._recoded = False  # a packet brings other parameters than the header
        self._last: int | None = None  # the dts or else pts of the last packet, in ticks
        self._end: int | None = None  # when the last frame ends by its packet, in ticks
        self.packets = 0
        self.damaged = 0
        self.incomplete = False
        self.trouble = ""

    def __enter__(self) -> "PyavDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        clock = self.stream.tick
        tolerance = min(ROUNDING, 0.5 / self.stream.fps if self.stream.fps else ROUNDING) / clock if clock else 0.0
        for frame, tick in DisplayTimes(self._decoded(), self._stamps, int(tolerance)):
            yield Frame(
                time=None if tick is None else tick * clock,
                duration=(frame.duration or 0) * clock,
                picture=partial(self._converter.picture, frame),
            )

    @property
    def begins(self) -> float | None:
        first = next((tick for tick in self._stamps.first or () if tick is not None), None)
        return None if first is None else first * self.stream.tick

    @staticmethod
    def set_up_process() -> None:
        """Have FFmpeg print its warnings, which PyAV suppresses. The parent logs what this process prints."""
        av.logging.set_libav_level(av.logging.WARNING)
        av.logging.restore_default_callback()

    def _decoded(self) -> Iterator[StampedFrame]:
        """Yield frames in the order in which they are shown. Damage is skipped and counted."""
        for packet in self._packets():
            trouble = "packets were lost or damaged" if packet.is_corrupt else ""
            try:
                decoded = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:  # the next packets may be sound
                decoded, trouble = [], _reason(error)
                self._stamps.damaged = True
            if trouble:
                self.damaged += 1
                self.trouble = trouble
            for frame in decoded:
                if isinstance(frame, VideoFrame):
                    yield StampedFrame(frame, frame.pts, packet.pts if self._stamps.rising else frame.dts)

    def _packets(self) -> "Iterator[av.Packet[VideoStream]]":
        """Yield packets of the stream, and at last an empty one, which flushes the decoder. Damage is skipped as long
        as packets follow. Raises VideoUnreadable where the video is encrypted."""
        true_dts: dict[int, int] = {}
        errors = 0
        while errors < TRIES:
            try:
                for packet in self.container.demux():
                    errors = 0
                    self.on_progress()
                    side_data = {data.data_type: data.buffer_size for data in packet.iter_sidedata()}
                    side = sum(side_data.values()) if self._has_side_data else 0
                    if hole := self._coverage.add(packet.stream.index, packet.pos, packet.size + side):
                        self._hole = hole, self.packets
                        true_dts = true_dts or self._avi_index()
                    if packet.stream is not self.video:
                        continue
                    if packet.size:
                        _correct(packet, true_dts.get(packet.pos or 0, packet.dts))
                        if "encryption_info" in side_data:
                            raise VideoUnreadable("it is encrypted; decrypt it first")
                        self._recoded |= "new_extradata" in side_data
                        if not packet.is_discard:
                            self._stamps.add(packet.pts, packet.dts)
                        self.packets += 1
                        self._check_gap(packet)
                    else:
                        self._check_end()
                    yield packet  # type: ignore[misc]
                return
            except IndexError:  # PyAV's end of a file in which streams appeared that were not there when it was opened
                return
            except av.error.FFmpegError as error:
                self._lose(_reason(error))
                errors += 1

    def _avi_index(self) -> dict[int, int]:
        """Return the dts of packets of an AVI file by their position. Its reader counts packets, and goes on counting
        behind a hole."""
        if "avi" not in self._formats:
            return {}
        return {entry.pos + AVI_CHUNK_HEADER: entry.timestamp for entry in self.video.index_entries}

    def _check_gap(self, packet: "av.Packet[Any]") -> None:
        """Take note if a hole in the file has cost frames: if the time stamps jump near it. Behind a hole, readers give
        wrong positions or time stamps for some packets."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None:
            return
        usual = packet.duration or (1 / self.stream.fps / self.stream.tick if self.stream.fps else 0)
        if self._last is not None and stamp - self._last > 1.6 * usual:  # 1.5 in films for television
            self._jumps.append((self.packets, (stamp - self._last - usual) * self.stream.tick))
        hole, at = self._hole
        if hole and self.packets - at <= REORDERED:
            missing = sum(seconds for packets, seconds in self._jumps if abs(packets - at) <= REORDERED)
            if missing > (LOOSE_GAP if self._formats & LOOSE else 0.0):
                self._lose(f"{hole} bytes of the file cannot be read; {missing:.2f} s are missing there")
        self._last = stamp
        shown = stamp if packet.pts is None else packet.pts
        self._end = max(self._end or 0, shown + (packet.duration or 0))

    def _check_end(self) -> None:
        """Take note if the file or its index goes on after the last packet."""
        if self._end is None:
            return
        start, clock = self.begins or 0.0, self.stream.tick
        end = self._end * clock - start
        with suppress(OSError):  # the file was removed meanwhile
            if tail := self._coverage.tail():
                share = tail / self.container.size
                self._lose(
                    f"it is read up to {end:.2f} s; the last {share:.0%} of the file is another stream or recording"
                )
        index = self.video.index_entries
        indexed = index[-1].timestamp * clock - start if len(index) else 0.0
        if indexed > end + MISSING_AT_END:
            self._lose(f"it is read up to {end:.2f} s, but its index goes on to {indexed:.2f} s")

    def _lose(self, trouble: str) -> None:
        self.incomplete = True
        self.trouble = trouble

    def _rate(self) -> Fraction | None:
        """Return the nominal rate. Of a raw stream, FFmpeg's average is only its default, 25; the guess is what the
        stream itself says."""
        if self.container.format.flags & FormatFlags.no_timestamps.value:  # type: ignore[operator]
            return self.video.guessed_rate
        return self.video.average_rate or self.video.guessed_rate

    def _header_seconds(self) -> float:
        """Return the seconds that the header says, of the stream or else of the file."""
        if self.video.duration:
            return float(self.video.duration * (self.video.time_base or 0))
        return self.container.duration / av.time_base if self.container.duration else 0.0

    def _declared(self) -> float:
        """Return the declared seconds of formats whose reader ends early without an error, 0 for other formats."""
        if not LOSSY_ENDS & self._formats:
            return 0.0
        if self.video.duration:  # FFmpeg shortens that of an AVI file that was cut off, but not its number of frames
            frames = self.video.frames if "avi" in self._formats and self.video.frames < UNKNOWN_FRAMES else 0
            return max(self._header_seconds(), frames * float(self.video.time_base or 0))
        return max(0.0, self._declared_end() - float((self.video.start_time or 0) * (self.video.time_base or 0)))

    def _declared_end(self) -> float:
        """Return the same from the beginning of the file, for formats that count so."""
        tag = self.video.metadata.get("DURATION", "")
        if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag):
            return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        alone = len(self.container.streams) == 1  # else it may be another stream's
        return self.container.duration / av.time_base if alone and self.container.duration else 0.0

    def read_table(self, only_if: int = 0) -> FrameTable | None:
        context = self.video.codec_context
        read = packet_reader(context.codec.canonical_name, bytes(context.extradata or b""))
        if read is None:
            return doubtful(f"FFmpeg's {context.codec.canonical_name} is not known to begin at key frames")
        if only_if == UNUSED and not context.reorder_depth and context.codec.canonical_name not in INTRA_CODECS:
            return None  # without B-frames there are rarely any
        rows = bytearray()
        seen, sets, latest, lasts = 0, b"", NO_DTS, 0
        for packet in self._packets():
            if not packet.size:
                continue
            pts = packet.pts
            if pts is None or packet.is_corrupt or packet.is_discard or self._recoded:
                return doubtful("a packet has no time stamp, is damaged or hidden, or changes the coding")
            says, parameters = read(memoryview(packet))
            seen |= says
            if parameters:
                sets = sets or parameters
                if parameters != sets:
                    return doubtful("the parameters of its coding change")
            if only_if and self.packets == PROBED and not seen & only_if:
                return None
            rows += pack_row(pts, packet.dts, packet.size, says, packet.is_keyframe)
            if pts >= latest:
                latest, lasts = pts, packet.duration or 0
        table = FrameTable(np.frombuffer(rows, ROW))
        if doubt := self.trouble or find_doubt(table, context.reorder_depth):
            return doubtful(doubt)
        clock = self.stream.tick
        set_times(table, clock, lasts * clock or (1 / self.stream.fps if self.stream.fps else 0.0))
        return table

    def choose(self, table: FrameTable, needed: NDArray[np.bool_]) -> PyavFrames:
        picture = self._converter.picture
        return PyavFrames(
            (self.container, self.video), self.packets > 0, self._reopen, table, needed, picture, self.on_progress
        )

    def _reopen(self) -> tuple[InputContainer, VideoStream]:
        """Open the file again, at its beginning."""
        number = self.video.index
        self.container.close()
        self.container = _open(self._path)
        self.video = self.container.streams[number]  # type: ignore[assignment]
        self.video.codec_context.thread_count = 1
        return self.container, self.video

    def scan(self) -> Iterable[Frame]:
        clock = self.stream.tick
        packets = [
            (packet.pts, packet.dts, packet.duration or 0)
            for packet in self._packets()
            if packet.size and not packet.is_discard
        ]
        complete = all(pts is not None for pts, _, _ in packets)
        stamped = [(pts if complete else dts, duration) for pts, dts, duration in packets]
        stamped.sort(key=lambda packet: packet[0] or 0)  # packets come in coding order
        return [Frame(None if tick is None else tick * clock, length * clock, not_decoded) for tick, length in stamped]


def _open(path: Path) -> InputContainer:
    # "file:" and an absolute path, so that no part of a name like a:b.mp4 is taken for a protocol
    address = "file:" + os.path.abspath(path)
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    # FFmpeg takes a stream of JPEGs for a single image, unless it is told
    known = "mjpeg" if path.suffix.lower() in MJPEG_STREAMS else None
    try:
        container = av.open(address, "r", format=known, options=options)
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoUnreadable(f"no video container that can be read: {_reason(error)}") from error
    # else packets without a pts get one in coding order
    container.flags &= ~Flags.gen_pts.value  # type: ignore[operator]
    return container


def _correct(packet: "av.Packet[Any]", dts: int | None) -> None:
    """Set the dts of a packet, and move its pts along."""
    if dts is not None and packet.dts not in (None, dts):
        packet.pts = None if packet.pts is None else packet.pts + dts - packet.dts
        packet.dts = dts


def _preference(stream: VideoStream) -> int:
    """Return a key by which the largest is chosen as ffmpeg does: the default stream, else the largest picture."""
    return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)


def _why_no_stream(streams: Sequence[VideoStream], videos: Sequence[VideoStream]) -> str:
    if not streams:
        return "no video stream"
    if not videos:
        return "no video stream, only cover art"
    return "FFmpeg does not know the codec of its video stream"


def _reason(error: Exception) -> str:
    """Return FFmpeg's text without the path, which the caller knows."""
    return str(getattr(error, "strerror", None) or error)
