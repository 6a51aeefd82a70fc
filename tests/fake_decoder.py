"""A decoder without a file: its frames are what a test says."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import numbered

from vswin_extract.decoding.decoders import Frame, Stream
from vswin_extract.video.geometry import Picture, picture_of

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

    def _draw(self, number: int) -> Picture:
        self.converted.append(number)
        return picture_of(numbered.draw(number, *SIZE))
