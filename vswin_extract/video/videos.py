"""Which videos a run covers, and their ids: from directories, files, manifests and lists, here or at addresses."""

import codecs
import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vswin_extract.errors import UsageError
from vswin_extract.files import names_path
from vswin_extract.formatting import as_utf8, parse_clock
from vswin_extract.video import remote
from vswin_extract.video.file_kinds import UTF16, other_kind, where_it_goes
from vswin_extract.video.listing import Say, Skipped, list_files, log
from vswin_extract.video.ranges import WHOLE, ClipRange
from vswin_extract.video.remote import Address, is_remote

EXTENSIONS = frozenset(
    (
        ".264 .265 .3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v "
        ".mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv"
    ).split()
)
"""Endings of the videos in a directory. A video that is given by itself may have any name."""


@dataclass(frozen=True)
class Video:
    """A video, or its segment [start, end) in seconds, or a clip range of it. `id` is unique within a run. A video at
    an address is fetched by a decoder when its turn comes. `sequential`: it has to be read from its beginning, frame
    after frame."""

    id: str
    path: Path | Address
    start: float | None = None
    end: float | None = None
    clip_range: ClipRange = WHOLE
    sequential: bool = False

    @property
    def location(self) -> str:
        """Where it is, for files and messages, without secrets."""
        return str(self.path) if isinstance(self.path, Address) else os.path.abspath(self.path)


def fingerprint(video: Video) -> tuple[int, float, str]:
    """Return size in bytes, mtime and etag of a video's file: -1, 0 and "" where there is no file, or where it is at an
    address that was not looked at yet."""
    if isinstance(video.path, Address):
        return video.path.size, video.path.mtime, video.path.etag
    try:
        status = video.path.stat()
    except OSError:
        return -1, 0.0, ""
    return status.st_size, status.st_mtime, ""


def find_videos(
    inputs: Sequence[str | os.PathLike[str]] = (),
    manifest: str | os.PathLike[str] | None = None,
    listed: Iterable[str] = (),
    say: Say = log.warning,
) -> tuple[Video, ...]:
    """Return the videos of a run, in order: `inputs` (files, and directories walked in sorted order), the manifest's
    rows, and `listed` paths. Each may be an address, which is looked at unless it comes from a manifest or a list.
    `say` is called if links or names that a server lists are skipped. Raises UsageError where an input is missing,
    where there is no video at all, and where two videos get one id."""
    if any(os.fspath(path) == "" for path in inputs):
        raise UsageError("an empty name was given for a video or directory")
    videos = [video for path in inputs for video in _from_input(os.fspath(path), say)]
    if manifest is not None:
        videos += _from_manifest(Path(manifest))
    videos += [_from_path(line.rstrip("\r\n"), Path()) for line in listed if line.strip()]
    if not videos:
        raise UsageError("no videos: name a directory, files or a --manifest")
    unique: dict[str, Video] = {}
    for video in videos:
        _check_id(video)
        other = unique.setdefault(as_utf8(video.id), video)
        if _extracted(other) != _extracted(video):
            raise UsageError(
                f"two videos would get the id {video.id!r}: {other.path} and {video.path}; "
                "name a directory above both, or give ids in a --manifest"
            )
    _check_nesting(unique)
    return tuple(unique.values())


def read_paths(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of a list on standard input, one of each line. Raises UsageError for UTF-16, and for NUL between
    paths."""
    with names_path(Path("standard input")):
        for number, line in enumerate(lines):
            if b"\0" in line:
                kind = "UTF-16" if line.startswith(UTF16) else "UTF-16, or has NUL between paths"
                raise UsageError(f"line {number + 1} on standard input is {kind}; give a path in each line, in UTF-8")
            yield os.fsdecode(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line)


def walk_order(video_id: str) -> list[bytes]:
    """Return a key that sorts ids in the order in which directories are walked: name by name, files and directories
    together."""
    return [os.fsencode(name) for name in video_id.split("/")]


def _extracted(video: Video) -> tuple[object, ...]:
    """Return the file that is extracted, and which part of it."""
    return getattr(video.path, "url", video.location), video.start, video.end


def _from_input(given: str, say: Say) -> Iterator[Video]:
    if is_remote(given):
        yield from _from_address(given, say)
        return
    path = Path(given)
    if path.is_dir():
        found = [Video(file.relative_to(path).as_posix(), file) for file in _walk(path)]
        if not found:
            raise UsageError(f"no videos in {path}: looked for {' '.join(sorted(EXTENSIONS))}")
        yield from found
    elif os.path.lexists(path):
        known = path.suffix.lower() in EXTENSIONS
        if not known and path.is_file() and (kind := other_kind(path)):  # opening a FIFO would wait for ever
            raise UsageError(f"{path} is no video: it is {kind}" + where_it_goes(path) * (kind in ("text", "empty")))
        yield Video(path.name, path)
    else:
        raise UsageError(f"no such file or directory: {path}")


def _from_address(url: str, say: Say) -> Iterator[Video]:
    """Yield the video at an address, or the videos below it."""
    found = list_files(url, say=say)
    if isinstance(found, Address):
        yield Video(remote.path_of(url).rpartition("/")[2], found)
        return
    names: dict[str, None] = {}
    inside = Skipped("name")
    for name in sorted(found, key=walk_order):
        if Path(name).suffix.lower() not in EXTENSIONS or any(part.startswith(".") for part in name.split("/")):
            continue
        if any(letter == "/" and name[:at] in names for at, letter in enumerate(name)):
            inside.add("of what lies inside a video", name)
        else:
            names[name] = None
    if inside.examples:
        say(f"{inside} below {remote.without_secrets(url)}")
    if not names:
        raise UsageError(f"no videos in {remote.without_secrets(url)}: looked for {' '.join(sorted(EXTENSIONS))}")
    for name in names:
        yield Video(name, found[name])


def _walk(directory: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the video files below `directory`, sorted by path. Links are followed, except to a directory above."""
    here = directory.stat()
    if (here.st_dev, here.st_ino) in above:
        return
    above |= {(here.st_dev, here.st_ino)}
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UsageError(f"cannot list {directory}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):  # hidden, as ._name.mp4 from macOS
            continue
        if os.path.isdir(entry.path):  # unlike entry.is_dir(), false for a link to itself
            yield from _walk(Path(entry.path), above)
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            yield Path(entry.path)


def _from_manifest(manifest: Path) -> Iterator[Video]:
    """Yield the videos of a .csv or .tsv with the columns path[,id,start,end]. Relative paths start at the manifest's
    directory."""
    delimiter = {".csv": ",", ".tsv": "\t"}.get(manifest.suffix.lower())
    if delimiter is None:
        raise UsageError(f"manifest {manifest} must end in .csv or .tsv")
    try:
        content = manifest.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the manifest {manifest}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        kind = "UTF-16" if content.startswith(UTF16) else f"another encoding ({error})"
        raise UsageError(f"cannot read the manifest {manifest}: it must be UTF-8, and is {kind}") from error
    before, found, _ = text.partition("\0")
    if found:
        line = before.count("\n") + 1
        raise UsageError(f"manifest {manifest}, line {line}: has a NUL; it must be text in UTF-8, and may be UTF-16")
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = set(rows.fieldnames or ())
        unknown = columns - {"path", "id", "start", "end"}
        if "path" not in columns or unknown or len(columns) < len(rows.fieldnames or ()):
            raise UsageError(
                f"manifest {manifest} must begin with the column names path[,id,start,end], not "
                f"{delimiter.join(rows.fieldnames or ('nothing',))!r}"
            )
        for row in rows:
            where = f"{manifest}, line {rows.line_num}"
            if not row["path"] or None in row:
                raise UsageError(f"{where}: needs a path, and no more than the {len(columns)} columns named above")
            start, end = (_seconds(row.get(column), column, where) for column in ("start", "end"))
            if end is not None and end <= (start or 0.0):
                raise UsageError(f"{where}: end {end:g} is not after start {start or 0:g}")
            video = _from_path(row["path"], manifest.parent)
            yield replace(video, id=row.get("id") or video.id, start=start, end=end)
    except csv.Error as error:
        raise UsageError(f"{manifest}, line {rows.line_num}: {error}") from error


def _seconds(text: str | None, column: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value: float | None = float(text)
    except ValueError:
        value = parse_clock(text)
    if value is None or not 0 <= value < float("inf"):
        raise UsageError(
            f"{where}: {column} must be seconds, 0 or more, or a time like 1:05.3, below 60 behind a colon, "
            f"not {text!r}"
        )
    return value


def _from_path(path: str, base: Path) -> Video:
    """Return the video of a listed path. Its id is the path as written, without a leading slash or ../; of an address,
    the path behind the host or bucket."""
    if is_remote(path):
        remote.check_protocol(path)
        return Video(remote.path_of(path), Address(path))
    name = os.path.normpath(path).replace(os.sep, "/").lstrip("/")
    while name.startswith("../"):
        name = name[3:]
    return Video(name, base / path)


def _check_id(video: Video) -> None:
    parts = video.id.split("/")
    if not video.id or "\0" in video.id + str(video.path) or any(part in ("", ".", "..") for part in parts):
        raise UsageError(
            f"{video.id!r} cannot be the id of {video.path}: an id is a relative path without '..' or empty parts; "
            "give one in a --manifest"
        )


def _check_nesting(ids: Collection[str]) -> None:
    """Raise UsageError where an id is a directory of another: a group of the output cannot be both."""
    for video_id in ids:
        for at, letter in enumerate(video_id):
            if letter == "/" and video_id[:at] in ids:
                raise UsageError(f"{video_id[:at]!r} and {video_id!r} cannot both be ids: one lies inside the other")
