"""Videos to a pool: the next to whoever has room, and what is lost with a worker to another, at most twice.

Videos, or clip_ranges of them, are given in order, so the longest come first where `schedule.plan` made it. What was in
flight when a worker died is suspected of having killed it: from then on it travels alone, so that a video that kills
workers takes no other down with it.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from vswin_extract.errors import DeviceError, WorkerDied
from vswin_extract.job.events import ClipsDone, Event, Notice, VideoDone
from vswin_extract.run.pool import WorkerPool
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.videos import Video
from vswin_extract.worker.worker import Begin, Close, Message, Ready, Stop, WorkerDone, WorkerLost

RETRIES = 2
"""So often a video is tried again after its worker died, and a worker started again that got nothing done."""

DEEP = 4
"""Videos that a worker has at a time, for each of its decoders: short ones would leave it waiting for the next."""
SHARE, AHEAD = 0.75, 0.25
"""What a worker is given at a time, of its share of all that is left: for its decoders, and to wait behind these. More,
and the first worker that is ready would take all the longest videos, and the others wait for it at the end; `python -m
benchmarks simulation` says what comes of it."""

Key = tuple[str, int]
"""A video's id, and the first clip of the clip_range."""


def key(piece: Video | VideoRecord) -> Key:
    return piece.id, piece.clip_range[0]


class Dispatch:
    """The videos of a run on their way through a pool.

    `costs`: of pieces of work, in clips, where there are several workers. `begin`: what each is told first. `check`:
    raises where what a worker would compute is not what others do. `give_up`: notes that a video failed, and returns
    its record. What came of it is in `through`, by worker; `left` videos were not finished.
    """

    def __init__(
        self,
        pool: WorkerPool,
        work: Iterable[Video],
        costs: Mapping[Key, float],
        begin: Begin,
        check: Callable[[Ready], None],
        give_up: Callable[[Video, WorkerDied], VideoRecord],
    ) -> None:
        self.pool = pool
        self.queue = deque(work)
        self.costs = costs
        self.cost_left = sum(costs.values())
        self.begin = begin
        self.check = check
        self.give_up = give_up
        self.suspects: deque[Video] = deque()
        self.room: dict[int, int] = {}
        """How many videos each worker that is there takes at a time."""
        self.flying: dict[int, dict[Key, Video]] = {worker: {} for worker in range(len(pool.names))}
        self.alone: set[int] = set()
        """Workers that have a suspect."""
        self.tries: Counter[Key] = Counter()
        self.deaths: Counter[int] = Counter()
        self.gone: set[int] = set()
        self.closed: set[int] = set()
        """Workers that have been told that nothing more will come."""
        self.through: dict[int, WorkerDone] = {}
        self.pieces = Counter(video.id for video in self.queue)
        self.extracted: dict[str, VideoRecord] = {}
        """Videos of which some clip_ranges are through: those added up."""

    @property
    def left(self) -> int:
        return len(self.pieces)

    def run(self, arrived: Iterable[tuple[int, Message]], stopping: threading.Event) -> Iterator[Event]:
        """Give everything out; yields what workers say, and VideoDone once a video. `arrived` are messages that came
        before, by worker."""
        for worker, message in arrived:
            yield from self._take(worker, message, ending=False)
        while True:
            ending = stopping.is_set() or not (self.queue or self.suspects or any(self.flying.values()))
            if ending or (self.pool.single and not self.queue):
                for worker in self.room.keys() - self.closed:
                    self.closed.add(worker)
                    self.pool.send(worker, Stop() if stopping.is_set() else Close())
            if stopping.is_set() and self.pool.single:
                self.pool.send(0, Stop())
            if ending and not self.room.keys() - self.through.keys():
                return
            came = self.pool.receive(1.0)
            if came is not None:
                yield from self._take(*came, ending)

    def _take(self, worker: int, message: Message, ending: bool) -> Iterator[Event]:
        match message:
            case Exception():
                raise message
            case Ready():
                if not ending:
                    self._welcome(worker, message)
            case WorkerLost() if worker not in self.through:
                yield from self._lose(worker, message.reason, ending)
            case WorkerDone():
                self.through[worker] = message
            case VideoDone():
                self.deaths[worker] = 0
                if self.flying[worker].pop(key(message.record), None):
                    self.cost_left -= self.costs.get(key(message.record), 0.0)
                self.alone.discard(worker)
                yield from self._done(message.record, message.bytes)
                if not ending:
                    self._fill(worker)
            case Notice() | ClipsDone():
                yield message

    def _welcome(self, worker: int, ready: Ready) -> None:
        self.check(ready)
        self.room[worker] = len(self.queue) if self.pool.single else DEEP * ready.decoders
        self.pool.send(worker, self.begin)
        self._fill(worker)

    def _fill(self, worker: int) -> None:
        flying = self.flying[worker]
        if self.suspects and not flying:
            self._give(worker, self.suspects.popleft())
            self.alone.add(worker)
        while self.queue and len(flying) < self.room[worker] and worker not in self.alone and self._fair(worker):
            self._give(worker, self.queue.popleft())

    def _fair(self, worker: int) -> bool:
        """Whether the next piece leaves the others enough to do; whoever has nothing gets it anyway."""
        flying = self.flying[worker]
        cost = sum(self.costs.get(piece, 0.0) for piece in [*flying, key(self.queue[0])])
        share = self.cost_left / (len(self.flying) - len(self.gone))
        return not flying or cost <= share * (SHARE if DEEP * len(flying) < self.room[worker] else AHEAD)

    def _give(self, worker: int, video: Video) -> None:
        self.flying[worker][key(video)] = video
        self.pool.send(worker, video)

    def _lose(self, worker: int, reason: str, ending: bool) -> Iterator[Event]:
        name = self.pool.names[worker]
        flying, self.flying[worker] = self.flying[worker], {}
        self.alone.discard(worker)
        self.closed.discard(worker)
        self.room.pop(worker, None)
        self.deaths[worker] += 1
        for piece, video in flying.items():
            self.tries[piece] += 1
            if self.tries[piece] <= RETRIES:
                self.suspects.append(video)
            else:
                self.deaths[worker] = 0
                error = WorkerDied(f"the process that extracted it died {RETRIES + 1} times: {reason}")
                yield from self._done(self.give_up(video, error), 0)
        if ending:
            return
        if self.deaths[worker] > RETRIES:
            self.gone.add(worker)
            yield Notice(f"worker {worker} ({name}) is given up: it died {RETRIES + 1} times in a row: {reason}")
            if len(self.gone) == len(self.pool.names):
                raise DeviceError(f"no worker is left; the last one died: {reason}; what is finished is kept")
            for other in self.room:  # a suspect may have been waiting for the worker that is gone
                self._fill(other)
        else:
            again = f", with {len(flying)} videos in flight" if flying else ""
            yield Notice(f"worker {worker} ({name}) died{again}: {reason}; starting it again")
            self.pool.start(worker)

    def _done(self, record: VideoRecord, nbytes: int) -> Iterator[Event]:
        """A video is through when all its clip_ranges are, or one of them failed."""
        if record.id not in self.pieces:  # another clip_range of it failed
            return
        self.pieces[record.id] -= 1
        left, before = self.pieces[record.id], self.extracted.pop(record.id, None)
        if record.status != "failed":
            if before is not None:
                ends = before if before.clip_range[1] is None else record  # what is known of the whole video
                record = replace(ends, clip_range=(0, ends.clip_range[1]), clips=before.clips + record.clips)
            if left:
                self.extracted[record.id] = record
                return
        del self.pieces[record.id]
        if left:
            for waiting in (self.queue, self.suspects):
                for video in [video for video in waiting if video.id == record.id]:
                    waiting.remove(video)
                    self.cost_left -= self.costs.get(key(video), 0.0)
        yield VideoDone(record, nbytes)
