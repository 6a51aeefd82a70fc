"""An index of all clips by FAISS, kept beside the output: for millions of clips, where comparing with each takes long.

out.h5.faiss    a line of JSON that says what it was made of, and the index as FAISS writes it
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
from vswin_extract.files import publish
from vswin_extract.store.features import FeatureFile

EXACT_BELOW = 10_000
"""Clips up to which the index compares with all of them."""
TRAINED_ON = 64
"""Clips a cell that the cells are found from; FAISS wants 39 at least."""
PROBED = 32
"""Cells that a query looks into."""


@dataclass(frozen=True)
class Index:
    """`faiss` finds clips by inner product of vectors of length 1; `mean` (C,) is their mean. `built`: just now."""

    faiss: Any
    mean: Floats
    path: Path
    built: bool


def import_faiss() -> Any:
    """Raises UsageError where FAISS is not installed."""
    with needs("faiss", "search", "--index faiss needs FAISS"):
        import faiss
    return faiss


def open_index(features: FeatureFile) -> Index:
    """The index beside an output, built first where there is none, or one of other features. Raises UsageError."""
    faiss = import_faiss()
    path = Path(f"{os.path.realpath(features.file.filename)}.faiss")
    made_of = identity(features)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            said = json.loads(file.readline())
        except ValueError:
            said = {}
        if said.get("made_of") == made_of:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
            return Index(probing(index), np.array(said["mean"], np.float32), path, built=False)
    return build(features, path, made_of)


def identity(features: FeatureFile) -> list[list[Any]]:
    """Run, sha256 and number of rows of the embeddings, of each file that has some."""
    if not features.linked:
        return [_identity(features.file)]
    found = [[len(embeddings(features))]]
    for path in features.linked:
        with h5py.File(path, "r") as file:
            found.append(_identity(file))
    return found


def _identity(file: h5py.File) -> list[Any]:
    rows = file["embedding"]
    return [str(file.attrs.get("run", "")), str(rows.attrs.get("sha256", "")), len(rows)]


def build(features: FeatureFile, path: Path, made_of: list[list[Any]]) -> Index:
    """Few clips are kept as they are; many in cells, a byte a number (IVF, SQ8), an eighth to a quarter of the file."""
    faiss = import_faiss()
    count, channels = embeddings(features).shape
    if not count:
        raise UsageError(f"{features.file.filename} has no clips to search")
    cells = math.isqrt(count)
    kind = "Flat" if count <= EXACT_BELOW else f"IVF{cells},SQ8"
    index = faiss.index_factory(channels, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        step = max(1, count // (TRAINED_ON * cells))
        index.train(np.concatenate([block[-begin % step :: step] for begin, block in unit_blocks(features)]))
    total = np.zeros(channels, np.float64)
    for _, block in unit_blocks(features):
        index.add(block)
        total += block.sum(0)
    mean = (total / count).astype(np.float32)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(json.dumps({"made_of": made_of, "mean": mean.tolist()}).encode() + b"\n")
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Index(probing(index), mean, path, built=True)


def probing(index: Any) -> Any:
    """The index, looking into enough cells."""
    if hasattr(index, "nprobe"):
        index.nprobe = PROBED
    return index


def candidates(index: Index, queries: Floats, count: int) -> NDArray[np.int64]:
    """Rows of clips that are likely the nearest to one of the queries (Q, C), `count` each, sorted."""
    _, rows = index.faiss.search(queries, count)
    return np.unique(rows[rows >= 0])
