"""Estimates of how many clips videos have, by which they are divided among workers and shards."""

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vswin_extract.errors import OutputError, VideoError
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.job.job import Job
from vswin_extract.journal.directory import claim, read_list, write_list
from vswin_extract.journal.journal import Journal
from vswin_extract.run.schedule import SHORTEST
from vswin_extract.system import usable_cores
from vswin_extract.video.estimate import USUAL_BYTES, clips_by_size, clips_per_byte
from vswin_extract.video.remote import Address
from vswin_extract.video.sampling import Sampling
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.worker.messages import Ready

FEWEST_BYTES = 4_000
"""Bytes of a second of video, at least, as where hardly anything moves."""
AHEAD = 32
"""Videos that a decoder process is given at a time."""
POLL = 0.2
"""Seconds between two looks at whether another task has finished counting."""


def clip_counts(job: Job, journal: Journal, ready: Ready) -> dict[str, int]:
    """Return an estimate of the clips of each video, by id.

    The estimates are kept in the journal, so that all tasks that share it divide the videos in the same way. Of several
    tasks that start together one estimates, and the others wait.
    """
    while True:
        known = known_counts(journal.root)
        if list(known) == [video.id for video in job.videos]:
            return known
        try:
            with claim(journal.root / "probing", job.output) as lock:
                known = known_counts(journal.root)  # another task may have finished in the meantime
                new = [video for video in job.videos if video.id not in known]
                known |= estimate_counts(new, job, ready)
                counts = {video.id: known[video.id] for video in job.videos}
                lock.check()
                write_list(journal.root, counts)
                return counts
        except OutputError:  # another task is estimating
            time.sleep(POLL)


def rough_counts(
    left: Sequence[Video],
    files: Mapping[str, tuple[int, float, str]],
    known: Mapping[str, int],
    job: Job,
    ready: Ready,
) -> tuple[dict[str, int], dict[str, int]]:
    """Return an estimate of the clips of each video that is left, by id, by the sizes of their `files`; and those that
    are by headers. Only files that may be so long that they are worth dividing among the decoders are opened, unless
    they are `known`: at most some dozens for each decoder, if all have one size."""

    def by_size(video: Video, bytes_per_second: int) -> int:
        return clips_by_size(files[video.id][0], ready.sampling, video.start, video.end, bytes_per_second)

    counts = {video.id: by_size(video, USUAL_BYTES) for video in left}
    share = max(sum(counts.values()) / ready.decoders, 2 * SHORTEST)
    unique = {video.id: video for video in left if not isinstance(video.path, Address)}
    long = [video for video in unique.values() if by_size(video, FEWEST_BYTES) > share]
    if ready.decoders == 1 or not job.decodes_ranges:
        long = []
    opened = {video.id: known[video.id] for video in long if video.id in known}
    if unknown := [video for video in long if video.id not in known]:
        opened |= estimate_counts(unknown, job, ready)
    return counts | opened, opened


def header_task(video: Video, ready: Ready) -> Task:
    """Return the task that estimates the clips of a video by its header."""
    return Task(video.location, "pyav", ready.sampling, ready.geometry, video.start, video.end, guess=True)


def estimate_counts(videos: Sequence[Video], job: Job, ready: Ready) -> dict[str, int]:
    """Estimate the clips of videos by their headers, and of remote videos by the sizes of their files, so that nothing
    is fetched. A video that cannot be opened counts as one clip; extracting it will say why."""
    found = {
        video.id: clips_by_size(fingerprint(video)[0], ready.sampling, video.start, video.end)
        for video in videos
        if isinstance(video.path, Address)
    }
    local = [video for video in videos if video.id not in found]
    processes = [DecoderProcess("pyav", job.timeout) for _ in range(min(usable_cores(), len(local)))]
    waiting: list[deque[Video]] = [deque() for _ in processes]

    def read(number: int) -> None:
        video = waiting[number].popleft()
        try:
            end = processes[number].read()
            found[video.id] = end.clips if isinstance(end, VideoEnd) else 1
        except VideoError:
            found[video.id] = 1

    try:
        for turn, video in enumerate(local):
            number = turn % len(processes)
            if len(waiting[number]) >= AHEAD:
                read(number)
            waiting[number].append(video)
            processes[number].submit(header_task(video, ready))
        for number in range(len(processes)):
            while waiting[number]:
                read(number)
    finally:
        for process in processes:
            process.close()
    return found


def clips_ahead(sizes: Collection[int], sampling: Sampling) -> float:
    """Estimate the clips of all videos together by the sizes of their files, without opening them."""
    return max(len(sizes), sum(max(0, size) for size in sizes) * clips_per_byte(sampling))


def known_counts(root: Path) -> dict[str, int]:
    """Return the estimates that the journal at `root` keeps, by id."""
    return {video_id: clips for video_id, clips in read_list(root).items() if clips is not None}
