"""Videos in pieces: which are divided, and that their rows are those of a run that reads them from their beginning."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numbered
import numpy as np
import pytest
from journals import ARRAYS, SETTINGS

from vswin_extract.errors import FrameTableWrong
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.job.events import Event, Finished, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.job.shard import Shard
from vswin_extract.journal.journal import Journal, join_journal, open_journal
from vswin_extract.journal.parts import Part
from vswin_extract.journal.writer import JournalWriter
from vswin_extract.run import clip_counts
from vswin_extract.run.run import run as run_job
from vswin_extract.run.work import find_work
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, find_videos
from vswin_extract.worker import worker
from vswin_extract.worker.messages import Ready
from vswin_extract.worker.settings import make_task, table_path

MB = 1_000_000


def ready(decoders: int) -> Ready:
    return Ready(SETTINGS, ARRAYS, Sampling(32, 2), Geometry(32, 32), {}, (), 0, (), decoders)


def sparse(folder: Path, name: str, size: int) -> Video:
    """A file of this size, without content."""
    (folder / name).touch()
    os.truncate(folder / name, size)
    return Video(name, folder / name)


def begin(job: Job) -> Journal:
    ids = [video.id for video in job.videos]
    if job.shard is not None:
        return join_journal(job.output, SETTINGS, ARRAYS, {})
    return open_journal(job.output, SETTINGS, ARRAYS, False, ids)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of videos whose headers are read. Each says that there are 1,000 clips."""
    found: list[str] = []

    def estimate(videos: list[Video], *_: object) -> dict[str, int]:
        found.extend(video.id for video in videos)
        return dict.fromkeys((video.id for video in videos), 1000)

    monkeypatch.setattr(clip_counts, "estimate_counts", estimate)
    return found


def test_of_many_short_videos_none_is_opened_and_the_order_stays(tmp_path: Path, opened: list[str]) -> None:
    videos = tuple(sparse(tmp_path, f"{number}", (5 + number % 7) * MB) for number in range(1000))
    job = Job(videos, tmp_path / "out.h5")
    with begin(job) as journal:
        assert find_work(job, journal, ready(4), 1).left == list(videos)
    assert opened == []


@pytest.mark.parametrize("others", [0, 30])
def test_a_film_is_divided_among_the_decoders_of_one_worker(tmp_path: Path, opened: list[str], others: int) -> None:
    videos = (
        *(sparse(tmp_path, f"{number}", 2 * MB) for number in range(others)),
        sparse(tmp_path, "film", 2000 * MB),
    )
    job = Job(videos, tmp_path / "out.h5")
    with begin(job) as journal:
        for decoders, pieces in ((1, 1), (2, 2), (4, 4)):
            left = find_work(job, journal, ready(decoders), 1).left
            film = sorted((video.clip_range for video in left if video.id == "film"), key=lambda piece: piece[0])
            assert len(film) == pieces
            assert [first for first, _ in film] == [0, *(end for _, end in film[:-1])]
            assert film[-1][1] is None
            assert [video for video in left if video.id != "film"] == list(videos[:-1])
    assert opened == ["film", "film"]


def test_what_is_done_is_kept_when_the_number_of_decoders_changes(tmp_path: Path, opened: list[str]) -> None:
    video = sparse(tmp_path, "film", 2000 * MB)
    job = Job((video,), tmp_path / "out.h5")
    path, mtime = video.location, os.stat(video.location).st_mtime
    with begin(job) as journal:
        first = min(piece.clip_range for piece in find_work(job, journal, ready(2), 1).left)
        record = VideoRecord("film", path, "ok", 500, size=2000 * MB, mtime=mtime, clip_range=first)
        part = journal.writer().part(Video("film", Path("film"), clip_range=first))
        part.write(bytes(500 * part.dtype.itemsize), 500)
        journal.writer().commit(record, part)
        journal.load()
        for decoders in (1, 2, 3, 8):
            ranges = sorted(piece.clip_range[0] for piece in find_work(job, journal, ready(decoders), 1).left)
            assert (ranges[0], len(ranges)) == (first[1], decoders)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_not_divided(tmp_path: Path, opened: list[str], workers: int) -> None:
    film = sparse(tmp_path, "film", 2000 * MB)
    far = Video("far", Address("https://host/far.mp4", 2000 * MB, 1.0))
    with begin(job := Job((film,), tmp_path / "a.h5", decoder="decord")) as journal:
        assert find_work(job, journal, ready(4), workers).left == [film]
    with begin(job := Job((far,), tmp_path / "b.h5")) as journal:  # each decoder would fetch all of it
        assert len(find_work(job, journal, ready(4), workers).left) == workers
    with begin(job := Job((film,), tmp_path / "c.h5")) as journal:
        found = os.stat(film.location)
        wrong = VideoRecord("film", film.location, "failed", size=found.st_size, mtime=found.st_mtime,
                            clip_range=(5, 9), error="FrameTableWrong")  # fmt: skip
        journal.writer().commit(wrong)
        journal.load()
        [left] = find_work(job, journal, ready(4), workers).left
        assert (left.clip_range, left.sequential) == (WHOLE, True)


def test_shards_divide_alike_and_each_among_its_own_decoders(tmp_path: Path, opened: list[str]) -> None:
    videos = tuple(sparse(tmp_path, f"film{number}", 2000 * MB) for number in range(3))
    ranges, counts = [], []
    for index, decoders in enumerate((1, 8)):
        job = Job(videos, tmp_path / "out.h5", shard=Shard(index, 2))
        with begin(job) as journal:
            left = find_work(job, journal, ready(decoders), 1).left
            ranges += [(video.id, *video.clip_range) for video in left]
            counts.append(len(left))
    assert counts[1] > 2 * counts[0]
    for video in videos:
        mine = sorted((first, end or 1 << 40) for name, first, end in ranges if name == video.id)
        assert [first for first, _ in mine] == [0, *(end for _, end in mine[:-1])]


def test_a_frame_table_belongs_to_a_file_as_it_is(tmp_path: Path) -> None:
    job, tables = Job((sparse(tmp_path, "a", 5),), tmp_path / "out.h5"), tmp_path / "frames"
    video = job.videos[0]
    path = table_path(tables, video)
    assert path == table_path(tables, Video("\udcff/another id", video.path, start=3.0, end=4.0))
    assert path is not None
    assert (Path(path).parent, Path(path).suffix) == (tables, ".npy")
    os.truncate(video.location, 6)
    assert table_path(tables, video) != path
    assert table_path(tables, Video("far", Address("https://host/far.mp4"))) is None
    sampling, geometry = Sampling(2, 1), Geometry(32, 32)
    assert make_task(job, video, sampling, geometry).table is None
    assert make_task(job, video, sampling, geometry, tables=tables).table == table_path(tables, video)
    other = Job(job.videos, job.output, decoder="decord")
    assert make_task(other, video, sampling, geometry, tables=tables).table is None


class Doubting(DecoderProcess):
    """Says of the second of its clips that it is not of the frame table, unless the video is read sequentially."""

    def submit(self, task: Task) -> None:
        self.submitted: deque[Task] = getattr(self, "submitted", deque())
        self.submitted.append(task)
        super().submit(task)

    def read(self) -> DecodedClip | VideoEnd:
        read = super().read()
        task = self.submitted[0]
        if isinstance(read, DecodedClip) and read.index == task.clip_range[0] + 1 and not task.sequential:
            while not isinstance(super().read(), VideoEnd):
                pass
            self.submitted.popleft()
            raise FrameTableWrong(f"clip {read.index} has other frames")
        if isinstance(read, VideoEnd):
            self.submitted.popleft()
        return read


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So large that by its size it is worth a look."""
    path = numbered.write(tmp_path_factory.mktemp("videos") / "film.mp4", 360)
    with path.open("ab") as file:
        file.write(MB.to_bytes(4, "big") + b"free" + bytes(MB - 8))
    return path


def extract(film: Path, output: Path, weights: Path, workers: int) -> Iterator[Event]:
    job = Job(find_videos([film]), output, str(weights), stride=6, device="cpu", workers=workers)
    return run_job(job)


def expect_same(one: Path, other: Path) -> None:
    with h5py.File(one) as a, h5py.File(other) as b:
        for name in ("clips", "frames", "fps", "duration", "status", "width", "message"):
            assert a["videos_table"][name][:].tolist() == b["videos_table"][name][:].tolist(), name
        for name in ("frames", "times", "valid", "video"):
            assert np.array_equal(a["clips"][name][:], b["clips"][name][:]), name
        assert np.allclose(a["embedding"][:], b["embedding"][:], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def sequential(film: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "out.h5"
    assert isinstance(list(extract(film, output, small_weights, 1))[-1], Finished)
    return output


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[Event]], list[VideoRecord]]:
    """Goes on with a run until something is finished. What is finished then is lost, as if the process were killed.
    Returns what was finished."""

    def until_killed(events: Iterator[Event]) -> list[VideoRecord]:
        committed: list[VideoRecord] = []
        original = JournalWriter.commit

        def commit(writer: JournalWriter, record: VideoRecord, part: Part | None = None) -> None:
            if committed:
                raise OSError(5, "killed")
            committed.append(record)
            original(writer, record, part)

        with monkeypatch.context() as patch:
            patch.setattr(JournalWriter, "commit", commit)
            with pytest.raises(OSError, match="killed"):
                list(events)
        return committed

    return until_killed


Kill = Callable[[Iterator[Event]], list[VideoRecord]]


def test_several_decoders_of_one_worker_give_the_rows_of_one(
    film: Path, sequential: Path, small_weights: Path, tmp_path: Path, kill: Kill
) -> None:
    """Also with a kill in between, and another number of decoders after it."""
    output = tmp_path / "out.h5"
    [piece] = kill(extract(film, output, small_weights, 3))
    assert piece.clip_range != WHOLE
    events = list(extract(film, output, small_weights, 2))
    assert [event.record.id for event in events if isinstance(event, VideoDone)] == ["film.mp4"]
    assert isinstance(events[-1], Finished)
    assert events[-1].new_clips == events[-1].clips - piece.clips
    expect_same(sequential, output)


@pytest.mark.parametrize(
    ("workers", "killed"),
    [(3, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, False), (1, True), (1, False)))],
)
def test_a_film_whose_frame_table_is_wrong_gives_the_rows_of_a_sequential_run(
    film: Path,
    sequential: Path,
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kill: Kill,
    workers: int,
    killed: bool,
) -> None:
    """And so does a run that is killed before the whole video is extracted, and continued."""
    monkeypatch.setattr(worker, "DecoderProcess", Doubting)
    output = tmp_path / "out.h5"
    if killed:
        [wrong] = kill(extract(film, output, small_weights, workers))
        assert wrong.error == "FrameTableWrong"
    caplog.set_level("INFO", "vswin_extract")
    caplog.clear()
    events = list(extract(film, output, small_weights, workers))
    assert [event.record.status for event in events if isinstance(event, VideoDone)] == ["ok"]
    expect_same(sequential, output)
    assert caplog.text.count("film.mp4 is extracted again") == (not killed)  # the journal knows
