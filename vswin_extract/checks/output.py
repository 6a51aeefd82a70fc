"""Checks of an output: its structure, its values, its checksums, and the videos that it was made from."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from vswin_extract.errors import UsageError
from vswin_extract.journal.directory import journal_directory, read_job, read_list
from vswin_extract.journal.entries import assemble, entry_files, read_entry_file
from vswin_extract.journal.parts import SUFFIX, Entry
from vswin_extract.journal.stored import arrays_of
from vswin_extract.store.features import FeatureFile, feature_names, open_features
from vswin_extract.store.schema import (
    ADDED_TEXTS,
    CLIP_COLUMNS,
    GROUPED,
    VIDEO_NUMBERS,
    VIDEO_TEXTS,
    VIEWED,
    Arrays,
    block_rows,
)
from vswin_extract.store.shards import shard_files, shards_directory, spare_shards
from vswin_extract.video.remote import Address, same_fingerprint
from vswin_extract.video.videos import Video, fingerprint

Fingerprints = dict[str, tuple[int, float, str] | None]
"""By video id, the fingerprint (size, mtime, etag) of its file when it was extracted; None for a failed video."""


@dataclass(frozen=True)
class Problem:
    """Something wrong, and where: in a dataset, a video, or a file of the journal."""

    where: str
    what: str


@dataclass(frozen=True)
class OutputCheck:
    """How much was checked, and what is wrong with it. `finished`: False for the journal of a run. `mergeable`: the
    journal, if every video of the run is finished, else None; `output`: the file to make of it. `notes`: what is not
    wrong, but good to know."""

    videos: int
    clips: int
    failures: int
    finished: bool
    problems: tuple[Problem, ...]
    mergeable: Path | None = None
    output: Path | None = None
    notes: tuple[str, ...] = ()


def verify_output(output: Path, against: Sequence[Video] = ()) -> OutputCheck:
    """Check a finished output, or the journal of an unfinished run. With `against`, also check that it has these
    videos, as they are now, and no others. Raises UsageError if there is neither an output nor a journal."""
    directory = output if output.suffix == ".parts" and output.is_dir() else journal_directory(output)
    if output.is_file():
        return _verify_finished(output, directory, against)
    begun = read_job(directory)
    if begun is None:
        lost = bool(shard_files(output))
        again = f"; to make an index of {shards_directory(output)} again, merge its files with --link" if lost else ""
        raise UsageError(f"there is neither {output} nor an unfinished run in {directory}{again}")
    arrays = None if begun["arrays"] is None else arrays_of(begun["arrays"])
    found = _verify_journal(directory, arrays, against)
    if output == directory:
        begun_for = Path(begun["output"] or "")
        own = journal_directory(begun_for).resolve() == directory.resolve()
        stored = bool(begun_for.name) and begun_for.parent.is_dir() and not begun_for.exists()  # in --storage
        output = begun_for if own or stored else directory.with_suffix("")
    return replace(found, output=output)


def _verify_finished(output: Path, directory: Path, against: Sequence[Video]) -> OutputCheck:
    with open_features(output) as features:
        problems = [*check_structure(features.file)]
        if not problems:  # values of a file with a wrong structure cannot be read
            problems += check_links(features) if features.linked else check_values(features.file)
            problems += check_views(features.file)
        files = {**_fingerprints(features.file["videos_table"]), **{f["id"]: None for f in features.failures}}
        counts = len(features), features.clips, len(features.failures)
    if directory.is_dir():
        problems.append(Problem(directory.name, "is the journal of a run that was not ended, beside a finished output"))
    notes = tuple(spare_shards(output))
    return OutputCheck(*counts, True, (*problems, *_compare(files, against)), notes=notes)


def _verify_journal(directory: Path, arrays: Arrays | None, against: Sequence[Video]) -> OutputCheck:
    problems: list[Problem] = []
    entries: dict[str, list[Entry]] = {}
    for path in entry_files(directory):
        records, problem = read_entry_file(path, arrays)
        if problem:
            problems.append(Problem(path.with_suffix(SUFFIX).name, problem))
            continue
        for record in records:
            entries.setdefault(record.id, []).append(Entry(record, path))
    files: Fingerprints = {}
    clips = failures = 0
    for video_id, pieces in entries.items():
        if found := assemble(pieces):
            files[video_id] = (found.record.size, found.record.mtime, found.record.etag)
            clips += found.record.clips
            failures += found.record.status == "failed"
    problems += _compare(files, against, complete=False)
    asked = read_list(directory)
    mergeable = directory if asked and not problems and files.keys() >= asked.keys() else None
    return OutputCheck(len(files) - failures, clips, failures, False, tuple(problems), mergeable)


def check_structure(file: h5py.File) -> Iterator[Problem]:
    """Yield what is missing or of another length, and gaps between the rows of one video and the next."""
    if not file.attrs.get("complete", False):
        yield Problem("/", "is not marked complete")
    for name in ("model", "weights_sha256", "sampling", "preprocessing", "precision", "decoder"):
        if name not in file.attrs:
            yield Problem("/", f"lacks the attribute {name}")
    for name in ("clips", "videos_table", "videos", "failures"):
        if name not in file:
            yield Problem(f"/{name}", "is missing")
            return
    for name in CLIP_COLUMNS:
        if name not in file["clips"]:
            yield Problem(f"/clips/{name}", "is missing")
            return
    clips = len(file["clips/video"])
    for name in [*feature_names(file), *(f"clips/{name}" for name in CLIP_COLUMNS)]:
        if len(file[name]) != clips:
            yield Problem(f"/{name}", f"has {len(file[name])} rows, but there are {clips} clips")
    table = file["videos_table"]
    for name in (*VIDEO_TEXTS, *VIDEO_NUMBERS, "first_clip", "clips", "start", "end"):
        if name not in table and name not in ADDED_TEXTS:
            yield Problem(f"/videos_table/{name}", "is missing")
            return
    for name, column in table.items():
        if len(column) != len(table["id"]):
            yield Problem(f"/videos_table/{name}", f"has {len(column)} rows, but there are {len(table['id'])} videos")
            return
    counts = table["clips"][:]
    if (counts < 1).any():
        yield Problem("/videos_table/clips", "has a video without clips")
    if not np.array_equal(table["first_clip"][:], np.cumsum(counts) - counts) or counts.sum() != clips:
        yield Problem("/videos_table", "does not divide the clips among the videos, one video after another")
    elif not np.array_equal(file["clips/video"][:], np.repeat(np.arange(len(counts)), counts)):
        yield Problem("/clips/video", "gives clips to other videos than /videos_table does")
    yield from check_classes(file)


def check_classes(file: h5py.File) -> Iterator[Problem]:
    """Yield what is wrong with the names of classes: there must be one for each column of /logits."""
    if "classes" not in file:
        return
    names, columns = file["classes"].shape, file["logits"].shape[1:] if "logits" in file else None
    if names != columns:
        found = f"there are {columns[0]} columns in /logits" if columns else "there are no /logits"
        yield Problem("/classes", f"has {names[0] if names else 'no'} names, but {found}")


def check_values(file: h5py.File) -> Iterator[Problem]:
    """Yield wrong checksums, NaN, and times and frames that cannot be."""
    for name in [*feature_names(file), *(f"clips/{name}" for name in CLIP_COLUMNS if name != "video")]:
        dataset = file[name]
        digest, finite = hashlib.sha256(), True
        try:
            step = block_rows(len(dataset), dataset.nbytes)
            for start in range(0, len(dataset), step):
                rows = dataset[start : start + step]
                digest.update(np.ascontiguousarray(rows).data)
                finite = finite and bool(np.isfinite(rows).all())
        except OSError as error:
            yield Problem(f"/{name}", f"cannot be read: {error}")
            continue
        if dataset.attrs.get("sha256") != digest.hexdigest():
            yield Problem(f"/{name}", "has another sha256 than when it was written")
        if not finite:
            yield Problem(f"/{name}", "has NaN or infinite values")
    clip_len = json.loads(file.attrs["sampling"])["clip_len"]
    valid, videos = file["clips/valid"][:], file["clips/video"][:]
    if len(valid) and not (valid.min() >= 1 and valid.max() <= clip_len):
        yield Problem("/clips/valid", f"is not within 1 to {clip_len}")
    for name in ("times", "frames"):
        begins, ends = file[f"clips/{name}"][:].T if len(valid) else (np.zeros(0), np.zeros(0))
        if (ends < begins).any() or (begins < 0).any():
            yield Problem(f"/clips/{name}", "has a clip that ends before it begins")
        same = videos[1:] == videos[:-1]
        if (begins[1:] < begins[:-1])[same].any():
            yield Problem(f"/clips/{name}", "goes back within a video")


def check_links(index: FeatureFile) -> Iterator[Problem]:
    """Yield the problems of the files that an index links to, and files that are not the ones it was made from."""
    runs, counts = index.file["linked/run"].asstr()[:], index.file["linked/videos"][:]
    ids, first = list(index), 0
    for path, run, count in zip(index.linked, runs, counts, strict=True):
        try:
            with open_features(path) as features:
                problems = [*check_structure(features.file)] or [*check_values(features.file)]
                if features.info.get("run") != run:
                    problems.append(Problem("", "is not the file that was linked to; another was written since"))
                elif lost := [name for name in ids[first : first + count] if name not in features]:
                    problems.append(Problem("/videos_table", f"lacks the video {lost[0]}"))
        except UsageError as error:
            problems = [Problem("", str(error))]
        yield from (Problem(f"{path.name}{problem.where}", problem.what) for problem in problems)
        first += count


def check_views(file: h5py.File) -> Iterator[Problem]:
    """Yield the views below /videos that do not show the rows of their video. Files of very many videos have none."""
    table = file["videos_table"]
    if len(table["id"]) > GROUPED and not len(file["videos"]):
        return
    names = {**{name: name for name in feature_names(file)}, **{f"clips/{name}": name for name in VIEWED}}
    for video_id, first, count in zip(table["id"].asstr()[:], table["first_clip"][:], table["clips"][:], strict=True):
        group = file["videos"].get(video_id)
        for source, name in names.items():
            view = group.get(name) if isinstance(group, h5py.Group) else None
            if view is None or view.shape != (count, *file[source].shape[1:]):
                yield Problem(f"/videos/{video_id}/{name}", "is missing or of another shape")
                continue
            for row in {0, count - 1}:  # a view is one range of rows, so its two ends are enough
                if view[row].tobytes() != file[source][first + row].tobytes():
                    yield Problem(f"/videos/{video_id}/{name}", f"shows other rows than those from {first} on")


def _fingerprints(table: h5py.Group) -> Fingerprints:
    columns = (table["id"].asstr()[:], table["size"][:], table["mtime"][:], table["etag"].asstr()[:])
    return {str(name): (int(size), float(mtime), str(etag)) for name, size, mtime, etag in zip(*columns, strict=True)}


def _compare(files: Fingerprints, videos: Sequence[Video], complete: bool = True) -> Iterator[Problem]:
    """Yield how videos differ from those of an output. `complete`: missing videos count."""
    if not videos:
        return
    for video in videos:
        if video.id not in files:
            if complete:
                yield Problem(video.id, "is missing from the output")
            continue
        then, now = files[video.id], fingerprint(video)
        same = then is None or then == now or (isinstance(video.path, Address) and same_fingerprint(then, now))
        if now[0] >= 0 and not same:
            yield Problem(video.id, "has changed since it was extracted")
    for extra in sorted(files.keys() - {video.id for video in videos}):
        yield Problem(extra, "is in the output, but not among the videos")
