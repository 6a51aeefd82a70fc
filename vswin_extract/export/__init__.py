"""An output in the files that other projects load, with a configuration whose numbers make the times come out.

grid            whether rows stand where those projects reckon them
formats         the files
configuration   what is written beside them
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from vswin_extract.errors import OutputError, UsageError
from vswin_extract.export import configuration, formats
from vswin_extract.export.configuration import Files, Plan
from vswin_extract.export.formats import Item
from vswin_extract.export.grid import Grid, find_grid
from vswin_extract.store.features import FeatureFile, open_features
from vswin_extract.store.sequences import Feature
from vswin_extract.video.videos import EXTENSIONS

Format = Literal["actionformer", "opentad", "moment-detr", "tvr", "clip-retrieval", "npy", "webdataset", "parquet"]

CONFIGURATIONS: dict[str, Callable[[Plan], Files]] = {
    "actionformer": configuration.actionformer,
    "opentad": configuration.opentad,
    "moment-detr": configuration.moment_detr,
    "tvr": configuration.tvr,
}
"""Of the formats that reckon the time of a row from its number; the others keep it."""
WRITERS: dict[str, Callable[[Path, Iterable[Item]], None]] = {
    "actionformer": formats.write_npy,
    "opentad": formats.write_npy,
    "moment-detr": formats.write_npz,
    "tvr": formats.write_hdf5,
    "npy": formats.write_npy_and_times,
    "webdataset": formats.write_webdataset,
    "parquet": formats.write_parquet,
}
MAPS = ("npy", "webdataset")
"""Formats whose rows may be maps."""


@dataclass(frozen=True)
class Exported:
    """What was written. `shape`: of a row; `missing`: videos that the output has under /failures."""

    destination: Path
    videos: int
    rows: int
    shape: tuple[int, ...]
    missing: int
    files: tuple[str, ...]


def export(
    format: Format,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    feature: Feature | None = None,
    stem: bool = False,
) -> Exported:
    """Write an output's features as files of a format into a new folder.

    `feature`: which, and how averaged, resampled and normalised (default: the embedding). `stem`: call a video's files
    by its id without the extension. A video is in memory at a time. The folder appears when it is complete, under
    `destination`, which must not be there or be empty.

    Raises UsageError for what the format cannot hold or would tell wrong times of, OutputError for a folder in the way.
    """
    if format not in get_args(Format):
        raise UsageError(f"a format is one of {', '.join(get_args(Format))}, not {format!r}")
    feature = feature or Feature()
    if format == "clip-retrieval":
        feature = Feature(feature.name, feature.pool, feature.length, l2=True)
    destination = Path(destination)
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise OutputError(f"{destination} is there and not empty; remove it, or name another folder")
    with open_features(source) as features:
        if not len(features):
            raise UsageError(f"{os.fspath(source)} has no videos to export")
        shape = feature.shape(features)
        if len(shape) > 1 and format not in MAPS:
            raise UsageError(
                f"{format} takes a vector a row, not a map of {' x '.join(map(str, shape))}; use --pool all"
            )
        names = file_names(features, stem)
        counts = features.file["videos_table/clips"][:]
        rows = int(counts.sum()) if feature.length is None else feature.length * len(names)
        longest = int(counts.max()) if feature.length is None else feature.length
        plan = Plan(os.fspath(destination), shape, feature.length, longest, _grid(format, features, feature))
        texts: dict[str, str] = {"export.json": _facts(format, features, feature, plan)}
        if format in CONFIGURATIONS:
            texts |= CONFIGURATIONS[format](plan)
            texts["videos.json"] = _database(features, names, plan.grid)
        if format in ("actionformer", "opentad"):
            missing = [_name(failure["id"], stem) for failure in features.failures]
            texts["missing_files.txt"] = "".join(f"{name}\n" for name in missing)
        write = partial(formats.write_clip_retrieval, rows=rows) if format == "clip-retrieval" else WRITERS[format]
        destination.parent.mkdir(parents=True, exist_ok=True)
        unfinished = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
        unfinished.mkdir()
        try:
            write(unfinished, _items(features, feature, names))
            for name, text in texts.items():
                (unfinished / name).write_text(text, "utf-8")
            unfinished.replace(destination)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
        return Exported(destination, len(names), rows, shape, len(features.failures), tuple(texts))


def file_names(features: FeatureFile, stem: bool) -> dict[str, str]:
    """What each video's files are called: its id, `/` included, or that without a video's extension. Raises UsageError
    where two would be one."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for video_id in features:
        name = _name(video_id, stem)
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise UsageError(f"the id {video_id!r} cannot be the name of a file")
        if (other := taken.setdefault(name, video_id)) != video_id:
            raise UsageError(f"{other!r} and {video_id!r} would both be called {name!r}; export without --stem")
        names[video_id] = name
    return names


def _name(video_id: str, stem: bool) -> str:
    path, extension = os.path.splitext(video_id)
    return path if stem and extension.lower() in EXTENSIONS else video_id


def _grid(format: Format, features: FeatureFile, feature: Feature) -> Grid | None:
    """The grid that a format reckons with. Raises UsageError where there is none."""
    if format not in CONFIGURATIONS or (feature.length is not None and format in ("actionformer", "opentad")):
        return None
    if feature.length is not None:
        raise UsageError(f"{format} has one clip length for all videos, which --resize-length does not leave")
    grid = find_grid(features)
    if format == "opentad" and grid.offset.denominator > 1:
        raise UsageError(
            f"the centre of the first clip is at frame {float(grid.offset):g}, and OpenTAD takes whole frames; extract "
            "with an even --clip-len or --frame-interval"
        )
    if format in ("moment-detr", "tvr"):
        if grid.rate is None:
            raise UsageError(
                f"{format} has one clip length in seconds for all videos, whose frame rates lie between "
                f"{grid.fps.min():.6g} and {grid.fps.max():.6g}; extract with --fps"
            )
        if grid.offset != Fraction(grid.stride, 2):
            raise UsageError(
                f"{format} has row k cover {grid.stride} frames from k * {grid.stride} on, but its centre is at frame "
                f"{float(grid.offset):g} more; extract with a --stride of {grid.span}, or with --align center and an "
                "even --stride"
            )
    return grid


def _items(features: FeatureFile, feature: Feature, names: Mapping[str, str]) -> Iterator[Item]:
    for video_id, name in names.items():
        video = features[video_id]
        yield Item(name, video, *feature.read(video), clips=feature.length is None)


def _facts(format: Format, features: FeatureFile, feature: Feature, plan: Plan) -> str:
    kept = ("model", "weights_sha256", "variant", "sampling", "preprocessing", "precision", "decoder", "run")
    facts: dict[str, Any] = {
        "format": format,
        "source": os.path.basename(features.file.filename),
        "feature": {**asdict(feature), "shape": plan.shape},
        **{name: value for name, value in features.info.items() if name in kept},
    }
    return json.dumps(facts, indent=1) + "\n"


def _database(features: FeatureFile, names: Mapping[str, str], grid: Grid | None) -> str:
    """Of each video what annotations tell of it: duration in seconds, fps and frames. On a grid, frames are counted at
    its rate, and duration is theirs, so that OpenTAD's frame / duration is that rate."""
    table = features.file["videos_table"]
    rates = table["fps"][:] if grid is None else grid.fps
    database = {}
    for name, seconds, fps in zip(names.values(), table["duration"][:].tolist(), rates.tolist(), strict=True):
        frames = max(1, round(seconds * fps))
        database[name] = {"duration": seconds if grid is None else frames / fps, "fps": fps, "frame": frames}
    return json.dumps({"database": database}, indent=1) + "\n"
