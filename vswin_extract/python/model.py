"""The model that Python programs load: clips of pixels in, or video files; features out."""

import os
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast, get_args, overload

from vswin_extract import backbone
from vswin_extract.backbone import Backbone, Precision
from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.errors import UsageError, VideoError
from vswin_extract.formatting import suggest_name
from vswin_extract.job.job import Dtype, Job, Partial, parse_fps
from vswin_extract.network.pooling import CropPool, Pool
from vswin_extract.network.variants import StageNames, parse_stages
from vswin_extract.python.memory import VideoInMemory
from vswin_extract.python.stream import Inputs, VideoStream, extract_in_order, only, or_raise, videos_of
from vswin_extract.system import usable_cores
from vswin_extract.video.geometry import Crop
from vswin_extract.video.sampling import Align, Tail
from vswin_extract.weights.part import ProgressCallback
from vswin_extract.weights.registry import BUNDLED
from vswin_extract.worker.worker import Worker

OnError = Literal["raise", "yield"]


class VideoOptions(TypedDict, total=False):
    """Options of `Model.video` and `Model.stream`. They are those of the command line (docs/cli.md), with underscores;
    what is left out is as the weights or the device say.

    `stages`: maps to compute: 4, [3, 4], "stage4" or "all". `pool`: average them over "space" or over time and space
    ("all"). `embedding`, `logits`: whether to compute them. `dtype`: float32 or float16. `stride`: frames from one clip
    to the next. `fps`, `clip_len`, `frame_interval`, `align`, `tail`: which frames the clips show. `size`, `resize`,
    `crop`: which pixels. `crop_pool`: average the features of crops, or keep each. `decoder`, `partial`, `workers`,
    `timeout` (seconds): how videos are decoded. `cache_dir`, `cache_size` (bytes): where files of addresses are kept
    meanwhile. `batch_size`: clips that are computed at a time.

        >>> options = vswin_extract.VideoOptions(stages="stage4", pool="space", stride=64, size=64)
        >>> model.video("examples/videos/shapes.mkv", **options).stage4.shape
        (2, 16, 128)
    """

    stages: StageNames
    pool: Pool
    embedding: bool
    logits: bool
    dtype: Dtype
    clip_len: int | None
    frame_interval: int | None
    stride: int | None
    fps: str | float | None
    align: Align
    tail: Tail
    size: int | None
    resize: int | None
    crop: Crop
    crop_pool: CropPool
    decoder: DecoderName
    partial: Partial
    workers: int | None
    timeout: float
    cache_dir: str | os.PathLike[str] | None
    cache_size: int
    batch_size: int | None


class Model(Backbone):
    """A `Backbone` that also takes video files, and keeps their features in memory. `load_model` makes it.

    Videos are decoded by processes of their own, which need no `if __name__ == "__main__"`, and work in a notebook and
    beside the workers of a DataLoader.

        >>> model.name, model.recipe.clip_len, str(model.device)
        ('nano', 32, 'cpu')
    """

    def video(self, path: str | os.PathLike[str], **options: Unpack[VideoOptions]) -> VideoInMemory:
        """Return the features of one video, a file or an address: what `extract` would write, without a file.

        `options`: stages, pool, stride, fps, size and more, see `VideoOptions`. A call starts a decoder process, which
        takes about half a second; for many videos use `stream`. Raises VideoError if the video fails, and UsageError
        for options that cannot work.

            >>> video = model.video("examples/videos/shapes.mkv", stages=4, pool="all", stride=64, size=64)
            >>> video.embedding.shape, video.stage4.shape, video.times.round(2).tolist()
            ((2, 128), (2, 128), [[0.0, 2.67], [2.67, 5.0]])
        """
        worker = self._worker(options)
        videos = only(videos_of(path), path)
        with VideoStream(or_raise(extract_in_order(worker, videos))) as found:
            return next(found)

    @overload
    def stream(
        self,
        videos: Inputs,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[VideoOptions],
    ) -> VideoStream[VideoInMemory]: ...

    @overload
    def stream(
        self,
        videos: Inputs,
        *,
        on_error: Literal["yield"],
        **options: Unpack[VideoOptions],
    ) -> VideoStream[VideoInMemory | VideoError]: ...

    def stream(
        self,
        videos: Inputs,
        *,
        on_error: OnError = "raise",
        **options: Unpack[VideoOptions],
    ) -> VideoStream[VideoInMemory] | VideoStream[VideoInMemory | VideoError]:
        """Yield the features of videos, in the order in which they are given; decoder processes work ahead.

        `videos`: files, directories and addresses, or one of these. An iterable is read a few videos ahead, so it may
        be long. `options`: as of `video`. `on_error`: a video that fails ends the stream with its VideoError when its
        turn comes ("raise"), or the VideoError comes in its place ("yield"), and the stream goes on; its text names the
        video. All rows of a video are in memory at once: pool the maps of long videos.

        On a GPU, do not call the model while a stream is open, because its thread may compute. Raises UsageError for
        options that cannot work.

            >>> paths = ["examples/videos/clips/shapes.avi", "nowhere.mp4"]
            >>> for each in model.stream(paths, stride=64, size=64, on_error="yield"):
            ...     print(repr(each) if isinstance(each, vswin_extract.VswinError) else each.embedding.shape)
            (1, 128)
            VideoMissing('.../nowhere.mp4 cannot be opened: No such file or directory')
        """
        if on_error not in get_args(OnError):
            raise UsageError(f"on_error must be raise or yield, not {on_error!r}")
        found = extract_in_order(self._worker(options), videos_of(videos))
        return VideoStream(or_raise(found)) if on_error == "raise" else VideoStream(found)

    def _worker(self, options: VideoOptions) -> Worker:
        """Return a worker with this model. Raises UsageError."""
        if unknown := options.keys() - VideoOptions.__annotations__.keys():
            known = ", ".join(VideoOptions.__annotations__)
            meant = suggest_name(min(unknown), VideoOptions.__annotations__)
            hint = f"did you mean {meant}? " if meant else ""
            raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}; {hint}the options are {known}")
        given = {
            **options,
            "stages": parse_stages(options.get("stages", ())),
            "fps": parse_fps(options.get("fps")),
        }
        job = Job(videos=(), output=Path("in memory"), **given)  # type: ignore[arg-type]  # nothing is written
        return Worker(job, str(self.device), usable_cores(), self)


def load_model(
    weights: str | os.PathLike[str] = BUNDLED,
    *,
    variant: str | None = None,
    ema: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    offline: bool = False,
    on_download: ProgressCallback = lambda done, total: None,
) -> Model:
    model = backbone.load_model(
        weights,
        variant=variant,
        ema=ema,
        device=device,
        precision=precision,
        offline=offline,
        on_download=on_download,
        kind=Model,
    )
    return cast(Model, model)


load_model.__doc__ = backbone.load_model.__doc__  # one text, for the same arguments
