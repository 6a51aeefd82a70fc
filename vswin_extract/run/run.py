"""A job to its events, by whatever pool it asks for: one device, or several; all of it, or a shard.

    videos ──schedule──> clip_ranges, longest first ──dispatch──> pool ──branches──> journal ──> output

The Python API's `extract` and `survey` are here too.
"""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vswin_extract.backbone import find_devices
from vswin_extract.decoding.messages import VideoEnd
from vswin_extract.decoding.process import DecoderProcess
from vswin_extract.errors import DeviceError, OutputError, UsageError, VideoError, WorkerDied, needs
from vswin_extract.job.events import ClipsDone, Event, Finished, Notice, Profile, ShardDone, Started, Stopped, VideoDone
from vswin_extract.job.job import Job, parse_fps, parse_stages
from vswin_extract.job.shard import Shard
from vswin_extract.journal.journal import (
    Journal,
    check_output,
    describe_difference,
    finish_interrupted_cleanup,
    join_journal,
    journal_directory,
    open_journal,
)
from vswin_extract.run.counts import clip_counts, clips_ahead
from vswin_extract.run.dispatch import Dispatch, Key, key
from vswin_extract.run.pool import InProcessPool, WorkerPool
from vswin_extract.run.processes import ProcessPool
from vswin_extract.run.schedule import cost, deal, plan
from vswin_extract.store.features import open_features
from vswin_extract.store.schema import VideoRecord
from vswin_extract.video.ranges import WHOLE, ClipRange, overlap
from vswin_extract.video.videos import Video, find_videos, fingerprint
from vswin_extract.worker.pipeline import decoding, row_shapes
from vswin_extract.worker.worker import Begin, Message, Ready, WorkerLost, load
from vswin_extract.worker.writer import InFlightVideo, record_of

SETTLE = 60.0
"""Seconds in which what was written on another host must be seen here, on a network file system."""


def run(job: Job, stopping: threading.Event | None = None) -> Generator[Event, None, None]:
    """Extract a job's videos, or continue where an earlier run of it was stopped.

    Yields Started, then ClipsDone and VideoDone as they come, then Finished once the output is in place, or ShardDone.
    Raises VswinError before anything is written where the job cannot be done. Setting `stopping` ends the run with
    Stopped as soon as the videos in flight are through, closing the iterator ends it at once; finished videos are kept
    beside the output.
    """
    begun = time.monotonic()
    stopping = stopping or threading.Event()
    root = journal_directory(job.output, job.storage)
    if not root.is_dir() and job.shard is None:
        check_output(job.output, job.overwrite)  # before seconds are spent on loading
    pool = make_pool(job)
    with closing(pool):
        arrived = yield from first_arrivals(pool, stopping)
        if not arrived:
            yield Stopped(len(job.videos))
            return
        said = next(message for _, message in arrived if isinstance(message, Ready))
        if job.shard is not None and os.path.lexists(job.output) and not job.overwrite:
            yield already_merged(job, job.shard, said, begun)
            return
        if job.shard is None and finish_interrupted_cleanup(job.output, root) == said.settings:
            yield finished(job, begun)
            return
        facts = {"attributes": said.attributes, "classes": said.classes}
        if job.shard is not None:
            journal = join_journal(job.output, said.settings, said.arrays, facts, job.storage)
        else:
            ids = [video.id for video in job.videos]
            journal = open_journal(job.output, said.settings, said.arrays, job.overwrite, ids, facts, job.storage)
        with journal, closing(pool):
            whole = isinstance(pool, InProcessPool) and job.shard is None
            work = remaining(job, journal) if whole else shared_out(job, journal, said, len(pool.names))
            asked = len(job.videos) if job.shard is None else len({video.id for video in work.mine})
            videos = {video.id: video for video in work.left}
            yield Started(
                model=said.attributes["model"],
                parameters=said.parameters,
                device=device_names(pool, said),
                precision=said.settings["precision"],
                videos=asked,
                resumed=asked - len(videos),
                bytes=sum(max(0, fingerprint(video)[0]) for video in videos.values()),
                notes=(*said.notes, *journal.notes),
            )
            if isinstance(pool, InProcessPool):
                pool.journal = journal
            dispatch = Dispatch(
                pool,
                work.left,
                work.costs,
                Begin(root, journal.run, clips_ahead(list(videos.values()), said.sampling) / len(pool.names)),
                check=lambda other: _check_same(said, other),
                give_up=lambda video, error: _give_up(journal, video, error),
            )
            new_clips = failed = 0
            for event in dispatch.run(arrived, stopping):
                new_clips += event.clips if isinstance(event, ClipsDone) else 0
                failed += isinstance(event, VideoDone) and event.record.status == "failed"
                yield event
            if dispatch.left:
                yield Stopped(dispatch.left)
                return
            profile = Profile.together([through.profile for through in dispatch.through.values()])
            if job.shard is not None:
                seconds = time.monotonic() - begun
                yield ShardDone(job.output, root, job.shard, asked, new_clips, failed, seconds, False, profile)
                return
            pool.close()
            if not isinstance(pool, InProcessPool):
                _settle(job, journal)
            attributes = {
                **said.attributes,
                "device": device_names(pool, said),
                "compiled": any(through.compiled for through in dispatch.through.values()),
            }
            publishing = time.monotonic()
            journal.publish([video.id for video in job.videos], attributes, said.classes, job.layout)
            profile = replace(profile, published=time.monotonic() - publishing)
    yield finished(job, begun, new_clips, profile)


def make_pool(job: Job) -> WorkerPool:
    """The pool that the job asks for. Raises DeviceError, UsageError."""
    if job.engine == "ray":
        with needs("ray", "ray", "--engine ray needs Ray", DeviceError):
            from vswin_extract.run.ray_cluster import RayPool
        return RayPool(job)
    devices = find_devices(job.device)
    return ProcessPool(job, devices) if len(devices) > 1 else InProcessPool(job, devices[0])


def first_arrivals(pool: WorkerPool, stopping: threading.Event) -> Generator[Event, None, list[tuple[int, Message]]]:
    """Start everybody; what came until one worker is ready, whose Ready is the last. Empty where it was stopped before.

    Yields notices. Raises what kept a worker from being ready, and DeviceError where all of them died.
    """
    for worker in range(len(pool.names)):
        pool.start(worker)
    came: list[tuple[int, Message]] = []
    while True:
        arrived = pool.receive(1.0)
        if arrived is None:
            if stopping.is_set():
                return []
            continue
        worker, message = arrived
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Notice):
            yield message
            continue
        came.append(arrived)
        if isinstance(message, Ready):
            return came
        if isinstance(message, WorkerLost) and len(came) == len(pool.names):
            raise DeviceError(
                f"worker {worker} ({pool.names[worker]}) died while it loaded the model: {message.reason}"
            )


@dataclass(frozen=True)
class Work:
    """The pieces that are `mine`, and what of them is `left` to be extracted; for several devices what each of these
    costs."""

    mine: Sequence[Video]
    left: Sequence[Video]
    costs: Mapping[Key, float] = field(default_factory=dict)


def remaining(job: Job, journal: Journal) -> Work:
    """What is left of all videos, in their order."""
    left = [
        replace(video, clip_range=clip_range)
        for video in job.videos
        for clip_range in journal.missing(video, *fingerprint(video))
    ]
    return Work(job.videos, left)


def shared_out(job: Job, journal: Journal, ready: Ready, workers: int) -> Work:
    """The same for several devices, or of a shard: longest first. Which pieces a shard has depends on the list of
    videos alone, not on what is done already."""
    counts = clip_counts(job, journal, ready)
    clips = [counts[video.id] for video in job.videos]
    shard = job.shard
    clip_ranges: list[list[ClipRange]] = [[WHOLE] for _ in job.videos] if shard else [
        journal.missing(video, *fingerprint(video)) for video in job.videos
    ]  # fmt: skip
    pieces = plan(list(zip(clips, clip_ranges, strict=True)), shard.count if shard else workers)
    mine = [
        replace(job.videos[piece.video], clip_range=piece.clip_range)
        for piece in (deal(pieces, shard) if shard else pieces)
    ]
    left = mine
    if shard is not None:
        missing = {video.id: journal.missing(replace(video, clip_range=WHOLE), *fingerprint(video)) for video in mine}
        left = [
            replace(video, clip_range=clip_range)
            for video in mine
            for clip_range in overlap(video.clip_range, missing[video.id])
        ]
    return Work(mine, left, {key(video): cost(video.clip_range, counts[video.id]) for video in left})


def device_names(pool: WorkerPool, ready: Ready) -> str:
    """The devices in words, as cuda:0 x 4, or cuda:0, cuda:1."""
    if len(pool.names) == 1:
        return str(ready.attributes["device"])
    different = list(dict.fromkeys(pool.names))
    return f"{different[0]} x {len(pool.names)}" if len(different) == 1 else ", ".join(different)


def already_merged(job: Job, shard: Shard, ready: Ready, begun: float) -> ShardDone:
    """A task that is run again after the output was made has nothing to do. Raises OutputError where the output is
    another's."""
    try:
        with open_features(job.output) as features:
            made = {name: features.info.get(name) for name in ready.settings}
            known = {*features, *(failure["id"] for failure in features.failures)}
    except UsageError as error:
        raise OutputError(f"{job.output} exists and was not written by vswin-extract; choose another name") from error
    if made != ready.settings or not known.issuperset(video.id for video in job.videos):
        raise OutputError(f"{job.output} exists, of other settings or videos; add --overwrite to have it replaced")
    root = journal_directory(job.output, job.storage)
    seconds = time.monotonic() - begun
    return ShardDone(job.output, root, shard, 0, 0, 0, seconds, True, Profile())


def _check_same(one: Ready, other: Ready) -> None:
    if other.settings != one.settings:
        raise DeviceError(
            f"{other.attributes['device']} would compute other features than {one.attributes['device']}: "
            f"{describe_difference(one.settings, other.settings)}; name what they have in common, as --precision fp32"
        )


def _give_up(journal: Journal, video: Video, error: WorkerDied) -> VideoRecord:
    record = record_of(
        InFlightVideo(video, *fingerprint(video)), status="failed", error="WorkerDied", message=str(error)
    )
    journal.commit(record)
    return record


def _settle(job: Job, journal: Journal) -> None:
    """Take in what the branches have; where they are on a network file system, once it is to be seen here."""
    deadline = time.monotonic() + SETTLE
    while True:
        journal.load(verify=False)
        missing = [video.id for video in job.videos if journal.through(video.id) is None]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise OutputError(
                f"{journal.root} lacks {missing[0]} and {len(missing) - 1} more, which were extracted: do all workers "
                "write into the same directory? (--storage)"
            )
        time.sleep(1)


@dataclass(frozen=True)
class Survey:
    """What a run would do: the clips of each video, bytes of features, and what cannot be opened."""

    clips: dict[str, int]
    bytes: int
    unreadable: dict[str, str]


def survey(job: Job) -> Survey:
    """Count a job's clips from the packets of its videos, without decoding or writing anything."""
    check_output(job.output, job.overwrite)
    device = "cpu" if job.engine == "ray" else find_devices(job.device)[0]  # shapes are the same on all
    backbone = load(job, device)
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    clips: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    decoder = DecoderProcess(job.decoder, job.timeout)
    try:
        for video in job.videos:
            decoder.submit(decoding(job, video, sampling, geometry, count=True))
            try:
                end = decoder.read()
            except VideoError as error:
                unreadable[video.id] = f"{type(error).__name__}: {error}"
                continue
            if isinstance(end, VideoEnd):
                clips[video.id] = end.clips
    finally:
        decoder.close()
    per_clip = row_shapes(job, backbone, sampling, geometry).bytes_per_clip()
    return Survey(clips, sum(clips.values()) * per_clip, unreadable)


def extract(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    stages: int | Iterable[int] = (),
    manifest: str | os.PathLike[str] | None = None,
    fps: str | float | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Finished:
    """Extract features of videos into one HDF5 file; what the command line does, as a call.

    `inputs`: directories and files, here or at addresses. `stages`: 1 to 4, or several. `options` are those of the
    command line, with underscores: weights, variant, pool, embedding, logits, dtype, compression, layout, clip_len,
    frame_interval, stride, align, tail, size, resize, crop, decoder, partial, workers, timeout, cache_dir, cache_size
    (in bytes), device, precision, compile, batch_size, storage, engine, ray_address, actors, overwrite (see
    `vswin_extract.job.Job`). `on_event` is called with every event of `vswin_extract.job`. Videos that fail are
    recorded in the file; `failed` of the result counts them. Raises VswinError for a job that cannot be done.

        >>> vswin_extract.extract("examples/videos", "out.h5", stages=4, stride=32)  # doctest: +SKIP
    """
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    try:
        job = Job(
            videos=find_videos(paths, manifest),
            output=Path(os.path.realpath(output)),
            stages=parse_stages(stages),
            fps=parse_fps(fps),
            **options,
        )
    except TypeError as error:
        raise UsageError(f"extract: {error}") from error
    with closing(run(job)) as events:
        for event in events:
            on_event(event)
    if not isinstance(event, Finished):
        raise RuntimeError(f"the run ended with {event}")
    return event


def finished(job: Job, begun: float, new_clips: int = 0, profile: Profile | None = None) -> Finished:
    """What a finished output holds."""
    with open_features(job.output) as features:
        statuses = list(features.file["videos_table/status"].asstr()[:])
        return Finished(
            output=job.output,
            videos=len(features),
            clips=features.clips,
            new_clips=new_clips,
            partial=statuses.count("partial"),
            failed=len(features.failures),
            seconds=time.monotonic() - begun,
            bytes=sum(path.stat().st_size for path in (job.output, *features.linked)),
            profile=profile or Profile(),
        )
