"""The manifest of published weights, `weights.toml`, and the class names of their data sets."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vswin_extract.errors import UsageError
from vswin_extract.weights.recipe import Recipe

BUNDLED = "nano"
"""The weights that ship with this package. They are the default."""
CLASS_LISTS = {"Kinetics-400": "kinetics400.txt"}
"""Data sets with known class names, and the file that lists them.

For Kinetics-600, -700 and -710 and Something-Something v2, no installable package has a list under a licence that
allows copying. Their classes are numbers, in the order of the training labels.
"""

SIZE_TOLERANCE = 0.02
"""How far the size of a file may be from the published size, which is rounded, relative to it."""
MOST_BYTES = 4_000_000_000
"""Bytes of a file whose size is not known, at most. The largest published one has about 800 MB."""


@dataclass(frozen=True)
class Published:
    """One row of the manifest. `weights.toml` explains the fields."""

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
    def most_bytes(self) -> int:
        """How many bytes a file may have that is downloaded for this row."""
        return int(self.megabytes * 1e6 * (1 + SIZE_TOLERANCE)) or MOST_BYTES

    @property
    def recipe(self) -> Recipe:
        return Recipe(resize=self.resize)


@cache
def manifest() -> dict[str, Published]:
    """Return the published weights by name."""
    rows = tomllib.loads(Path(__file__).with_name("weights.toml").read_text("utf-8"))
    return {name: Published(name=name, **{**row, "accuracy": tuple(row["accuracy"])}) for name, row in rows.items()}


def find_published(name: str) -> Published:
    """Return the row of a name. Raise UsageError, with similar names, if there is none."""
    if name in manifest():
        return manifest()[name]
    known = [BUNDLED, *manifest()]
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"the known names are {', '.join(known)}"
    raise UsageError(f"unknown model {name!r}: there is no such file, and no published weights of this name; {hint}")


def find_by_sha256(sha256: str) -> Published | None:
    """Return the row whose published hash a file has. The name of a file alone proves nothing."""
    return next((row for row in manifest().values() if row.sha256 and sha256.startswith(row.sha256)), None)


@cache
def class_names(dataset: str, count: int) -> tuple[str, ...]:
    """Return the names of a data set's `count` classes in the order of the published heads; () if they are unknown."""
    if dataset not in CLASS_LISTS:
        return ()
    lines = Path(__file__).with_name(CLASS_LISTS[dataset]).read_text("utf-8").splitlines()
    names = tuple(line for line in lines if line and not line.startswith("#"))
    return names if len(names) == count else ()
