"""Ranges of a video's clips: [first, end). An end of None is the end of the video, however many clips it has."""

from collections.abc import Sequence

ClipRange = tuple[int, int | None]
WHOLE: ClipRange = (0, None)


def without(clip_range: ClipRange, done: Sequence[ClipRange]) -> list[ClipRange]:
    """Return the parts of a clip range that are in none of `done`."""
    left = [clip_range]
    for begin, end in done:
        rest: list[ClipRange] = []
        for first, last in left:
            if first < begin:
                rest.append((first, begin if last is None else min(last, begin)))
            if end is not None and (last is None or end < last):
                rest.append((max(first, end), last))
        left = rest
    return left


def overlap(clip_range: ClipRange, others: Sequence[ClipRange]) -> list[ClipRange]:
    """Return the parts of a clip range that are in one of `others`."""
    found: list[ClipRange] = []
    for first, end in others:
        begin = max(first, clip_range[0])
        ends = [last for last in (end, clip_range[1]) if last is not None]
        if not ends or begin < min(ends):
            found.append((begin, min(ends) if ends else None))
    return found
