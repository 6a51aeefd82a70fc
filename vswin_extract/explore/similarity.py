"""How alike clips are: cosines of embeddings, block by block over an output; a video compared with itself, and where it
changes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.formatting import suggest_name
from vswin_extract.store.features import FeatureFile, VideoFeatures

Floats = NDArray[np.float32]
BLOCK = 4096
"""Clips that are read and compared at a time, unless a caller says otherwise."""
DIGITS = 6
"""Decimals that cosines are rounded to: float32 has no more, and so equal clips have equal scores in every block."""
SHOWN = 1000
"""Rows of a similarity matrix at most; of longer videos neighbouring clips are averaged."""
REACH = 8
"""Clips before and after a clip that are compared to find out whether the video changes there, at most."""
LEAST_NOVELTY = 0.02
"""The smallest change of cosine that can be a boundary; a smaller one is noise."""


def embeddings(features: FeatureFile) -> h5py.Dataset:
    """Return /embedding (clips, C), or (clips, crops, C). Raises UsageError if the file has none."""
    if "embedding" not in features.names:
        raise UsageError(f"{features.file.filename} has no embedding; extract it without --no-embedding")
    return features.file["embedding"]


def average_crops(features: FeatureFile | VideoFeatures, rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return rows of the embedding or the logits of an output or a video, (n, C), with the mean of each clip's crops
    where it has them, (n, crops, C)."""
    return rows.mean(1, dtype=np.float32) if features.crops else rows


def unit(rows: NDArray[np.floating]) -> Floats:
    """Divide each row of (n, C) by its length, in float32. Rows of zeros stay zeros. Raises UsageError for rows that
    are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = rows.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise UsageError("embeddings have NaN or infinite values; vswin check says more")
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]


def unit_rows(features: FeatureFile | VideoFeatures, rows: NDArray[np.floating]) -> Floats:
    """Do the same for rows of the embedding of an output or a video, after their crops are averaged."""
    return unit(average_crops(features, rows))


def unit_blocks(
    features: FeatureFile, first: int = 0, end: int | None = None, *, block: int = BLOCK
) -> Iterator[tuple[int, Floats]]:
    """Yield rows [first, end) of the embedding, divided by their lengths, `block` rows at a time, each block with the
    number of its first row."""
    dataset = embeddings(features)
    end = len(dataset) if end is None else end
    for begin in range(first, end, block):
        yield begin, unit_rows(features, dataset[begin : min(begin + block, end)])


def cosines(one: Floats, other: Floats) -> Floats:
    """Return the cosines (n, m) of rows of length 1, (n, C) and (m, C), rounded to DIGITS."""
    return np.round(one @ other.T, DIGITS)


def variety(features: FeatureFile, block: int = BLOCK) -> NDArray[np.float64]:
    """Return for each video (videos,) how much its clips differ: 1 minus the mean cosine of all pairs of its clips, a
    clip with itself too, so that it is 0 for one clip. The file is read once."""
    video_of = features.video_of_clips
    counts = np.maximum(1, np.bincount(video_of, minlength=len(features)))
    squares = np.ones(len(features))  # of the length of the sum of each video's rows
    last, carried = -1, np.zeros(features.file["embedding"].shape[-1])
    for first, rows in unit_blocks(features, block=block):
        begins = np.flatnonzero(np.diff(video_of[first : first + len(rows)], prepend=-1))
        sums = np.add.reduceat(rows.astype(np.float64), begins)
        numbers = video_of[first + begins]
        if numbers[0] == last:  # this video began in an earlier block
            sums[0] += carried
        squares[numbers] = (sums**2).sum(1)
        last, carried = numbers[-1], sums[-1]
    return (1 - squares / counts**2).clip(0)  # type: ignore[no-any-return]


def lowest_cosine(features: FeatureFile, names: Sequence[str]) -> float:
    """Return a cosine, a multiple of 0.1, below which no two clips of one of these videos lie."""
    rows = (average_crops(features, np.asarray(features[name].embedding)) for name in names)
    found = [float(self_similarity(each).min()) for each in rows]
    return min(0.9, math.floor(10 * min(found, default=0.9)) / 10)


def self_similarity(rows: NDArray[np.floating]) -> Floats:
    """Return the cosines (n, n) of a video's clips with each other. Of more than SHOWN clips, n is SHOWN, and
    neighbouring clips are averaged."""
    vectors = unit(rows)
    if len(vectors) > SHOWN:
        edges = np.linspace(0, len(vectors), SHOWN, endpoint=False).astype(int)
        vectors = unit(np.add.reduceat(vectors, edges))
    return cosines(vectors, vectors)


def novelty(similarity: Floats) -> Floats:
    """Return how much a video changes before each of its clips, (n, n) -> (n,); 0 before the first clip.

    A checkerboard kernel on the diagonal (Foote 2000): the mean cosine of up to REACH clips before with each other and
    of as many clips after with each other, minus the mean cosine between the two sides. Near the ends of the video the
    kernel is smaller, and the value is reduced in proportion. The cosine of a clip with itself does not count.
    """
    n = len(similarity)
    most = min(REACH, n // 2)
    found = np.zeros(n, np.float32)
    for k in range(1, n):
        reach = min(most, k, n - k)
        before, after = slice(k - reach, k), slice(k, k + reach)
        across = similarity[before, after].mean()
        if reach > 1:
            pairs = reach * (reach - 1)
            within = (similarity[before, before].sum() + similarity[after, after].sum() - 2 * reach) / (2 * pairs)
        else:  # with one clip on a side, compare it with its other neighbour
            beside = [similarity[k - 2, k - 1]] if k > 1 else []
            beside += [similarity[k, k + 1]] if k + 1 < n else []
            within = np.mean(beside) if beside else 1.0
        found[k] = (within - across) * reach / most
    return found


def boundaries(similarity: Floats) -> list[int]:
    """Return the clips that new segments begin with: the peaks of novelty.

    A peak is the largest value (the first of equal ones) among REACH // 2 clips before and after. It is at least
    LEAST_NOVELTY, and at least a standard deviation above the video's mean novelty.
    """
    values = novelty(similarity)
    least = max(LEAST_NOVELTY, float(values[1:].mean() + values[1:].std())) if len(values) > 2 else LEAST_NOVELTY
    around = REACH // 2
    return [
        k
        for k in range(1, len(values))
        if values[k] >= least and k == max(0, k - around) + int(np.argmax(values[max(0, k - around) : k + around + 1]))
    ]


@dataclass(frozen=True)
class SelfSimilarity:
    """A video compared with itself. `matrix`: cosines (n, n). `edges` (n + 1,): where each row begins and the last one
    ends, in seconds. `starts`: the seconds at which new segments begin. `novelty` (n,)."""

    matrix: Floats
    edges: NDArray[np.float64]
    starts: list[float]
    novelty: Floats


def compare_with_itself(features: FeatureFile, video_id: str) -> SelfSimilarity:
    """Compare a video's clips with each other. Since clips may overlap, a clip's row goes from half way to the clip
    before to half way to the clip after. Raises UsageError if there is no such video or no embedding."""
    embeddings(features)
    if video_id not in features:
        meant = suggest_name(video_id, features)
        hint = f"did you mean {meant}?" if meant else "vswin inspect lists the ids"
        raise UsageError(f"{features.file.filename} has no video {video_id!r}; {hint}")
    video = features[video_id]
    matrix = self_similarity(average_crops(features, np.asarray(video.embedding)))
    times = np.asarray(video.times)
    middles = times.mean(1)
    edges = np.concatenate([[times[0, 0]], (middles[1:] + middles[:-1]) / 2, [times[-1, 1]]])
    kept = np.linspace(0, len(video), len(matrix) + 1).astype(int)  # as self_similarity averages
    edges = edges[kept]
    return SelfSimilarity(matrix, edges, [float(edges[k]) for k in boundaries(matrix)], novelty(matrix))
