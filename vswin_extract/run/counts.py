"""About how many clips there are, so that they can be shared out: by headers, or by the sizes of files."""

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from vswin_extract.decoding.estimate import USUAL_BYTES, USUAL_RATE, estimate_clips
from vswin_extract.decoding.messages import Task, VideoEnd
from vswin_extract.decoding.process import DecoderProcess
from vswin_extract.errors import OutputError, VideoError
from vswin_extract.job.job import Job
from vswin_extract.journal.journal import Journal, claim, read_list, write_list
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.worker import Ready

AHEAD = 32
"""Videos that a process is given at a time."""


def clip_counts(job: Job, journal: Journal, ready: Ready) -> dict[str, int]:
    """About how many clips each video has. Found once, and kept in the journal, so that all tasks that share it share
    the videos out in the same way; of several that begin together one looks, and the others wait for it."""
    while True:
        known = known_counts(journal.root)
        if list(known) == [video.id for video in job.videos]:
            return known
        try:
            with claim(journal.root / "probing", job.output):
                known = known_counts(journal.root)  # another task may just have looked
                new = [video for video in job.videos if video.id not in known]
                known |= guess(new, job, ready)
                counts = {video.id: known[video.id] for video in job.videos}
                write_list(journal.root, counts)
                return counts
        except OutputError:  # another task is at it
            time.sleep(0.2)


def known_counts(root: Path) -> dict[str, int]:
    return {video_id: clips for video_id, clips in read_list(root).items() if clips is not None}


def guess(videos: Sequence[Video], job: Job, ready: Ready) -> dict[str, int]:
    """The same by opening each video; 1 where that cannot be done. Nothing is fetched for it: of what is elsewhere the
    size must do."""
    elsewhere = [video for video in videos if isinstance(video.path, Address)]
    found = {
        video.id: estimate_clips(max(0, fingerprint(video)[0]) / USUAL_BYTES, ready.sampling, video.start, video.end)
        for video in elsewhere
    }
    videos = [video for video in videos if video.id not in found]
    processes = [DecoderProcess("pyav", job.timeout) for _ in range(min(len(os.sched_getaffinity(0)), len(videos)))]
    asked: list[deque[Video]] = [deque() for _ in processes]

    def take(number: int) -> None:
        video = asked[number].popleft()
        try:
            said = processes[number].read()
            found[video.id] = said.clips if isinstance(said, VideoEnd) else 1
        except VideoError:  # which extracting it will say
            found[video.id] = 1

    try:
        for turn, video in enumerate(videos):
            number = turn % len(processes)
            if len(asked[number]) >= AHEAD:
                take(number)
            asked[number].append(video)
            processes[number].submit(
                Task(video.location, "pyav", ready.sampling, ready.geometry, video.start, video.end, guess=True)
            )
        for number in range(len(processes)):
            while asked[number]:
                take(number)
    finally:
        for process in processes:
            process.close()
    return found


def clips_ahead(videos: Sequence[Video], sampling: Sampling) -> float:
    """About how many clips these videos give, by their sizes: nothing is opened for it."""
    seconds = sum(max(0, fingerprint(video)[0]) for video in videos) / USUAL_BYTES
    return max(len(videos), seconds * float(sampling.fps or USUAL_RATE) / sampling.step)
