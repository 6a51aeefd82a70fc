"""Frames by decord, read in sequence, to reproduce features that were made with it."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import decord
import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.decoders import ChosenFrames, Frame, Stream, not_decoded
from vswin_extract.decoding.frame_table import FrameTable
from vswin_extract.decoding.pyav import PyavDecoder
from vswin_extract.errors import VideoUnreadable
from vswin_extract.video.geometry import Picture, Pixels, picture_of


class DecordDecoder:
    def __init__(self, path: Path, on_progress: Callable[[], None]) -> None:
        self.on_progress = on_progress
        with PyavDecoder(path, on_progress) as probe:  # refuses scripts and playlists, which decord would follow
            transfer, matrix = probe.stream.transfer, probe.stream.matrix
        try:
            self.reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
            shown = self.reader.get_frame_timestamp(range(len(self.reader)))
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise VideoUnreadable(f"decord cannot read it: {reason}") from error
        self.times: list[tuple[float, float]] = [(float(begin), float(end)) for begin, end in shown]
        # decord gives seconds as 32-bit floats; a tick of a millisecond covers their rounding for hours
        self.stream = Stream(fps=float(self.reader.get_avg_fps()), tick=0.001, transfer=transfer, matrix=matrix)
        self.begins: float | None = None
        self.packets = len(self.times)
        self.damaged = 0
        self.incomplete = False
        self.trouble = ""

    def __enter__(self) -> "DecordDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.reader

    @staticmethod
    def set_up_process() -> None:
        """Nothing to do."""

    def __iter__(self) -> Iterator[Frame]:
        for begin, end in self.times:
            try:
                frame = self.reader.next()
            except StopIteration:
                return
            except decord.DECORDError as error:
                self.damaged += 1
                self.trouble = str(error).strip().splitlines()[-1]
                return
            self.on_progress()
            yield Frame(time=begin, duration=end - begin, picture=partial(_picture, frame))

    def read_table(self, only_if: int = 0) -> None:
        """It reads in sequence."""

    def choose(self, table: FrameTable, needed: NDArray[np.bool_]) -> ChosenFrames:
        raise NotImplementedError("decord gives no frame table")

    def scan(self) -> Iterable[Frame]:
        return [Frame(begin, end - begin, not_decoded) for begin, end in self.times]


def _picture(frame: Any) -> Picture:
    """Return the picture of a decord array. decord mistakes the padding of narrow rows for channels (#336)."""
    pixels: Pixels = frame.asnumpy()
    height, width, channels = pixels.shape
    if channels == 3:
        return picture_of(pixels)
    return picture_of(pixels.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3))
