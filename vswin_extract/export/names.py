"""The names of exported files. All names of an export are compared before anything is written."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from vswin_extract.errors import UsageError
from vswin_extract.export.layout import FileLayout
from vswin_extract.video.videos import EXTENSIONS

FILES: dict[str, tuple[str, ...]] = {
    "actionformer": ("{name}{suffix}.npy",),
    "opentad": ("{name}{suffix}.npy",),
    "moment-detr": ("{name}.npz",),
    "npy": ("{name}{suffix}.npy", "times/{name}.npy"),
    "npz": ("{name}{suffix}.npz",),
    "csv": ("{name}{suffix}.csv", "times/{name}.csv"),
    "ten-crop": ("{name}.npy",),
}
"""The files of a video, by format. The other formats have no file for each video."""
IN_ONE_FILE = ("tvr",)
"""Formats with one HDF5 file, where the name of a video is a path."""
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes of a name and of a path, where the file system does not tell."""
OURS = "the export itself"


def without_extension(video_id: str, stem: bool) -> str:
    """Return an id, with `stem` without the extension of a video."""
    path, extension = os.path.splitext(video_id)
    return path if stem and extension.lower() in EXTENSIONS else video_id


def file_names(ids: Iterable[str], stem: bool) -> dict[str, str]:
    """Return the name of each video's files, without the format's ending: its id, which may contain `/`, or with `stem`
    its id without a video's extension. Raises UsageError if two are equal, or if a name would lead out of the folder
    of the export."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for video_id in ids:
        name = without_extension(video_id, stem)
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise UsageError(f"the id {video_id!r} cannot be the name of a file")
        if (other := taken.setdefault(name, video_id)) != video_id:
            raise UsageError(f"{other!r} and {video_id!r} would both be called {name!r}; export without --stem")
        names[video_id] = name
    return names


def check_names(
    format: str,
    names: Mapping[str, str],
    others: Iterable[str],
    folder: Path,
    destination: Path,
    layout: FileLayout,
) -> None:
    """Raise UsageError if two of all the files of an export would have one name, if one would be in the place of
    another's folder, or if a name is too long for the file system.

    `names`: of the videos, by id. `others`: files that belong to no video. `folder`: where the files are written before
    they become `destination`.
    """
    if format not in FILES and format not in IN_ONE_FILE:
        return
    patterns = FILES.get(format, ("{name}",))
    if format == "actionformer" and layout.key:
        patterns = ("{name}{suffix}.npz",)
    files = [
        (pattern.replace("{suffix}", layout.suffix).replace("{name}", name), video_id)
        for video_id, name in names.items()
        for pattern in patterns
    ]
    advice = "use a format with one file, as parquet, or other ids"
    if any(name != video_id for video_id, name in names.items()):
        advice = f"export without --stem, or {advice}"
    if format in FILES:
        _expect_short(files, folder, destination, advice)
        files += [(name, OURS) for name in others]
    expect_apart(files, format in FILES and ignores_case(folder), advice)


def expect_apart(files: Iterable[tuple[str, str]], ignore_case: bool, advice: str) -> None:
    """Raise UsageError if two of these files, each with the id of its video, would have one name, or if one has the
    name of a folder of another."""
    owners: dict[str, tuple[str, str]] = {}
    for name, video_id in files:
        key = _folded(name) if ignore_case else name
        if key in owners:
            other, other_id = owners[key]
            case = "" if other == name else f" (to this file system, {other!r} is the same name)"
            raise UsageError(f"{_both(other_id, video_id)} would have the file {name!r}{case}; {advice}")
        owners[key] = (name, video_id)
    for key, (_, video_id) in owners.items():
        for end in (index for index, character in enumerate(key) if character == "/"):
            if (found := owners.get(key[:end])) is not None:
                raise UsageError(f"{found[0]!r} would be a file of {found[1]!r} and a folder of {video_id!r}; {advice}")


def ignores_case(folder: Path) -> bool:
    """True if the file system of an empty folder takes names that differ by case for one. Raises OSError."""
    probe = folder / "a"
    probe.touch()
    try:
        return (folder / "A").exists()
    finally:
        probe.unlink()


def _folded(name: str) -> str:
    """Return what all names are that a file system without case takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _both(one: str, other: str) -> str:
    return f"both {one!r} and {other!r}" if one != other else f"{one!r} twice"


def _expect_short(files: Iterable[tuple[str, str]], folder: Path, destination: Path, advice: str) -> None:
    """Raise UsageError if a name, or the path with it, is too long for the file system."""
    longest_name, longest_path = (
        _limit(folder, *limit) for limit in (("PC_NAME_MAX", LONGEST_NAME), ("PC_PATH_MAX", LONGEST_PATH))
    )
    above = max(len(os.fsencode(os.path.abspath(each))) for each in (folder, destination))
    for name, video_id in files:
        encoded = os.fsencode(name)
        if max(map(len, encoded.split(b"/"))) > longest_name or above + 1 + len(encoded) >= longest_path:
            raise UsageError(
                f"a file of {video_id!r} would have a name of {len(encoded)} bytes, which is too long here; {advice}"
            )


def _limit(folder: Path, name: str, default: int) -> int:
    """Return how many bytes a name or a path may have, by the name that the system calls this number."""
    try:
        found = os.pathconf(folder, name)
    except (OSError, ValueError):
        return default
    return found if found > 0 else default
