"""The trip of all videos through one device: decode, batch, compute, write. Nobody else joins these stations.

Decoder processes work ahead, one video each. Clips are taken from them in an order that depends on clip counts alone,
never on timing, and batches are filled across videos: so the same command makes the same batches, and the same bytes.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vswin_extract.backbone import Backbone
from vswin_extract.clips import Sampling
from vswin_extract.errors import NonFiniteFeatures, VideoChanged, VideoDamaged, VideoError
from vswin_extract.frames.process import DecodedClip, DecoderProcess, VideoEnd
from vswin_extract.frames.worker import Task
from vswin_extract.job import ClipsDone, Event, Job, Notice, VideoDone
from vswin_extract.journal import Journal
from vswin_extract.parts import Part
from vswin_extract.preprocess import Geometry
from vswin_extract.store import Arrays, VideoRecord
from vswin_extract.videos import Video


@dataclass
class Passage:
    """A video on its way: what is known of it, and the part that its rows go to."""

    video: Video
    size: int
    mtime: float
    part: Part | None = None
    waiting: int = 0
    """Clips decoded but not computed yet."""
    end: VideoEnd | None = None
    failed: bool = False


@dataclass
class Lane:
    """A decoder process and the videos it was given, the one that `read` speaks of first."""

    decoder: DecoderProcess
    passages: deque[Passage]


class Pipeline:
    """Takes videos through the backbone into the journal."""

    def __init__(
        self, job: Job, backbone: Backbone, journal: Journal, sampling: Sampling, geometry: Geometry, batch_size: int
    ) -> None:
        self.job = job
        self.backbone = backbone
        self.journal = journal
        self.sampling = sampling
        self.geometry = geometry
        self.batch_size = batch_size
        self.batch: list[tuple[Passage, DecodedClip]] = []

    def run(self, videos: Sequence[Video], workers: int, stopping: threading.Event) -> Iterator[Event]:
        """Extract these videos. Yields ClipsDone and VideoDone; a video that fails does not end it.

        Once `stopping` is set no further video is begun, and it ends when those that are in flight are through.
        """
        queue = deque(videos)
        lanes = deque(
            Lane(DecoderProcess(self.job.decoder, self.job.timeout), deque())
            for _ in range(min(workers, max(1, len(videos))))
        )
        try:
            # Two videos each, so that a decoder need not wait between them.
            for lane in [*lanes, *lanes]:
                self._give(lane, queue)
            while lanes:
                lane = lanes[0]
                if stopping.is_set():
                    queue.clear()
                    for other in lanes:
                        while len(other.passages) > 1:
                            other.passages.pop()
                if not lane.passages:
                    lane.decoder.close()
                    lanes.popleft()
                    continue
                passage = lane.passages[0]
                try:
                    arrived = lane.decoder.read()
                except VideoError as error:
                    lane.passages.popleft()
                    self._give(lane, queue)
                    if not passage.failed:
                        yield self._fail(passage, error)
                    continue
                if isinstance(arrived, DecodedClip):
                    passage.waiting += 1
                    self.batch.append((passage, arrived))
                    lanes.rotate(-1)  # every decoder in turn, so that all of them work
                    if len(self.batch) >= self.batch_size:
                        yield from self._compute()
                else:
                    lane.passages.popleft()
                    self._give(lane, queue)
                    passage.end = arrived
                    if passage.failed:
                        continue
                    if arrived.partial and self.job.partial == "fail":
                        yield self._fail(passage, VideoDamaged(f"{arrived.trouble}; {arrived.frames} frames decode"))
                    elif not passage.waiting:
                        yield self._finish(passage)
            yield from self._compute()
        finally:
            for lane in lanes:
                lane.decoder.close()

    def _give(self, lane: Lane, queue: deque[Video]) -> None:
        if not queue:
            return
        video = queue.popleft()
        size, mtime = file_state(video)
        lane.passages.append(Passage(video, size, mtime))
        lane.decoder.submit(
            Task(
                path=os.fspath(video.path),
                decoder=self.job.decoder,
                sampling=self.sampling,
                geometry=self.geometry,
                start=video.start,
                end=video.end,
            )
        )

    def _compute(self) -> Iterator[Event]:
        """Take the batch through the network and its rows to their parts; finish the videos that this completes."""
        batch = [(passage, clip) for passage, clip in self.batch if not passage.failed]
        self.batch = []
        if not batch:
            return
        before = self.batch_size
        rows = self._features([clip for _, clip in batch])
        if self.batch_size < before:
            yield Notice(f"out of memory with batches of {before} clips; going on with {self.batch_size}")
        yield ClipsDone(len(batch))
        self.journal.touch()
        for passage in {id(passage): passage for passage, _ in batch}.values():
            mine = [row for row, (other, _) in enumerate(batch) if other is passage]
            some = {name: values[mine] for name, values in rows.items()}
            try:
                self._write(passage, some, [batch[row][1] for row in mine])
            except NonFiniteFeatures as error:
                yield self._fail(passage, error)
                continue
            if passage.end is not None and not passage.waiting:
                yield self._finish(passage)

    def _features(self, clips: Sequence[DecodedClip]) -> dict[str, NDArray[np.floating]]:
        """Features by dataset name. Where memory does not suffice, in two halves, and so from then on."""
        try:
            return self._forward(clips)
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, whose traceback holds on to tensors
        half = len(clips) // 2
        self.batch_size = min(self.batch_size, len(clips) - half)
        first, second = self._features(clips[:half]), self._features(clips[half:])
        return {name: np.concatenate((values, second[name])) for name, values in first.items()}

    def _forward(self, clips: Sequence[DecodedClip]) -> dict[str, NDArray[np.floating]]:
        """Features by dataset name, averaged over the crops of each clip."""
        views = len(clips[0].views)
        total: dict[str, torch.Tensor] = {}
        for view in range(views):
            pixels = torch.from_numpy(np.stack([clip.views[view] for clip in clips]))  # N T H W 3
            features = self.backbone(
                pixels, self.job.stages, self.job.pool, embedding=self.job.embedding, logits=self.job.logits
            )
            named = {f"stage{stage}": values for stage, values in features.stages.items()}
            if features.embedding is not None:
                named["embedding"] = features.embedding
            if features.logits is not None:
                named["logits"] = features.logits
            for name, values in named.items():
                total[name] = total[name] + values if name in total else values
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which `_write` refuses
            return {name: (values / views).cpu().numpy().astype(self.job.dtype) for name, values in total.items()}

    def _write(self, passage: Passage, rows: dict[str, NDArray[np.floating]], clips: Sequence[DecodedClip]) -> None:
        for name, values in rows.items():
            if not np.isfinite(values).all():
                raise NonFiniteFeatures(
                    f"{name} has NaN or infinite values in precision {self.backbone.precision}, stored as "
                    f"{self.job.dtype}; try --precision fp32 --dtype float32"
                )
        if passage.part is None:
            passage.part = self.journal.part(passage.video.id)
        passage.part.append(
            {
                **rows,
                "clips/frames": np.array([clip.frames for clip in clips]),
                "clips/times": np.array([clip.times for clip in clips]),
                "clips/valid": np.array([clip.valid for clip in clips]),
            }
        )
        passage.waiting -= len(clips)

    def _finish(self, passage: Passage) -> VideoDone:
        end, part, video = passage.end, passage.part, passage.video
        if end is None or part is None:
            raise RuntimeError(f"{video.id} was finished before it had ended")
        if file_state(video) != (passage.size, passage.mtime):
            return self._fail(passage, VideoChanged("its file changed while it was read"))
        record = VideoRecord(
            id=video.id,
            path=os.path.abspath(video.path),
            status="partial" if end.partial else "ok",
            clips=part.rows,
            fps=end.fps,
            frames=end.frames,
            duration=end.duration,
            width=end.width,
            height=end.height,
            size=passage.size,
            mtime=passage.mtime,
            start=video.start,
            end=video.end,
            message=end.trouble + (f" ({end.damaged} damaged packets)" if end.damaged else ""),
        )
        self.journal.commit(record, part)
        return VideoDone(record, max(passage.size, 0))

    def _fail(self, passage: Passage, error: VideoError) -> VideoDone:
        passage.failed = True
        if passage.part is not None:
            passage.part.discard()
        video = passage.video
        record = VideoRecord(
            id=video.id,
            path=os.path.abspath(video.path),
            status="failed",
            size=passage.size,
            mtime=passage.mtime,
            start=video.start,
            end=video.end,
            error=type(error).__name__,
            message=str(error),
        )
        self.journal.commit(record)
        return VideoDone(record, max(passage.size, 0))


def file_state(video: Video) -> tuple[int, float]:
    """Size in bytes and time of change of a video's file; -1 and 0 where it is not there."""
    try:
        state = video.path.stat()
    except OSError:
        return -1, 0.0
    return state.st_size, state.st_mtime


def row_shapes(job: Job, backbone: Backbone, sampling: Sampling, geometry: Geometry) -> Arrays:
    """The feature datasets that a job writes."""
    shapes: dict[str, tuple[int, ...]] = {}
    if job.embedding:
        shapes["embedding"] = (backbone.variant.channels(4),)
    for stage in job.stages:
        frames = -(-sampling.clip_len // 2)
        side = -(-geometry.size // 4)
        for _ in range(stage - 1):
            side = -(-side // 2)  # patch merging pads an odd side
        channels = backbone.variant.channels(stage)
        full = {"none": (frames, side, side, channels), "space": (frames, channels), "all": (channels,)}
        shapes[f"stage{stage}"] = full[job.pool]
    if job.logits:
        shapes["logits"] = (backbone.num_classes,)
    return Arrays(shapes, job.dtype, job.compression)
