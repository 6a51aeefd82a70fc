"""What is searched for: a text names a clip or a video of the file, or a video file, and becomes vectors."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vswin_extract.errors import UsageError, VswinError, WeightsError
from vswin_extract.explore.similarity import Floats, embeddings, unit_rows
from vswin_extract.files import file_sha256
from vswin_extract.formatting import clock, parse_clock, suggest_name
from vswin_extract.store.features import FeatureFile, VideoFeatures, open_features
from vswin_extract.video.file_kinds import other_kind

if TYPE_CHECKING:
    from vswin_extract.job.events import Event


@dataclass(frozen=True)
class Moment:
    """Seconds [start, end) of a video.

    >>> round(result.best.end - result.best.start, 2)
    2.67
    """

    video: str
    start: float
    end: float


@dataclass(frozen=True)
class Query:
    """Clips to search for, and their embeddings (clips, C), of length 1. `path`: the path of their video. `video`: its
    id if it is a video of the file."""

    moments: tuple[Moment, ...]
    vectors: Floats
    path: str
    video: str | None = None


def find_query(
    features: FeatureFile,
    text: str,
    *,
    weights: str | None = None,
    device: str = "auto",
    on_event: "Callable[[Event], None]" = lambda event: None,
) -> Query:
    """Return the query that a text names. ID@TIME is the clip of the file at that time (65.3 or 1:05.3), ID all
    clips of a video of the file. A video file, PATH or PATH@TIME, is first extracted with the file's settings and
    weights. An id of the file is never taken for a path. `weights`: a name or file, if those of the file cannot be
    found.

    Raises UsageError, WeightsError, DeviceError.
    """
    embeddings(features)
    name, _, after = text.rpartition("@")
    seconds = parse_clock(after) if name else None
    if text in features or seconds is None:
        name, seconds = text, None
    if name in features:
        video = features[name]
        return replace(_query(video, seconds, str(video.info["path"])), video=name)
    for path, at in ((text, None), (name, seconds)):
        if os.path.isfile(path):
            with tempfile.TemporaryDirectory(prefix="vswin-search-") as folder:
                output = extract_like(features, path, Path(folder), weights, device, on_event)
                with open_features(output) as extracted:
                    (video,) = extracted.values()
                    return _query(video, at, path)
    before = text.rpartition("@")[0]
    if before and seconds is None and (before in features or os.path.isfile(before)):
        raise UsageError(
            f"{after!r} behind {before}@ is no time; write seconds, as 65.3, or 1:05.3, below 60 behind a colon"
        )
    meant = suggest_name(name, features)
    hint = f"did you mean {meant}{'' if seconds is None else f'@{after}'}?" if meant else "vswin inspect lists the ids"
    raise UsageError(
        f"{text!r} is neither a video of {features.file.filename} (ID or ID@TIME) nor a video file; {hint}"
    )


def _query(video: VideoFeatures, seconds: float | None, path: str) -> Query:
    """Return the query of the clip at this second, or of all clips."""
    clip = None if seconds is None else _clip_at(video, seconds)
    rows = slice(None) if clip is None else slice(clip, clip + 1)
    moments = tuple(Moment(video.id, float(start), float(end)) for start, end in video.times[rows])
    return Query(moments, unit_rows(video, video.embedding[rows]), path)


def _clip_at(video: VideoFeatures, seconds: float) -> int:
    """Return the clip whose middle is nearest to this second; if clips cover it, one of them. Unlike `VideoFeatures.at`
    it accepts seconds in gaps between clips."""
    times = np.asarray(video.times)
    first, end = times[:, 0].min(), times[:, 1].max()
    if not first <= seconds <= end:
        raise UsageError(f"{clock(seconds)} is not in {video.id}, whose clips go from {clock(first)} to {clock(end)}")
    far = np.abs(times.mean(1) - seconds)
    covers = (times[:, 0] <= seconds) & (seconds <= times[:, 1])
    return int(np.argmin(np.where(covers, far, far + end)))


def extract_like(
    features: FeatureFile,
    path: str,
    folder: Path,
    weights: str | None,
    device: str,
    on_event: "Callable[[Event], None]",
) -> Path:
    """Extract one video into an output in `folder` as the videos of the file were extracted: with the same weights,
    sampling, pixels, precision and decoder. Raises what a run raises, and UsageError if the video fails."""
    from vswin_extract.run.api import extract

    if kind := other_kind(Path(path)):
        raise UsageError(f"{path} cannot be searched for: VideoUnreadable: it is {kind}, not a video")
    path_of_weights, ema = weights_of(features, weights, on_event)
    output = folder / "query.h5"
    done = extract(
        [path],
        output,
        weights=os.fspath(path_of_weights),
        ema=ema,
        **settings_of(features),
        device=device,
        on_event=on_event,
    )
    if done.failed:
        with open_features(output) as extracted:
            failure = extracted.failures[0]
        raise UsageError(f"{path} cannot be searched for: {failure['error']}: {failure['message']}")
    return output


def settings_of(features: FeatureFile) -> dict[str, Any]:
    """Return the options of `extract` by which the videos of an output were extracted. Raises UsageError if the output
    does not say one."""
    info, file = features.info, features.file.filename
    try:
        sampling, pixels = info["sampling"], info["preprocessing"]
        names = ("clip_len", "frame_interval", "stride", "fps", "align", "tail")
        return {
            "variant": info["variant"]["name"],
            **{name: sampling[name] for name in names},
            **{name: pixels[name] for name in ("size", "resize", "crop")},
            "precision": info["precision"],
            "decoder": info["decoder"],
        }
    except KeyError as error:
        raise UsageError(
            f"{file} does not say its {error.args[0]}; a video cannot be extracted as its own were"
        ) from error


def weights_of(
    features: FeatureFile, given: str | None, on_event: "Callable[[Event], None]" = lambda event: None
) -> tuple[Path, bool]:
    """Return the file of the weights that an output was made with, and whether its averaged weights were taken: the
    given name or file, or else the name that the output records. Raises WeightsError if it is not found, or its sha256
    is not the recorded one."""
    from vswin_extract.job.events import Notice
    from vswin_extract.weights.pull import download_notice, obtain_weights

    info = features.info
    name, (sha256, ema, _) = str(info.get("model")), str(info.get("weights_sha256")).partition("+")
    file = features.file.filename
    try:
        if text := download_notice(given or name):
            on_event(Notice(text))
        path = obtain_weights(given or name)
    except VswinError as error:
        raise WeightsError(
            f"a video file is compared by the weights of {file}, which are {name} (sha256 {sha256[:8]}…) and were not "
            f"found: {error}; or give their file: --weights FILE"
        ) from error
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} has sha256 {found[:8]}…, but {file} was made with {name} of sha256 {sha256[:8]}…; give the file "
            "of those weights: --weights FILE"
        )
    return path, bool(ema)
