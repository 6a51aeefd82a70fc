"""The output that `open_features` opens: read by video, searched, and as a table."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from vswin_extract.errors import UsageError
from vswin_extract.explore.query import Moment, Query, find_query
from vswin_extract.explore.search import SearchResult, nearest
from vswin_extract.explore.similarity import average_crops, embeddings, unit
from vswin_extract.formatting import suggest_name
from vswin_extract.loading.table import clip_table
from vswin_extract.store.features import CHUNK_CACHE, FeatureFile, VideoFeatures

if TYPE_CHECKING:
    import pandas


class UnknownVideo(KeyError):
    """An id that no video of a file has. The id that was meant is looked for only when the text is shown: `in` and
    `get` raise this, too."""

    def __init__(self, video_id: str, known: Iterable[str] = ()) -> None:
        super().__init__(video_id)
        self._known = known

    def __str__(self) -> str:
        meant = suggest_name(str(self.args[0]), self._known)
        return super().__str__() + (f"; did you mean {meant!r}?" if meant else "")


class SearchableFile(FeatureFile):
    """An open output, as a mapping from video id to its features, which can be searched. `open_features` makes it.

    >>> with vswin_extract.open_features("out.h5") as features:
    ...     print(len(features), features.clips, [result.best.video for result in features.search("shapes.avi")])
    2 3 ['shapes.mkv']
    """

    def __getitem__(self, video_id: str) -> VideoFeatures:
        try:
            return super().__getitem__(video_id)
        except KeyError:
            raise UnknownVideo(video_id, self._videos) from None

    def search(
        self,
        query: str,
        *,
        top: int = 10,
        within: str | None = None,
        same_video: bool = True,
        weights: str | None = None,
        device: str = "auto",
    ) -> list[SearchResult]:
        """Return the runs of clips that are most like a query, best first, as `vswin search` does.

        `query`: ID@SECONDS is the clip of the file around that second, ID all clips of a video of the file. A video
        file, PATH or PATH@SECONDS, is first extracted with the file's settings, and the file's weights or `weights`, on
        a `device`. `top`: results, at most. `within`: only videos whose ids match this pattern, as clips/*.
        `same_video`: also search the query's own video; clips that overlap the query are never results. Raises
        UsageError, WeightsError, DeviceError.

            >>> with vswin_extract.open_features("out.h5") as features:
            ...     for result in features.search("shapes.mkv@1", top=2):
            ...         print(result.best.video, round(result.best.start, 2))
            shapes.mkv 2.67
            shapes.avi 0.0
        """
        found = find_query(self, query, weights=weights, device=device)
        return nearest(self, found, top=top, within=within, same_video=same_video)

    def nearest(
        self, clips: VideoFeatures | ArrayLike, *, top: int = 10, within: str | None = None
    ) -> list[SearchResult]:
        """Return the runs of clips that are most like any of some `clips`, best first. They are compared with all clips
        of the file; `search` leaves out the query itself.

        `clips`: a video, as of `Model.video` with the weights and settings of this file, or embeddings (C,) or (N, C).
        In a result, `like` is the clip of these that it is like; of embeddings it is called row 0, row 1 and so on, and
        its seconds are NaN. `top` and `within` as in `search`. Raises UsageError.

            >>> with vswin_extract.open_features("out.h5") as features:
            ...     [result] = features.nearest(video, top=1)
            >>> result.best.video, round(result.score, 2)
            ('shapes.mkv', 1.0)
        """
        if isinstance(clips, VideoFeatures):
            if "embedding" not in clips.names:
                raise UsageError(f"{clips.id} has no embedding, by which clips are compared")
            values = average_crops(clips, np.asarray(clips.embedding))
            moments = [Moment(clips.id, float(start), float(end)) for start, end in clips.times[:]]
        else:
            values = np.atleast_2d(np.asarray(clips))
            moments = [Moment(f"row {row}", np.nan, np.nan) for row in range(len(values))]
        wanted = embeddings(self).shape[-1:]
        if values.ndim != 2 or values.shape[1:] != wanted or not len(values) or values.dtype.kind not in "fiu":
            raise UsageError(
                f"clips are compared by embeddings of shape {wanted} or (N, {wanted[0]}), not by {values.dtype} of "
                f"shape {values.shape}"
            )
        return nearest(self, Query(tuple(moments), unit(values), ""), top=top, within=within)

    def to_pandas(self, names: Sequence[str] = ()) -> "pandas.DataFrame":
        """Return a table with a row for each clip: id, row, start, end (seconds), first_frame, end_frame, valid.

        `names`: features, as embedding, that become columns of arrays; `numpy.stack(table["embedding"])` is the matrix.
        Needs pandas: `pip install 'vswin-extract[pandas]'`. Raises UsageError if a feature or pandas is missing.

            >>> with vswin_extract.open_features("out.h5") as features:
            ...     table = features.to_pandas(["embedding"])
            >>> table[["id", "row", "start", "end"]].round(2)
                       id  row  start   end
            0  shapes.avi    0   0.00  4.00
            1  shapes.mkv    0   0.00  2.67
            2  shapes.mkv    1   2.67  5.00
            >>> table["embedding"][0].shape
            (128,)
        """
        return clip_table(self, [names] if isinstance(names, str) else names)


def open_features(
    path: str | os.PathLike[str], chunk_cache: int = CHUNK_CACHE, *, follow: bool = False
) -> SearchableFile:
    """Open an output for reading; `with` or `close()` closes it. `chunk_cache`: bytes of each dataset that HDF5 keeps
    in memory. `follow`: an index may link to files outside of its own directory. Raises UsageError if there is no
    complete output, and UnsoundOutput if its structure is wrong.

        >>> with vswin_extract.open_features("out.h5") as features:
        ...     for video_id, each in features.items():
        ...         print(video_id, each.embedding.shape, each.times[0])
        shapes.avi (1, 128) [0. 4.]
        shapes.mkv (2, 128) [0.    2.669]
    """
    return SearchableFile(path, chunk_cache, follow)
