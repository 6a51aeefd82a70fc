"""Entry files: which videos are finished, where their rows are, and how clip ranges make up a whole video."""

import hashlib
import re
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vswin_extract.errors import FrameTableWrong
from vswin_extract.files import file_sha256, write_json
from vswin_extract.journal.parts import SUFFIX, Entry, record_type
from vswin_extract.journal.stored import check_entry, read_json
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.remote import is_remote, same_fingerprint

KEY_LENGTH = 32
"""Characters of the file name of a single video's entry."""
PACK_NAME = re.compile(r"pack-[0-9]{1,18}")
"""Names of the files of packs, without their ending."""
NO_END = 1 << 62
"""Compares as the end of a clip range that ends with its video."""

TABLE_WRONG = FrameTableWrong.__name__
"""The error of an entry that says that clip ranges of its video do not count: the video is to be extracted as a whole.
"""

Version = tuple[str, float | None, float | None, int, str, float]
"""Which video was asked for, and the fingerprint of its file: path, start, end, size, etag, mtime."""


@dataclass(frozen=True)
class Extracted:
    """A complete video: its record as a whole, and the pieces whose rows follow one another."""

    record: VideoRecord
    pieces: tuple[Entry, ...] = ()


def single_path(directory: Path, video_id: str, clip_range: ClipRange) -> Path:
    """Return the .rows file of a video, or of a clip range of one; its .json file has the same stem."""
    name = video_id if clip_range == WHOLE else f"{video_id}\0{clip_range}"
    key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_LENGTH]
    return directory / (key + SUFFIX)


def write_entry_file(rows: Path, records: Sequence[VideoRecord], sha256: str) -> None:
    """Write the .json file that says that these videos are finished. `sha256` is that of `rows`, or "" without rows."""
    write_json(rows.with_suffix(".json"), {"videos": [asdict(record) for record in records], "sha256": sha256})


def entry_files(root: Path) -> list[Path]:
    """Return the .json files of all finished videos. In each directory the packs come first, since they are older."""
    found = []
    for directory in [root, *writer_directories(root)]:
        packs = [path for path in directory.glob("pack-*.json") if PACK_NAME.fullmatch(path.stem)]
        packs.sort(key=lambda path: int(path.stem[5:]))
        found += [*packs, *(path for path in directory.glob("*.json") if len(path.stem) == KEY_LENGTH)]
    return found


def writer_directories(root: Path) -> list[Path]:
    """Return the directories of all writers. Earlier versions called them branch-<id>."""
    return sorted(path for path in (*root.glob("branch-*"), *root.glob("shard-*")) if path.is_dir())


def read_entry_file(path: Path, arrays: Arrays | None = None, verify: bool = True) -> tuple[list[VideoRecord], str]:
    """Return the videos that a .json file of the journal names, and what is wrong with it or its rows, or "".

    Without `verify` the rows are not read. With `arrays` their number is checked.
    """
    try:
        records, expected = check_entry(read_json(path))
    except FileNotFoundError:  # its writer has packed it meanwhile
        return [], ""
    except ValueError:
        return [], "is described by a damaged .json"
    rows = path.with_suffix(SUFFIX)
    if not expected:
        return records, ""
    try:
        found = rows.stat()
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            return records, "is damaged: it is not a file"
        if arrays is not None and size != (whole := sum(r.clips for r in records) * record_type(arrays).itemsize):
            return records, f"is damaged: it has {size} bytes where {whole} were written"
        if verify and file_sha256(rows) != expected:
            return records, "is damaged: it has another sha256 than when it was written"
    except FileNotFoundError:
        return (records, "is gone") if path.exists() else ([], "")
    return records, ""


def entries_of(records: Sequence[VideoRecord], rows: Path) -> list[Entry]:
    """Return the entries of videos whose rows follow one another in one file."""
    first, entries = 0, []
    for record in records:
        entries.append(Entry(record, rows, first))
        first += record.clips
    return entries


def version(record: VideoRecord) -> Version:
    return record.path, record.start, record.end, record.size, record.etag, record.mtime


def same_version(record: VideoRecord, wanted: Version) -> bool:
    """True if a record is of the wanted video and file. Of a remote file, only what is known of it is compared."""
    then = version(record)
    return then == wanted or (
        is_remote(record.path) and then[:3] == wanted[:3] and same_fingerprint(then[3:], wanted[3:])
    )


def assemble(entries: Sequence[Entry]) -> Extracted | None:
    """Return the video that these entries of it make up, or None if some clips are missing.

    Entries of different versions of its file are not mixed: the version that was written last and is complete counts.
    If one clip range failed, the video failed. An entry of the whole video counts more than those of its clip ranges,
    and these do not count at all once the frames of one were not those of the frame table.
    """
    by_version: dict[Version, list[Entry]] = {}
    for entry in entries:
        by_version.setdefault(version(entry.record), []).append(entry)
    groups = list(by_version.values())
    if len(groups) > 1:  # a single version, as usual, needs no look at the files
        groups.sort(key=lambda group: max(map(_written, group)), reverse=True)
    for group in groups:
        if any(entry.record.error == TABLE_WRONG for entry in group):
            group = [entry for entry in group if entry.record.clip_range == WHOLE and entry.record.error != TABLE_WRONG]
        if pieces := _chain([entry for entry in group if entry.record.status != "failed"]):
            return Extracted(join_records([piece.record for piece in pieces]), tuple(pieces))
        for entry in group:
            if entry.record.status == "failed":
                return Extracted(replace(entry.record, clip_range=WHOLE))
    return None


def join_records(pieces: Sequence[VideoRecord]) -> VideoRecord:
    """Return the record of a video by those of its pieces, in order. The last one was read to the video's end."""
    first, last = pieces[0], pieces[-1]
    return replace(
        last,
        clip_range=(first.clip_range[0], last.clip_range[1]),
        clips=sum(piece.clips for piece in pieces),
        skipped=sum(piece.skipped for piece in pieces),
        status="partial" if any(piece.status == "partial" for piece in pieces) else last.status,
        message=last.message or next((piece.message for piece in pieces if piece.message), ""),
        width=first.width,
        height=first.height,
    )


def _written(entry: Entry) -> int:
    """Return when an entry was written, by the file server's clock. A video's mtime does not tell that."""
    try:
        return entry.file.with_suffix(".json").stat().st_mtime_ns
    except FileNotFoundError:  # its writer has packed it meanwhile
        return 0


def _chain(entries: Sequence[Entry]) -> list[Entry]:
    """Return pieces that follow one another from a video's first clip to its last, or none."""
    at, chain = 0, []
    while True:
        fitting = [entry for entry in entries if entry.record.clip_range[0] <= at < _end(entry)]
        if not fitting:
            return []
        entry = max(fitting, key=_end)
        skipped, end = at - entry.record.clip_range[0], entry.record.clip_range[1]
        clips = max(0, entry.record.clips - skipped)
        chain.append(Entry(replace(entry.record, clips=clips), entry.file, entry.first + skipped) if skipped else entry)
        if end is None:
            return chain
        at = end


def _end(entry: Entry) -> int:
    return entry.record.clip_range[1] or NO_END
