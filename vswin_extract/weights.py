"""Where weights come from: the bundled file, the manifest of published ones, and the cache that `pull` fills.

Only `pull` touches the network. The cache is $VSWIN_WEIGHTS_DIR, or vswin-extract/ under $XDG_CACHE_HOME (~/.cache).
"""

import contextlib
import difflib
import os
import tomllib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.error import HTTPError

from vswin_extract.checkpoints import Checkpoint, file_sha256, read
from vswin_extract.classes import class_names
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.preprocess import Recipe

BUNDLED = "nano"
"""The weights that ship with this package, and the default."""


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
    def file(self) -> Path:
        """Where the cache keeps it."""
        return cache_dir() / self.url.rsplit("/", 1)[1]

    @property
    def record(self) -> Path:
        """Where the hash of a first download is kept, for weights without a published one."""
        return self.file.with_name(self.file.name + ".sha256")

    @property
    def recipe(self) -> Recipe:
        return Recipe(resize=self.resize)


@cache
def manifest() -> dict[str, Published]:
    """Published weights by name."""
    rows = tomllib.loads(Path(__file__).with_name("weights.toml").read_text("utf-8"))
    return {name: Published(name=name, **{**row, "accuracy": tuple(row["accuracy"])}) for name, row in rows.items()}


def cache_dir() -> Path:
    if explicit := os.environ.get("VSWIN_WEIGHTS_DIR"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vswin-extract"


def bundled_file() -> Path:
    """The bundled weights: inside an installed package, or in weights/ of a checkout."""
    package = Path(__file__).parent
    installed = package / "bundled" / f"{BUNDLED}.safetensors"
    return installed if installed.is_file() else package.parent / "weights" / f"{BUNDLED}.safetensors"


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
            f"{row.name} is not in the weights cache {cache_dir()}; get it with: vswin weights pull {row.name}"
        )
    return row.file


def load(name_or_file: str, variant: str | None = None) -> tuple[str, Checkpoint]:
    """Read weights by name or file; the result's name is the manifest's where it knows the file.

    A file from the cache must have the manifest's hash. What the file does not say of its recipe, classes, source and
    licence the manifest does.
    """
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


def pull(name: str, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[Path, str]:
    """Download published weights into the cache, unless they are there; the path and a sentence on their hash.

    `progress(done, total)` in bytes, total 0 where the server does not say. The file is checked, then published by
    rename. Raises UsageError, WeightsError.
    """
    row = published(name)
    if row.file.is_file():
        return row.file, check(file_sha256(row.file), row)
    row.file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=row.file.parent, prefix=row.file.name, suffix=".part", delete=False) as unfinished:
        path = Path(unfinished.name)
        try:
            with urllib.request.urlopen(row.url, timeout=60) as response:
                total = int(response.headers.get("Content-Length") or 0)
                done = 0
                while block := response.read(1 << 20):
                    unfinished.write(block)
                    done += len(block)
                    progress(done, total)
            if total and done != total:
                raise WeightsError(f"{row.url} ended after {done} of {total} bytes; try again")
            unfinished.flush()
            os.fsync(unfinished.fileno())
            sha256 = file_sha256(path)
            if not expected_sha256(row):
                row.record.write_text(f"{sha256}  {row.file.name}\n")
            said = check(sha256, row)
            path.chmod(0o644)  # a cache may be shared
            path.replace(row.file)
            return row.file, said
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, HTTPError):
                reason = f"{error.code} {error.reason}"
                error.close()
            raise WeightsError(
                f"cannot download {row.url}: {reason}; it can also be downloaded elsewhere and given as a file, "
                f"--weights {row.file.name}, or put into {row.file.parent}"
            ) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def expected_sha256(row: Published) -> str:
    """The published hash, whole or its first digits; else that of the first download; else ""."""
    return row.sha256 or (row.record.read_text().partition(" ")[0] if row.record.is_file() else "")


def check(sha256: str, row: Published) -> str:
    """A sentence on a file's hash. Raises WeightsError where it is not the expected one."""
    expected = expected_sha256(row)
    if not sha256.startswith(expected):
        raise WeightsError(
            f"{row.file.name} has sha256 {sha256} where {expected} is expected; "
            f"if it is in the cache, delete it and pull {row.name} again"
        )
    if not row.sha256:
        return f"sha256 {sha256}: none is published, recorded at the first download"
    how = " (its first digits)" if len(expected) < 64 else f" ({row.note})" if row.note else ""
    return f"sha256 {sha256}: as published{how}"
