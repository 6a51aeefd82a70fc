"""Searching an output: the clips nearest to a clip or a video, and near-copies among all of its videos.

    query ──vectors──> cosines with all clips ──peaks──> results, each a run of clips of one video

By default every clip is compared, a block at a time; `approximate.Index` says which clips are worth it where there are
millions. Scores are exact either way.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError, VswinError, WeightsError
from vswin_extract.explore.approximate import Index, candidates
from vswin_extract.explore.similarity import DIGITS, ROWS, Floats, cosines, embeddings, unit, unit_blocks
from vswin_extract.files import file_sha256
from vswin_extract.store.features import FeatureFile, VideoFeatures, open_features

if TYPE_CHECKING:
    from vswin_extract.job.events import Event

CANDIDATES = 10
"""Clips an index is asked for at first, for each result that is wanted; four times as many if they do not do."""
THRESHOLD = 0.95
"""Cosine from which on clips of two videos are near-copies. By nano, clips of copies made smaller, brighter or cropped
by 5 % scored 0.96 to 0.999, coded badly 0.92 to 0.998, beginning half a second later 0.86 to 0.99, those of other
videos of one studio up to 0.934, of other videos up to 0.89."""
MOST_PAIRS = 2_000_000
"""Pairs of clips that near-copies are made of; where there are more, the threshold tells nothing apart."""
GAP = 2
"""Pairs of clips no further apart than this many clips, in both videos, are one near-copy: one clip may be missing."""
ROUNDING = 0.02
"""By so much an index of bytes may underrate a cosine."""
ASKED = 256
"""Clips that an index is asked for the pairs of at a time, since each may have many."""
QUERIES = 200
"""Clips of a video that are compared at most where other videos are searched for."""
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], Floats]
"""Rows, other rows, and their cosines."""


@dataclass(frozen=True)
class Moment:
    """Seconds [start, end) of a video."""

    video: str
    start: float
    end: float


@dataclass(frozen=True)
class Query:
    """What is searched for: clips, and their embeddings of length 1 (clips, C). `path`: of their video. `video`: its
    id, where it is one of the file's."""

    moments: tuple[Moment, ...]
    vectors: Floats
    path: str
    video: str | None = None


@dataclass(frozen=True)
class Result:
    """A run of clips that are like the query: `best` is the clip that is most so, by `score` (cosine), `like` the
    query's clip that it is like."""

    run: Moment
    best: Moment
    like: Moment
    score: float


@dataclass(frozen=True)
class NearCopy:
    """Two videos that agree over these seconds. `score`: mean over the clips of `one` of their best cosine."""

    one: Moment
    other: Moment
    score: float


def find_query(
    features: FeatureFile,
    text: str,
    *,
    weights: str | None = None,
    device: str = "auto",
    on_event: "Callable[[Event], None]" = lambda event: None,
) -> Query:
    """A query by its text: ID@SECONDS is the clip of the file around that second, ID all clips of a video of the file;
    the path of a video file, or PATH@SECONDS, is extracted with the file's settings and weights first. What names a
    video of the file is never taken for a path. `weights`: a file or name, where those of the file cannot be found.

    Raises UsageError, WeightsError, DeviceError.
    """
    embeddings(features)
    name, _, after = text.rpartition("@")
    try:
        seconds = float(after) if name else None
    except ValueError:
        seconds = None
    if text in features or seconds is None:
        name, seconds = text, None
    if name in features:
        return _of_file(features, name, seconds)
    for path, at in ((text, None), (name, seconds)):
        if os.path.isfile(path):
            with tempfile.TemporaryDirectory(prefix="vswin-search-") as folder:
                output = extract_like(features, path, Path(folder), weights, device, on_event)
                with open_features(output) as extracted:
                    (video,) = extracted.values()
                    return _query(video, _clip_at(video, at), path)
    raise UsageError(f"{text!r} is neither a video of {features.file.filename} (ID or ID@SECONDS) nor a video file")


def _of_file(features: FeatureFile, name: str, seconds: float | None) -> Query:
    video = features[name]
    made = _query(video, _clip_at(video, seconds), str(video.info["path"]))
    return replace(made, video=name)


def _query(video: VideoFeatures, clips: tuple[int, int], path: str) -> Query:
    begin, end = clips
    times = video.times[begin:end]
    moments = tuple(Moment(video.id, float(start), float(stop)) for start, stop in times)
    return Query(moments, unit(video.embedding[begin:end]), path)


def _clip_at(video: VideoFeatures, seconds: float | None) -> tuple[int, int]:
    """[first, end) of the clip whose middle is nearest to this second, one that covers it where there is one (a stride
    may leave gaps); all for None."""
    if seconds is None:
        return 0, len(video)
    times = np.asarray(video.times)
    if not times[:, 0].min() <= seconds <= times[:, 1].max():
        raise UsageError(
            f"second {seconds:g} is not in {video.id}, whose clips go from {times[:, 0].min():.2f} to "
            f"{times[:, 1].max():.2f}"
        )
    far = np.abs(times.mean(1) - seconds)
    covers = (times[:, 0] <= seconds) & (seconds <= times[:, 1])
    clip = int(np.argmin(np.where(covers, far, far + times[:, 1].max())))
    return clip, clip + 1


def extract_like(
    features: FeatureFile,
    path: str,
    folder: Path,
    weights: str | None,
    device: str,
    on_event: "Callable[[Event], None]",
) -> Path:
    """An output in `folder` of one video, extracted as those of the file were: same weights, sampling, pixels,
    precision, decoder. Raises what a run does, and UsageError where the video fails."""
    from vswin_extract.run.api import extract

    info = features.info
    sampling, pixels = info["sampling"], info["preprocessing"]
    output = folder / "query.h5"
    done = extract(
        [path],
        output,
        weights=os.fspath(weights_of(features, weights)),
        variant=info["variant"]["name"],
        clip_len=sampling["clip_len"],
        frame_interval=sampling["frame_interval"],
        stride=sampling["stride"],
        fps=sampling["fps"],
        align=sampling["align"],
        tail=sampling["tail"],
        size=pixels["size"],
        resize=pixels["resize"],
        crop=pixels["crop"],
        precision=info["precision"],
        decoder=info["decoder"],
        device=device,
        on_event=on_event,
    )
    if done.failed:
        with open_features(output) as extracted:
            failure = extracted.failures[0]
        raise UsageError(f"{path} cannot be searched for: {failure['error']}: {failure['message']}")
    return output


def weights_of(features: FeatureFile, given: str | None) -> Path:
    """The file of the weights that an output was made with: by the name it records, in the cache, or as `given`. Its
    sha256 must be the recorded one. Raises WeightsError."""
    from vswin_extract.weights.cache import find_weights

    info = features.info
    name, sha256 = str(info["model"]), str(info["weights_sha256"])
    try:
        path = find_weights(given or name)
    except VswinError as error:
        raise WeightsError(
            f"a video is compared by the weights of {features.file.filename}, {name} (sha256 {sha256[:8]}…), which "
            f"cannot be had: {error}; or name their file by --weights"
        ) from error
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} has sha256 {found[:8]}…, and {features.file.filename} was made with {name} of sha256 "
            f"{sha256[:8]}…; name the file of those by --weights"
        )
    return path


def nearest(
    features: FeatureFile,
    query: Query,
    *,
    top: int = 10,
    within: str | None = None,
    same_video: bool = True,
    index: Index | None = None,
) -> list[Result]:
    """The `top` runs of clips that are most like any of the query's clips, best first, of equal ones the first in the
    file. `within`: only videos whose ids match this pattern, as clips/*. `same_video`: also elsewhere in the query's
    own video; clips that overlap the query never count.

    A result is a run of clips that follow one another: around a clip that is more like the query than those beside it,
    as far as scores are nearer to that clip's than to the mean cosine of the query with the whole file. A clip is in
    one result at most, and one that overlaps a better result's run begins none.
    """
    rows = len(embeddings(features))
    if index is None:
        scores, like, mean = compare_all(features, query.vectors)
        _leave_out(features, query, scores, within, same_video)
        return _results(features, query, scores, like, mean, top)
    mean = float(query.vectors.mean(0) @ index.mean)
    wanted = CANDIDATES * top
    while True:
        scores, like = compare_some(features, query.vectors, candidates(index, query.vectors, min(wanted, rows)))
        _leave_out(features, query, scores, within, same_video)
        found = _results(features, query, scores, like, mean, top)
        if len(found) == top or wanted >= rows:
            return found
        wanted *= 4


def compare_all(features: FeatureFile, vectors: Floats) -> tuple[Floats, NDArray[np.int64], float]:
    """Of every clip its largest cosine with the vectors (Q, C) and with which; and the mean of all cosines."""
    count = len(embeddings(features))
    scores, like, total = np.zeros(count, np.float32), np.zeros(count, np.int64), 0.0
    for first, block in unit_blocks(features):
        scores[first : first + len(block)], like[first : first + len(block)] = _best(block, vectors)
        total += float(block.sum(0, dtype=np.float64) @ vectors.mean(0))
    return scores, like, total / max(1, count)


def compare_some(features: FeatureFile, vectors: Floats, near: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """The same of the videos that have the rows `near`; others score minus infinity."""
    count = len(embeddings(features))
    scores, like = np.full(count, -np.inf, np.float32), np.zeros(count, np.int64)
    ids = list(features)
    for video in np.unique(features.file["clips/video"][:][near]):
        rows = features[ids[video]].rows
        for first, block in unit_blocks(features, rows.start, rows.stop):
            scores[first : first + len(block)], like[first : first + len(block)] = _best(block, vectors)
    return scores, like


def _best(block: Floats, vectors: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Of each row its largest cosine with the vectors, ROWS of them at a time, and with which; the first of equals."""
    scores, like = np.full(len(block), -np.inf, np.float32), np.zeros(len(block), np.int64)
    for begin in range(0, len(vectors), ROWS):
        products = cosines(block, vectors[begin : begin + ROWS])
        at = products.argmax(1)
        value = products[np.arange(len(block)), at]
        better = value > scores
        scores[better], like[better] = value[better], begin + at[better]
    return scores, like


def _leave_out(features: FeatureFile, query: Query, scores: Floats, within: str | None, same_video: bool) -> None:
    """Give minus infinity to clips that are not wanted."""
    if within is not None:
        scores[~_matching(features, within)[features.file["clips/video"][:]]] = -np.inf
    if query.video is None:
        return
    rows = features[query.video].rows
    times = features.file["clips/times"][rows]
    overlap = (times[:, 0] < query.moments[-1].end) & (times[:, 1] > query.moments[0].start)
    scores[rows][overlap | (not same_video)] = -np.inf


def _matching(features: FeatureFile, pattern: str | None) -> NDArray[np.bool_]:
    """Which videos have an id like this. Raises UsageError where none has."""
    matching = np.array([pattern is None or fnmatchcase(name, pattern) for name in features], bool)
    if pattern is not None and not matching.any():
        raise UsageError(f"no id in {features.file.filename} matches {pattern!r}; vswin inspect lists them")
    return matching


def _results(
    features: FeatureFile, query: Query, scores: Floats, like: NDArray[np.int64], mean: float, top: int
) -> list[Result]:
    ids = list(features)
    video_of, times = features.file["clips/video"][:], features.file["clips/times"][:]
    found = []
    for row, (first, end) in runs(scores, video_of, times, mean, top):
        name = ids[video_of[row]]
        run = Moment(name, float(times[first, 0]), float(times[end - 1, 1]))
        best = Moment(name, *map(float, times[row]))
        found.append(Result(run, best, query.moments[like[row]], round(float(scores[row]), DIGITS)))
    return found


def nearest_videos(features: FeatureFile, names: Sequence[str], top: int = 5) -> dict[str, list[Result]]:
    """Of each of these videos the `top` other videos with a clip that is most like one of its own, the most alike
    first, by the best clip of each: one pass over the file for all names. Of a video of more than QUERIES clips so many
    are compared, evenly spaced."""
    ids, video_of = list(features), features.file["clips/video"][:]
    asked, found = {}, {}
    for name in names:
        count = len(features[name])
        asked[name] = np.unique(np.linspace(0, count - 1, min(count, QUERIES)).astype(int))
        found[name] = (unit(features[name].embedding[:][asked[name]]), dict[int, tuple[float, int, int]]())
    for first, block in unit_blocks(features):
        begins = np.flatnonzero(np.diff(video_of[first : first + len(block)], prepend=-1))
        for name, (vectors, best) in found.items():
            scores, like = _best(block, vectors)
            peaks = np.maximum.reduceat(scores, begins)
            for k in np.argsort(-peaks, kind="stable")[: top + 1].tolist():  # one of them may be the video itself
                end = begins[k + 1] if k + 1 < len(begins) else len(block)
                row = int(begins[k] + np.argmax(scores[begins[k] : end]))
                video = int(video_of[first + row])
                if ids[video] != name and scores[row] > best.get(video, (-np.inf,))[0]:
                    best[video] = (float(scores[row]), first + row, int(asked[name][like[row]]))
            for video in sorted(best, key=lambda video: -best[video][0])[top:]:
                del best[video]
    results = {}
    for name, (_, best) in found.items():
        moments = []
        for video, (score, row, own) in sorted(best.items(), key=lambda each: -each[1][0]):
            best_clip = Moment(ids[video], *map(float, features.file["clips/times"][row]))
            own_clip = Moment(name, *map(float, features[name].times[own]))
            moments.append(Result(best_clip, best_clip, own_clip, round(score, DIGITS)))
        results[name] = moments
    return results


def runs(
    scores: Floats, video: NDArray[np.int64], times: NDArray[np.float64], mean: float, top: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """The `top` best rows, each with the run [first, end) of rows that it stands for; see `nearest`."""
    count = len(scores)
    if not count:
        return
    same = np.concatenate([[False], video[1:] == video[:-1], [False]])  # row k and the one before are of one video
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


def near_copies(
    features: FeatureFile, *, threshold: float = THRESHOLD, within: str | None = None, index: Index | None = None
) -> list[NearCopy]:
    """Pairs of different videos of which clips agree, cosine at least `threshold`, the most alike first: where pairs of
    clips follow one another in both videos, they are one near-copy. `within`: at least one of the two matches.

    Every clip is compared with every other one, so that the time grows with their square; with an index it does not,
    and some pairs may be missed. Raises UsageError for more than MOST_PAIRS pairs of clips.
    """
    if not -1 <= threshold <= 1:
        raise UsageError(f"threshold is a cosine, from -1 to 1, not {threshold:g}")
    ids, video = list(features), features.file["clips/video"][:]
    wanted = _matching(features, within)
    together: dict[tuple[int, int], dict[tuple[int, int], float]] = defaultdict(dict)
    pairs = 0
    for ones, others, scores in _pairs(features, threshold, index):
        a, b = video[ones], video[others]
        kept = (a != b) & (wanted[a] | wanted[b])
        pairs += int(kept.sum())
        if pairs > MOST_PAIRS:
            raise UsageError(f"more than {MOST_PAIRS} pairs of clips agree to {threshold:g}; raise --threshold")
        for i, j, score in zip(ones[kept].tolist(), others[kept].tolist(), scores[kept].tolist(), strict=True):
            together[int(video[i]), int(video[j])][i, j] = score
    times = features.file["clips/times"][:]
    found = []
    for (a, b), agreeing in together.items():
        for group in groups(agreeing):
            best: dict[int, float] = {}
            for i, j in group:
                best[i] = max(best.get(i, -1.0), agreeing[i, j])
            (first, last), (begin, end) = ((min(side), max(side)) for side in zip(*group, strict=True))
            one = Moment(ids[a], float(times[first, 0]), float(times[last, 1]))
            other = Moment(ids[b], float(times[begin, 0]), float(times[end, 1]))
            found.append(NearCopy(one, other, round(sum(best.values()) / len(best), DIGITS)))
    return sorted(found, key=lambda pair: (-pair.score, pair.one.start - pair.one.end))


def _pairs(features: FeatureFile, threshold: float, index: Index | None) -> Iterator[Pairs]:
    """Rows i < j whose cosine is at least `threshold`, a block at a time, and their cosines."""
    for first, block in unit_blocks(features):
        if index is not None:
            yield from _pairs_by(index, features, first, block, threshold)
            continue
        for begin, other in unit_blocks(features, first):
            products = cosines(block, other)
            i, j = np.nonzero(products >= threshold)
            later = first + i < begin + j
            yield first + i[later], begin + j[later], products[i[later], j[later]]


def _pairs_by(index: Index, features: FeatureFile, first: int, block: Floats, threshold: float) -> Iterator[Pairs]:
    """The same of a block that begins with row `first`, as far as an index finds them."""
    for begin in range(0, len(block), ASKED):
        asked = block[begin : begin + ASKED]
        limits, _, near = index.faiss.range_search(asked, threshold - ROUNDING)
        at = np.repeat(np.arange(len(asked)), np.diff(limits).astype(np.int64))
        later = near > first + begin + at
        at, near = at[later], near[later]
        for k in range(0, len(at), ROWS):
            i, j = at[k : k + ROWS], near[k : k + ROWS]
            rows, back = np.unique(j, return_inverse=True)
            scores = np.round((asked[i] * unit(embeddings(features)[rows])[back]).sum(1), DIGITS)
            kept = scores >= threshold
            yield first + begin + i[kept], j[kept], scores[kept]


def groups(pairs: dict[tuple[int, int], Any]) -> Iterator[list[tuple[int, int]]]:
    """Pairs of rows of two videos, those together that are at most GAP apart in both."""
    left = set(pairs)
    steps = [(di, dj) for di in range(-GAP, GAP + 1) for dj in range(-GAP, GAP + 1)]
    for pair in sorted(pairs):
        if pair not in left:
            continue
        left.remove(pair)
        group = [pair]
        for i, j in group:  # which grows
            near = [(i + di, j + dj) for di, dj in steps if (i + di, j + dj) in left]
            left.difference_update(near)
            group += near
        yield group
