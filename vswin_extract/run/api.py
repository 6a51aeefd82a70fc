"""`vswin_extract.extract`: what the command line does, as a call."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from vswin_extract.backbone import Precision
from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.job.events import Event, Finished
from vswin_extract.job.job import AUTO, Compile, Dtype, Engine, Job, Partial, parse_fps
from vswin_extract.network.pooling import CropPool, Pool
from vswin_extract.network.variants import StageNames, parse_stages
from vswin_extract.run.run import run
from vswin_extract.store.hdf5 import output_path
from vswin_extract.store.layouts import Layout
from vswin_extract.store.schema import Compression
from vswin_extract.video.fetch import CACHE_SIZE
from vswin_extract.video.geometry import Crop
from vswin_extract.video.sampling import Align, Tail
from vswin_extract.video.videos import find_videos
from vswin_extract.weights.registry import BUNDLED


def extract(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    stages: StageNames = (),
    manifest: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] = BUNDLED,
    variant: str | None = None,
    ema: bool = False,
    offline: bool = False,
    pool: Pool = "none",
    embedding: bool = True,
    logits: bool = False,
    dtype: Dtype = "float32",
    compression: Compression = "none",
    layout: Layout = "single",
    clip_len: int | None = None,
    frame_interval: int | None = None,
    stride: int | None = None,
    fps: str | float | None = None,
    align: Align = "start",
    tail: Tail = "pad",
    size: int | None = None,
    resize: int | None = None,
    crop: Crop = "center",
    crop_pool: CropPool = "mean",
    decoder: DecoderName = "pyav",
    partial: Partial = "keep",
    workers: int | None = None,
    timeout: float = 60.0,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int = CACHE_SIZE,
    device: str = "auto",
    precision: Precision = "auto",
    compile: Compile = "auto",
    batch_size: int | None = None,
    storage: str | os.PathLike[str] | None = None,
    engine: Engine = "local",
    ray_address: str = AUTO,
    actors: int | None = None,
    overwrite: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Finished:
    """Extract features of videos into one HDF5 file.

    `inputs`: directories, files and addresses. `manifest`: a .csv or .tsv of videos or segments. The other arguments
    are the options of `vswin-extract` (docs/cli.md), with underscores; None means as the weights or the device say.
    `cache_size` is in bytes, `timeout` in seconds. `on_event` is called with every event of `vswin_extract.job.events`.

    Videos that fail are recorded in the file; `failed` of the result counts them. Raises VswinError for a job that
    cannot be done.

        >>> videos = ["examples/videos/clips", "examples/videos/shapes.mkv"]
        >>> done = vswin_extract.extract(videos, "out.h5", stages=4, stride=64, size=64)
        >>> done.videos, done.clips, done.failed
        (2, 3, 0)
    """
    file = output_path(output)
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    job = Job(
        videos=find_videos(paths, manifest),
        output=file,
        weights=os.fspath(weights),
        variant=variant,
        ema=ema,
        offline=offline,
        stages=parse_stages(stages),
        pool=pool,
        embedding=embedding,
        logits=logits,
        dtype=dtype,
        compression=compression,
        layout=layout,
        clip_len=clip_len,
        frame_interval=frame_interval,
        stride=stride,
        fps=parse_fps(fps),
        align=align,
        tail=tail,
        size=size,
        resize=resize,
        crop=crop,
        crop_pool=crop_pool,
        decoder=decoder,
        partial=partial,
        workers=workers,
        timeout=timeout,
        cache_dir=cache_dir,
        cache_size=cache_size,
        device=device,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
        storage=None if storage is None else Path(os.path.realpath(storage)),
        engine=engine,
        ray_address=ray_address,
        actors=actors,
        overwrite=overwrite,
    )
    return run_to_end(job, on_event)


def run_to_end(job: Job, on_event: Callable[[Event], None]) -> Finished:
    with closing(run(job)) as events:
        for event in events:
            on_event(event)
    if not isinstance(event, Finished):
        raise RuntimeError(f"the run ended with {event}")
    return event
