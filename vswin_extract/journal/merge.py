"""Several journals and finished outputs become one output.

    out-0.h5, out-1.h5, other.h5.parts ──> rows in the order of ids ──> out.h5

Features are not computed again. Every source is read from front to back and verified on the way; memory holds the
tables, and a block of rows of each source.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vswin_extract.errors import OutputError, UsageError
from vswin_extract.formatting import describe_difference, name_some, plural
from vswin_extract.journal.claims import claim_merge
from vswin_extract.journal.directory import (
    finish_interrupted_cleanup,
    journal_directory,
    name_unfinished,
    read_job,
    read_list,
    remove_emptied,
    remove_journal,
)
from vswin_extract.journal.sources import Source, open_sources
from vswin_extract.store.features import linked_files, open_features
from vswin_extract.store.hdf5 import output_path, read_attributes
from vswin_extract.store.layouts import SHARD_LIMIT, Layout, ShardLimit, make_index, make_output
from vswin_extract.store.schema import FileDescription, RowBlock, VideoRecord, split_failed
from vswin_extract.video.videos import walk_order

OnDuplicate = Literal["error", "first"]


@dataclass(frozen=True)
class Merged:
    """The output is in place: it is made of `sources`, and has so many `videos`, `clips` and `failed` videos."""

    output: Path
    sources: int
    videos: int
    clips: int
    failed: int
    bytes: int
    seconds: float


def merge(
    output: str | os.PathLike[str],
    parts: Sequence[Path] = (),
    *,
    layout: Layout | Literal["linked"] = "single",
    on_duplicate: OnDuplicate = "error",
    allow_missing: bool = False,
    overwrite: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
    shard_limit: ShardLimit = SHARD_LIMIT,
    follow: bool = False,
) -> Merged:
    """Make one output of finished outputs and journals; without `parts`, of the output's own journal, which is then
    removed.

    Videos come in the order of their ids, as a directory is walked; those of a single journal in the order of its run.
    `layout`: one file; or shards of bounded size and an index of them; or an index of the parts ("linked"), which are
    finished outputs and stay where they are. `on_duplicate`: what to do if a video is in several parts; a part in which
    it failed does not count if it did not fail in another. `follow`: as in `open_features`.
    Raises OutputError if the parts differ in what features depend on, if videos are missing or duplicate, or if a part
    is damaged, and UsageError for what cannot be merged, also for an output that is one of the parts.
    """
    begun = time.monotonic()
    output = output_path(output)
    own = journal_directory(output)
    paths = [Path(part) for part in parts] or [own]
    ours = os.path.realpath(own) in map(os.path.realpath, paths)
    if ours and not own.is_dir():
        raise UsageError(
            f"no unfinished run {own} to make {output.name} of; to merge finished files, name the output by -o: "
            "vswin merge -o OUT.h5 PART..."
        )
    links = [(path, linked_files(path)) for path in paths]
    check_apart(output, links)
    if paths == [own] and was_finished(output, own, overwrite):
        return describe(output, 1, time.monotonic() - begun)
    with ExitStack() as stack:
        claim = stack.enter_context(claim_merge(output, overwrite, find_journals(paths)))
        sources = open_sources(links, stack, follow)
        for source in sources:
            for note in source.notes:
                on_note(note)
        check_alike(sources)
        chosen = choose(sources, on_duplicate)
        expected = find_expected(sources, chosen, allow_missing)
        if not chosen.keys() >= set(expected):  # they may be extracted just now
            claim.refuse_beside_tasks()
        one_run = len(sources) == 1 and bool(expected)
        order = [name for name in expected if name in chosen] if one_run else sorted(chosen, key=walk_order)
        run = sources[0].run if one_run else uuid.uuid4().hex
        taken = {name: chosen[name] for name in order}
        _write(output, layout, sources, taken, run, claim.check, shard_limit, on_note)
        if ours:
            claim.check_journals()
            remove_journal(own)
    return describe(output, len(sources), time.monotonic() - begun)


def was_finished(output: Path, root: Path, overwrite: bool) -> bool:
    """True if the output was made of this journal, and a kill came before the journal was removed, which is done then.
    With `overwrite`, an output is made again of a whole journal."""
    begun = read_job(root)
    if begun is None:
        return read_attributes(output) is not None and remove_emptied(root, output)
    whole = not begun["published"] and bool(read_list(root))
    return not (whole and overwrite) and finish_interrupted_cleanup(output, root) is not None


def describe(output: Path, sources: int, seconds: float) -> Merged:
    """Say what a finished output has."""
    with open_features(output, follow=True) as features:  # its tables only
        nbytes = sum(path.stat().st_size for path in (output, *features.linked))
        return Merged(output, sources, len(features), features.clips, len(features.failures), nbytes, seconds)


def check_apart(output: Path, links: Sequence[tuple[Path, Sequence[Path]]]) -> None:
    """Raise UsageError if writing the output would replace one of the parts, or a file that a part links to."""
    for path, linked in links:
        for file in (path, *linked):
            if os.path.realpath(file) == os.path.realpath(output):
                raise UsageError(f"{output} is also one of the parts, and would be replaced; name another output by -o")


def find_journals(paths: Sequence[Path]) -> list[Path]:
    """Return the journals among the parts, each once. A name of an output that is not there means its journal."""
    roots = [path if path.exists() else journal_directory(path) for path in paths]
    found = {os.path.realpath(root): root for root in roots if (root / "job.json").is_file()}
    return list(found.values())


def check_alike(sources: Sequence[Source]) -> None:
    """Raise OutputError if the features of two sources were not made in the same way. It names the difference."""
    first = sources[0]
    for source in sources[1:]:
        one, other = ({**s.settings, "classes": list(s.classes)} for s in (first, source))
        for settings in (one, other):  # the parts may be compressed in different ways
            settings["features"] = {**settings.get("features", {}), "compression": None}
        for settings, arrays in ((one, first.arrays), (other, source.arrays)):  # what is stored, whatever settings say
            settings["datasets"] = {name: [arrays.dtype, *shape] for name, shape in arrays.shapes.items()}
        if one != other:
            raise OutputError(
                f"{source.path} does not go with {first.path}: "
                f"{describe_difference(one, other, was=f'of {first.path} is', now=f'of {source.path} is')}; "
                "features of different settings do not belong into one file"
            )


def choose(sources: Sequence[Source], on_duplicate: OnDuplicate) -> dict[str, Source]:
    """Return the source that each video is taken from. Raises OutputError for duplicates, unless the first counts."""
    chosen: dict[str, Source] = {}
    duplicates: dict[str, tuple[Source, Source]] = {}
    for source in sources:
        for name, record in source.records.items():
            before = chosen.setdefault(name, source)
            if before is source:
                continue
            if before.records[name].status == "failed":
                chosen[name] = source
            elif record.status != "failed":
                duplicates[name] = before, source
    if duplicates and on_duplicate == "error":
        name, (one, other) = next(iter(duplicates.items()))
        raise OutputError(
            f"{plural(len(duplicates), 'video')} in more than one part: {name_some(list(duplicates))} ({name} is in "
            f"{one.path} and in {other.path}); --on-duplicate first takes the first"
        )
    return chosen


def find_expected(sources: Sequence[Source], chosen: Mapping[str, Source], allow_missing: bool) -> list[str]:
    """Return the ids that the journals should have. Raises OutputError if one is missing, unless that is allowed."""
    expected = list(dict.fromkeys(name for source in sources for name in source.expected))
    if (missing := [name for name in expected if name not in chosen]) and not allow_missing:
        raise OutputError(
            f"{plural(len(missing), 'video')} not complete: {name_some(missing)}; continue them by the vswin-extract "
            "commands that began them, or leave them out by --allow-missing"
        )
    return expected


def _write(
    output: Path,
    layout: Layout | Literal["linked"],
    sources: Sequence[Source],
    chosen: Mapping[str, Source],
    run: str,
    check: Callable[[], None],
    shard_limit: ShardLimit,
    on_note: Callable[[str], None],
) -> None:
    """Write the chosen videos in this order. `check` raises an error if the output must not be written after all."""
    first = sources[0]
    description = FileDescription(first.arrays, {**first.attributes, **first.settings, "run": run}, first.classes)
    records = [source.records[name] for name, source in chosen.items()]
    unfinished = name_unfinished(output.parent, f".{output.name}", run)

    def rows(videos: Sequence[VideoRecord]) -> Iterator[RowBlock]:
        for record in videos:
            yield from chosen[record.id].rows(record.id)

    def finish() -> None:
        for source in sources:
            source.finish()
        check()

    if layout == "linked":
        files = [source.link({name for name in chosen if chosen[name] is source}) for source in sources]
        notes = make_index(output, unfinished, files, split_failed(records)[1], description, check)
    else:
        paths = [source.path for source in sources]
        notes = make_output(output, unfinished, layout, rows, records, description, finish, shard_limit, paths)
    for note in notes:
        on_note(note)
