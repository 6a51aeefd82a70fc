"""An index of all clips by FAISS, kept beside the output: in a file of millions of clips, comparing with each takes
long.

out.h5.faiss    a line of JSON that says which embeddings it was made from, and the index as FAISS writes it
"""

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError, needs
from vswin_extract.explore.similarity import Floats, embeddings, unit_blocks
from vswin_extract.files import FileKind, Target
from vswin_extract.store.attributes import stored_value
from vswin_extract.store.features import FeatureFile

INDEX = FileKind("an index of vswin search", (b'{"made_of": ',))
EXACT_BELOW = 10_000
"""Up to this many clips the index compares with all of them."""
MOST_HEADER = 1 << 24
"""Bytes of the line of JSON, at most: those of 100,000 linked files."""
TRAINED_ON = 64
"""Clips per cell that the cells are found from; FAISS wants at least 39."""
PROBED = 32
"""Cells that are searched for a query."""


@dataclass(frozen=True)
class Index:
    """`faiss` finds clips by the inner product of vectors of length 1; `mean` (C,) is the mean of all of them. `built`:
    True if the index was built just now."""

    faiss: Any
    mean: Floats
    path: Path
    built: bool


def import_faiss() -> Any:
    """Return the module of FAISS. Raises UsageError if it is not installed."""
    with needs("faiss", "search", "--index faiss needs FAISS"):
        import faiss
    return faiss


def index_path(features: FeatureFile) -> Path:
    """Return the file of an output's index."""
    return Path(f"{os.path.realpath(features.file.filename)}.faiss")


def open_index(features: FeatureFile, *, exact_below: int = EXACT_BELOW) -> Index:
    """Return the index beside an output. It is built first if there is none, or one of other embeddings. Raises
    UsageError if FAISS is not installed, there are no clips, another program wrote a file of that name, or a new index
    cannot be written there."""
    faiss = import_faiss()
    target = Target(index_path(features), INDEX, advice="rename it")
    path = target.check_replaced()
    made_of = identity(features)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            header = json.loads(file.readline(MOST_HEADER))
        except (ValueError, RecursionError):
            header = None
        if isinstance(header, dict) and header.get("made_of") == made_of:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
            return Index(_probe_more(index), np.array(header["mean"], np.float32), path, built=False)
    return _build(features, target, made_of, exact_below)


def identity(features: FeatureFile) -> list[list[Any]]:
    """Return the run, sha256 and number of rows of the embeddings, for each file that has some."""
    if not features.linked:
        return [_identity(features.file)]
    found = [[len(embeddings(features))]]
    for path in features.linked:
        with h5py.File(path, "r") as file:
            found.append(_identity(file))
    return found


def _identity(file: h5py.File) -> list[Any]:
    rows = file["embedding"]
    return [str(stored_value(file, "run") or ""), str(stored_value(rows, "sha256") or ""), len(rows)]


def _build(features: FeatureFile, target: Target, made_of: list[list[Any]], exact_below: int) -> Index:
    """Build the index and write it. Few clips are kept as they are; many are divided into cells, with one byte per
    number (IVF, SQ8), which takes an eighth to a quarter of the file's size."""
    faiss = import_faiss()
    path = target.check()
    count, *_, channels = embeddings(features).shape
    if not count:
        raise UsageError(f"{features.file.filename} has no clips to search")
    cells = math.isqrt(count)
    kind = "Flat" if count <= exact_below else f"IVF{cells},SQ8"
    index = faiss.index_factory(channels, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        step = max(1, count // (TRAINED_ON * cells))
        index.train(np.concatenate([rows[-begin % step :: step] for begin, rows in unit_blocks(features)]))
    total = np.zeros(channels, np.float64)
    for _, rows in unit_blocks(features):
        index.add(rows)
        total += rows.sum(0)
    mean = (total / count).astype(np.float32)
    with target.write() as unfinished, open(unfinished, "wb") as file:
        file.write(json.dumps({"made_of": made_of, "mean": mean.tolist()}).encode() + b"\n")
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    return Index(_probe_more(index), mean, path, built=True)


def _probe_more(index: Any) -> Any:
    """Return the index, set to search PROBED cells if it has cells."""
    if hasattr(index, "nprobe"):
        index.nprobe = PROBED
    return index


def candidates(index: Index, queries: Floats, count: int) -> NDArray[np.int64]:
    """Return the rows of clips that are probably the nearest to one of the queries (Q, C), `count` for each, sorted."""
    _, rows = index.faiss.search(queries, count)
    return np.unique(rows[rows >= 0])
