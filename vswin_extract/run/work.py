"""Which work of a job is left, and the order in which workers get it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vswin_extract.job.job import Job
from vswin_extract.job.shard import Shard
from vswin_extract.journal.journal import Journal
from vswin_extract.run.clip_counts import clip_counts, known_counts, rough_counts
from vswin_extract.run.dispatch import PieceKey, piece_key
from vswin_extract.run.schedule import deal, piece_cost, plan
from vswin_extract.video.ranges import WHOLE, ClipRange, overlap
from vswin_extract.video.remote import Address
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.messages import Ready


@dataclass(frozen=True)
class RemainingWork:
    """Pieces of work: videos, or clip ranges of videos. `assigned`: all pieces of this run or shard. `left`: the pieces
    that are not done yet, in the order in which workers get them. `files`: the fingerprint of each video's file, by id.
    `counts`: the clips of videos whose headers were read, by id. `costs`: the cost of each piece in clips; empty for
    one worker without shards."""

    assigned: Sequence[Video]
    left: Sequence[Video]
    files: Mapping[str, tuple[int, float, str]]
    counts: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[PieceKey, float] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each video that is left, by id; of a missing file, or an unknown size, 0."""
        return {video.id: max(0, self.files[video.id][0]) for video in self.left}


def find_work(job: Job, journal: Journal, ready: Ready, workers: int) -> RemainingWork:
    """Return what is left. If there are fewer or longer videos than decoders, long ones are divided into clip ranges.
    The longest pieces come first for several workers, for a shard, and where a video is divided; otherwise videos are
    in their order."""
    counts = {} if workers == 1 and job.shard is None else clip_counts(job, journal, ready)
    assigned = job.videos if job.shard is None else _assigned(job, counts, job.shard, ready)
    files = {video.id: fingerprint(video) for video in assigned}
    missing = {video.id: journal.missing(replace(video, clip_range=WHOLE), *files[video.id]) for video in assigned}
    left = [
        replace(video, clip_range=clips) for video in assigned for clips in overlap(video.clip_range, missing[video.id])
    ]
    left = _whole_again(left, journal)
    if counts:
        pieces = _divide(left, counts, job, ready, workers)
        step = ready.sampling.step
        costs = {piece_key(video): piece_cost(video.clip_range, counts[video.id], step) for video in pieces}
        return RemainingWork(assigned, pieces, files, counts, costs)
    known = known_counts(journal.root)
    rough, opened = rough_counts(left, files, known, job, ready)
    pieces = _divide(left, rough, job, ready, workers)
    return RemainingWork(assigned, pieces if len(pieces) > len(left) else left, files, known | opened)


def _assigned(job: Job, counts: Mapping[str, int], shard: Shard, ready: Ready) -> Sequence[Video]:
    """Return the pieces of a shard. They depend only on the list of videos, and not on what is done or on this machine,
    so that all shards divide the videos in the same way."""
    videos: list[tuple[int, Sequence[ClipRange]]] = [(counts[video.id], [WHOLE]) for video in job.videos]
    undivided = () if job.decodes_ranges else range(len(videos))
    pieces = deal(plan(videos, shard.count, ready.sampling.step, undivided), shard)
    return [replace(job.videos[piece.video], clip_range=piece.clip_range) for piece in pieces]


def _divide(left: Sequence[Video], counts: Mapping[str, int], job: Job, ready: Ready, workers: int) -> list[Video]:
    """Divide what is left among all decoders of all workers. A file at an address is divided among workers only: each
    decoder that reads a part of it fetches all of it."""
    step = ready.sampling.step
    if workers > 1 and any(isinstance(video.path, Address) for video in left):
        together = [not job.decodes_ranges or video.sequential for video in left]
        left = _planned(left, counts, workers, step, together, uneven=False)
    together = [not job.decodes_ranges or video.sequential or isinstance(video.path, Address) for video in left]
    return _planned(left, counts, workers * ready.decoders, step, together, uneven=workers > 1)


def _planned(
    left: Sequence[Video], counts: Mapping[str, int], hands: int, step: int, together: Sequence[bool], uneven: bool
) -> list[Video]:
    """Divide pieces as `plan` does, except those that have to stay `together`."""
    videos: list[tuple[int, Sequence[ClipRange]]] = [(counts[video.id], [video.clip_range]) for video in left]
    undivided = {number for number, stays in enumerate(together) if stays}
    pieces = plan(videos, hands, step, undivided, uneven)
    return [replace(left[piece.video], clip_range=piece.clip_range) for piece in pieces]


def _whole_again(left: Sequence[Video], journal: Journal) -> list[Video]:
    """Return the pieces that are left, but for each video that has to be read from its beginning, the whole video."""
    pieces = {}
    for video in left:
        if journal.must_be_sequential(video.id):
            video = replace(video, clip_range=WHOLE, sequential=True)
        pieces[piece_key(video)] = video
    return list(pieces.values())
