"""Where weights come from: the bundled file, the manifest of published ones, and the caches that `pull` fills.

Only `pull` touches the network. The caches are the directories of $VSWIN_WEIGHTS_DIR, separated by colons, or
vswin-extract/ under $XDG_CACHE_HOME (~/.cache). They are searched in this order, and downloads go to the first that can
be written. Beside a file there may lie

    FILE.sha256             what the first download had, where no hash is published
    FILE.part, .part.json   an unfinished download; see `download`
    FILE.lock               the process that is downloading it; others wait for it
"""

import difflib
import os
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import url2pathname

from vswin_extract import locks
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.files import file_sha256
from vswin_extract.video.remote import without_secrets
from vswin_extract.weights.classes import class_names
from vswin_extract.weights.download import PATIENT, Patience, Progress, Say, copy, download, publish, read_state, remove

if TYPE_CHECKING:  # torch, which takes seconds, and only reading them needs
    from vswin_extract.weights.checkpoints import Checkpoint
    from vswin_extract.weights.recipe import Recipe

BUNDLED = "nano"
"""The weights that ship with this package, and the default."""
COMPILED, GOLDEN = "compiled", "golden"
"""Folders of a cache for what compilers and `weights verify` keep."""
MIRROR = "VSWIN_WEIGHTS_MIRROR"
"""The variable that says where `pull` finds files instead of at the manifest's addresses."""
TOUCH_EVERY = 10.0
DEAD_AFTER = 120.0
"""Seconds: how often a download's lock is touched, and when one of another host is taken for dead."""
POLL = 0.5
"""Seconds after which who waits for another process's download looks again."""


@dataclass(frozen=True)
class Published:
    """One row of the manifest, weights.toml, where the fields are explained."""

    name: str
    url: str
    layout: str
    variant: str
    dataset: str
    classes: int
    accuracy: tuple[float, float]
    views: str
    sha256: str
    megabytes: float
    license: str
    resize: int
    note: str = ""

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def file(self) -> Path:
        """Where a cache has it, or else where a download would put it."""
        for directory in cache_dirs():
            if os.path.isfile(directory / self.filename):
                return directory / self.filename
        return (writable_cache() or cache_dirs()[0]) / self.filename

    @property
    def record(self) -> Path:
        """Where the hash of a first download is kept, for weights without a published one."""
        return self.file.with_name(self.filename + ".sha256")

    @property
    def recipe(self) -> "Recipe":
        from vswin_extract.weights.recipe import Recipe

        return Recipe(resize=self.resize)


@cache
def manifest() -> dict[str, Published]:
    """Published weights by name."""
    rows = tomllib.loads(Path(__file__).with_name("weights.toml").read_text("utf-8"))
    return {name: Published(name=name, **{**row, "accuracy": tuple(row["accuracy"])}) for name, row in rows.items()}


def cache_dirs() -> list[Path]:
    """The caches, in the order in which they are searched."""
    given = [name for name in os.environ.get("VSWIN_WEIGHTS_DIR", "").split(os.pathsep) if name]
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vswin-extract"
    return list(map(Path, given)) or [default]


def cache_dir() -> Path:
    """The cache that downloads go to. Raises WeightsError where none can be written."""
    if directory := writable_cache():
        return directory
    raise WeightsError(
        f"nothing can be written to the weights cache {_names(cache_dirs())}; add a directory of your own, as in: "
        f"export VSWIN_WEIGHTS_DIR={_names(cache_dirs())}:$HOME/weights"
    )


def writable_cache() -> Path | None:
    """The cache that downloads go to, if one can be written."""
    return next(filter(_is_writable, cache_dirs()), None)


def _is_writable(directory: Path) -> bool:
    """Whether files can be made in it, or it can be made."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if os.path.exists(path))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _names(directories: Iterable[Path]) -> str:
    return os.pathsep.join(map(str, directories))


def bundled_file() -> Path:
    """The bundled weights: inside an installed package, or in weights/ of a checkout."""
    package = Path(__file__).parent
    installed = package / "bundled" / f"{BUNDLED}.safetensors"
    return installed if installed.is_file() else package.parents[1] / "weights" / f"{BUNDLED}.safetensors"


def published(name: str) -> Published:
    """The manifest's row. Raises UsageError, with near names, where there is none."""
    if name in manifest():
        return manifest()[name]
    near = difflib.get_close_matches(name, [BUNDLED, *manifest()], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join([BUNDLED, *manifest()])}"
    raise UsageError(f"unknown model {name!r}: neither a file nor published weights; {hint}")


def find(name_or_file: str) -> Path:
    """The file of the bundled weights, of published ones in the cache, or the file itself.

    Raises UsageError for an unknown name, WeightsError for weights that have not been pulled.
    """
    if name_or_file == BUNDLED:
        return bundled_file()
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    if os.sep in name_or_file or name_or_file.endswith((".pth", ".pt", ".safetensors")):
        raise WeightsError(f"no weights at {name_or_file}")
    row = published(name_or_file)
    if not row.file.is_file():
        raise WeightsError(
            f"{row.name} is not in the weights cache {_names(cache_dirs())}; get it with: vswin weights pull {row.name}"
        )
    return row.file


def load(name_or_file: str, variant: str | None = None) -> "tuple[str, Checkpoint]":
    """Read weights by name or file; the result's name is the manifest's where it knows the file.

    A file from the cache must have the manifest's hash. What the file does not say of its recipe, classes, source and
    licence the manifest does.
    """
    from vswin_extract.weights.checkpoints import read
    from vswin_extract.weights.recipe import Recipe

    path = find(name_or_file)
    checkpoint = read(path, variant)
    if name_or_file == BUNDLED:
        return BUNDLED, checkpoint
    row = manifest().get(name_or_file) or known_by_hash(checkpoint.sha256)
    if row is None:
        return path.name, replace(checkpoint, recipe=checkpoint.recipe or Recipe())
    check(checkpoint.sha256, row)
    return row.name, replace(
        checkpoint,
        recipe=checkpoint.recipe or row.recipe,
        classes=checkpoint.classes or class_names(row.dataset, checkpoint.num_classes),
        source=checkpoint.source or row.url,
        license=checkpoint.license or row.license,
    )


def known_by_hash(sha256: str) -> Published | None:
    """The row of the manifest whose hash a file has: its name alone proves nothing."""
    return next((row for row in manifest().values() if row.sha256 and sha256.startswith(row.sha256)), None)


def pull(
    name: str,
    progress: Progress = lambda done, total: None,
    say: Say = lambda sentence: None,
    source: str = "",
    patience: Patience = PATIENT,
) -> tuple[Path, str]:
    """Download published weights into the cache, unless they are there; the path and a sentence on their hash.

    `progress(done, total)` in bytes, total 0 where the server does not say; `say` is called with what the user waits
    for. `source`: the address or directory of a mirror. What was begun is continued, in this process or a later one. Of
    several processes, on any hosts, one downloads, and the others wait for it. The file is checked, then published by
    rename. Raises UsageError, WeightsError, and OSError where the disk is full.
    """
    row = published(name)
    told = sha256 = None
    while not row.file.is_file():
        origin = _origin(row, source)
        target = cache_dir() / row.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _beside(target, ".lock")
        if holder := locks.acquire(lock, DEAD_AFTER):
            if holder != told:
                say(f"{row.name} is being downloaded by {holder}; waiting for it (its lock is {lock})")
            told = holder
            time.sleep(POLL)
            continue
        with locks.held(lock, TOUCH_EVERY):
            if not target.is_file():
                try:
                    sha256 = _fill(row, target, origin, progress, say, patience)
                except FileNotFoundError:  # another, who took this process for dead, was through before
                    if not target.is_file():
                        raise
    return row.file, check(sha256 or file_sha256(row.file), row)


def _fill(row: Published, target: Path, origin: str | Path, progress: Progress, say: Say, patience: Patience) -> str:
    """Bring a file into the cache, for who has its lock; its sha256."""
    part = _beside(target, ".part")
    continued = True
    while continued:
        try:
            if isinstance(origin, Path):
                continued = False
                copy(origin, part, progress)
            else:
                continued = download(origin, part, progress, say, patience)
        except WeightsError as error:
            raise WeightsError(
                f"cannot download {without_secrets(str(origin))}: {error}; on a machine without that network, have the "
                f"file in a directory and: vswin weights pull {row.name} --from DIRECTORY; or put it into "
                f"{target.parent}"
            ) from error
        expected, sha256, size = expected_sha256(row), file_sha256(part), part.stat().st_size
        if sha256.startswith(expected):
            if not expected:
                row.record.write_text(f"{sha256}  {row.filename}\n")
            publish(part, target)
            return sha256
        remove(part)  # what was there before may have been spoiled, by a power cut: once more, all of it
    raise WeightsError(
        f"{without_secrets(str(origin))} has {size} bytes of sha256 {sha256} where {expected} is expected: it is "
        f"another file, or was spoiled on its way; nothing is kept; try again, or another source by --from"
    )


def _origin(row: Published, source: str) -> str | Path:
    """The address of a file, or its path: at a mirror, if there is one, else as the manifest says. Raises UsageError,
    WeightsError."""
    mirror, named = (source, "--from") if source else (os.environ.get(MIRROR, ""), MIRROR)
    if not mirror:
        return row.url
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise UsageError(f"{named} is no address: {error}: {without_secrets(mirror)}") from error
    if parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(row.filename)}"))
    if "://" in mirror and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
        shown = without_secrets(mirror)
        raise UsageError(f"{named} is a directory or begins with http://, https:// or file:///, not {shown}")
    directory = Path(url2pathname(parts.path) if parts.scheme == "file" else mirror).expanduser()
    if not directory.is_dir():
        raise UsageError(f"{named}: no directory {directory}")
    if not (directory / row.filename).is_file():
        raise WeightsError(f"{row.name} is not in {directory}: there is no {row.filename}, from {row.url}")
    return directory / row.filename


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def expected_sha256(row: Published) -> str:
    """The published hash, whole or its first digits; else that of the first download; else ""."""
    return row.sha256 or (row.record.read_text().partition(" ")[0] if row.record.is_file() else "")


def check(sha256: str, row: Published) -> str:
    """A sentence on a file's hash. Raises WeightsError where it is not the expected one."""
    expected = expected_sha256(row)
    if not sha256.startswith(expected):
        raise WeightsError(
            f"{row.file} has sha256 {sha256} where {expected} is expected; "
            f"if it is in the cache, delete it and pull {row.name} again"
        )
    if not row.sha256:
        return f"sha256 {sha256}: none is published" + (", recorded at the first download" if expected else "")
    how = " (its first digits)" if len(expected) < 64 else f" ({row.note})" if row.note else ""
    return f"sha256 {sha256}: as published{how}"


def begun(row: Published) -> tuple[int, int]:
    """Bytes that are there of an unfinished download, and how many there will be; 0 where there is none."""
    part = _beside(row.file, ".part")
    state = read_state(part)
    return (part.stat().st_size, state.size) if state else (0, 0)


@dataclass(frozen=True)
class Leftovers:
    """What is in the caches beside weights and their hashes: `unfinished` downloads, those `going` on, each with its
    process, and `foreign` files and directories, which are not ours."""

    unfinished: list[Path]
    going: list[str]
    foreign: list[Path]


def leftovers() -> Leftovers:
    """Look through the caches that can be written."""
    unfinished: list[Path] = []
    going: list[str] = []
    foreign: list[Path] = []
    for directory in cache_dirs():
        if not directory.is_dir() or not _is_writable(directory):
            continue
        known = {row.filename: _beside(directory / row.filename, ".lock") for row in manifest().values()}
        busy = {}
        for name, lock in known.items():
            if lock.exists() and (holder := locks.holder(lock, DEAD_AFTER)):
                busy[name] = holder
        going += [f"{directory / name} by {holder}" for name, holder in busy.items()]
        for path in sorted(directory.iterdir()):
            name = next((name for name in known if path.name.startswith(name)), "")
            rest = path.name.removeprefix(name)
            if name and rest.endswith((".part", ".part.json", ".tmp")):
                unfinished += [] if name in busy else [path]
            elif path.name not in (COMPILED, GOLDEN) and (not name or rest not in ("", ".sha256", ".lock")):
                foreign.append(path)
    return Leftovers(unfinished, going, foreign)


def prune(unfinished: Iterable[Path]) -> None:
    """Remove files that `leftovers` found."""
    for path in unfinished:
        path.unlink(missing_ok=True)
