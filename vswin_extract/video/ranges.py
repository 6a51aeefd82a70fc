"""Ranges of a video's clips: [first, end), where an end of None is the video's end, wherever that turns out to be."""

from collections.abc import Sequence

Span = tuple[int, int | None]
WHOLE: Span = (0, None)


def without(span: Span, done: Sequence[Span]) -> list[Span]:
    """What of a span is left when `done` are through."""
    left = [span]
    for begin, end in done:
        rest: list[Span] = []
        for first, last in left:
            if first < begin:
                rest.append((first, begin if last is None else min(last, begin)))
            if end is not None and (last is None or end < last):
                rest.append((max(first, end), last))
        left = rest
    return left


def overlap(span: Span, others: Sequence[Span]) -> list[Span]:
    """What of a span lies in others."""
    found: list[Span] = []
    for first, end in others:
        begin = max(first, span[0])
        ends = [last for last in (end, span[1]) if last is not None]
        if not ends or begin < min(ends):
            found.append((begin, min(ends) if ends else None))
    return found
