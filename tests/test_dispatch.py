"""Giving work to workers that are fakes: every piece once, and what happens when workers die."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.errors import DeviceError, WorkerDied
from vswin_extract.job.events import Event, Notice, Profile, VideoDone
from vswin_extract.run.dispatch import Dispatch, piece_key
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video
from vswin_extract.worker.messages import Begin, Close, Dropped, Message, Order, Ready, Stop, WorkerDone, WorkerLost

READY = Ready({}, Arrays({}), Sampling(2, 1), Geometry(32, 32), {}, (), 0, (), decoders=2)
Dies = Callable[[int, Video], bool]


class FakePool:
    """Workers that finish a video each time a message is received. `dies(worker, video)`: the video kills the worker,
    and what the worker had not sent yet is lost. `fails`: ids of videos that fail. `drops`: first clips of the clip
    ranges that are dropped, because the frame table is wrong."""

    def __init__(
        self,
        workers: int,
        dies: Dies = lambda worker, video: False,
        fails: Sequence[str] = (),
        drops: Collection[int] = (),
    ) -> None:
        self.names = [f"fake:{number}" for number in range(workers)]
        self.limit: int | None = 8
        self.dies = dies
        self.fails = fails
        self.drops = drops
        self.inbox: deque[tuple[int, Message]] = deque()
        self.orders: list[tuple[int, Order]] = []
        self.starts: Counter[int] = Counter()
        self.dead: set[int] = set()

    def start(self, worker: int) -> None:
        self.starts[worker] += 1
        self.dead.discard(worker)
        self.inbox.append((worker, READY))

    def send(self, worker: int, order: Order) -> None:
        self.orders.append((worker, order))
        match order:
            case _ if worker in self.dead:
                pass
            case Video() if self.dies(worker, order):
                self.dead.add(worker)
                self.inbox = deque(message for message in self.inbox if message[0] != worker)
                self.inbox.append((worker, WorkerLost("signal SIGKILL")))
            case Video() if order.clip_range[0] in self.drops and not order.sequential:
                self.inbox.append((worker, Dropped(order, "other frames")))
            case Video():
                status = "failed" if order.id in self.fails else "ok"
                record = VideoRecord(order.id, "", status, clips=1, clip_range=order.clip_range)  # type: ignore[arg-type]
                self.inbox.append((worker, VideoDone(record, 1)))
            case Close() | Stop():
                self.inbox.append((worker, WorkerDone(Profile(), False)))

    def capacity(self, ready: Ready) -> int | None:
        return self.limit

    def receive(self, seconds: float) -> tuple[int, Message] | None:
        return self.inbox.popleft() if self.inbox else None

    def close(self) -> None:
        """Nothing runs."""


def videos(count: int) -> list[Video]:
    return [Video(f"v{number}", Path(f"v{number}")) for number in range(count)]


def dispatch(pool: FakePool, work: Iterable[Video]) -> Dispatch:
    def give_up(video: Video, error: WorkerDied) -> VideoRecord:
        return VideoRecord(video.id, "", "failed", error="WorkerDied", message=str(error), clip_range=video.clip_range)

    for worker in range(len(pool.names)):
        pool.start(worker)
    work = list(work)
    costs = {piece_key(video): 1.0 for video in work}
    return Dispatch(pool, work, costs, Begin(Path(), 0), check=lambda ready: None, give_up=give_up)


def run(pool: FakePool, work: Iterable[Video], stopping: threading.Event | None = None) -> list[Event]:
    return list(dispatch(pool, work).run([], stopping or threading.Event()))


def records(events: Iterable[Event]) -> dict[str, VideoRecord]:
    found = [event.record for event in events if isinstance(event, VideoDone)]
    assert len({record.id for record in found}) == len(found)  # each video once
    return {record.id: record for record in found}


@given(st.integers(0, 60), st.integers(1, 7))
def test_every_video_is_extracted_once(count: int, workers: int) -> None:
    pool = FakePool(workers)
    assert records(run(pool, videos(count))).keys() == {f"v{number}" for number in range(count)}
    assert sum(isinstance(order, Video) for _, order in pool.orders) == count


@given(st.integers(2, 40), st.integers(1, 5), st.sets(st.integers(0, 100), max_size=2))
def test_workers_that_die_now_and_then_lose_no_video(count: int, workers: int, deaths: set[int]) -> None:
    """`deaths`: which of all orders of a video kill the worker that gets them."""
    given = iter(range(10_000))
    found = records(run(FakePool(workers, lambda worker, video: next(given) in deaths), videos(count)))
    assert {name for name, record in found.items() if record.status == "ok"} == {f"v{k}" for k in range(count)}


def test_a_video_that_kills_workers_fails_and_takes_no_other_with_it() -> None:
    pool = FakePool(2, lambda worker, video: video.id == "v3")
    events = run(pool, videos(12))
    found = records(events)
    assert {name for name, record in found.items() if record.status == "failed"} == {"v3"}
    assert found["v3"].error == "WorkerDied"
    assert sum(order.id == "v3" for _, order in pool.orders if isinstance(order, Video)) == 3
    assert len([event for event in events if isinstance(event, Notice)]) == 3


def test_a_suspect_is_given_to_a_worker_alone() -> None:
    pool = FakePool(1, lambda worker, video: video.id == "v0" and pool.starts[0] == 1)
    run(pool, videos(6))
    sent = [order.id for _, order in pool.orders if isinstance(order, Video)]
    again = len(sent) - 1 - sent[::-1].index("v0")
    assert again > 0
    assert records(run(FakePool(1), videos(6))).keys() == {f"v{number}" for number in range(6)}


def test_a_worker_that_always_dies_is_given_up_and_the_others_go_on() -> None:
    pool = FakePool(2, lambda worker, video: worker == 0)
    events = run(pool, videos(30))
    assert all(record.status == "ok" for record in records(events).values())
    assert pool.starts[0] == 3
    assert any("given up" in event.text for event in events if isinstance(event, Notice))


def test_no_worker_left_ends_the_run() -> None:
    with pytest.raises(DeviceError, match="no worker is left"):
        run(FakePool(2, lambda worker, video: True), videos(40))


def pieces(name: str, *ranges: ClipRange) -> list[Video]:
    return [Video(name, Path(name), clip_range=clips) for clips in ranges]


def test_the_pieces_of_a_video_are_one_event() -> None:
    found = records(run(FakePool(3), [*pieces("film", (0, 5), (5, 9), (9, None)), *videos(2)]))
    assert (found["film"].clips, found["film"].clip_range) == (3, (0, None))


def test_a_piece_that_fails_fails_its_video_and_drops_the_rest() -> None:
    pool = FakePool(1, fails=["film"])
    ranges: list[ClipRange] = [(first, first + 1) for first in range(40)]
    found = records(run(pool, [*pieces("film", *ranges), *videos(2)]))
    assert found["film"].status == "failed"
    assert sum(isinstance(order, Video) and order.id == "film" for _, order in pool.orders) < 40


@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.sets(st.integers(0, 12), min_size=1),
    st.sets(st.integers(0, 40), max_size=2),
    st.sampled_from([None, 1, 8]),
)
def test_a_video_whose_frame_table_is_wrong_is_extracted_as_a_whole(
    workers: int, count: int, drops: set[int], deaths: set[int], limit: int | None
) -> None:
    """Whichever of its pieces are dropped, and when; also if workers die meanwhile."""
    given = iter(range(10_000))
    pool = FakePool(workers, lambda worker, video: next(given) in deaths and limit is not None, drops=drops)
    pool.limit = limit
    ranges: list[ClipRange] = [(first, first + 1 if first + 1 < count else None) for first in range(count)]
    work = dispatch(pool, [*pieces("film", *ranges), *videos(5)])
    found = records(work.run([], threading.Event()))
    assert (set(found), work.left) == ({"film", *(f"v{k}" for k in range(5))}, 0)
    films = [order for _, order in pool.orders if isinstance(order, Video) and order.id == "film"]
    whole = [film.clip_range for film in films if film.sequential]
    dropped = drops & set(range(count))
    assert found["film"].clips == (1 if dropped else count)
    assert 0 < len(whole) <= 1 + len(deaths) if dropped else not whole
    assert set(whole) <= {WHOLE}
    assert work._cost_left == pytest.approx(0)


def test_stopping_gives_no_further_video() -> None:
    pool, stopping = FakePool(2), threading.Event()
    work = dispatch(pool, videos(100))
    done = 0
    for event in work.run([], stopping):
        done += isinstance(event, VideoDone)
        stopping.set()
    assert 0 < done < 100
    assert work.left == 100 - done
    assert [type(order) for _, order in pool.orders[-2:]] == [Stop, Stop]


def test_a_worker_without_limit_gets_everything_at_once() -> None:
    pool = FakePool(1)
    pool.limit = None
    work = dispatch(pool, videos(50))
    assert len(list(work.run([], threading.Event()))) == 50
    assert [type(order) for _, order in pool.orders] == [Begin, *[Video] * 50, Close]


def test_a_worker_of_other_settings_ends_the_run() -> None:
    pool = FakePool(1)
    pool.start(0)

    def refuse(ready: Ready) -> None:
        raise DeviceError("would compute other features")

    work = Dispatch(pool, videos(1), {}, Begin(Path(), 0), check=refuse, give_up=lambda video, error: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(DeviceError, match="other features"):
        list(work.run([], threading.Event()))
