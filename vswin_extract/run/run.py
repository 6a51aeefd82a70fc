"""A job to its events.

videos ──work──> pieces of work ──dispatch──> worker pool ──shard directories──> journal ──> output
"""

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from vswin_extract.errors import DeviceError, OutputError, WeightsError, WorkerDied
from vswin_extract.formatting import as_utf8, describe_difference, name_some, plural
from vswin_extract.job.events import ClipsDone, Event, Finished, Notice, Profile, ShardDone, Started, Stopped, VideoDone
from vswin_extract.job.job import Job
from vswin_extract.job.shard import Shard
from vswin_extract.journal.directory import finish_interrupted_cleanup, journal_directory
from vswin_extract.journal.journal import Journal, join_journal, open_journal
from vswin_extract.pools.pool import WorkerPool, make_pool
from vswin_extract.run.clip_counts import clips_ahead
from vswin_extract.run.dispatch import Dispatch
from vswin_extract.run.forecast import ForecastEvents
from vswin_extract.run.work import RemainingWork, find_work
from vswin_extract.store.features import open_features
from vswin_extract.store.hdf5 import check_output, read_attributes
from vswin_extract.store.schema import VideoRecord, complete_settings
from vswin_extract.video.color import HDR
from vswin_extract.video.remote import same_fingerprint
from vswin_extract.video.videos import Video, fingerprint
from vswin_extract.weights.pull import download_notice, obtain_weights
from vswin_extract.worker.messages import Begin, Message, Ready, WorkerLost
from vswin_extract.worker.writer import failed_record

SETTLE = 60.0
"""Seconds within which files that another host wrote must be seen here, on a network file system."""

Arrived = list[tuple[int, Message]]
"""Messages of workers, each with the worker's number."""


@dataclass(frozen=True)
class Outcome:
    """What the workers of a run did."""

    new_clips: int
    failed: int
    profile: Profile
    compiled: bool


def run(
    job: Job, stopping: threading.Event | None = None, make_pool: Callable[[Job], WorkerPool] = make_pool
) -> Generator[Event, None, None]:
    """Extract a job's videos, or continue where an earlier run of the job was stopped.

    Yields Started, then ClipsDone, VideoDone and Notice as they come, then Finished when the output is in place, or
    ShardDone. Raises VswinError before anything is written where the job cannot be done. When `stopping` is set, the
    run ends with Stopped as soon as the videos in flight are finished; closing the iterator ends it at once. Finished
    videos are kept beside the output.
    """
    begun = time.monotonic()
    stopping = stopping or threading.Event()
    check_target(job)
    root = journal_directory(job.output, job.storage)
    if job.engine == "local":  # before the workers start, which each load it; actors of other hosts get it there
        if text := download_notice(job.weights, job.offline):
            yield Notice(text)
        obtain_weights(job.weights, job.offline)
    pool = make_pool(job)
    with closing(pool):
        arrived = yield from first_arrivals(pool, stopping)
        if not arrived:
            yield Stopped(len(job.videos))
            return
        ready = next(message for _, message in arrived if isinstance(message, Ready))
        if job.shard is not None and os.path.lexists(job.output) and not job.overwrite:
            yield already_merged(job, job.shard, ready, begun)
            return
        if job.shard is None and is_done(job, root, ready):
            yield finished(job, begun)
            return
        with begin_journal(job, ready) as journal, closing(pool):  # workers end before the journal is given up
            work = find_work(job, journal, ready, len(pool.names))
            yield describe_start(job, work, pool, ready, journal)
            outcome = yield from extract_work(job, pool, work, arrived, ready, journal, stopping)
            if outcome is None:
                return
            if job.shard is not None:
                videos, seconds = len({video.id for video in work.assigned}), time.monotonic() - begun
                yield ShardDone(
                    job.output, root, job.shard, videos, outcome.new_clips, outcome.failed, seconds, False,
                    outcome.profile,
                )  # fmt: skip
                return
            pool.close()
            published, notes = publish(job, journal, pool, ready, outcome)
            yield from map(Notice, notes)
    yield finished(job, begun, outcome.new_clips, replace(outcome.profile, published=published))


def check_target(job: Job) -> None:
    """Raise OutputError or UsageError where the output of a job cannot be written: before weights are downloaded or the
    model is loaded, which takes long."""
    job.check_directories()
    if job.overwrite or (job.shard is None and not journal_directory(job.output, job.storage).is_dir()):
        check_output(job.output, job.overwrite)


def first_arrivals(pool: WorkerPool, stopping: threading.Event) -> Generator[Event, None, Arrived]:
    """Start all workers and wait until one is ready. Return the messages so far, which end with its Ready; an empty
    list if the run was stopped before.

    Yields notices. Raises the error of a worker that cannot work, and DeviceError if all workers died.
    """
    for worker in range(len(pool.names)):
        pool.start(worker)
    came: Arrived = []
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


def begin_journal(job: Job, ready: Ready) -> Journal:
    """Open the journal of a run, or join the journal that the shards share."""
    facts = {"attributes": ready.attributes, "classes": ready.classes}
    if job.shard is not None:
        return join_journal(job.output, ready.settings, ready.arrays, facts, job.storage)
    ids = [video.id for video in job.videos]
    return open_journal(job.output, ready.settings, ready.arrays, job.overwrite, ids, facts, job.storage)


def describe_start(job: Job, work: RemainingWork, pool: WorkerPool, ready: Ready, journal: Journal) -> Started:
    asked = len(job.videos) if job.shard is None else len({video.id for video in work.assigned})
    return Started(
        model=ready.attributes["model"],
        parameters=ready.parameters,
        device=device_names(pool, ready),
        precision=ready.settings["precision"],
        videos=asked,
        resumed=asked - len(work.sizes),
        bytes=sum(work.sizes.values()),
        notes=(*ready.notes, *journal.notes),
    )


def extract_work(
    job: Job,
    pool: WorkerPool,
    work: RemainingWork,
    arrived: Arrived,
    ready: Ready,
    journal: Journal,
    stopping: threading.Event,
) -> Generator[Event, None, Outcome | None]:
    """Have the workers do the work. Return what they did, or None after Stopped."""
    clips = clips_ahead(work.sizes.values(), ready.sampling)
    dispatch = Dispatch(
        pool,
        work.left,
        work.costs,
        Begin(journal.root, clips / len(pool.names)),
        check=lambda other: check_same(ready, other),
        give_up=lambda video, error: give_up(journal, video, error),
        watch=journal.check_noticed,
    )
    new_clips, failed, hdr = 0, 0, ""
    with ForecastEvents(work, job, ready) as forecast:
        yield from forecast.after(None)
        for event in dispatch.run(arrived, stopping):
            new_clips += event.clips if isinstance(event, ClipsDone) else 0
            failed += isinstance(event, VideoDone) and event.record.status == "failed"
            yield event
            yield from forecast.after(event)
            if not hdr and isinstance(event, VideoDone) and (hdr := HDR.get(event.record.transfer, "")):
                yield Notice(
                    f"{event.record.id} is HDR ({hdr}): it is decoded as it is, without tone mapping; the column "
                    "transfer of /videos_table names all such videos"
                )
    done = dispatch.done.values()
    yield from map(Notice, dict.fromkeys(note for each in done for note in each.notes))
    if dispatch.left:
        yield Stopped(dispatch.left)
        return None
    profile = Profile.combine([each.profile for each in done])
    return Outcome(new_clips, failed, profile, any(each.compiled for each in done))


def publish(job: Job, journal: Journal, pool: WorkerPool, ready: Ready, outcome: Outcome) -> tuple[float, list[str]]:
    """Make the output of the journal; return the seconds that it took, and notes for the user."""
    settle(job, journal)
    begun = time.monotonic()
    attributes = {**ready.attributes, "device": device_names(pool, ready), "compiled": outcome.compiled}
    notes = journal.publish([video.id for video in job.videos], attributes, ready.classes, job.layout)
    return time.monotonic() - begun, notes


def settle(job: Job, journal: Journal) -> None:
    """Read what the workers wrote. On a network file system, wait until it is seen here. Raises OutputError."""
    deadline = time.monotonic() + SETTLE
    while True:
        journal.load(verify=False)
        missing = [video.id for video in job.videos if journal.complete(video.id) is None]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise OutputError(
                f"{journal.root} lacks {plural(len(missing), 'video')} that {'was' if len(missing) == 1 else 'were'} "
                f"extracted: {name_some(missing)}; do all workers write into the same directory? (--storage)"
            )
        time.sleep(1)


def device_names(pool: WorkerPool, ready: Ready) -> str:
    """Return the devices of a pool in words: cuda:0 x 4, or cuda:0, cuda:1."""
    if len(pool.names) == 1:
        return str(ready.attributes["device"])
    different = list(dict.fromkeys(pool.names))
    return f"{different[0]} x {len(pool.names)}" if len(different) == 1 else ", ".join(different)


def already_merged(job: Job, shard: Shard, ready: Ready, begun: float) -> ShardDone:
    """A shard whose output was made before has nothing to do. Raises OutputError if the output has other settings or
    videos."""
    if read_attributes(job.output) is None:
        raise OutputError(f"{job.output} exists and was not written by vswin-extract; choose another name")
    with open_features(job.output, follow=True) as features:  # of an index, its tables only
        made = complete_settings({name: features.info.get(name) for name in ready.settings})
        known = features.fingerprints.keys()
    if made != ready.settings or not known >= {video.id for video in job.videos}:
        raise OutputError(
            f"{job.output} exists, with other settings or videos; add --overwrite (in Python: overwrite=True) to "
            "replace it"
        )
    root = journal_directory(job.output, job.storage)
    seconds = time.monotonic() - begun
    return ShardDone(job.output, root, shard, 0, 0, 0, seconds, True, Profile())


def check_same(one: Ready, other: Ready) -> None:
    """Raise WeightsError where a worker has read other weights, as one that was started again after their file was
    saved over, and DeviceError where it would compute different features for another reason."""
    before, now = (each.settings.get("weights_sha256") for each in (one, other))
    if before != now:
        raise WeightsError(
            f"the weights {one.attributes['model']} have changed since this run began: they had sha256 {before}, a "
            f"worker that was started later reads {now}; with the first file in its place, the same command continues"
        )
    if other.settings != one.settings:
        first, second = (each.attributes["device"] for each in (one, other))
        difference = describe_difference(one.settings, other.settings, was=f"on {first} is", now=f"on {second} is")
        raise DeviceError(
            f"{second} would compute other features than {first}: {difference}; give a setting that both have, as "
            "--precision fp32"
        )


def give_up(journal: Journal, video: Video, error: WorkerDied) -> VideoRecord:
    """Record that a video failed because its workers died."""
    record = failed_record(video, fingerprint(video), error)
    journal.writer().commit(record)
    return record


def is_done(job: Job, root: Path, ready: Ready) -> bool:
    """True if an earlier run of this job has made the output, and only the removal of its journal was interrupted,
    which is ended then. With `overwrite` the videos must not have changed since."""
    if read_attributes(job.output) is None:
        return False
    with open_features(job.output, follow=True) as features:  # its tables only
        then = features.fingerprints
    if {as_utf8(video.id) for video in job.videos} != then.keys():
        return False
    if job.overwrite:
        for video in job.videos:
            before = then.get(video.id)
            if before is not None and not same_fingerprint(before, fingerprint(video)):
                return False
    return finish_interrupted_cleanup(job.output, root) == ready.settings


def finished(job: Job, begun: float, new_clips: int = 0, profile: Profile | None = None) -> Finished:
    """Describe the finished output."""
    with open_features(job.output, follow=True) as features:  # its tables only
        statuses = list(features.tables["videos_table/status"].asstr()[:])
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
