"""A decoder without a file: its frames are what a test says."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import numbered
import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.decoders import ChosenFrames, Frame, Stream
from vswin_extract.decoding.frame_table import FrameTable
from vswin_extract.video.geometry import Box, Picture, Pixels, picture_of

SIZE = (96, 64)


class FakeDecoder:
    """Gives frames with these time stamps; frame i shows the number i. `converted`: the frames whose pixels were
    taken."""

    def __init__(
        self,
        times: Sequence[float | None],
        fps: float = 25.0,
        duration: float = 0.04,
        declared: float = 0.0,
        begins: float | None = None,
    ) -> None:
        self.stream = Stream(fps, tick=0.001, declared=declared)
        self.begins = begins
        self.packets = len(times)
        self.damaged = 0
        self.incomplete = False
        self.trouble = ""
        self.times = times
        self.duration = duration
        self.converted: list[int] = []

    def __enter__(self) -> "FakeDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        for number, time in enumerate(self.times):
            yield Frame(time, duration=self.duration, picture=lambda number=number: self._draw(number))  # type: ignore[misc]

    def scan(self) -> Iterable[Frame]:
        return list(self)

    @staticmethod
    def set_up_process() -> None:
        pass

    def read_table(self, only_if: int = 0) -> None:
        """It reads in sequence."""

    def choose(self, table: FrameTable, needed: NDArray[np.bool_]) -> ChosenFrames:
        raise NotImplementedError

    def _draw(self, number: int) -> Picture:
        def read(box: Box) -> Pixels:
            self.converted.append(number)
            return picture_of(numbered.draw(number, *SIZE)).read(box)

        return Picture(SIZE[1], SIZE[0], read)
