"""Numbers and names as people read them: the same in messages, tables and pages."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

MOST_COMPARED = 10_000
"""Names that are compared letter by letter with a misspelt one, at most: it takes a second."""


def human_bytes(count: float) -> str:
    """1536 -> 1.5 kB, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, thing: str) -> str:
    """1 -> 1 video, 2 -> 2 videos."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


def human_seconds(seconds: float) -> str:
    """How long something takes: 44.6 -> 45 s, 754 -> 13 min, 12600 -> 3 h 30 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """A moment of a video: 4.2 -> 0:04.2, 3725.0 -> 1:02:05.0"""
    tenths = round(seconds * 10)
    minutes, hours = tenths // 600 % 60, tenths // 36000
    begins = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{begins}:{tenths // 10 % 60:02}.{tenths % 10}"


def parse_clock(text: str) -> float | None:
    """Return the seconds of a moment that `clock` or a person has written: 1:05.3, 65.3, 65.3s; None if it is none.
    Minutes and seconds behind a colon are below 60."""
    found = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?) ?s?", text.strip())
    if found is None:
        return None
    hours, minutes, seconds = (float(each or 0) for each in found.groups())
    if (found[1] and minutes >= 60) or (found[2] and seconds >= 60):
        return None
    return 3600 * hours + 60 * minutes + seconds


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return the path that a name means: the only one with its last part, with or without an extension, or the only
    one that is spelt nearly alike; "" if there is none."""
    known = list(known)
    meant = [each for each in known if name in (each.rpartition("/")[2], each.rpartition(".")[0], PurePath(each).stem)]
    if not meant and len(known) <= MOST_COMPARED:
        meant = difflib.get_close_matches(name, known, n=2, cutoff=0.85)
    return meant[0] if len(meant) == 1 else ""


def name_some(names: list[str], most: int = 3) -> str:
    """Return the first names, and how many more there are: a, b, c and 4 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """Escape control characters: file names may have them, and a terminal would obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_utf8(name: str) -> str:
    """A file name as text that UTF-8 can encode: bytes of it that are not UTF-8 become escapes as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def describe_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "", was: str = "was", now: str = "is"
) -> str:
    """Return the settings that differ, each as "name was old, is new", or with other words for the two."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found.append(describe_difference(before, after, f"{prefix}{key}.", was, now))
        else:
            found.append(f"{prefix}{key} {was} {shorten(_or_none(before))}, {now} {shorten(_or_none(after))}")
    return "; ".join(found)


def _or_none(value: object) -> object:
    """Return a value, or "none" for an empty list or text, and for a setting that is not there."""
    return "none" if value is None or value in ([], (), "") else value


def shorten(value: object, most: int = 200) -> str:
    """Return a value as text of at most so many characters: what a file says of itself may be very long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
