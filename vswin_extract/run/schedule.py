"""Dividing videos among decoders or shards: the longest first, long videos in several clip ranges. Pure arithmetic.

Decoding begins at the key frame before a clip range, so each range but the first also costs the decoding of the frames
between that key frame and its first clip:

    clips                    0 1 2 3 4 5 6 7 8 9
    key frames               k         k     k
    clip range (0, 4)        N N N N                   4 clips computed, 4 decoded
    clip range (4, 7)              d N N N             3 clips computed, 3 and the frames since a key frame decoded
    clip range (7, None)                 d N N N       3 clips computed, 3 and the frames since a key frame decoded
"""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vswin_extract.job.shard import Shard
from vswin_extract.video.ranges import ClipRange

DECODING = 0.1
"""Cost of decoding and dropping a clip's frames, where computing a clip costs 1. An estimate, not measured yet."""
FROM_KEY_FRAME = 125
"""Frames from a key frame to the first clip of a range: half of the 250 frames between two key frames of x264."""
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


def plan(
    videos: Sequence[tuple[int, Sequence[ClipRange]]],
    hands: int,
    step: int,
    undivided: Collection[int] = (),
    uneven: bool = False,
) -> list[Piece]:
    """Return pieces of work, the longest first. Each of several `hands`, which are decoders or shards, takes the next
    piece when it has finished one. Long videos are divided into clip ranges where the last one finishes earlier by
    that.

    `videos`: for each video the number of its clips, as far as it is known, and the clip ranges that are to be
    extracted. `step`: frames from a clip to the next one. `undivided`: numbers of videos whose ranges stay as they are.
    `uneven`: hands may begin at different times, or differ in speed, so that the last one may end later by the longest
    piece; then pieces are shorter.
    """
    whole = [
        Piece(video, clip_range, piece_cost(clip_range, clips, step))
        for video, (clips, clip_ranges) in enumerate(videos)
        for clip_range in clip_ranges
    ]

    def end_of(pieces: Sequence[Piece]) -> float:
        return makespan(pieces, hands) + max((piece.cost for piece in pieces), default=0.0) * uneven

    best, earliest = whole, end_of(whole)
    if hands > 1:
        divisible = [piece for piece in whole if piece.video not in undivided]
        rest = [piece for piece in whole if piece.video in undivided]
        share = sum(piece.cost for piece in whole) / hands
        target = share
        while max((piece.cost for piece in best if piece.video not in undivided), default=0) > target > share / 64:
            pieces = [part for piece in divisible for part in _split(piece, videos[piece.video][0], target, step)]
            pieces += rest
            end = end_of(pieces)
            if end < GAIN * earliest:
                best, earliest = pieces, end
            target /= 2
    return sorted(best, key=lambda piece: (-piece.cost, piece.video, piece.clip_range[0]))


def makespan(pieces: Sequence[Piece], hands: int) -> float:
    """Return when the last decoder or shard finishes, in clips, if each takes the longest piece that is left."""
    ends = [0.0] * hands
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


def piece_cost(clip_range: ClipRange, clips: int, step: int) -> float:
    """Return the cost of a clip range of a video of this many clips, in clips of `step` frames."""
    first, end = clip_range
    last = clips if end is None else min(end, clips)
    return (1 + DECODING) * max(last - first, 1) + (FROM_KEY_FRAME / step if first else 0.0)


def _split(piece: Piece, clips: int, target: float, step: int) -> list[Piece]:
    """Divide a piece evenly into clip ranges of about the cost `target`, none of them short."""
    first, end = piece.clip_range
    last = clips if end is None else min(end, clips)
    count = min(math.ceil(piece.cost / target - 1e-6), (last - first) // SHORTEST)
    if count < 2:
        return [piece]
    cuts = [first + (last - first) * number // count for number in range(1, count)]
    clip_ranges = zip([first, *cuts], [*cuts, end], strict=True)
    return [Piece(piece.video, clip_range, piece_cost(clip_range, clips, step)) for clip_range in clip_ranges]
