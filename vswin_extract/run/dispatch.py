"""Giving pieces of work to the workers of a pool, and the pieces of a worker that died to other workers.

Pieces are given in order, so the longest come first where `schedule.plan` made them. When a worker dies, each video
that it had may have caused it. From then on such a suspect is given to a worker alone, so that a video that kills
workers takes no other video with it.

When a worker drops a piece because its frame table is wrong, that worker gets the whole video. The other pieces of it
do not count any more, and what workers say of them later is ignored.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from vswin_extract.errors import DeviceError, WorkerDied
from vswin_extract.formatting import plural
from vswin_extract.job.events import ClipsDone, Event, Notice, VideoDone
from vswin_extract.journal.entries import join_records
from vswin_extract.pools.pool import WorkerPool
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.ranges import WHOLE
from vswin_extract.video.videos import Video
from vswin_extract.worker.messages import (
    VIDEOS_PER_DECODER,
    Begin,
    Close,
    Dropped,
    Message,
    Ready,
    Stop,
    WorkerDone,
    WorkerLost,
)

log = logging.getLogger(__name__)

RETRIES = 2
"""How often a video is tried again after its worker died, and how often a worker that finished nothing is started
again."""
SHARE, AHEAD = 0.75, 0.25
"""How much a worker may hold, as shares of its fair part of the work that is left: while its decoders need videos, and
when more videos would only wait. With larger shares, the first worker that is ready would take all the longest videos,
and the others would wait for it at the end; `python -m benchmarks simulation` shows this."""

PieceKey = tuple[str, int]
"""The id of a video, and the first clip of the clip range."""


def piece_key(piece: Video | VideoRecord) -> PieceKey:
    return piece.id, piece.clip_range[0]


class Dispatch:
    """The work of a run on its way through a pool.

    `work`: videos or clip ranges of them, in order. `costs`: of each piece, in clips, where there are several workers.
    `begin`: the first order of each worker. `check`: raises where a worker would compute something different.
    `give_up`: records that a video failed, and returns the record. `watch`: is called again and again, and raises where
    the run must end. `done`: what finished workers reported.
    """

    def __init__(
        self,
        pool: WorkerPool,
        work: Iterable[Video],
        costs: Mapping[PieceKey, float],
        begin: Begin,
        check: Callable[[Ready], None],
        give_up: Callable[[Video, WorkerDied], VideoRecord],
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.done: dict[int, WorkerDone] = {}
        self._pool = pool
        self._queue = deque(work)
        self._costs = dict(costs)
        self._cost_left = sum(costs.values())
        self._begin = begin
        self._check = check
        self._give_up = give_up
        self._watch = watch
        self._suspects: deque[Video] = deque()
        self._capacity: dict[int, int | None] = {}  # videos that each running worker takes at a time; None: all
        self._in_flight: dict[int, dict[PieceKey, Video]] = {worker: {} for worker in range(len(pool.names))}
        self._with_suspect: set[int] = set()  # workers that have a suspect, and nothing else
        self._tries: Counter[PieceKey] = Counter()
        self._deaths: Counter[int] = Counter()
        self._given_up: set[int] = set()  # workers that are not started again
        self._closed: set[int] = set()  # workers that know that nothing more will come
        self._stopped: set[int] = set()  # workers that know that they shall begin nothing more
        self._pieces_left = Counter(video.id for video in self._queue)
        self._extracted: dict[str, list[VideoRecord]] = {}  # of videos in several pieces, those that are finished
        self._sequential: set[str] = set()  # videos whose pieces do not count any more

    @property
    def left(self) -> int:
        return len(self._pieces_left)

    def run(self, arrived: Iterable[tuple[int, Message]], stopping: threading.Event) -> Iterator[Event]:
        """Give everything out; yields what workers say, and VideoDone once a video. `arrived` are messages that came
        before, by worker."""
        for worker, message in arrived:
            yield from self._take(worker, message, ending=False)
        while True:
            ending = stopping.is_set() or not (self._queue or self._suspects or any(self._in_flight.values()))
            self._close_workers(ending, stopping.is_set())
            if ending and not self._capacity.keys() - self.done.keys():
                return
            self._watch()
            came = self._pool.receive(1.0)
            if came is not None:
                yield from self._take(*came, ending)

    def _close_workers(self, ending: bool, stopping: bool) -> None:
        """Tell workers that nothing more will come, or that they shall stop."""
        for worker, capacity in self._capacity.items():
            if stopping and worker not in self._stopped:
                self._stopped.add(worker)
                self._pool.send(worker, Stop())
            elif worker not in self._closed | self._stopped and (ending or (capacity is None and not self._queue)):
                self._closed.add(worker)
                self._pool.send(worker, Close())

    def _take(self, worker: int, message: Message, ending: bool) -> Iterator[Event]:
        match message:
            case Exception():
                raise message
            case Ready():
                if not ending:
                    self._welcome(worker, message)
            case WorkerLost() if worker not in self.done:
                yield from self._lose(worker, message.reason, ending)
            case WorkerDone():
                self.done[worker] = message
            case Dropped():
                self._drop_pieces(worker, message, ending)
            case VideoDone(record=record) if record.id in self._sequential and record.clip_range != WHOLE:
                if not ending:  # a piece that does not count any more
                    self._fill(worker)
            case VideoDone():
                self._deaths[worker] = 0
                self._take_back(worker, piece_key(message.record))
                yield from self._finish(message.record, message.bytes)
                if not ending:
                    self._fill(worker)
            case Notice() | ClipsDone():
                yield message

    def _welcome(self, worker: int, ready: Ready) -> None:
        self._check(ready)
        self._capacity[worker] = self._pool.capacity(ready)
        self._pool.send(worker, self._begin)
        self._fill(worker)

    def _fill(self, worker: int) -> None:
        in_flight = self._in_flight[worker]
        if self._suspects and not in_flight:
            self._send(worker, self._suspects.popleft())
            self._with_suspect.add(worker)
        if worker in self._with_suspect:
            return
        capacity = self._capacity[worker]
        while self._queue and (capacity is None or (len(in_flight) < capacity and self._is_fair(worker, capacity))):
            self._send(worker, self._queue.popleft())

    def _is_fair(self, worker: int, capacity: int) -> bool:
        """Return True if the next piece leaves enough for the other workers, or this worker has nothing to do."""
        in_flight = self._in_flight[worker]
        cost = sum(self._costs.get(piece, 0.0) for piece in [*in_flight, piece_key(self._queue[0])])
        share = self._cost_left / (len(self._in_flight) - len(self._given_up))
        return not in_flight or cost <= share * (SHARE if VIDEOS_PER_DECODER * len(in_flight) < capacity else AHEAD)

    def _send(self, worker: int, video: Video) -> None:
        self._in_flight[worker][piece_key(video)] = video
        self._pool.send(worker, video)

    def _lose(self, worker: int, reason: str, ending: bool) -> Iterator[Event]:
        name = self._pool.names[worker]
        in_flight, self._in_flight[worker] = self._in_flight[worker], {}
        self._with_suspect.discard(worker)
        self._closed.discard(worker)
        self._stopped.discard(worker)
        self._capacity.pop(worker, None)
        self._deaths[worker] += 1
        for piece, video in in_flight.items():
            self._tries[piece] += 1
            if self._tries[piece] <= RETRIES:
                self._suspects.append(video)
            else:
                self._deaths[worker] = 0
                error = WorkerDied(f"the process that extracted it died {RETRIES + 1} times: {reason}")
                yield from self._finish(self._give_up(video, error), 0)
        if ending:
            return
        if self._deaths[worker] > RETRIES:
            self._given_up.add(worker)
            yield Notice(f"worker {worker} ({name}) is given up: it died {RETRIES + 1} times in a row: {reason}")
            if len(self._given_up) == len(self._pool.names):
                raise DeviceError(f"no worker is left; the last one died: {reason}; finished videos are kept")
            for other in self._capacity:  # a suspect may have waited for this worker
                self._fill(other)
        else:
            again = f", with {plural(len(in_flight), 'video')} in flight" if in_flight else ""
            yield Notice(f"worker {worker} ({name}) died{again}: {reason}; starting it again")
            self._pool.start(worker)

    def _finish(self, record: VideoRecord, nbytes: int) -> Iterator[Event]:
        """Note a finished piece. A video is done when all its pieces are, or one of them failed."""
        if record.id not in self._pieces_left:  # another piece of the video failed
            return
        self._pieces_left[record.id] -= 1
        left, pieces = self._pieces_left[record.id], [*self._extracted.pop(record.id, []), record]
        if record.status != "failed":
            if left:
                self._extracted[record.id] = pieces
                return
            record = join_records(sorted(pieces, key=lambda piece: piece.clip_range[0]))
        del self._pieces_left[record.id]
        if left:
            self._withdraw(record.id)
        yield VideoDone(record, nbytes)

    def _drop_pieces(self, worker: int, dropped: Dropped, ending: bool) -> None:
        """Have a worker that dropped a piece extract the whole video, in place of all its pieces."""
        video = dropped.piece
        if video.id in self._pieces_left and video.id not in self._sequential:
            log.info("%s is extracted again, from its beginning: %s", video.id, dropped.reason)
            self._sequential.add(video.id)
            self._withdraw(video.id)
            for other, in_flight in self._in_flight.items():
                for piece in [piece for piece in in_flight if piece[0] == video.id]:
                    self._take_back(other, piece)
            self._extracted.pop(video.id, None)
            self._pieces_left[video.id] = 1
            whole = replace(video, clip_range=WHOLE, sequential=True)
            cost = sum(cost for piece, cost in self._costs.items() if piece[0] == video.id)
            self._costs[piece_key(whole)] = cost
            self._cost_left += cost
            if not ending:
                self._send(worker, whole)
        elif video.id not in self._sequential:  # another piece of the video failed
            self._take_back(worker, piece_key(video))
        if not ending:
            self._fill(worker)

    def _take_back(self, worker: int, piece: PieceKey) -> None:
        """Note that a worker does not have this piece any more."""
        if self._in_flight[worker].pop(piece, None):
            self._cost_left -= self._costs.get(piece, 0.0)
            self._with_suspect.discard(worker)

    def _withdraw(self, video_id: str) -> None:
        """Remove the pieces of a video that no worker has begun."""
        for waiting in (self._queue, self._suspects):
            for video in [video for video in waiting if video.id == video_id]:
                waiting.remove(video)
                self._cost_left -= self._costs.get(piece_key(video), 0.0)
