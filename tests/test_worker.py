"""The stations of a worker with a decoder and a network that are fakes: order, batches, failures, memory, stopping."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vswin_extract.backbone import Features
from vswin_extract.errors import FrameTableWrong, VideoError, VideoUnreadable
from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip
from vswin_extract.job.events import ClipsDone, Event, Notice, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.journal.parts import Entry, read_rows
from vswin_extract.journal.writer import JournalWriter, open_writer
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video
from vswin_extract.worker import decoder_slots
from vswin_extract.worker.compute import Computer
from vswin_extract.worker.decoder_slots import DecoderSlots
from vswin_extract.worker.device import CpuDevice
from vswin_extract.worker.messages import Dropped
from vswin_extract.worker.pipeline import Pipeline
from vswin_extract.worker.video_queue import VideoQueue
from vswin_extract.worker.worker import Worker
from vswin_extract.worker.writer import InFlightVideo, Writer

ARRAYS = Arrays({"embedding": (3,)})


class FakeDecoder:
    """Gives as many clips of each video as its id says: 5 of b-5, none of bad-0, which fails. The frame table of
    wrong-3 is wrong behind clip 3. The pixels of clip k of video v all have the value 10 * v + k, where v is the number
    of the id's first letter."""

    def __init__(self) -> None:
        self.tasks: deque[Task] = deque()
        self.at = 0
        self.closed = False

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def read(self) -> DecodedClip | VideoEnd:
        name, _, count = Path(self.tasks[0].path).name.partition("-")
        wrong = name == "wrong" and not self.tasks[0].sequential
        if self.at < int(count) + (name == "wrong" and not wrong):
            at, self.at = self.at, self.at + 1
            return clip_of(at, value(name, at))
        self.tasks.popleft()
        clips, self.at = self.at, 0
        if name == "bad":
            raise VideoUnreadable("no video")
        if wrong or name == "worse":
            raise FrameTableWrong("another frame")
        return VideoEnd(2, 2, clips, clips, 1.0, float(clips), 0, "", partial=name == "p", last=True, cpu=0.5)

    def close(self) -> None:
        self.closed = True


FRAMES = FrameMemory(1000, 12)


def clip_of(number: int, value: int) -> DecodedClip:
    """A clip of one frame of 2 x 2, shown twice, all of whose pixels have this value."""
    slot = FRAMES.take()
    FRAMES.frames((1, 2, 2, 3))[slot.number] = value
    return DecodedClip(number, FRAMES, (1, 2, 2, 3), (slot, slot), (number, number + 1), (number, number + 1.0), 2)


def value(name: str, clip: int) -> int:
    return 10 * (ord(name[0]) - ord("a")) + clip


@dataclass
class Station:
    """A pipeline of fakes, its queue and journal, and the batches that its network was given."""

    queue: VideoQueue
    pipeline: Pipeline
    journal: JournalWriter
    batches: list[list[int]]
    decoders: list[FakeDecoder]


Build = Callable[..., Station]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes a pipeline over videos of these names, which are files."""
    journal = open_writer(tmp_path, ARRAYS)

    def make(
        *names: str,
        decoders: int = 2,
        batch_size: int = 3,
        most: int = 100,
        keep_partial: bool = True,
        scale: float = 1.0,
    ) -> Station:
        batches: list[list[int]] = []
        opened: list[FakeDecoder] = []

        def forward(frames: torch.Tensor, index: torch.Tensor) -> Features:
            pixels = frames[index]
            if len(pixels) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            batches.append(pixels[:, 0, 0, 0, 0].tolist())
            return Features(pixels.float().mean((1, 2, 3)) * scale, {}, None)

        def open_decoder() -> FakeDecoder:
            opened.append(FakeDecoder())
            return opened[-1]

        queue = VideoQueue([video(tmp_path, name) for name in names], closed=True)
        slots = DecoderSlots(queue, decoders, open_decoder, lambda video: make_task(video))
        computer = Computer(forward, CpuDevice(1), batch_size)
        writer = Writer(journal, "fp32", "float32")
        return Station(queue, Pipeline(slots, computer, writer, keep_partial=keep_partial), journal, batches, opened)

    with closing(journal):
        yield make


def video(folder: Path, name: str) -> Video:
    (folder / name).write_text(name)
    return Video(name, folder / name)


def make_task(video: Video) -> Task:
    return Task(video.location, "pyav", Sampling(2, 1), Geometry(32, 32), sequential=video.sequential)


def extract(station: Station) -> tuple[list[Event], dict[str, VideoDone]]:
    events: list[Event] = []
    for event in station.pipeline.run(threading.Event()):
        if isinstance(event, Dropped):  # as the run does
            station.queue.put(replace(event.piece, sequential=True))
        else:
            events.append(event)
    return events, {event.record.id: event for event in events if isinstance(event, VideoDone)}


def test_rows_belong_to_their_videos(build: Build) -> None:
    names = ["a-5", "b-2", "c-1", "d-7", "e-1"]
    station = build(*names)
    events, done = extract(station)
    assert {name: event.record.clips for name, event in done.items()} == {name: int(name[2:]) for name in names}
    assert sum(event.clips for event in events if isinstance(event, ClipsDone)) == 16
    rows = {
        record.id: [
            row for piece in read_rows([Entry(record, path)], ARRAYS) for row in np.asarray(piece["embedding"])[:, 0]
        ]
        for path, record in station.journal.singles.items()
    }
    assert rows == {name: [value(name, k) for k in range(int(name[2:]))] for name in names}


def test_batches_are_full_and_depend_on_clip_counts_alone(build: Build) -> None:
    names = ["a-5", "b-2", "c-1", "d-7", "e-1"]
    one, other = build(*names), build(*names)
    extract(one)
    extract(other)
    assert one.batches == other.batches
    assert [len(batch) for batch in one.batches] == [3, 3, 3, 3, 3, 1]
    assert one.batches[0] == [value("a", 0), value("b", 0), value("a", 1)]  # the decoders in turn


def test_no_more_decoders_than_videos(build: Build) -> None:
    station = build("a-1", decoders=4)
    extract(station)
    assert [decoder.closed for decoder in station.decoders] == [True]


@pytest.mark.parametrize("name", ["bad-0", "bad-2"])
def test_a_video_that_fails_does_not_end_the_run(build: Build, name: str) -> None:
    _, done = extract(build("a-3", name, "c-3"))
    assert {name: event.record.status for name, event in done.items()} == {"a-3": "ok", name: "failed", "c-3": "ok"}
    assert done[name].record.error == "VideoUnreadable"


@pytest.mark.parametrize("names", [["wrong-4"], ["wrong-0"], ["a-7", "wrong-4", "c-3"], ["a-1", "b-1", "wrong-4"]])
@pytest.mark.parametrize("decoders", [1, 3])
def test_a_video_whose_frame_table_is_wrong_is_extracted_again(build: Build, names: list[str], decoders: int) -> None:
    """Its rows so far are dropped. It may be the last video of the queue, which is closed."""
    station = build(*names, decoders=decoders)
    _, done = extract(station)
    [wrong] = [name for name in names if name.startswith("wrong")]
    assert {name: event.record.status for name, event in done.items()} == dict.fromkeys(names, "ok")
    assert done[wrong].record.clips == int(wrong[6:]) + 1
    [path] = [path for path, record in station.journal.singles.items() if record.id == wrong]
    [rows] = read_rows([Entry(done[wrong].record, path)], ARRAYS)
    assert np.asarray(rows["embedding"])[:, 0].tolist() == [value("w", k) for k in range(int(wrong[6:]) + 1)]
    assert not list(station.journal.directory.glob("*.tmp"))


def test_a_decoder_that_doubts_without_a_frame_table_has_failed(build: Build) -> None:
    _, done = extract(build("worse-2"))
    assert done["worse-2"].record.error == "DecoderCrash"


@pytest.mark.parametrize(("keep", "status", "error"), [(True, "partial", ""), (False, "failed", "VideoDamaged")])
def test_a_damaged_video_is_kept_or_fails(build: Build, keep: bool, status: str, error: str) -> None:
    _, done = extract(build("p-2", keep_partial=keep))
    assert (done["p-2"].record.status, done["p-2"].record.error) == (status, error)


def test_values_that_are_not_finite_fail_their_video_alone(build: Build) -> None:
    _, done = extract(build("a-1", "z-2", scale=1e39 / 250))  # z's values do not fit into float32
    assert done["a-1"].record.status == "ok"
    assert done["z-2"].record.error == "NonFiniteFeatures"


@pytest.mark.parametrize(
    ("precision", "dtype", "advice"),
    [
        ("fp32", "float32", {"vswin weights verify"}),
        ("fp32", "float16", {"--dtype float32"}),
        ("bf16", "float32", {"--precision fp32"}),
        ("fp16", "float16", {"--precision fp32", "--dtype float32"}),
    ],
)
def test_what_is_advised_is_not_what_is_in_force(precision: str, dtype: str, advice: set[str], tmp_path: Path) -> None:
    with closing(open_writer(tmp_path, ARRAYS)) as journal:
        in_flight = InFlightVideo(video(tmp_path, "a-1"), (3, 0.0, ""))
        [done] = Writer(journal, precision, dtype).rows([in_flight], {"embedding": np.full((1, 3), np.nan)})
    assert done.record.error == "NonFiniteFeatures"
    everything = {"vswin weights verify", "--precision fp32", "--dtype float32"}
    found = {option for option in everything if all(word in done.record.message for word in option.split())}
    assert found == advice


def test_a_batch_that_does_not_fit_is_halved_and_so_are_the_next(build: Build) -> None:
    station = build("a-9", "b-9", "c-2", batch_size=8, most=3)
    events, done = extract(station)
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "out of memory with batches of 8 clips; going on with 2"
    ]
    assert max(map(len, station.batches)) <= 3
    assert sum(event.record.clips for event in done.values()) == 20


def test_a_single_clip_that_does_not_fit_ends_the_run(build: Build) -> None:
    station = build("a-2", batch_size=2, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        extract(station)
    assert all(decoder.closed for decoder in station.decoders)


def test_a_file_that_changes_while_it_is_read_fails(build: Build, tmp_path: Path) -> None:
    station = build("a-40", "b-1", decoders=1, batch_size=1)
    done = {}
    for event in station.pipeline.run(threading.Event()):
        if isinstance(event, ClipsDone):
            (tmp_path / "a-40").write_text("another")
        elif isinstance(event, VideoDone):
            done[event.record.id] = event.record.error
    assert done["a-40"] == "VideoChanged"


def test_stopping_finishes_the_videos_in_flight_and_begins_no_other(build: Build) -> None:
    names = [f"{letter}-3" for letter in "abcdefghijklmnopqrstuvwxyz"]
    station = build(*names, batch_size=1)
    stopping = threading.Event()
    done = []
    for event in station.pipeline.run(stopping):
        stopping.set()
        done += [event.record] if isinstance(event, VideoDone) else []
    assert [record.id for record in done] == names[: len(done)]
    assert 2 <= len(done) < 20
    assert all((record.status, record.clips) == ("ok", 3) for record in done)


def test_closing_the_iterator_ends_the_decoders(build: Build) -> None:
    station = build("a-30", "b-30", batch_size=1)
    events = station.pipeline.run(threading.Event())
    next(events)
    events.close()
    assert all(decoder.closed for decoder in station.decoders)


def test_an_error_of_the_writer_ends_the_run(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    station = build("a-9", "b-9")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(station.journal, "commit", full)
    with pytest.raises(OSError, match="No space"):
        extract(station)
    assert all(decoder.closed for decoder in station.decoders)


def read_all(slots: DecoderSlots, stopping: threading.Event) -> Iterator[str]:
    for read in slots.read(stopping):
        if read is None:
            yield "nothing"
        else:
            yield f"{read[0].video.id}: {type(read[1]).__name__}"


def test_an_open_queue_is_waited_for(tmp_path: Path) -> None:
    queue = VideoQueue([video(tmp_path, "a-1")])
    slots = DecoderSlots(queue, 2, FakeDecoder, make_task)
    read = read_all(slots, threading.Event())
    assert [next(read) for _ in range(3)] == ["a-1: DecodedClip", "a-1: VideoEnd", "nothing"]
    queue.put(video(tmp_path, "b-1"))
    assert [next(read) for _ in range(3)] == ["b-1: DecodedClip", "b-1: VideoEnd", "nothing"]
    threading.Timer(0.05, queue.close).start()
    assert set(read) <= {"nothing"}


class Clock:
    """In place of the module `time`: it goes on only as a test says."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def grown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoding: float, computing: float, most: int, processes: int = 9
) -> int:
    """Return how many decoders there are at the end, of 1 at first, if each clip takes so many seconds to decode and to
    compute, and so many `processes` can be started."""
    clock = Clock()
    monkeypatch.setattr(decoder_slots, "time", clock)
    opened: list[FakeDecoder] = []

    class SlowDecoder(FakeDecoder):
        def __init__(self) -> None:
            super().__init__()
            if len(opened) == processes:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            opened.append(self)

        def read(self) -> DecodedClip | VideoEnd:
            clock.now += decoding
            return super().read()

    names = [f"{name}-5" for name in "abcdefghijklmno"]
    queue = VideoQueue([video(folder, name) for name in names], closed=True)
    slots = DecoderSlots(queue, 1, SlowDecoder, make_task, most)
    found = []
    for read in slots.read(threading.Event()):
        assert read is not None
        found.append(f"{read[0].video.id}: {type(read[1]).__name__}")
        clock.now += computing
    assert sorted(found) == sorted(f"{name}: {kind}" for name in names for kind in 5 * ["DecodedClip"] + ["VideoEnd"])
    assert slots.decoders == len(opened)
    assert all(decoder.closed for decoder in opened)
    return slots.decoders


def test_decoders_are_added_where_the_network_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert grown(tmp_path, monkeypatch, decoding=0.2, computing=0.1, most=3) == 3
    assert grown(tmp_path, monkeypatch, decoding=0.2, computing=0.1, most=1) == 1
    assert grown(tmp_path, monkeypatch, decoding=0.1, computing=0.2, most=3) == 1
    assert grown(tmp_path, monkeypatch, decoding=0.002, computing=0.001, most=3) == 1  # it is over within a second
    assert not caplog.records
    assert grown(tmp_path, monkeypatch, decoding=0.2, computing=0.1, most=3, processes=2) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "no further decoder process can be started: Resource temporarily unavailable"
    ]


def test_how_many_decoders_there_may_be(tmp_path: Path) -> None:
    """More than at first only on a CPU that has the cores, and where timing does not decide what shares a batch."""

    def decoders(cores: int, **options: int) -> tuple[int, int]:
        worker = Worker(Job((video(tmp_path, "a-1"),), tmp_path / "out.h5", **options), "cpu", cores)  # type: ignore[arg-type]
        return worker.decoders, worker.most_decoders

    assert [decoders(cores) for cores in (1, 2, 8, 16, 64)] == [(1, 1), (2, 2), (2, 8), (4, 16), (16, 32)]
    assert decoders(16, workers=3) == (3, 3)
    assert decoders(16, batch_size=4) == (4, 4)


def test_errors_of_videos_are_read_in_order(tmp_path: Path) -> None:
    queue = VideoQueue([video(tmp_path, name) for name in ("a-2", "bad-1", "c-1")], closed=True)
    slots = DecoderSlots(queue, 1, FakeDecoder, make_task)
    found = [read for read in slots.read(threading.Event()) if read is not None]
    assert [type(read).__name__ for _, read in found] == [
        "DecodedClip", "DecodedClip", "VideoEnd", "DecodedClip", "VideoUnreadable", "DecodedClip", "VideoEnd",
    ]  # fmt: skip
    assert all(
        isinstance(read, VideoError) == (flight.video.id == "bad-1" and k == 4)
        for k, (flight, read) in enumerate(found)
    )


def test_a_batch_for_which_the_processor_has_no_memory_is_halved() -> None:
    sizes: list[int] = []

    def forward(frames: torch.Tensor, index: torch.Tensor) -> Features:
        pixels = frames[index]
        if len(pixels) > 2:
            torch.empty(1 << 50)  # PyTorch's allocator raises a RuntimeError
        sizes.append(len(pixels))
        return Features(pixels.float().mean((1, 2, 3)), {}, None)

    computer = Computer(forward, CpuDevice(1), 8)
    parts = computer.submit([clip_of(number, 0) for number in range(8)]).result()
    computer.close()
    assert (sizes, len(parts), computer.batch_size) == ([2, 2, 2, 2], 4, 2)
