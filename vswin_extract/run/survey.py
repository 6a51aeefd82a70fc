"""What a job would do, counted without decoding or writing anything."""

from contextlib import closing
from dataclasses import dataclass

from vswin_extract.backbone import find_devices
from vswin_extract.errors import VideoError
from vswin_extract.feeding.messages import VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.job.job import Job
from vswin_extract.store.hdf5 import check_output
from vswin_extract.worker.settings import feature_arrays, load_backbone, make_task


@dataclass(frozen=True)
class Survey:
    """The clips of each video, the bytes of features, and why videos cannot be opened."""

    clips: dict[str, int]
    bytes: int
    unreadable: dict[str, str]


def survey(job: Job) -> Survey:
    """Count the clips of a job by the packets of its videos."""
    job.check_directories()
    check_output(job.output, job.overwrite)
    device = "cpu" if job.engine == "ray" else find_devices(job.device)[0]  # shapes are the same on all
    backbone = load_backbone(job, device)
    sampling, geometry = job.sampling(backbone.recipe), job.geometry(backbone.recipe)
    clips: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    with closing(DecoderProcess(job.decoder, job.timeout)) as decoder:
        for video in job.videos:
            decoder.submit(make_task(job, video, sampling, geometry, count=True))
            try:
                end = decoder.read()
            except VideoError as error:
                unreadable[video.id] = f"{type(error).__name__}: {error}"
                continue
            if isinstance(end, VideoEnd):
                clips[video.id] = end.clips
    return Survey(clips, sum(clips.values()) * feature_arrays(job, backbone).bytes_per_clip(), unreadable)
