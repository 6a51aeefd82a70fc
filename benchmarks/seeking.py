"""Frames far apart in a film: processor time, and whether they are the right ones, beside tools with random access.
Each frame of the film shows its own number, beside a background that moves."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
import decord
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from benchmarks.machine import Row
from benchmarks.usual import CLIP_LEN, FRAME_INTERVAL, SPAN
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.video.geometry import Pixels

SIZE = (640, 384)
RATE, KEY_FRAMES = 25, 250
MINUTES = 5
BITS, CELL = 16, 64
"""Bits of a number, drawn as a 4 x 4 square of cells."""
BACKGROUND = (
    np.random.default_rng(0).integers(40, 200, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
)
FILMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264, closed groups": ("mp4", "libx264", {"preset": "veryfast", "g": str(KEY_FRAMES)}),
    "h264, open groups": ("mp4", "libx264", {"preset": "veryfast", "x264-params": f"open-gop=1:keyint={KEY_FRAMES}"}),
    "h264 in ts": ("ts", "libx264", {"preset": "veryfast", "g": str(KEY_FRAMES)}),
    "vp9 in webm": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": str(KEY_FRAMES)}),
}
"""Ending, encoder and its options."""

Read = Callable[[Path, Sequence[int]], list[Pixels]]


def seeking(smoke: bool) -> list[Row]:
    """Read clips of the usual length that lie eight spans apart, as whole RGB frames, with one thread each."""
    count = RATE * 60 * (1 if smoke else MINUTES)
    numbers = [
        start + offset
        for start in range(0, count - SPAN, 8 * SPAN)
        for offset in range(0, SPAN, FRAME_INTERVAL)
    ]  # fmt: skip
    ways: dict[str, Read] = {"PyAV, from the beginning": in_sequence, "ours": by_table, "decord": by_decord}
    if importlib.util.find_spec("torchcodec"):
        ways["torchcodec, exact"] = lambda path, wanted: by_torchcodec(path, wanted, "exact")
        ways["torchcodec, approximate"] = lambda path, wanted: by_torchcodec(path, wanted, "approximate")
    rows: list[Row] = []
    for film, (ending, codec, options) in FILMS.items():
        with TemporaryDirectory() as folder:
            path = draw_film(Path(folder) / f"film.{ending}", count, codec, options)
            spent: dict[str, list[float]] = {name: [] for name in ways}
            right: dict[str, int] = {}
            for _ in range(1 if smoke else 3):
                for name, way in ways.items():
                    begun = time.process_time()
                    try:
                        pictures = way(path, numbers)
                    except (RuntimeError, IndexError) as error:  # of a peer: it cannot read this film
                        pictures = []
                        print(f"{name}: {film}: {str(error).splitlines()[0]}")
                    spent[name].append(time.process_time() - begun)
                    found = map(read_number, pictures)
                    right[name] = sum(one == other for one, other in zip(found, numbers, strict=False))
        first = statistics.median(spent["PyAV, from the beginning"])
        for name, seconds in spent.items():
            rows.append(
                {
                    "film": film,
                    "what": name,
                    "right frames": f"{right[name]}/{len(numbers)}",
                    "s": statistics.median(seconds),
                    "x from the beginning": statistics.median(seconds) / first,
                }
            )
    return rows


def draw_film(path: Path, count: int, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=RATE, options=options))
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_number(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def draw_number(number: int) -> Pixels:
    """Return the frame with this number: (height, width, 3)."""
    cells = np.array([235 if number >> bit & 1 else 16 for bit in range(BITS)], np.uint8).reshape(4, 4)
    frame = np.roll(BACKGROUND, (number % 60, 2 * number % 80), (0, 1))
    frame[: 4 * CELL, : 4 * CELL] = cells.repeat(CELL, 0).repeat(CELL, 1)[..., None]
    return frame


def read_number(picture: NDArray[np.uint8]) -> int:
    cells = (
        picture[: 4 * CELL, : 4 * CELL].mean(-1).reshape(4, CELL, 4, CELL)[:, 16:48, :, 16:48].mean((1, 3)).flatten()
        > 125
    )
    return sum(int(cell) << bit for bit, cell in enumerate(cells))


def in_sequence(path: Path, numbers: Sequence[int]) -> list[Pixels]:
    wanted, found = set(numbers), []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24", threads=1))
    return found  # type: ignore[return-value]


def by_table(path: Path, numbers: Sequence[int]) -> list[Pixels]:
    with PyavDecoder(path, lambda: None) as decoder:
        table = decoder.read_table()
        if table is None or table.doubt:
            return []
        needed = np.zeros(table.frames, bool)
        needed[list(numbers)] = True
        return [picture().rgb() for _, picture in decoder.choose(table, needed)]


def by_decord(path: Path, numbers: Sequence[int]) -> list[Pixels]:
    reader = decord.VideoReader(str(path), num_threads=1)
    return [picture for at in clips(numbers) for picture in reader.get_batch(at).asnumpy()]


def by_torchcodec(path: Path, numbers: Sequence[int], mode: str) -> list[Pixels]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), seek_mode=mode, num_ffmpeg_threads=1, dimension_order="NHWC")
    return [picture for at in clips(numbers) for picture in decoder.get_frames_at(at).data.numpy()]


def clips(numbers: Sequence[int]) -> list[list[int]]:
    return [list(numbers[begin : begin + CLIP_LEN]) for begin in range(0, len(numbers), CLIP_LEN)]
