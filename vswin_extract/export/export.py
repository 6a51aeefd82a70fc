"""Exporting: from an output to a folder in the format of another project."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from vswin_extract.errors import OutputError, UsageError
from vswin_extract.export import configuration, formats
from vswin_extract.export.configuration import ExportFacts, Texts
from vswin_extract.export.formats import Item
from vswin_extract.export.grid import Grid, find_grid
from vswin_extract.export.names import check_names, file_names, without_extension
from vswin_extract.export.summary import write_summary
from vswin_extract.export.ten_crop import keep_crops, ten_crop_texts
from vswin_extract.files import names_path
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import FeatureFile, open_features
from vswin_extract.store.hdf5 import SUFFIXES

Format = Literal[
    "actionformer",
    "opentad",
    "moment-detr",
    "tvr",
    "clip-retrieval",
    "npy",
    "webdataset",
    "parquet",
    "ten-crop",
    "summary",
]

CONFIGURATIONS: dict[str, Callable[[ExportFacts], Texts]] = {
    "actionformer": configuration.actionformer,
    "opentad": configuration.opentad,
    "moment-detr": configuration.moment_detr,
    "tvr": configuration.tvr,
}
"""By format, for those that compute the time of a row from its number. The others store it."""
WRITERS: dict[str, Callable[[Path, Iterable[Item]], None]] = {
    "actionformer": formats.write_npy,
    "opentad": formats.write_npy,
    "moment-detr": formats.write_npz,
    "tvr": formats.write_hdf5,
    "ten-crop": formats.write_npy,
    "summary": write_summary,
    "npy": formats.write_npy_and_times,
    "webdataset": formats.write_webdataset,
    "parquet": formats.write_parquet,
}
MAPS = ("npy", "webdataset")
"""Formats whose rows may be maps."""
PROVENANCE = ("model", "weights_sha256", "variant", "sampling", "preprocessing", "precision", "decoder", "run")
"""Root attributes of the output that export.json repeats."""


@dataclass(frozen=True)
class Exported:
    """What was written. `shape`: of a row. `missing`: how many videos the output has under /failures. `files`: those
    beside the features."""

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
    *,
    follow: bool = False,
) -> Exported:
    """Write an output's features as files of a format into a new folder.

    `feature`: which, and how averaged, resampled and normalised (default: the embedding). `stem`: name a video's files
    by its id without the extension. `follow`: as in `open_features`. One video is in memory at a time. The folder
    appears when it is complete, as `destination`, which must not be there or be empty.

    Raises UsageError for what the format cannot hold or would give wrong times for, and OutputError if `destination` is
    in the way.
    """
    if format not in get_args(Format):
        raise UsageError(f"a format is one of {', '.join(get_args(Format))}, not {format!r}")
    feature = feature or Feature()
    if format == "clip-retrieval":
        feature = Feature(feature.name, feature.pool, feature.length, l2=True)
    destination = Path(destination)
    _check_destination(destination)
    with open_features(source, follow=follow) as features:
        if not len(features):
            raise UsageError(f"{os.fspath(source)} has no videos to export")
        feature = keep_crops(features, feature) if format == "ten-crop" else feature
        shape = feature.shape(features)
        if len(shape) > 1 and format not in (*MAPS, "ten-crop"):
            crops = " and --crop-pool mean" if feature.crop_pool == "none" else ""
            raise UsageError(
                f"{format} takes a vector for each row, not {' x '.join(map(str, shape))}; use --pool all{crops}"
            )
        names = file_names(features, stem)
        counts = features.file["videos_table/clips"][:]
        rows = int(counts.sum()) if feature.length is None else feature.length * len(names)
        longest = int(counts.max()) if feature.length is None else feature.length
        grid = usable_grid(format, features, feature)
        facts = ExportFacts(os.fspath(destination), shape, feature.length, longest, grid)
        texts = _texts(format, features, feature, facts, names, stem)
        write = partial(formats.write_clip_retrieval, rows=rows) if format == "clip-retrieval" else WRITERS[format]
        with _new_folder(destination) as folder:
            check_names(format, names, texts, folder, destination)
            write(folder, read_items(features, feature, names))
            for name, text in texts.items():
                (folder / name).write_text(text, "utf-8")
        return Exported(destination, len(names), rows, shape, len(features.failures), tuple(texts))


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """Give a folder that becomes `destination` when the block ends, and is removed when the block raises, with the
    folders that were made for it. No other process can know its name before it is there."""
    destination = Path(os.path.realpath(destination))
    missing = [folder for folder in destination.parents if not folder.exists()]
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with names_path(destination, unfinished):
            unfinished.mkdir()
            yield unfinished
            unfinished.replace(destination)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # another program has put something there
            for folder in missing:
                folder.rmdir()
        raise


def _check_destination(destination: Path) -> None:
    """Raise OutputError unless an export can become this folder, or UsageError if it would be inside unfinished work or
    the shards of an output: what is in there is removed when an output is finished."""
    if os.path.islink(destination) and not destination.exists():
        raise OutputError(f"{destination} is a link to {os.path.realpath(destination)}, which is not there")
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty; remove it, or name another folder")
    whole = Path(os.path.realpath(destination))
    for folder in (whole, *whole.parents):
        if folder.suffix in (".parts", ".shards") and Path(folder.stem).suffix.lower() in SUFFIXES:
            raise UsageError(f"{folder} belongs to an output; name a folder elsewhere, not {destination}")


def usable_grid(format: Format, features: FeatureFile, feature: Feature) -> Grid | None:
    """Return the grid from which a format computes times, or None if it needs none. Raises UsageError if it cannot use
    the grid of this output."""
    if format not in CONFIGURATIONS or (feature.length is not None and format in ("actionformer", "opentad")):
        return None
    if feature.length is not None:
        raise UsageError(f"{format} has one clip length for all videos, so it does not go with --resize-length")
    grid = find_grid(features)
    if format == "opentad" and grid.offset.denominator > 1:
        raise UsageError(
            f"the centre of the first clip is at frame {float(grid.offset):g}, and OpenTAD takes whole frames; extract "
            "with an even --clip-len or --frame-interval"
        )
    if format in ("moment-detr", "tvr"):
        if grid.rate is None:
            raise UsageError(
                f"{format} has one clip length in seconds for all videos, but their frame rates lie between "
                f"{grid.fps.min():.6g} and {grid.fps.max():.6g}; extract with --fps"
            )
        if grid.offset != Fraction(grid.stride, 2):
            raise UsageError(
                f"in {format}, row k covers {grid.stride} frames from frame k * {grid.stride} on, but here its centre "
                f"is at frame k * {grid.stride} + {float(grid.offset):g}; extract with a --stride of {grid.span}, or "
                "with --align center and an even --stride"
            )
    return grid


def read_items(features: FeatureFile, feature: Feature, names: Mapping[str, str]) -> Iterator[Item]:
    """Read the videos of an output one by one; `names` are those of their files, by id."""
    for video_id, name in names.items():
        video = features[video_id]
        yield Item(name, video, *feature.read(video), clips=feature.length is None)


def _texts(
    format: Format,
    features: FeatureFile,
    feature: Feature,
    facts: ExportFacts,
    names: Mapping[str, str],
    stem: bool,
) -> dict[str, str]:
    """Return the texts that are written beside the features, by file name."""
    texts: dict[str, str] = {"export.json": _provenance(format, features, feature, facts)}
    if format in CONFIGURATIONS:
        texts |= CONFIGURATIONS[format](facts)
        texts["videos.json"] = _database(features, names, facts.grid)
    if format in ("actionformer", "opentad"):
        there = set(names.values())  # with --stem, a failed a.mkv may be called as a.mp4 is
        missing = [name for each in features.failures if (name := without_extension(each["id"], stem)) not in there]
        texts["missing_files.txt"] = "".join(f"{name}\n" for name in missing)
    if format == "ten-crop":
        texts |= ten_crop_texts(features, facts, names.values())
    return texts


def _provenance(format: Format, features: FeatureFile, feature: Feature, facts: ExportFacts) -> str:
    values: dict[str, Any] = {
        "format": format,
        "source": os.path.basename(features.file.filename),
        "feature": {**asdict(feature), "shape": facts.shape},
        **{name: value for name, value in features.info.items() if name in PROVENANCE},
    }
    return json.dumps(values, indent=1) + "\n"


def _database(features: FeatureFile, names: Mapping[str, str], grid: Grid | None) -> str:
    """Return what annotations say of each video: duration in seconds, fps, frames. On a grid, frames are counted at its
    rate, and the duration is computed from them, because OpenTAD takes frame / duration for the rate."""
    table = features.file["videos_table"]
    rates = table["fps"][:] if grid is None else grid.fps
    database = {}
    for name, seconds, fps in zip(names.values(), table["duration"][:].tolist(), rates.tolist(), strict=True):
        frames = max(1, round(seconds * fps))
        database[name] = {"duration": seconds if grid is None else frames / fps, "fps": fps, "frame": frames}
    return json.dumps({"database": database}, indent=1) + "\n"
