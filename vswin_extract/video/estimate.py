"""About how many clips a video has, by the seconds that its header says or by the size of its file."""

from vswin_extract.video.sampling import Sampling

USUAL_BYTES = 250_000
"""Bytes of a second of video, as it is found on the web."""
USUAL_RATE = 30
"""Frames of such a second."""


def clips_per_byte(sampling: Sampling) -> float:
    """Return about how many clips a byte of a usual video holds."""
    return float(sampling.fps or USUAL_RATE) / sampling.step / USUAL_BYTES


def clips_by_size(
    size: int, sampling: Sampling, start: float | None, end: float | None, bytes_per_second: int = USUAL_BYTES
) -> int:
    """Return about how many clips there are between `start` and `end` of a video of so many bytes, at least 1."""
    return estimate_clips(max(0, size) / bytes_per_second, sampling, start, end)


def estimate_clips(seconds: float, sampling: Sampling, start: float | None, end: float | None, fps: float = 0.0) -> int:
    """Return about how many clips there are between `start` and `end` of a video of so many seconds, at least 1."""
    shown = min(seconds, seconds if end is None else end) - (start or 0.0)
    return max(1, sampling.count(round(shown * float(sampling.fps or fps or USUAL_RATE))))
