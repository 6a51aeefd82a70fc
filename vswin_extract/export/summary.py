"""The HDF5 file of networks that summarise videos: DSNet, PGL-SUM, VASNet and others that read the files of vsumm.

A group for each video:

    features         (T, C) float32
    picks            (T,) the frame from which on row k counts, up to that of row k + 1
    n_frames         frames of the video
    n_steps          T
    change_points    (S, 2) the first and the last frame of each segment
    n_frame_per_seg  (S,) frames of each segment
    video_name       the id of the video

(li-plus/DSNet 1804176: src/helpers/data_helper.py:22, src/make_dataset.py:47; e-apostolidis/PGL-SUM 81d0d6d:
inference/inference.py:27; ok1zjf/VASNet c378753: main.py:320)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import UsageError, needs
from vswin_extract.export.formats import Item
from vswin_extract.export.guarded import GuardedWriter
from vswin_extract.formatting import as_utf8
from vswin_extract.store.features import VideoFeatures

MOST_CHANGES = 300
"""Change points of a video, at most. The time to find them grows with their number and the square of the rows."""


def write_summary(folder: Path, items: Iterable[Item]) -> None:
    """Write summary.h5. Raises UsageError if ruptures is not installed, or if rows are not clips."""
    with needs("ruptures", "summary", "this format finds change points by ruptures"):
        import ruptures
    with GuardedWriter(folder / "summary.h5") as file:
        for number, item in enumerate(items, 1):
            if not item.clips:
                raise UsageError("summary has a row for each clip, so it does not go with --resize-length")
            for name, values in _describe(item, find_changes(ruptures, item.values)).items():
                file.write(f"video_{number}/{name}", values)  # readers split a group's path, so it is not the id


def _describe(item: Item, changes: list[int]) -> dict[str, NDArray[Any]]:
    """Return the datasets of a video whose segments begin with row 0 and with the rows `changes`."""
    picks, frames = find_picks(item.video)
    edges = np.array([0, *picks[changes], frames])
    return {
        "features": item.values,
        "picks": picks,
        "n_frames": np.array(frames),
        "n_steps": np.array(len(picks)),
        "change_points": np.stack([edges[:-1], edges[1:] - 1], 1),
        "n_frame_per_seg": np.diff(edges),
        "video_name": np.array(as_utf8(item.name), h5py.string_dtype()),
    }


def first_frame(video: VideoFeatures) -> int:
    """Return the number of the video's first frame in the file: 0 unless it is a segment."""
    sampling, info = video.output.sampling, video.info
    ahead = max(0, int(sampling.start(0)))  # positions before the first clip
    if sampling.fps is None:
        return int(video.frames[0, 0]) - ahead
    return round(video.frames[0, 0] - ahead / float(sampling.fps) * info["fps"]) if info["start"] else 0


def find_picks(video: VideoFeatures) -> tuple[NDArray[np.int64], int]:
    """Return the frame from which on each row counts, and how many frames the video has; those of a segment are counted
    from its first one. A frame counts for the row whose clip has the nearest centre."""
    sampling, frames, times, total = video.output.sampling, video.frames[:], video.times[:], video.info["frames"]
    starts, first = np.array([sampling.start(k) for k in range(len(video))]), first_frame(video)
    ahead = max(0, int(starts[0]))  # positions before the first clip
    if sampling.fps is None:
        begin, rate = 0.0, 1.0
        last = int(frames[-1, 0]) - first
    else:
        rate = float(sampling.fps)
        begin = times[0, 0] - ahead / rate
        last = round((times[-1, 0] - begin) * rate)
    if sampling.tail == "shift":
        starts[-1] = last
    edges = (starts[1:] + starts[:-1] + sampling.span) / 2  # half way between the centres of two clips, in positions
    if sampling.fps is not None:
        seconds, where = np.unique(times, return_index=True)
        edges = np.interp(begin + edges / rate, seconds, frames.ravel()[where]) - first
    picks = np.floor(edges + 0.5).astype(np.int64).clip(0, max(0, total - 1))
    return np.concatenate([[0], picks]), total


def find_changes(ruptures: Any, rows: NDArray[np.float32]) -> list[int]:
    """Return the rows with which a new segment begins, by kernel temporal segmentation (Potapov 2014) of rows of length
    1: the number of segments is the one with the least scatter, and a penalty for each."""
    count = len(rows)
    if count < 2:
        return []
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(rows / np.maximum(lengths, np.finfo(np.float32).tiny))
    search.predict(n_bkps=min(count - 1, MOST_CHANGES))  # those of fewer changes are found on the way
    found = [[count], *search.segmentations_dict.values()]
    changes = np.arange(1, len(found))
    penalties = changes / (2 * count) * (np.log(count / changes) + 1)
    costs = np.array([search.cost.sum_of_costs(ends) for ends in found]) / count + [0, *penalties]
    best: list[int] = found[int(costs.argmin())]
    return best[:-1]
