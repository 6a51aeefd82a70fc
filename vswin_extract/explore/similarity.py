"""How alike clips are: cosines of embeddings, blockwise over an output; a video with itself, and where it changes."""

from collections.abc import Iterator

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError
from vswin_extract.store.features import FeatureFile

Floats = NDArray[np.float32]
ROWS = 4096
"""Clips that are read and compared at a time."""
DIGITS = 6
"""Of a cosine: what float32 tells apart, so that equal clips have equal scores wherever they are in a block."""
SHOWN = 1000
"""Rows of a similarity matrix at most; of longer videos neighbouring clips are averaged."""
REACH = 8
"""Clips on either side of a moment that say whether the video changes there, at most."""
LEAST_NOVELTY = 0.02
"""What a change of cosine has to be at least to be a boundary: below it is noise."""


def embeddings(features: FeatureFile) -> h5py.Dataset:
    """/embedding (clips, C). Raises UsageError where the file has none."""
    if "embedding" not in features.names:
        raise UsageError(f"{features.file.filename} has no embedding; extract it without --no-embedding")
    return features.file["embedding"]


def unit(rows: NDArray[np.floating]) -> Floats:
    """(n, C) of length 1, float32; zeros stay zeros."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)  # type: ignore[no-any-return]


def unit_blocks(features: FeatureFile, first: int = 0, end: int | None = None) -> Iterator[tuple[int, Floats]]:
    """Rows [first, end) of the embedding, of length 1, ROWS at a time, each block with the number of its first row."""
    dataset = embeddings(features)
    end = len(dataset) if end is None else end
    for begin in range(first, end, ROWS):
        yield begin, unit(dataset[begin : min(begin + ROWS, end)])


def cosines(one: Floats, other: Floats) -> Floats:
    """(n, C) and (m, C) of length 1 -> (n, m), rounded to DIGITS."""
    return np.round(one @ other.T, DIGITS)


def self_similarity(rows: NDArray[np.floating]) -> Floats:
    """Cosines of a video's clips (n, C) with one another: (n, n), n at most SHOWN."""
    vectors = unit(rows)
    if len(vectors) > SHOWN:
        edges = np.linspace(0, len(vectors), SHOWN, endpoint=False).astype(int)
        vectors = unit(np.add.reduceat(vectors, edges))
    return cosines(vectors, vectors)


def novelty(similarity: Floats) -> Floats:
    """How much a video changes before each of its clips: (n, n) -> (n,), 0 where it does not, and before the first.

    A checkerboard kernel on the diagonal (Foote 2000): the mean cosine within up to REACH clips before and within as
    many after, less that between the two sides. Near the ends it is smaller, and counts for less in proportion. A
    clip's cosine with itself does not count.
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
        else:  # one clip a side has nothing to be compared with but its other neighbour
            beside = [similarity[k - 2, k - 1]] if k > 1 else []
            beside += [similarity[k, k + 1]] if k + 1 < n else []
            within = np.mean(beside) if beside else 1.0
        found[k] = (within - across) * reach / most
    return found


def boundaries(similarity: Floats) -> list[int]:
    """The clips that a new segment begins with: where novelty has a peak.

    A peak is the largest value (of equal ones the first) among REACH // 2 clips on either side, at least LEAST_NOVELTY,
    and at least a standard deviation above the video's mean novelty.
    """
    values = novelty(similarity)
    least = max(LEAST_NOVELTY, float(values[1:].mean() + values[1:].std())) if len(values) > 2 else LEAST_NOVELTY
    around = REACH // 2
    return [
        k
        for k in range(1, len(values))
        if values[k] >= least and k == max(0, k - around) + int(np.argmax(values[max(0, k - around) : k + around + 1]))
    ]
