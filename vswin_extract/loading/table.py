"""An output as a table of pandas, with a row for each clip."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vswin_extract.errors import UsageError, needs
from vswin_extract.store.features import FeatureFile

if TYPE_CHECKING:
    import pandas


def clip_table(features: FeatureFile, names: Sequence[str]) -> "pandas.DataFrame":
    """Return a table with a row for each clip: id, row (of the video), start, end, first_frame, end_frame, valid; and a
    column for each feature in `names`, with an array in each cell. Raises UsageError."""
    with needs("pandas", "pandas", "to_pandas needs pandas"):
        import pandas
    for name in names:
        if name not in features.names:
            raise UsageError(f"{features.file.filename} has no {name}; it has {', '.join(features.names)}")
    video_of, ids = features.video_of_clips, np.array(list(features), dtype=object)
    firsts = np.flatnonzero(np.diff(video_of, prepend=-1))
    counts = np.diff(firsts, append=len(video_of))
    times, frames = features.times, features.file["clips/frames"][:]
    columns = {
        "id": ids[video_of],
        "row": np.arange(len(video_of)) - np.repeat(firsts, counts),
        "start": times[:, 0],
        "end": times[:, 1],
        "first_frame": frames[:, 0],
        "end_frame": frames[:, 1],
        "valid": features.file["clips/valid"][:],
        **{name: list(features.file[name][:]) for name in names},
    }
    return pandas.DataFrame(columns)
