"""A decoder process for benchmarks, which drop each clip as soon as they have read it."""

from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.feeding.process import DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling


def start_decoder(sampling: Sampling, geometry: Geometry) -> DecoderProcess:
    return DecoderProcess("pyav", 60.0, FrameMemory.for_clips(sampling, geometry, decoders=1, clips=2))


def processor_time(process: DecoderProcess, task: Task) -> float:
    """Return the processor seconds that a decoder process needs for a video."""
    process.submit(task)
    while not isinstance(arrived := process.read(), VideoEnd):
        pass
    return arrived.cpu
