"""The positions of a video or of its segment: its frames with their times, resampled if the sampling has an fps."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from vswin_extract.decoding.decoders import Decoder, Frame, not_decoded
from vswin_extract.decoding.frame_table import REGULAR_SHARE, FrameTable
from vswin_extract.decoding.timeline import Shown, timeline
from vswin_extract.errors import VideoDamaged, VideoTimestamps, VideoUnreadable
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.video.sampling import Resampler, rounding

LONGEST_STILL = 600.0
"""Seconds that one frame may be shown where time stamps are resampled; after a longer gap they are not trusted."""
MISSING_SECONDS, MISSING_SHARE = 0.5, 0.05
"""A video counts as cut off if more seconds, and a larger share of its declared seconds, are missing than these."""


class Positions:
    """Iterate over it once: pairs of the frame that a position shows and the second at which the position begins.

    `seen`: positions so far. `first`: the first frame of the segment. `last`: the last frame that was read, whether a
    position shows it or not. Raises VideoUnreadable where there is no frame, and VideoTimestamps.
    """

    first: Shown | None = None
    last: Shown | None = None

    def __init__(self, decoder: Decoder, task: Task) -> None:
        self.decoder = decoder
        self.task = task
        self.fps = task.sampling.fps
        self.origin = task.start or 0.0
        self.seen = 0
        self._ended = False  # all of the video was read
        self._nominal = 1 / (decoder.stream.fps or float("inf"))  # seconds that a frame lasts by the nominal rate
        self._most_off = max(0.25 * self._nominal, 0.002)  # seconds by which a regular frame may differ from that
        self._regular = 0  # frames that last as long as the nominal rate says
        self._longest: tuple[float, float] | None = None  # when the longest gap begins and ends

    def __iter__(self) -> Iterator[tuple[Shown, float]]:
        frames = self._frames(self.decoder.scan() if self.task.count else self.decoder)
        for position in self._resampled(frames, self.fps) if self.fps else ((frame, frame.start) for frame in frames):
            self.seen += 1
            yield position
        first, _ = self._require_frames()
        if not self.seen:  # shorter than one period of fps
            self.seen = 1
            yield first, self.origin

    @property
    def frames(self) -> int:
        """How many source frames the video has up to here, from its beginning."""
        return self._require_frames()[1].index + 1

    @property
    def seconds(self) -> float:
        """When the last position ends."""
        end = self._require_frames()[1].end
        return end if self.task.end is None or self.fps is None else min(end, self.task.end)

    def video_end(self, clips: int, size: tuple[int, int], complete: bool) -> VideoEnd:
        """Return what the video turned out to be. `size`: width and height. `complete`: its clip range is, so that the
        rest of the video was not looked at. Raises VideoDamaged where most packets are damaged."""
        first, last = self._require_frames()
        frames, duration = last.index + 1 - first.index, last.end - first.start
        measured = frames / duration if duration else 0.0
        nominal = self.decoder.stream.fps
        cut_off = "" if complete else self._cut_off(last.end)
        if self._ended and 2 * self.decoder.damaged > self.decoder.packets:
            raise VideoDamaged(
                f"{self.decoder.damaged} of its {self.decoder.packets} packets are damaged: {self.decoder.trouble}"
            )
        return VideoEnd(
            width=size[0],
            height=size[1],
            clips=clips,
            frames=frames,
            # containers with a coarse clock make the measured rate of a constant one a little off
            fps=nominal if nominal and abs(measured - nominal) < 0.01 * nominal else measured,
            duration=duration,
            damaged=self.decoder.damaged,
            trouble=cut_off or self.decoder.trouble or self._gap(),
            partial=bool(cut_off or self.decoder.damaged or self.decoder.incomplete),
            transfer=self.decoder.stream.transfer,
            matrix=self.decoder.stream.matrix,
            last=not complete,
        )

    def _cut_off(self, end: float) -> str:
        """Say that the video ends long before the seconds that it declares; an empty text where it does not."""
        declared = self.decoder.stream.declared
        if self.task.end is not None and end >= self.task.end:
            return ""
        if declared - end <= max(MISSING_SECONDS, MISSING_SHARE * declared):
            return ""
        return f"it ends after {end:.2f} of the {declared:.2f} s that it declares"

    def take_table(self, table: FrameTable) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Take all frames of a table instead of those of the decoder, at once. Return what `__iter__` would yield and
        the end behind it: the frame that each position shows and the second at which it begins. Return None where there
        is no position, or what iterating would find is an error."""
        starts, ends, tick = table.starts, table.ends, self.decoder.stream.tick
        tolerance = rounding(tick)
        count = table.frames
        if self.task.end is not None:
            count = int(np.searchsorted(starts, self.task.end - tolerance))
        first = int(np.searchsorted(ends, self.task.start + tolerance, "right")) if self.task.start else 0
        if first >= count:
            return None
        self.first, self.last = (
            Shown(index, float(starts[index]), float(ends[index]), not_decoded) for index in (first, count - 1)
        )
        self._measure_all(starts[:count], ends[:count])
        self._ended = count == table.frames
        frames = np.arange(first, count)
        begins = starts[first:count]
        if self.fps:
            if (ends[first:count] - begins).max() > LONGEST_STILL:
                return None
            shown = np.minimum(ends[first:count], np.inf if self.task.end is None else self.task.end) - self.origin
            resampler = Resampler(self.fps, tick)
            frames = frames.repeat(resampler.all_repeats(shown))
            numbers = np.arange(len(frames))
            begins = self.origin + numbers * self.fps.denominator / self.fps.numerator
        self.seen = len(frames)
        return (np.append(frames, self.frames), np.append(begins, self.seconds)) if self.seen else None

    def _measure_all(self, starts: NDArray[np.float64], ends: NDArray[np.float64]) -> None:
        lasts = ends - starts
        self._regular = int((np.abs(lasts - self._nominal) < self._most_off).sum())
        longest = int(lasts.argmax())
        if lasts[longest] > MISSING_SECONDS + self._nominal:
            self._longest = float(starts[longest]), float(ends[longest])

    def _measure(self, shown: Shown) -> None:
        lasts = shown.end - shown.start
        self._regular += abs(lasts - self._nominal) < self._most_off
        longest = self._longest[1] - self._longest[0] if self._longest else MISSING_SECONDS + self._nominal
        if lasts > longest:
            self._longest = shown.start, shown.end

    def _gap(self) -> str:
        """Say that there is a gap in a video whose rate is constant otherwise; an empty text where there is none."""
        if self._longest is None or self.last is None or self._regular < REGULAR_SHARE * (self.last.index + 1):
            return ""
        begin, end = self._longest
        return f"one frame is shown from {begin:.2f} s to {end:.2f} s, while the rate is constant otherwise"

    def _frames(self, decoded: Iterable[Frame]) -> Iterator[Shown]:
        """Yield the frames that are shown between the task's start and end."""
        tolerance = rounding(self.decoder.stream.tick)
        for shown in timeline(self.decoder, decoded):
            if self.task.end is not None and shown.start >= self.task.end - tolerance:
                return
            self.last = shown
            self._measure(shown)
            if self.task.start and shown.end <= self.task.start + tolerance:
                continue
            self.first = self.first or shown
            yield shown
        self._ended = True

    def _resampled(self, frames: Iterator[Shown], fps: Fraction) -> Iterator[tuple[Shown, float]]:
        """Yield each frame as often as positions show it: position k shows what is shown k / fps seconds after the
        segment's start."""
        resampler = Resampler(fps, self.decoder.stream.tick)
        for shown in frames:
            if shown.end - shown.start > LONGEST_STILL:
                raise VideoTimestamps(
                    f"time stamps jump from {shown.start:.3f} s to {shown.end:.3f} s at frame {shown.index + 1}, "
                    "too far to resample; extract it without --fps"
                )
            end = min(shown.end, self.task.end or shown.end)
            for _ in repeat(None, resampler.repeats(end - self.origin)):
                yield shown, self.origin + float(self.seen / fps)

    def _require_frames(self) -> tuple[Shown, Shown]:
        """Return the first frame of the segment and the last one. Raises VideoUnreadable where there is none."""
        if self.first is not None and self.last is not None:
            return self.first, self.last
        if self.last is not None:
            raise VideoUnreadable(f"it ends at {self.last.end:.3f} s, before its segment starts at {self.origin:g} s")
        if not (self.decoder.damaged or self.decoder.incomplete) and self.task.end is not None:
            raise VideoUnreadable(f"nothing of it is shown between {self.origin:g} s and {self.task.end:g} s")
        why = f": {self.decoder.trouble}" if self.decoder.trouble else ""
        raise VideoUnreadable(f"no frame of it decodes ({self.decoder.damaged} damaged packets{why})")
