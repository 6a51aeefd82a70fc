"""Searching an output for the clips that are nearest to a query.

    query ──vectors──> cosines with all clips ──peaks──> results, each a run of clips of one video

By default every clip is compared, a block at a time. In a file of millions of clips, `approximate.Index` first says
which clips are worth comparing. Scores are exact in both cases.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vswin_extract.explore.approximate import Index, candidates
from vswin_extract.explore.query import Moment, Query
from vswin_extract.explore.similarity import BLOCK, DIGITS, Floats, cosines, embeddings, unit_blocks, unit_rows
from vswin_extract.store.features import FeatureFile

CANDIDATES = 10
"""Clips that an index is first asked for, for each wanted result; if they are too few, four times as many."""
COMPARED = 200
"""Clips of a video that are compared when other videos are searched for, at most."""


@dataclass(frozen=True)
class SearchResult:
    """A run of clips that are like the query. `best`: the clip with the highest `score` (cosine). `like`: the clip of
    the query that it is like.

        >>> result.run.video, result.run.start, result.like.video
        ('shapes.mkv', 0.0, 'shapes.mkv')
    """

    run: Moment
    best: Moment
    like: Moment
    score: float


def nearest(
    features: FeatureFile,
    query: Query,
    *,
    top: int = 10,
    within: str | None = None,
    same_video: bool = True,
    index: Index | None = None,
    block: int = BLOCK,
) -> list[SearchResult]:
    """Return the `top` runs of clips that are most like any of the query's clips, best first, equal ones in the order
    of the file. `within`: only videos whose ids match this pattern, as clips/*. `same_video`: also search the query's
    own video; clips that overlap the query are never results. Raises UsageError if no id matches.

    A run is a clip that is more like the query than its neighbours are, with the clips around it whose scores are
    nearer to its score than to the mean cosine of the query with the whole file. No clip is in two results, and a clip
    that overlaps a better result's run begins no result.
    """
    rows = len(embeddings(features))
    if index is None:
        scores, like, mean = compare_all(features, query.vectors, block)
        _leave_out(features, query, scores, within, same_video)
        return _results(features, query, scores, like, mean, top)
    mean = float(query.vectors.mean(0) @ index.mean)
    wanted = CANDIDATES * top
    while True:
        near = candidates(index, query.vectors, min(wanted, rows))
        scores, like = compare_some(features, query.vectors, near, block)
        _leave_out(features, query, scores, within, same_video)
        found = _results(features, query, scores, like, mean, top)
        if len(found) == top or wanted >= rows:
            return found
        wanted *= 4


def compare_all(features: FeatureFile, vectors: Floats, block: int = BLOCK) -> tuple[Floats, NDArray[np.int64], float]:
    """Return for every clip its largest cosine with the vectors (Q, C), and with which vector; and the mean of all
    cosines."""
    count = len(embeddings(features))
    scores, like, total = np.zeros(count, np.float32), np.zeros(count, np.int64), 0.0
    for first, rows in unit_blocks(features, block=block):
        scores[first : first + len(rows)], like[first : first + len(rows)] = _best(rows, vectors, block)
        total += float(rows.sum(0, dtype=np.float64) @ vectors.mean(0))
    return scores, like, total / max(1, count)


def compare_some(
    features: FeatureFile, vectors: Floats, near: NDArray[np.int64], block: int = BLOCK
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the same for the videos that the rows `near` are of. Clips of other videos score minus infinity."""
    count = len(embeddings(features))
    scores, like = np.full(count, -np.inf, np.float32), np.zeros(count, np.int64)
    ids = list(features)
    for video in np.unique(features.file["clips/video"][:][near]):
        own = features[ids[video]].rows
        for first, rows in unit_blocks(features, own.start, own.stop, block=block):
            scores[first : first + len(rows)], like[first : first + len(rows)] = _best(rows, vectors, block)
    return scores, like


def _best(rows: Floats, vectors: Floats, block: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return for each row its largest cosine with the vectors, `block` of them at a time, and with which vector; of
    equal ones the first."""
    scores, like = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
    for begin in range(0, len(vectors), block):
        products = cosines(rows, vectors[begin : begin + block])
        at = products.argmax(1)
        value = products[np.arange(len(rows)), at]
        better = value > scores
        scores[better], like[better] = value[better], begin + at[better]
    return scores, like


def _leave_out(features: FeatureFile, query: Query, scores: Floats, within: str | None, same_video: bool) -> None:
    """Set the scores of clips that are not wanted to minus infinity."""
    if within is not None:
        scores[~matching_videos(features, within)[features.video_of_clips]] = -np.inf
    if query.video is None:
        return
    rows = features[query.video].rows
    times = features.times[rows]
    overlap = (times[:, 0] < query.moments[-1].end) & (times[:, 1] > query.moments[0].start)
    scores[rows][overlap | (not same_video)] = -np.inf


def matching_videos(features: FeatureFile, pattern: str | None) -> NDArray[np.bool_]:
    """Return for each video (videos,) whether its id matches; without a pattern all do. Raises UsageError if none
    does."""
    if pattern is None:
        return np.ones(len(features), bool)
    wanted = set(features.matching(pattern))
    return np.array([name in wanted for name in features], bool)


def _results(
    features: FeatureFile, query: Query, scores: Floats, like: NDArray[np.int64], mean: float, top: int
) -> list[SearchResult]:
    ids = list(features)
    video_of, times = features.video_of_clips, features.times
    found = []
    for row, (first, end) in runs(scores, video_of, times, mean, top):
        name = ids[video_of[row]]
        run = Moment(name, float(times[first, 0]), float(times[end - 1, 1]))
        best = Moment(name, *map(float, times[row]))
        found.append(SearchResult(run, best, query.moments[like[row]], round(float(scores[row]), DIGITS)))
    return found


def runs(
    scores: Floats, video: NDArray[np.int64], times: NDArray[np.float64], mean: float, top: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the `top` best rows, each with the run of rows [first, end) around it; `nearest` says what a run is.
    `scores`, `video` (which video) and `times` are those of each row, `mean` is the mean score."""
    count = len(scores)
    if not count:
        return
    same = np.concatenate([[False], video[1:] == video[:-1], [False]])  # row k and the row before are of one video
    before = np.where(same[:-1], np.concatenate([[-np.inf], scores[:-1]]), -np.inf)
    after = np.where(same[1:], np.concatenate([scores[1:], [-np.inf]]), -np.inf)
    peaks = np.flatnonzero((scores > before) & (scores >= after))
    taken, shadowed = np.zeros(count, bool), np.zeros(count, bool)
    for row in peaks[np.argsort(-scores[peaks], kind="stable")].tolist():
        if shadowed[row]:
            continue
        if not top:
            return
        top -= 1
        level = (scores[row] + min(mean, float(scores[row]))) / 2
        first, end = row, row + 1
        while same[first] and scores[first - 1] >= level and not taken[first - 1]:
            first -= 1
        while same[end] and scores[end] >= level and not taken[end]:
            end += 1
        taken[first:end] = True
        yield row, (first, end)
        low, high = first, end
        while same[low] and times[low - 1, 1] > times[first, 0]:
            low -= 1
        while same[high] and times[high, 0] < times[end - 1, 1]:
            high += 1
        shadowed[low:high] = True


def nearest_videos(
    features: FeatureFile, names: Sequence[str], top: int = 5, *, compared: int = COMPARED, block: int = BLOCK
) -> dict[str, list[SearchResult]]:
    """Return for each of these videos the `top` other videos with the clips that are most like one of its own, best
    first, each by its best clip. The file is read once for all names. Of a video of more than `compared` clips that
    many are compared, evenly spaced."""
    ids, video_of = list(features), features.video_of_clips
    asked, found = {}, {}
    for name in names:
        count = len(features[name])
        asked[name] = np.unique(np.linspace(0, count - 1, min(count, compared)).astype(int))
        vectors = unit_rows(features, features[name].embedding[:][asked[name]])
        found[name] = (vectors, dict[int, tuple[float, int, int]]())
    for first, rows in unit_blocks(features, block=block):
        begins = np.flatnonzero(np.diff(video_of[first : first + len(rows)], prepend=-1))
        for name, (vectors, best) in found.items():
            scores, like = _best(rows, vectors, block)
            peaks = np.maximum.reduceat(scores, begins)
            for k in np.argsort(-peaks, kind="stable")[: top + 1].tolist():  # one of them may be the video itself
                end = begins[k + 1] if k + 1 < len(begins) else len(rows)
                row = int(begins[k] + np.argmax(scores[begins[k] : end]))
                video = int(video_of[first + row])
                if ids[video] != name and scores[row] > best.get(video, (-np.inf,))[0]:
                    best[video] = (float(scores[row]), first + row, int(asked[name][like[row]]))
            for video in sorted(best, key=lambda video: -best[video][0])[top:]:
                del best[video]
    results, times = {}, features.times
    for name, (_, best) in found.items():
        moments = []
        for video, (score, row, own) in sorted(best.items(), key=lambda each: -each[1][0]):
            best_clip = Moment(ids[video], *map(float, times[row]))
            own_clip = Moment(name, *map(float, features[name].times[own]))
            moments.append(SearchResult(best_clip, best_clip, own_clip, round(score, DIGITS)))
        results[name] = moments
    return results
