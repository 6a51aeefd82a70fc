"""A shard: the part of a job's videos that one of several tasks extracts."""

from dataclasses import dataclass

from vswin_extract.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 0. Raises UsageError."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"shard {self.index}/{self.count} does not exist: shards of {self.count} are 0/{self.count} to "
                f"{self.count - 1}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse index/count, as in 0/8 to 7/8. Raises UsageError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(text) < 20):
        raise UsageError(f"a shard is index/count, counted from 0, for example 0/8, not {text!r}")
    return Shard(int(index), int(count))
