"""Checks of an output: its structure, its values, its checksums, and the videos that it was made from."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from vswin_extract.checks.views import check_group_links, check_index, check_views
from vswin_extract.errors import UsageError, first_line
from vswin_extract.journal.directory import journal_directory, read_job, read_list
from vswin_extract.journal.entries import assemble, entry_files, read_entry_file
from vswin_extract.journal.parts import SUFFIX, Entry
from vswin_extract.journal.stored import arrays_of
from vswin_extract.store.attributes import stored_value
from vswin_extract.store.features import FeatureFile, open_features
from vswin_extract.store.hdf5 import READ_ERRORS, Problem, UnsoundOutput
from vswin_extract.store.schema import CLIP_COLUMNS, Arrays, block_rows
from vswin_extract.store.shards import shard_files, shards_directory, spare_shards
from vswin_extract.video.remote import Address, same_fingerprint
from vswin_extract.video.videos import Video, fingerprint

Fingerprints = dict[str, tuple[int, float, str] | None]
"""By video id, the fingerprint (size, mtime, etag) of its file when it was extracted; None for a failed video."""


@dataclass(frozen=True)
class OutputCheck:
    """How much was checked, and what is wrong with it. `finished`: False for the journal of a run. `mergeable`: the
    journal, if every video of the run is finished, else None; `output`: the file to make of it. `notes`: what is not
    wrong, but good to know. `readable`: False if the structure of an output is wrong, so that nothing was counted."""

    videos: int
    clips: int
    failures: int
    finished: bool
    problems: tuple[Problem, ...]
    mergeable: Path | None = None
    output: Path | None = None
    notes: tuple[str, ...] = ()
    readable: bool = True


def verify_output(output: Path, against: Sequence[Video] = (), *, follow: bool = False) -> OutputCheck:
    """Check a finished output, or the journal of an unfinished run. With `against`, also check that it has these
    videos, as they are now, and no others. `follow`: as in `open_features`. Raises UsageError if there is neither an
    output nor a journal."""
    directory = output if output.suffix == ".parts" and output.is_dir() else journal_directory(output)
    if output.is_file():
        return _verify_finished(output, directory, against, follow)
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


def _verify_finished(output: Path, directory: Path, against: Sequence[Video], follow: bool) -> OutputCheck:
    try:
        with open_features(output, follow=follow) as features:
            problems = [*check_completeness(features)]
            if not problems:
                problems += check_links(features) if features.linked else check_values(features)
                problems += check_views(features) if not features.linked else ()
                problems += check_group_links(features)
            files = features.fingerprints
            counts = len(features), features.clips, len(features.failures)
    except UnsoundOutput as error:  # nothing more of it can be read
        return OutputCheck(0, 0, 0, True, tuple(error.problems), readable=False)
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


def check_completeness(features: FeatureFile) -> Iterator[Problem]:
    """Yield what a finished output has, though it can be read without: attributes, groups, names of all classes."""
    file = features.file
    if not stored_value(file, "complete"):
        yield Problem("/", "is not marked complete")
    for name in ("model", "weights_sha256", "sampling", "preprocessing", "precision", "decoder"):
        if stored_value(file, name) is None:
            yield Problem("/", f"lacks the attribute {name}")
    if "videos" not in file:
        yield Problem("/videos", "is missing")
    if not np.array_equal(file["clips/video"][:], features.video_of_clips):
        yield Problem("/clips/video", "gives clips to other videos than /videos_table does")
    yield from check_classes(file)


def check_classes(file: h5py.File) -> Iterator[Problem]:
    """Yield what is wrong with the names of classes: there must be one for each column of /logits."""
    if "classes" in file and "logits" in file:
        names, columns = len(file["classes"]), file["logits"].shape[-1]
        if names != columns:
            yield Problem("/classes", f"has {names} names, but there are {columns} columns in /logits")


def check_values(features: FeatureFile) -> Iterator[Problem]:
    """Yield wrong checksums, NaN, and times and frames that cannot be."""
    file = features.file
    for name in [*features.names, *(f"clips/{name}" for name in CLIP_COLUMNS if name != "video")]:
        dataset = file[name]
        digest, finite = hashlib.sha256(), True
        try:
            step = block_rows(len(dataset), dataset.nbytes)
            for start in range(0, len(dataset), step):
                rows = dataset[start : start + step]
                digest.update(np.ascontiguousarray(rows).data)
                finite = finite and bool(np.isfinite(rows).all())
            stored = stored_value(dataset, "sha256")
        except READ_ERRORS as error:
            yield Problem(f"/{name}", f"cannot be read: {first_line(error)}")
            return
        if stored != digest.hexdigest():
            yield Problem(f"/{name}", "has another sha256 than when it was written")
        if not finite:
            yield Problem(f"/{name}", "has NaN or infinite values")
    yield from _check_clips(features)


def _check_clips(features: FeatureFile) -> Iterator[Problem]:
    file, clip_len = features.file, features.info["sampling"].get("clip_len", 0)
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
    runs = index.file["linked/run"].asstr()[:]
    for number, (path, run) in enumerate(zip(index.linked, runs, strict=True)):
        try:
            with open_features(path) as features:
                problems = [*check_completeness(features)] or [*check_values(features)]
                problems += [*check_views(features), *check_group_links(features)]
                if features.info.get("run") != run:
                    problems.append(Problem("", "is not the file that was linked to; another was written since"))
                elif not problems:
                    problems += check_index(index, features, number)
        except UnsoundOutput as error:
            problems = [*error.problems]
        except UsageError as error:
            problems = [Problem("", str(error))]
        yield from (Problem(f"{path.name}{problem.where}", problem.what) for problem in problems)


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
