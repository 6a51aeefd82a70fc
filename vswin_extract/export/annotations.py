"""What annotations say of each video, as projects compute times from it, and the check of what they compute."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vswin_extract.errors import UsageError
from vswin_extract.export.configuration import ExportFacts, clip_seconds, numbers
from vswin_extract.export.formulas import FORMULAS
from vswin_extract.export.grid import TOLERANCE
from vswin_extract.formatting import name_some, plural
from vswin_extract.loading.sequences import extent
from vswin_extract.store.features import FeatureFile

Database = dict[str, dict[str, Any]]
"""What is said of each video, by the name of its files."""


def describe_videos(format: str, features: FeatureFile, names: Mapping[str, str], facts: ExportFacts) -> Database:
    """Return for each video: `duration` in seconds, `fps`, `frame`, `rows`, and `start`, the second of the file from
    which its rows are counted. `names`: by id.

    On a grid, frames are counted at its rate, and the duration is computed from them, because OpenTAD takes frame /
    duration for the rate. For moment-detr it is what the rows cover, by which labels are divided.
    """
    table = features.file["videos_table"]
    columns = (table[name][:].tolist() for name in ("duration", "fps", "start", "clips"))
    database: Database = {}
    for video_id, seconds, fps, start, clips in zip(features, *columns, strict=True):
        if video_id not in names:
            continue
        rows = clips if facts.length is None else facts.length
        if start > 0:  # it may be asked for in the middle of a frame
            video = features[video_id]
            start, _ = extent(video, video.times[:1])
        entry = {"duration": seconds, "fps": fps, "frame": max(1, round(seconds * fps) if fps > 0 else 1)}
        if facts.grid is not None:
            fps, start = facts.grid.videos[video_id]
            frames = max(1, round(seconds * fps))
            entry = {"duration": _seconds_of(frames, fps), "fps": fps, "frame": frames}
            if format in ("moment-detr", "tvr"):
                entry |= {"duration": rows * clip_seconds(facts), "video_duration": seconds}
        database[names[video_id]] = {**entry, "start": start, "rows": rows}
    return database


def for_mmaction2(database: Database) -> Database:
    """Return the annotations of mmaction2's ActivityNetDataset, without any action. Both numbers of frames are a
    multiple of 16, because only their ratios are used, and predictions are of whole multiples of 16 frames."""
    made: Database = {}
    for name, entry in database.items():
        frames = 16 * math.ceil(entry["frame"] / 16)
        made[name] = {
            "duration_second": entry["duration"], "duration_frame": frames, "feature_frame": frames,
            "fps": entry["fps"], "rfps": frames / entry["duration"] if entry["duration"] else entry["fps"],
            "annotations": [],
        }  # fmt: skip
    return made


def check_times(format: str, database: Database, names: Mapping[str, str], facts: ExportFacts) -> None:
    """Compare what a project computes from its configuration and annotations with the centres of rows. Raises
    UsageError if they differ by over a millisecond."""
    given = numbers(format, facts)
    for video_id, name in names.items():
        entry = database[name]
        rows = entry["rows"]
        if facts.grid is not None:
            wanted = facts.grid.centres(rows, facts.grid.videos[video_id].fps)
        elif facts.length is not None:
            wanted = (np.arange(rows) + 0.5) * entry["duration"] / rows
        else:
            continue
        video = for_mmaction2({name: entry})[name] if format == "csv" else entry
        for formula in FORMULAS.get(format, ()):
            found = formula(rows, given, video)
            off = np.abs(found - wanted[: len(found)])
            if not (off <= TOLERANCE).all():
                k = int(np.argmax(~(off <= TOLERANCE)))
                raise UsageError(
                    f"row {k} of {video_id!r} is at {wanted[k]:.3f} s, but {format} would compute {found[k]:.3f} s; "
                    "extract with --fps, or give --resize-length"
                )


def find_notes(
    format: str, names: Mapping[str, str], database: Database, facts: ExportFacts, left_out: list[str]
) -> list[str]:
    """Return what a user of the format must know of this export."""
    notes = []
    if left_out:
        some = ", ".join(map(repr, left_out[:5])) + (", …" if len(left_out) > 5 else "")
        notes.append(
            f"left out, because {format} would compute wrong times for their only clips: {some} "
            f"({len(left_out)} in all)"
            + ("; --resize-length takes videos of any length" if format in ("actionformer", "opentad") else "")
        )
    segments = sum(database[name]["start"] > 0 for name in names.values())
    if segments and format in FORMULAS:
        notes.append(
            f"the rows of {plural(segments, 'segment')} of files are counted from the start of the segment: subtract "
            "start in videos.json from the seconds of annotations, and add it to predictions"
        )
    if segments and format in ("ten-crop", "summary") and facts.length is None:
        begins = [f"{name!r} at {database[name]['start']:.3f} s" for name in names.values() if database[name]["start"]]
        notes.append(
            f"frames of {plural(segments, 'segment')} of files are counted from the first frame of the segment: "
            f"{name_some(begins, 5)}" + ("; ten-crop.txt has the numbers of these frames" * (format == "ten-crop"))
        )
    if format == "opentad" and facts.grid is not None and facts.grid.rate is None:
        notes.append("frame rates differ, so the Epic datasets of OpenTAD (also Charades) cannot read this; use --fps")
    if format == "moment-detr":
        seconds = clip_seconds(facts)
        if abs(seconds - round(seconds)) > 1e-9:
            notes.append(f"Moment-DETR and QD-DETR take whole seconds as --clip_length, and this is {seconds:g}")
        if seconds * facts.longest > 150:
            notes.append("Moment-DETR, QD-DETR and lighthouse end predictions at 150 s; see moment-detr.txt")
    if format == "csv" and facts.length is None:
        notes.append("BSN and BMN of mmaction2 take one number of rows for all videos; use --resize-length 100")
    return notes


def _seconds_of(frames: int, fps: float) -> float:
    """Return frames / fps, so that it does not become a frame less when it is multiplied again."""
    seconds = frames / fps
    while int(seconds * fps) < frames:
        seconds = math.nextafter(seconds, math.inf)
    return seconds
