"""The directories that hold weights on this machine: the bundled file, and the caches that `pull` fills.

The caches are the directories of $VSWIN_WEIGHTS_DIR, separated by colons, or else vswin-extract/ under $XDG_CACHE_HOME
(~/.cache). They are searched in this order. Downloads go to the first one that can be written. A user without a home
directory, as in a container that runs by number, has no cache unless a variable names one. Beside a file there can be

    FILE.sha256             the hash of the first download, if no hash is published
    FILE.part, .part.json   an unfinished download, see `part`
    FILE.lock               the process that downloads the file; others wait for it
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vswin_extract import locks
from vswin_extract.errors import WeightsError
from vswin_extract.system import home_directory
from vswin_extract.weights.registry import BUNDLED, Published, known_name, manifest

DIRECTORIES = "VSWIN_WEIGHTS_DIR"
"""The environment variable that names the caches."""
OFFLINE = "VSWIN_OFFLINE"
"""The environment variable that forbids to download weights that are asked for and are not here."""
COMPILED, GOLDEN = "compiled", "golden"
"""Folders of a cache: for compiled networks, and for the golden features that `weights verify --record` writes."""
DEAD_AFTER = 120.0
"""Seconds without a touch after which the lock of another host counts as abandoned."""


def cache_dirs() -> list[Path]:
    """Return the caches in the order in which they are searched. There is none if no variable names one and this user
    has no home directory."""
    if given := [name for name in os.environ.get(DIRECTORIES, "").split(os.pathsep) if name]:
        return list(map(Path, given))
    home = home_directory()
    above = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
    return [Path(above) / "vswin-extract"] if above else []


def writable_cache() -> Path | None:
    """Return the cache that downloads go to, or None if no cache can be written."""
    return next(filter(_is_writable, cache_dirs()), None)


def require_writable_cache() -> Path:
    """Return the cache that downloads go to. Raise WeightsError if no cache can be written."""
    if directory := writable_cache():
        return directory
    raise WeightsError(f"{_which_cache()}; {_writable_cache_advice()}")


def bundled_file() -> Path:
    """Return the bundled weights: inside an installed package, or in weights/ of a checkout."""
    package = Path(__file__).parent
    installed = package / "bundled" / f"{BUNDLED}.safetensors"
    return installed if installed.is_file() else package.parents[1] / "weights" / f"{BUNDLED}.safetensors"


def cached_file(row: Published) -> Path:
    """Return the file in the first cache that has it, or else the path that a download would get. Raise WeightsError if
    there is no cache."""
    directories = cache_dirs()
    for directory in directories:
        if os.path.isfile(directory / row.filename):
            return directory / row.filename
    return (writable_cache() or (directories[0] if directories else require_writable_cache())) / row.filename


def is_cached(row: Published) -> bool:
    """True if a cache has the file, and this user may look into it."""
    return any(os.path.isfile(directory / row.filename) for directory in cache_dirs())


def find_weights(name_or_file: str) -> Path:
    """Return the file of the bundled weights, of published weights in a cache, or the given file itself.

    Raise UsageError for an unknown name, and WeightsError for a missing file.
    """
    name = standard_name(name_or_file)
    if name == BUNDLED:
        return bundled_file()
    if Path(name).is_file():
        return Path(name)
    row = manifest()[name]
    if not is_cached(row):
        pull = f"get it with: vswin weights pull {row.name}"
        if not writable_cache():
            raise WeightsError(f"{row.name} is not here: {_which_cache()}; {_writable_cache_advice()}, then {pull}")
        raise WeightsError(f"{row.name} is not in the weights cache {_joined(cache_dirs())}; {pull}")
    return cached_file(row)


def standard_name(name_or_file: str) -> str:
    """Return the name of the manifest that a name means, `BUNDLED`, or a file as it is given.

    Raise UsageError for an unknown name, and WeightsError for a missing file.
    """
    if name_or_file == BUNDLED or Path(name_or_file).is_file():
        return name_or_file
    published = {row.filename for row in manifest().values()}
    if os.sep in name_or_file or (
        name_or_file.endswith((".pth", ".pt", ".safetensors")) and name_or_file not in published
    ):
        raise WeightsError(f"no weights at {name_or_file}")
    return known_name(name_or_file)


def missing_weights(name_or_file: str) -> Published | None:
    """Return the published weights that a name means if no cache has them, else None. Raise what `standard_name`
    raises."""
    name = standard_name(name_or_file)
    row = None if Path(name).is_file() else manifest().get(name)
    return None if row is None or is_cached(row) else row


def is_offline() -> bool:
    """True if $VSWIN_OFFLINE forbids downloads that are not asked for by `vswin weights pull`."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "false", "no", "off")


def recorded_hash_file(row: Published) -> Path:
    """Return the file with the hash of the first download, for weights without a published hash."""
    return add_suffix(cached_file(row), ".sha256")


def expected_sha256(row: Published) -> str:
    """Return the published hash (complete, or its first digits), or else that of the first download, or else ""."""
    if row.sha256 or not cache_dirs():
        return row.sha256
    recorded = recorded_hash_file(row)
    return recorded.read_text().partition(" ")[0] if os.path.isfile(recorded) else ""


def check_hash(sha256: str, row: Published) -> str:
    """Return a sentence about the hash of a file. Raise WeightsError if it is not the expected one."""
    expected = expected_sha256(row)
    if not sha256.startswith(expected):
        raise WeightsError(
            f"{cached_file(row)} has sha256 {sha256}, but {expected} is expected; "
            f"if the file is in the cache, delete it and pull {row.name} again"
        )
    if not row.sha256:
        return f"sha256 {sha256}: none is published" + (", recorded at the first download" if expected else "")
    how = " (its first digits)" if len(expected) < 64 else f" ({row.note})" if row.note else ""
    return f"sha256 {sha256}: as published{how}"


@dataclass(frozen=True)
class Leftovers:
    """Files in the caches that are neither weights nor their hashes.

    `unfinished`: files of stopped downloads. `running`: downloads that still run, each with its process. `foreign`:
    files and directories that this package did not write.
    """

    unfinished: list[Path]
    running: list[str]
    foreign: list[Path]


def find_leftovers() -> Leftovers:
    """Search all caches that can be written."""
    found = Leftovers([], [], [])
    for directory in cache_dirs():
        if os.path.isdir(directory) and _is_writable(directory):
            _add_leftovers(directory, found)
    return found


def remove_leftovers(unfinished: Iterable[Path]) -> None:
    """Remove the `unfinished` files that `find_leftovers` found."""
    for path in unfinished:
        path.unlink(missing_ok=True)


def add_suffix(path: Path, suffix: str) -> Path:
    """Return the path with a suffix added to its name."""
    return path.with_name(path.name + suffix)


def _add_leftovers(directory: Path, found: Leftovers) -> None:
    filenames = [row.filename for row in manifest().values()]
    running = {}
    for filename in filenames:
        lock = directory / f"{filename}.lock"
        if lock.exists() and (holder := locks.holder(lock, DEAD_AFTER)):
            running[filename] = holder
    found.running.extend(f"{directory / filename} by {holder}" for filename, holder in running.items())
    for path in sorted(directory.iterdir()):
        filename = next((filename for filename in filenames if path.name.startswith(filename)), "")
        rest = path.name.removeprefix(filename)
        if filename and rest.endswith((".part", ".part.json", ".tmp")):
            if filename not in running:
                found.unfinished.append(path)
        elif path.name not in (COMPILED, GOLDEN) and (not filename or rest not in ("", ".sha256", ".lock")):
            found.foreign.append(path)


def _is_writable(directory: Path) -> bool:
    """True if files can be made in the directory, or if the directory can be made."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if os.path.exists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _which_cache() -> str:
    """Return in words why nothing can be downloaded."""
    if directories := cache_dirs():
        return f"the weights cache {_joined(directories)} cannot be written"
    return "there is no weights cache, because this user has no home directory"


def _writable_cache_advice() -> str:
    """Return what to do about it. An own directory comes after the caches that others have filled."""
    filled = [directory for directory in cache_dirs() if os.path.isdir(directory)]
    return f"name a directory of your own, DIR: export {DIRECTORIES}={_joined([*filled, Path('DIR')])}"


def _joined(directories: Iterable[Path]) -> str:
    return os.pathsep.join(map(str, directories))
