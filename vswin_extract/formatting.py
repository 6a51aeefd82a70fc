"""Numbers and names as people read them: the same in messages, tables and pages."""

from collections.abc import Mapping
from typing import Any


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


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Return the settings that differ, each as "name was old, is new"."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found.append(describe_difference(before, after, f"{prefix}{key}."))
        else:
            found.append(f"{prefix}{key} was {shorten(before)}, is {shorten(after)}")
    return "; ".join(found)


def shorten(value: object, most: int = 200) -> str:
    """Return a value as text of at most so many characters: what a file says of itself may be very long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
