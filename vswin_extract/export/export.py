"""Exporting: from an output to a folder in the format of another project."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from vswin_extract.errors import OutputError, UsageError
from vswin_extract.export import configuration, formats
from vswin_extract.export.annotations import Database, check_times, describe_videos, find_notes, for_mmaction2
from vswin_extract.export.configuration import ExportFacts, Texts
from vswin_extract.export.formats import Item
from vswin_extract.export.grid import Grid, find_grid
from vswin_extract.export.layout import FileLayout
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
    "npz",
    "csv",
    "webdataset",
    "parquet",
    "ten-crop",
    "summary",
]

ON_A_GRID = ("actionformer", "opentad", "moment-detr", "tvr")
"""Formats whose projects compute the time of a row from its number."""
CONFIGURATIONS: dict[str, Callable[[ExportFacts], Texts]] = {
    "actionformer": configuration.actionformer,
    "opentad": configuration.opentad,
    "moment-detr": configuration.moment_detr,
    "tvr": configuration.tvr,
    "clip-retrieval": configuration.clip_retrieval,
}
DATA_FILES = {"webdataset": "shard-*.tar", "parquet": "features.parquet"}
"""Formats with a dataset card, and the files of data that it names."""
WRITERS: dict[str, Callable[[Path, Iterable[Item]], None]] = {
    "actionformer": formats.write_npy,
    "opentad": formats.write_npy,
    "moment-detr": formats.write_npz,
    "tvr": formats.write_hdf5,
    "ten-crop": formats.write_npy,
    "summary": write_summary,
    "npy": formats.write_npy_and_times,
    "npz": formats.write_npz_and_times,
    "csv": formats.write_csv,
    "webdataset": formats.write_webdataset,
    "parquet": formats.write_parquet,
}
MAPS = ("npy", "npz", "webdataset")
"""Formats whose rows may be maps."""
PROVENANCE = ("model", "weights_sha256", "variant", "sampling", "preprocessing", "precision", "decoder", "run")
"""Root attributes of the output that export.json repeats."""


@dataclass(frozen=True)
class Exported:
    """What was written. `shape`: of a row. `missing`: how many videos the output has under /failures. `files`: those
    beside the features. `notes`: what a user of the format must know."""

    destination: Path
    videos: int
    rows: int
    shape: tuple[int, ...]
    missing: int
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def export(
    format: Format,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    feature: Feature | None = None,
    stem: bool = False,
    *,
    follow: bool = False,
    suffix: str = "",
    key: str | None = None,
    transpose: bool = False,
) -> Exported:
    """Write an output's features as files of a format into a new folder.

    `feature`: which, and how averaged, resampled and normalised (default: the embedding). `follow`: as in
    `open_features`. `stem`, `suffix`, `key`, `transpose`: as in `FileLayout`. One video is in memory at a time. The
    folder appears when it is complete, as `destination`, which must not be there or be empty.

    Raises UsageError for what the format cannot hold or would give wrong times for, and OutputError if `destination` is
    in the way.
    """
    if format not in get_args(Format):
        raise UsageError(f"a format is one of {', '.join(get_args(Format))}, not {format!r}")
    layout = FileLayout(stem, suffix, key, transpose)
    layout.expect_fits(format)
    feature = feature or Feature()
    if format == "clip-retrieval":
        feature = replace(feature, l2=True)
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
        grid = usable_grid(format, features, feature)
        usable = features if grid is None else grid.videos
        left_out = [video_id for video_id in features if video_id not in usable]
        names = file_names([video_id for video_id in features if video_id in usable], stem)
        counts = [len(features[video_id]) if feature.length is None else feature.length for video_id in names]
        facts = ExportFacts(os.path.abspath(destination), shape, feature.length, max(counts), grid, layout)
        database = describe_videos(format, features, names, facts)
        check_times(format, database, names, facts)
        notes = find_notes(format, names, database, facts, left_out)
        texts = _texts(format, features, facts, names, database, left_out)
        texts["export.json"] = _provenance(format, features, feature, facts, notes)
        write = _writer(format, layout, sum(counts))
        with _new_folder(destination) as folder:
            check_names(format, names, texts, folder, destination, layout)
            write(folder, read_items(features, feature, names, layout))
            for name, text in texts.items():
                (folder / name).write_text(text, "utf-8")
        missing = len(features.failures)
        return Exported(destination, len(names), sum(counts), shape, missing, tuple(texts), tuple(notes))


def _writer(format: Format, layout: FileLayout, rows: int) -> Callable[[Path, Iterable[Item]], None]:
    """Return the function that writes the features."""
    if format == "clip-retrieval":
        return partial(formats.write_clip_retrieval, rows=rows)
    if layout.key is not None:
        write = formats.write_npz_and_times if format == "npz" else formats.write_npz
        return partial(write, key=layout.key)
    return WRITERS[format]


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
    if format not in ON_A_GRID or (feature.length is not None and format in ("actionformer", "opentad")):
        return None
    if feature.length is not None:
        raise UsageError(f"{format} has one clip length for all videos, so it does not go with --resize-length")
    grid = find_grid(features)
    if format == "opentad" and grid.offset.denominator > 1:
        raise UsageError(
            f"the centre of the first clip is at frame {float(grid.offset):g}, and OpenTAD takes whole frames; extract "
            "with an even --clip-len or --frame-interval"
        )
    if grid.rate is None:  # videos of one clip do not block the others
        alone = [name for name in grid.videos if len(features[name]) == 1]
        if format in ("actionformer", "opentad"):  # which can take several rates: only videos shorter than a clip
            alone = [name for name in alone if features[name].valid[0] < features.sampling.clip_len]
        several = grid.without(alone)
        if several.rate is not None:
            other = [name for name, base in grid.videos.items() if base.fps != several.rate]
            grid = grid.without([name for name in other if name not in several.videos])
    if format in ("moment-detr", "tvr"):
        if grid.rate is None:
            rates = [fps for fps, _ in grid.videos.values()]
            raise UsageError(
                f"{format} has one clip length in seconds for all videos, but their frame rates lie between "
                f"{min(rates):.6g} and {max(rates):.6g}; extract with --fps"
            )
        if grid.offset != Fraction(grid.stride, 2):
            raise UsageError(
                f"in {format}, row k covers {grid.stride} frames from frame k * {grid.stride} on, but here its centre "
                f"is at frame k * {grid.stride} + {float(grid.offset):g}; extract with a --stride of {grid.span}, or "
                "with --align center and an even --stride"
            )
    return grid


def read_items(
    features: FeatureFile, feature: Feature, names: Mapping[str, str], layout: FileLayout | None = None
) -> Iterator[Item]:
    """Read the videos of an output one by one; `names` are those of their files, by id."""
    layout = layout or FileLayout()
    for video_id, name in names.items():
        video = features[video_id]
        values, times = feature.read(video)
        yield Item(name, video, layout.arrange(values), times, feature.length is None, layout.suffix)


def _texts(
    format: Format,
    features: FeatureFile,
    facts: ExportFacts,
    names: Mapping[str, str],
    database: Database,
    left_out: Iterable[str],
) -> dict[str, str]:
    """Return the texts that are written beside the features, by file name."""
    texts: dict[str, str] = {}
    if format in CONFIGURATIONS:
        texts |= CONFIGURATIONS[format](facts)
    if format in DATA_FILES:
        texts["README.md"] = configuration.dataset_card(DATA_FILES[format])
    if format in (*ON_A_GRID, "npy", "npz", "csv"):
        texts["videos.json"] = _json({"database": database})
    if format == "csv" and facts.length is not None:
        texts["mmaction2.json"] = _json(for_mmaction2(database))
    if format in ("actionformer", "opentad"):
        there = set(names.values())  # with --stem, a failed a.mkv may be called as a.mp4 is
        lacking = [each["id"] for each in features.failures] + [*left_out]
        missing = [name for each in lacking if (name := without_extension(each, facts.layout.stem)) not in there]
        texts["missing_files.txt"] = "".join(f"{name}\n" for name in missing)
    if format == "ten-crop":
        texts |= ten_crop_texts(features, facts, names)
    return texts


def _provenance(
    format: Format, features: FeatureFile, feature: Feature, facts: ExportFacts, notes: Iterable[str]
) -> str:
    values: dict[str, Any] = {
        "format": format,
        "source": os.path.basename(features.file.filename),
        "feature": {**asdict(feature), "shape": facts.shape},
        "layout": asdict(facts.layout),
        "notes": [*notes],
        **{name: value for name, value in features.info.items() if name in PROVENANCE},
    }
    return _json(values)


def _json(values: Any) -> str:
    return json.dumps(values, indent=1) + "\n"
