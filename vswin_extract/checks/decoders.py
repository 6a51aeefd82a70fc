"""Check of the decoders: each reads a video that is drawn now, in its own process as in a run."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from vswin_extract.checks.result import Check
from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.errors import VswinError
from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.messages import Task
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

FRAMES = 24
"""Frames of the drawn video."""
RATE = 12
"""Frames per second of the drawn video."""
SIDE = 64
"""Pixels of a side of the drawn video."""
TIMEOUT = 30.0
"""Seconds after which a decoder that makes no progress fails the check."""


def check_decoders() -> Iterator[Check]:
    """Yield a check for each decoder."""
    with tempfile.TemporaryDirectory(prefix="vswin-doctor-") as folder:
        path = Path(folder) / "drawn.mp4"
        try:
            draw_video(path)
        except Exception as error:  # codec libraries raise anything
            found = f"PyAV cannot write the test video: {error}"
            yield Check("decoders", "failed", found, "pip install --force-reinstall 'av>=17'")
            return
        for name in get_args(DecoderName):
            try:
                problem = find_wrong_frame(name, path)
            except VswinError as error:
                problem = str(error).replace(folder, "…")
            if problem:
                advice = f"reinstall it: pip install --force-reinstall {'av' if name == 'pyav' else 'decord2'}"
                yield Check(f"decoder {name}", "failed", problem, advice)
            else:
                yield Check(f"decoder {name}", "ok", f"{FRAMES} frames of a drawn MPEG-4 video, their order and times")


def draw_video(path: Path) -> None:
    """Write FRAMES grey frames, each brighter than the one before, as MPEG-4, which every FFmpeg can encode."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            frame = np.full((SIDE, SIDE, 3), grey(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def grey(number: int) -> int:
    """Return the brightness, 0 to 255, of a frame of the drawn video."""
    return 20 + 9 * number


def find_wrong_frame(decoder: str, path: Path) -> str:
    """Decode the drawn video and return what is wrong with its frames, "" if they are right. Raises VswinError."""
    geometry = Geometry(SIDE // 2, SIDE // 2)
    memory = FrameMemory.for_clips(Sampling(1, 1), geometry, 1, FRAMES)
    process = DecoderProcess(decoder, TIMEOUT, memory)
    try:
        process.submit(Task(str(path), decoder, Sampling(1, 1), geometry))
        clips: list[DecodedClip] = []
        while isinstance(arrived := process.read(), DecodedClip):
            clips.append(arrived)
    finally:
        process.close()
    if len(clips) != FRAMES or arrived.frames != FRAMES or arrived.partial:
        return f"{arrived.frames} frames instead of {FRAMES}{arrived.trouble and '; ' + arrived.trouble}"
    for number, clip in enumerate(clips):
        start, end = number / RATE, (number + 1) / RATE
        if max(abs(clip.times[0] - start), abs(clip.times[1] - end)) > 1e-3:
            shown = f"{clip.times[0]:.4f} to {clip.times[1]:.4f} s"
            return f"frame {number} is shown from {shown} instead of {start:.4f} to {end:.4f} s"
        brightness = float(clip.views[0][0].mean())
        if abs(brightness - grey(number)) > 4:
            return f"frame {number} has brightness {brightness:.0f} instead of {grey(number)}"
    return ""
