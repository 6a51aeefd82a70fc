"""The table of projects."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`loads`: yes, or why not. `difference`: the largest difference of times in seconds, None where there are none."""

    project: str
    name: str
    loads: str
    difference: float | None

    def __str__(self) -> str:
        times = "" if self.difference is None else f"{1000 * self.difference:.3f} ms"
        return f"| {self.project} | {self.name} | {self.loads} | {times} |"


def table(rows: Iterable[Row]) -> str:
    """Return a table in Markdown."""
    head = ["| project | class | loads | largest difference of times |", "|---|---|---|---|"]
    return "\n".join([*head, *map(str, rows)])
