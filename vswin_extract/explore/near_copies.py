"""Near-copies: different videos of an output that agree over some time."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.explore.approximate import Index
from vswin_extract.explore.query import Moment
from vswin_extract.explore.search import matching_videos
from vswin_extract.explore.similarity import BLOCK, DIGITS, Floats, cosines, embeddings, unit_blocks, unit_rows
from vswin_extract.store.features import FeatureFile

THRESHOLD = 0.95
"""Cosine from which on clips of two videos are near-copies. Measured with nano: clips of copies that were made smaller,
brighter or cropped by 5 % scored 0.96 to 0.999, badly encoded ones 0.92 to 0.998, ones that begin half a second later
0.86 to 0.99; clips of other videos of the same studio scored up to 0.934, of other videos up to 0.89."""
MOST_PAIRS = 2_000_000
"""Pairs of clips that near-copies are made of, at most; if there are more, the threshold separates nothing."""
GAP = 2
"""Pairs of clips that are at most this many clips apart in both videos belong to one near-copy: one clip may be
missing between them."""
ROUNDING = 0.02
"""How far below the cosine an index of bytes may be."""
ASKED = 256
"""Clips whose pairs an index is asked for at a time; each may have many."""
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], Floats]
"""Rows, other rows, and their cosines."""
PairScores = dict[tuple[int, int], float]
"""The cosine of each pair of rows."""


@dataclass(frozen=True)
class NearCopy:
    """Two videos that agree over these seconds. `score`: the mean, over the clips of `one`, of their best cosine."""

    one: Moment
    other: Moment
    score: float


def near_copies(
    features: FeatureFile,
    *,
    threshold: float = THRESHOLD,
    within: str | None = None,
    index: Index | None = None,
    most_pairs: int = MOST_PAIRS,
    block: int = BLOCK,
) -> list[NearCopy]:
    """Return pairs of different videos that have clips with a cosine of at least `threshold`, the most alike first.
    Pairs of clips that follow one another in both videos are one near-copy. `within`: at least one of the two ids
    matches this pattern.

    Every clip is compared with every other one, so the time grows with the square of the clips. With an index it grows
    less, and some pairs may be missed. Raises UsageError if there are more than `most_pairs` pairs of clips.
    """
    if not -1 <= threshold <= 1:
        raise UsageError(f"threshold is a cosine, from -1 to 1, not {threshold:g}")
    video = features.video_of_clips
    wanted = matching_videos(features, within)
    by_videos: dict[tuple[int, int], PairScores] = defaultdict(dict)
    pairs = 0
    for ones, others, scores in _pairs(features, threshold, index, block):
        a, b = video[ones], video[others]
        kept = (a != b) & (wanted[a] | wanted[b])
        pairs += int(kept.sum())
        if pairs > most_pairs:
            raise UsageError(f"more than {most_pairs} pairs of clips agree to {threshold:g}; raise --threshold")
        for i, j, score in zip(ones[kept].tolist(), others[kept].tolist(), scores[kept].tolist(), strict=True):
            by_videos[int(video[i]), int(video[j])][i, j] = score
    found = list(_merge_pairs(features, by_videos))
    return sorted(found, key=lambda pair: (-pair.score, pair.one.start - pair.one.end))


def _merge_pairs(features: FeatureFile, by_videos: dict[tuple[int, int], PairScores]) -> Iterator[NearCopy]:
    """Yield the near-copies that the pairs of clips of each two videos make."""
    ids, times = list(features), features.times
    for (a, b), scores in by_videos.items():
        for group in groups(scores):
            best: dict[int, float] = {}
            for i, j in group:
                best[i] = max(best.get(i, -1.0), scores[i, j])
            (first, last), (begin, end) = ((min(side), max(side)) for side in zip(*group, strict=True))
            one = Moment(ids[a], float(times[first, 0]), float(times[last, 1]))
            other = Moment(ids[b], float(times[begin, 0]), float(times[end, 1]))
            yield NearCopy(one, other, round(sum(best.values()) / len(best), DIGITS))


def _pairs(features: FeatureFile, threshold: float, index: Index | None, block: int) -> Iterator[Pairs]:
    """Yield rows i < j whose cosine is at least `threshold`, a block at a time, and their cosines."""
    for first, rows in unit_blocks(features, block=block):
        if index is not None:
            yield from _pairs_of_index(index, features, first, rows, threshold, block)
            continue
        for begin, others in unit_blocks(features, first, block=block):
            products = cosines(rows, others)
            i, j = np.nonzero(products >= threshold)
            later = first + i < begin + j
            yield first + i[later], begin + j[later], products[i[later], j[later]]


def _pairs_of_index(
    index: Index, features: FeatureFile, first: int, rows: Floats, threshold: float, block: int
) -> Iterator[Pairs]:
    """Yield the same for a block that begins with row `first`, as far as an index finds them."""
    for begin in range(0, len(rows), ASKED):
        asked = rows[begin : begin + ASKED]
        limits, _, near = index.faiss.range_search(asked, threshold - ROUNDING)
        at = np.repeat(np.arange(len(asked)), np.diff(limits).astype(np.int64))
        later = near > first + begin + at
        at, near = at[later], near[later]
        for k in range(0, len(at), block):
            i, j = at[k : k + block], near[k : k + block]
            others, back = np.unique(j, return_inverse=True)
            scores = np.round((asked[i] * unit_rows(features, embeddings(features)[others])[back]).sum(1), DIGITS)
            kept = scores >= threshold
            yield first + begin + i[kept], j[kept], scores[kept]


def groups(pairs: dict[tuple[int, int], Any]) -> Iterator[list[tuple[int, int]]]:
    """Yield groups of pairs of rows of two videos: pairs that are at most GAP apart in both videos are in one group."""
    left = set(pairs)
    steps = [(di, dj) for di in range(-GAP, GAP + 1) for dj in range(-GAP, GAP + 1)]
    for pair in sorted(pairs):
        if pair not in left:
            continue
        left.remove(pair)
        group = [pair]
        for i, j in group:  # the list grows in the loop
            near = [(i + di, j + dj) for di, dj in steps if (i + di, j + dj) in left]
            left.difference_update(near)
            group += near
        yield group
