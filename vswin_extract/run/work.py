"""Which work of a job is left, and the order in which workers get it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vswin_extract.job.job import Job
from vswin_extract.journal.journal import Journal
from vswin_extract.run.clip_counts import clip_counts
from vswin_extract.run.dispatch import PieceKey, piece_key
from vswin_extract.run.schedule import deal, piece_cost, plan
from vswin_extract.video.ranges import WHOLE, ClipRange, overlap
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.messages import Ready


@dataclass(frozen=True)
class RemainingWork:
    """Pieces of work: videos, or clip ranges of videos. `assigned`: all pieces of this run or shard. `left`: the pieces
    that are not done yet, in the order in which workers get them. `costs`: the cost of each piece in clips; empty for
    one worker without shards."""

    assigned: Sequence[Video]
    left: Sequence[Video]
    costs: Mapping[PieceKey, float] = field(default_factory=dict)


def find_work(job: Job, journal: Journal, ready: Ready, workers: int) -> RemainingWork:
    """Return what is left: in the order of the videos for one worker, the longest pieces first for several or a
    shard."""
    if workers == 1 and job.shard is None:
        left = [replace(video, clip_range=clips) for video in job.videos for clips in _missing(journal, video)]
        return RemainingWork(job.videos, left)
    counts = clip_counts(job, journal, ready)
    assigned = _assigned(job, journal, counts, workers)
    left = assigned
    if job.shard is not None:
        missing = {video.id: _missing(journal, replace(video, clip_range=WHOLE)) for video in assigned}
        left = [
            replace(video, clip_range=clips)
            for video in assigned
            for clips in overlap(video.clip_range, missing[video.id])
        ]
    costs = {piece_key(video): piece_cost(video.clip_range, counts[video.id]) for video in left}
    return RemainingWork(assigned, left, costs)


def _assigned(job: Job, journal: Journal, counts: Mapping[str, int], workers: int) -> list[Video]:
    """Return the pieces of this run or shard. The pieces of a shard depend only on the list of videos, and not on what
    is done, so that all shards divide the videos in the same way."""
    shard = job.shard
    ranges: list[list[ClipRange]] = [[WHOLE] if shard else _missing(journal, video) for video in job.videos]
    clips = [counts[video.id] for video in job.videos]
    pieces = plan(list(zip(clips, ranges, strict=True)), shard.count if shard else workers)
    if shard is not None:
        pieces = deal(pieces, shard)
    return [replace(job.videos[piece.video], clip_range=piece.clip_range) for piece in pieces]


def _missing(journal: Journal, video: Video) -> list[ClipRange]:
    return journal.missing(video, *fingerprint(video))
