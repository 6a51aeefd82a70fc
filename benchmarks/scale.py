"""Costs that depend on the number of videos alone, measured with 100,000 videos of one clip of eight numbers each."""

import resource
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from benchmarks.machine import Row
from benchmarks.merging import SETTINGS, record_of
from vswin_extract.journal.journal import open_journal
from vswin_extract.journal.merge import merge
from vswin_extract.store.features import linked_files, open_features
from vswin_extract.store.layouts import Layout, make_output
from vswin_extract.store.schema import Arrays, row_types
from vswin_extract.video.videos import Video

VIDEOS, KEPT = 100_000, 1000
ARRAYS = Arrays({"embedding": (8,)})


def scale() -> list[Row]:
    rows: list[Row] = []
    with TemporaryDirectory() as name:
        folder = Path(name)

        def timed(what: str, act: Callable[[], object], videos: int = VIDEOS, output: Path | None = None) -> None:
            begun = time.perf_counter()
            act()
            seconds = time.perf_counter() - begun
            nbytes = sum(path.stat().st_size for path in (output, *linked_files(output))) if output else 0
            rows.append(
                {
                    "what": what,
                    "seconds": seconds,
                    "ms a video": 1e3 * seconds / videos,
                    "kB a video": nbytes / 1e3 / videos,
                    "most memory so far, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )

        fixed = {name: np.ones((1, *shape), dtype) for name, (shape, dtype) in row_types(ARRAYS).items()}
        records = [record_of(video, clips=1) for video in range(VIDEOS)]
        ids = [record.id for record in records]

        def keep() -> None:
            with open_journal(folder / "kept.h5", SETTINGS, ARRAYS, False, ids) as journal:
                for record in records[:KEPT]:
                    part = journal.writer().part(Video(record.id, Path(record.id)))
                    part.append(fixed)
                    journal.writer().commit(record, part)

        def make(output: Path, layout: Layout) -> None:
            made_of = ARRAYS, {**SETTINGS, "run": "0" * 32}, ()
            make_output(
                output, output.with_suffix(".tmp"), layout, lambda mine: repeat(fixed, len(mine)), records, *made_of
            )

        timed("keep each video of a run (fsync)", keep, KEPT)
        for layout in get_args(Layout):
            path = folder / f"{layout}.h5"
            timed(f"write the output, {layout}", partial(make, path, layout), output=path)
        shards = linked_files(folder / "sharded.h5")
        timed("merge --link of the shards", lambda: merge(folder / "index.h5", shards, layout="linked"))
        for path in (folder / "single.h5", folder / "sharded.h5"):
            timed(f"{path.name}: open", partial(look, path, []))
            timed(f"{path.name}: open, and 1,000 videos' rows", partial(look, path, ids[::100]))
    return rows


def look(path: Path, ids: list[str]) -> None:
    with open_features(path) as features:
        for each in ids:
            features[each].embedding[:]
