"""A job to its events: on one device. The Python API's `extract` and `survey` are here too."""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vswin_extract.backbone import Backbone, load_model
from vswin_extract.clips import Sampling
from vswin_extract.errors import DeviceError, UsageError, VideoError
from vswin_extract.features import open_features
from vswin_extract.frames.process import DecoderProcess, VideoEnd
from vswin_extract.frames.worker import Task
from vswin_extract.job import (
    ClipsDone,
    Event,
    Finished,
    Job,
    Notice,
    Profile,
    Started,
    Stopped,
    VideoDone,
    parse_fps,
    parse_stages,
)
from vswin_extract.journal import check_output, finish_interrupted_cleanup, journal_directory, open_journal
from vswin_extract.pipeline import Pipeline, row_shapes
from vswin_extract.videos import Video, find
from vswin_extract.writer import Writer, file_state

COMPILE_FROM = 100_000
"""Clips from which on a GPU compiling, which takes about a minute, is expected to pay; still to be measured."""
USUAL_BYTES = 250_000
"""A second of video, as it is found on the web."""


def run(job: Job, stopping: threading.Event | None = None) -> Generator[Event, None, None]:
    """Extract a job's videos on one device, or continue where an earlier run of it was stopped.

    Yields Started, then ClipsDone and VideoDone as they come, then Finished once the output is in place. Raises
    VswinError before anything is written where the job cannot be done. Setting `stopping` ends the run with Stopped as
    soon as the videos in flight are through, closing the iterator ends it at once; finished videos are kept beside the
    output.
    """
    begun = time.monotonic()
    stopping = stopping or threading.Event()
    if not journal_directory(job.output).is_dir():
        check_output(job.output, job.overwrite)  # before seconds are spent on loading
    backbone = _load(job)
    loaded = time.monotonic() - begun
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    arrays = row_shapes(job, backbone, sampling, geometry)
    settings = describe(job, backbone)
    if finish_interrupted_cleanup(job.output) == settings:
        yield _finished(job.output, begun)
        return
    with open_journal(job.output, settings, arrays, job.overwrite, [video.id for video in job.videos]) as journal:
        remaining = [video for video in job.videos if not journal.done(video, *file_state(video))]
        yield Started(
            model=backbone.name,
            parameters=backbone.parameter_count,
            device=str(backbone.device),
            precision=backbone.precision,
            videos=len(job.videos),
            resumed=len(job.videos) - len(remaining),
            bytes=sum(max(0, file_state(video)[0]) for video in remaining),
            notes=(*backbone.notes, *journal.notes),
        )
        cuda = backbone.device.type == "cuda"
        batch_size = job.batch_size or (8 if cuda else 1)
        compiled = job.compile == "on" or (
            job.compile == "auto" and backbone.compiles and clips_ahead(remaining, sampling) > COMPILE_FROM
        )
        if compiled:
            shape = (batch_size, sampling.clip_len, geometry.size, geometry.size, 3)
            try:
                clips = torch.zeros(shape, dtype=torch.uint8)
                backbone.compile_for(clips, stages=job.stages, embedding=job.embedding, logits=job.logits)
            except DeviceError as error:
                if job.compile == "on":
                    raise
                compiled = False
                yield Notice(str(error))
        # On a CPU the network needs the cores, and two decoders keep up with it; beside a GPU decoding needs them.
        cores = len(os.sched_getaffinity(0))
        workers = job.workers or (max(1, min(8, cores - 1)) if cuda else min(cores, max(2, cores // 4)))
        done = new_clips = 0
        writer = Writer(journal, backbone.precision, job.dtype)
        pipeline = Pipeline(job, backbone, writer, sampling, geometry, batch_size)
        for event in pipeline.run(remaining, workers, stopping):
            done += isinstance(event, VideoDone)
            new_clips += event.clips if isinstance(event, ClipsDone) else 0
            yield event
        if done < len(remaining):
            yield Stopped(len(remaining) - done)
            return
        attributes = {
            **settings,
            "model": backbone.name,
            "weights_source": backbone.source,
            "weights_license": backbone.license,
            "device": str(backbone.device),
            "batch_size": batch_size,
            "compiled": compiled,
            "workers": workers,
            "versions": versions(),
        }
        profile, publishing = pipeline.profile, time.monotonic()
        journal.publish([video.id for video in job.videos], attributes, backbone.classes if job.logits else ())
        profile.loaded, profile.published = loaded, time.monotonic() - publishing
    yield _finished(job.output, begun, new_clips, profile)


@dataclass(frozen=True)
class Survey:
    """What a run would do: the clips of each video, bytes of features, and what cannot be opened."""

    clips: dict[str, int]
    bytes: int
    unreadable: dict[str, str]


def clips_ahead(videos: Sequence[Video], sampling: Sampling) -> float:
    """About how many clips these videos give, by their sizes: nothing is opened for it."""
    seconds = sum(max(0, file_state(video)[0]) for video in videos) / USUAL_BYTES
    return max(len(videos), seconds * float(sampling.fps or 30) / sampling.step)


def survey(job: Job) -> Survey:
    """Count a job's clips from the packets of its videos, without decoding or writing anything."""
    check_output(job.output, job.overwrite)
    backbone = _load(job)
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    clips: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    decoder = DecoderProcess(job.decoder, job.timeout)
    try:
        for video in job.videos:
            decoder.submit(
                Task(os.fspath(video.path), job.decoder, sampling, geometry, video.start, video.end, count=True)
            )
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

    `inputs`: directories and files. `stages`: 1 to 4, or several. `options` are those of the command line, with
    underscores: weights, variant, pool, embedding, logits, dtype, compression, clip_len, frame_interval, stride, align,
    tail, size, resize, crop, decoder, partial, workers, timeout, device, precision, compile, batch_size, overwrite (see
    `vswin_extract.job.Job`). `on_event` is called with every event of `vswin_extract.job`. Videos that fail are
    recorded in the file; `failed` of the result counts them. Raises VswinError where the job cannot be done.

        >>> vswin_extract.extract("examples/videos", "out.h5", stages=4, stride=32)  # doctest: +SKIP
    """
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    try:
        job = Job(
            videos=find(paths, manifest),
            output=Path(os.path.realpath(output)),
            stages=parse_stages(stages),
            fps=parse_fps(fps),
            **options,
        )
    except TypeError as error:
        raise UsageError(f"extract: {error}") from error
    for event in run(job):
        on_event(event)
    if not isinstance(event, Finished):
        raise RuntimeError(f"the run ended with {event}")
    return event


def describe(job: Job, backbone: Backbone) -> dict[str, Any]:
    """The settings that features depend on: written to the file, and compared when a run is continued."""
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    settings = {
        "weights_sha256": backbone.sha256,
        "variant": asdict(backbone.variant),
        "sampling": {**asdict(sampling), "stride": sampling.step, "fps": sampling.fps and str(sampling.fps)},
        "preprocessing": {**asdict(geometry), "mean": backbone.recipe.mean, "std": backbone.recipe.std},
        "features": {
            "stages": job.stages,
            "pool": job.pool,
            "embedding": job.embedding,
            "logits": job.logits,
            "dtype": job.dtype,
            "compression": job.compression,
        },
        "precision": backbone.precision,
        "decoder": job.decoder,
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]  # as a journal gives it back


def versions() -> dict[str, str]:
    """Versions of this tool and of what it computes with."""
    found = {"python": platform.python_version()}
    for package in ("vswin-extract", "torch", "numpy", "av", "decord2", "h5py"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _load(job: Job) -> Backbone:
    backbone = load_model(job.weights, variant=job.variant, device=job.device, precision=job.precision)
    if job.compile == "on" and not backbone.compiles:
        raise UsageError(
            f"--compile on is for CUDA in bf16 or fp16; on {backbone.device.type} in {backbone.precision} the network "
            "is faster as it is"
        )
    if job.logits and not backbone.num_classes:
        why = "".join(f" ({note})" for note in backbone.notes)
        raise UsageError(f"{backbone.name} has no classification head, so --logits has nothing to write{why}")
    return backbone


def _finished(output: Path, begun: float, new_clips: int = 0, profile: Profile | None = None) -> Finished:
    with open_features(output) as features:
        statuses = list(features.file["videos_table/status"].asstr()[:])
        return Finished(
            output=output,
            videos=len(features),
            clips=features.clips,
            new_clips=new_clips,
            partial=statuses.count("partial"),
            failed=len(features.failures),
            seconds=time.monotonic() - begun,
            bytes=output.stat().st_size,
            profile=profile or Profile(),
        )
