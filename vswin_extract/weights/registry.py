"""The manifest of published weights, `weights.toml`, and the class names of their data sets."""

import difflib
import re
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

SYNONYMS = {
    "tiny": "t", "small": "s", "base": "b", "large": "l",
    "22k": "in22k", "swin3d": "torchvision", "mmaction": "mmaction2", "openmmlab": "mmaction2",
}  # fmt: skip
"""What other tools call a part of a name, and what the manifest calls it."""
PATTERNS = {
    r"k(?:inetics)?[^a-z0-9]?(400|600|700|710)": r"k\1",
    r"something[^a-z0-9]?something[^a-z0-9]?(?:v2)?|sth[^a-z0-9]?v2": "ssv2",
    r"(?:imagenet|in)[^a-z0-9]?(1k|22k)": r"in\1",
    r"(?<=swin)(?=[tsbl](?![a-z0-9]))": " ",  # as in swint
}
"""What is written with signs between its parts, or without them."""
FILLERS = {"video", "swin", "videoswin", "vswin", "transformer", "model", "weights", "v1", "3d", "rgb", "in1k", "1k"}
"""Parts of other tools' names that choose nothing."""
NEAREST = 4
"""Names that an error suggests, at most."""

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
    """Return the row of published weights. Raise UsageError if a name means none of them."""
    if (known := known_name(name)) in manifest():
        return manifest()[known]
    raise UsageError(f"{name} ships with this package; there is nothing to download")


def known_name(name: str) -> str:
    """Return what the manifest calls weights that a user or another tool calls differently: `tiny`, `T-K400`,
    `swin3d_t`, the name of the published file. Raise UsageError, with the nearest names, if it means none of them, or
    weights that were trained on different data."""
    if name in manifest() or (name := name.lower()) in (BUNDLED, *manifest()):
        return name
    stem = name.removesuffix(".pth")
    found = [row.name for row in manifest().values() if row.filename.startswith(stem) and "_" in stem]
    found = found or _named_alike(name)
    plain = [each for each in found if _data(each) == each] or found
    if len(plain) == 1:
        return plain[0]
    known = [BUNDLED, *manifest()]
    near = plain or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    *others, last = near[:NEAREST] or [""]
    hint = f"did you mean {', '.join(others)}{' or ' * bool(others)}{last}? " if near else ""
    raise UsageError(f"no weights are called {name!r}, and there is no such file; {hint}`vswin weights list` shows all")


def _data(name: str) -> str:
    """Return a name of the manifest without the tool that published the file."""
    return re.sub(r"-(torchvision|mmaction2)$", "", name)


def _named_alike(name: str) -> list[str]:
    """Return the names of the manifest that have all the parts that a name of another tool has."""
    for pattern, written in PATTERNS.items():
        name = re.sub(pattern, written, name)
    words = set(filter(None, re.split(r"[^a-z0-9]+", name))) - FILLERS
    parts = {SYNONYMS.get(word, word) for word in words}
    return [known for known in manifest() if parts and parts <= set(known.split("-"))]


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
