"""Dividing videos among workers or shards: the longest first, long videos in several clip ranges. Pure arithmetic.

Decoding always begins at the beginning of a video, so a later clip range also costs the decoding of the clips before
it:

    clips                    0 1 2 3 4 5 6 7 8 9
    clip range (0, 4)        N N N N                   4 clips computed, 4 decoded
    clip range (4, 7)        d d d d N N N             3 clips computed, 7 decoded
    clip range (7, None)     d d d d d d d N N N       3 clips computed, 10 decoded
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from vswin_extract.job.shard import Shard
from vswin_extract.video.ranges import ClipRange

DECODING = 0.1
"""Cost of decoding and dropping a clip's frames, where computing a clip costs 1. An estimate, not measured yet."""
SHORTEST = 16
"""Clips of a clip range, at least: each clip range begins by opening the video again."""
GAIN = 0.98
"""Videos are divided only if the run ends earlier by this factor."""


@dataclass(frozen=True)
class Piece:
    """A clip range of video number `video` of a list, and its cost in clips."""

    video: int
    clip_range: ClipRange
    cost: float


def plan(videos: Sequence[tuple[int, Sequence[ClipRange]]], workers: int) -> list[Piece]:
    """Return pieces of work, the longest first. Each of several workers or shards takes the next piece when it has
    finished one. Long videos are divided into clip ranges where the last worker finishes earlier by that.

    `videos`: for each video the number of its clips, as far as it is known, and the clip ranges that are to be
    extracted.
    """
    whole = [
        Piece(video, clip_range, piece_cost(clip_range, clips))
        for video, (clips, clip_ranges) in enumerate(videos)
        for clip_range in clip_ranges
    ]
    best, earliest = whole, makespan(whole, workers)
    if workers > 1:
        share = sum(piece.cost for piece in whole) / workers
        target = share
        while max((piece.cost for piece in best), default=0) > target and target > share / 64:
            target /= 2
            pieces = [part for piece in whole for part in _split(piece, videos[piece.video][0], target)]
            end = makespan(pieces, workers)
            if end < GAIN * earliest:
                best, earliest = pieces, end
    return sorted(best, key=lambda piece: (-piece.cost, piece.video, piece.clip_range[0]))


def makespan(pieces: Sequence[Piece], workers: int) -> float:
    """Return when the last worker finishes, in clips, if each takes the longest piece that is left."""
    ends = [0.0] * workers
    for cost in sorted((piece.cost for piece in pieces), reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def deal(pieces: Sequence[Piece], shard: Shard) -> list[Piece]:
    """Return the pieces of a shard. Each piece goes to the shard with the least work so far."""
    ends = [(0.0, index) for index in range(shard.count)]
    mine = []
    for piece in pieces:
        cost, index = ends[0]
        heapq.heapreplace(ends, (cost + piece.cost, index))
        if index == shard.index:
            mine.append(piece)
    return mine


def piece_cost(clip_range: ClipRange, clips: int) -> float:
    """Return the cost of a clip range of a video of this many clips, in clips."""
    first, end = clip_range
    last = max(clips if end is None else min(end, clips), first)
    return max(last - first, 1) + DECODING * last


def _split(piece: Piece, clips: int, target: float) -> list[Piece]:
    """Divide a piece into clip ranges of about the cost `target`, none of them short."""
    first, end = piece.clip_range
    last = clips if end is None else min(end, clips)
    if piece.cost <= target:
        return [piece]
    clip_ranges: list[ClipRange] = []
    while True:
        cut = int((target + first) / (1 + DECODING))  # where (cut - first) + DECODING * cut is the target
        if cut - first < SHORTEST or last - cut < SHORTEST:
            break
        clip_ranges.append((first, cut))
        first = cut
    clip_ranges.append((first, end))
    return [Piece(piece.video, clip_range, piece_cost(clip_range, clips)) for clip_range in clip_ranges]
