"""Who extracts what: videos, or clip_ranges of their clips, longest first, for several devices or shards. Plain arithmetic.

A clip_range is the clips [first, end) of a video; an end of None is the video's end, wherever that turns out to be. Decoding
always begins at a video's beginning, so a later clip_range costs the decoding of what it passes over, too:

    clips          0 1 2 3 4 5 6 7 8 9
    clip_range (0, 4)    N N N N                   4 clips computed, 4 decoded
    clip_range (4, 7)    d d d d N N N             3 clips computed, 7 decoded
    clip_range (7, None) d d d d d d d N N N       3 clips computed, 10 decoded
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from vswin_extract.job.shard import Shard
from vswin_extract.video.ranges import ClipRange

DECODING = 0.1
"""What decoding and dropping a clip's frames costs, where computing the clip costs 1: a guess, still to be measured."""
SHORTEST = 16
"""Clips of a clip_range at least: each begins by opening the video again."""
GAIN = 0.98
"""Splitting must bring the end nearer by this factor, or videos stay whole."""


@dataclass(frozen=True)
class Work:
    """A clip_range of video number `video` of a list, and what it costs, in clips."""

    video: int
    clip_range: ClipRange
    cost: float


def plan(videos: Sequence[tuple[int, Sequence[ClipRange]]], workers: int) -> list[Work]:
    """Work for `workers` devices or shards that each take the next piece when they are through with one: the longest
    first, and long videos in clip_ranges where all are through sooner by that.

    `videos`: for each the clips it has, as far as is known, and the clip_ranges of it that are to be extracted.
    """
    whole = [
        Work(video, clip_range, cost(clip_range, clips)) for video, (clips, clip_ranges) in enumerate(videos) for clip_range in clip_ranges
    ]  # fmt: skip
    best, soonest = whole, makespan(whole, workers)
    if workers > 1:
        share = sum(work.cost for work in whole) / workers
        target = share
        while max((work.cost for work in best), default=0) > target and target > share / 64:
            target /= 2
            pieces = [piece for work in whole for piece in _split(work, videos[work.video][0], target)]
            end = makespan(pieces, workers)
            if end < GAIN * soonest:
                best, soonest = pieces, end
    return sorted(best, key=lambda work: (-work.cost, work.video, work.clip_range[0]))


def makespan(work: Sequence[Work], workers: int) -> float:
    """When the last of `workers` is through, each taking the longest piece that is left; in clips."""
    ends = [0.0] * workers
    for cost in sorted((piece.cost for piece in work), reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def deal(work: Sequence[Work], shard: Shard) -> list[Work]:
    """The pieces of `plan` that a shard gets: each piece goes to the shard with the least so far."""
    ends = [(0.0, index) for index in range(shard.count)]
    mine = []
    for piece in work:
        cost, index = ends[0]
        heapq.heapreplace(ends, (cost + piece.cost, index))
        if index == shard.index:
            mine.append(piece)
    return mine


def cost(clip_range: ClipRange, clips: int) -> float:
    """What a clip_range of a video of so many clips costs, in clips."""
    first, end = clip_range
    last = max(clips if end is None else min(end, clips), first)
    return max(last - first, 1) + DECODING * last


def _split(work: Work, clips: int, target: float) -> list[Work]:
    """A piece in clip_ranges of about the same cost, none of which is short."""
    first, end = work.clip_range
    last = clips if end is None else min(end, clips)
    if work.cost <= target:
        return [work]
    clip_ranges: list[ClipRange] = []
    while True:
        cut = int((target + first) / (1 + DECODING))  # where (cut - first) + DECODING * cut is the target
        if cut - first < SHORTEST or last - cut < SHORTEST:
            break
        clip_ranges.append((first, cut))
        first = cut
    clip_ranges.append((first, end))
    return [Work(work.video, clip_range, cost(clip_range, clips)) for clip_range in clip_ranges]
