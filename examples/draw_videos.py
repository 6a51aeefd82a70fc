"""Draw the example videos: `python examples/draw_videos.py --out examples/videos`.

Together they have the variety of real collections: four containers, three codecs, five frame rates, a portrait video
with irregular time stamps, and two files with the same stem in different folders.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import click
import drawing
import numpy as np
import textures
import torch
import torch.nn.functional as F
from av.video.stream import VideoStream
from drawing import Scenes, Shapes
from numpy.typing import NDArray
from torch import Generator, Tensor

MILLISECOND = Fraction(1, 1000)


@dataclass(frozen=True)
class Video:
    """`times`: presentation times of the frames in units of `time_base`; `size`: (height, width)."""

    name: str
    codec: str
    options: dict[str, str]
    rate: Fraction
    size: tuple[int, int]
    scenes: Scenes
    path: drawing.Path
    shapes: Shapes
    times: tuple[int, ...]
    time_base: Fraction


def videos() -> Iterator[Video]:
    """Yield the five videos. Canvases are two frame heights wide, and fit the widest view so that nothing aliases."""
    x264 = {"crf": "26", "x264-params": "asm=0"}  # its vector code gives slightly different results from run to run
    landscape = (240, 320)
    generator = Generator().manual_seed(0)

    frames = 120  # astronaut: the camera pans right
    across, up, wide = torch.linspace(-0.25, 0.25, frames), torch.full((frames,), -0.4), torch.full((frames,), -0.1)
    path = camera(frames, x=across, y=up, zoom=wide)
    yield regular("astronaut-pan.mp4", "libx264", x264, Fraction(30), landscape, photo("astronaut", 440), path)

    frames = 100  # coffee: the camera zooms in and out again
    nearer = 0.8 * torch.sin(torch.linspace(0, math.pi, frames))
    path = camera(frames, zoom=nearer)
    vp9 = {"crf": "36", "b": "0", "cpu-used": "4", "row-mt": "0"}
    yield regular("coffee-zoom.webm", "libvpx-vp9", vp9, Fraction(25), landscape, photo("coffee", 480), path)

    frames = 120  # a round patch of gravel goes right, down, left and up over flat cells
    path = camera(frames, patch=around(frames))
    scene = Scenes(textures.cells(480, generator)[None], photo("gravel", 480).background)
    film = Fraction(24000, 1001)
    yield regular("shapes.mkv", "libx264", x264, film, landscape, scene, path, shape(0.2, 0.0))

    frames = 50  # the camera rolls clockwise over a square patch of islands that lies on marble
    path = camera(frames, roll=torch.linspace(0, 1, frames), patch=torch.full((frames, 2), 0.1))
    scene = Scenes(textures.marble(384, generator)[None], textures.blobs(384, generator)[None])
    yield regular("clips/shapes.avi", "mpeg4", {"b": "300k"}, Fraction(25, 2), (192, 256), scene, path, shape(0.2, 1.0))

    frames = 90  # a cat, filmed with a hand-held telephone at irregular times
    hand = smooth(torch.randn(frames, 2, generator=generator))
    path = camera(frames, x=0.05 * hand[:, 0], y=0.05 * hand[:, 1], zoom=torch.full((frames,), -0.5))
    gaps = torch.tensor([20, 33, 34, 50, 83])[torch.randint(5, (frames - 1,), generator=generator)]
    times = (0, *torch.cumsum(gaps, 0).tolist())
    cat = photo("chelsea", 400)
    yield Video(
        "chelsea-portrait.mp4", "libx264", x264, Fraction(25), (320, 240), cat, path, shape(0, 0), times, MILLISECOND
    )


def regular(
    name: str,
    codec: str,
    options: dict[str, str],
    rate: Fraction,
    size: tuple[int, int],
    scenes: Scenes,
    path: drawing.Path,
    shapes: Shapes | None = None,
) -> Video:
    """Return a video with a constant frame rate."""
    times = tuple(range(path.zoom.shape[1]))
    return Video(name, codec, options, rate, size, scenes, path, shapes or shape(0, 0), times, 1 / rate)


def camera(
    frames: int,
    x: Tensor | None = None,
    y: Tensor | None = None,
    zoom: Tensor | None = None,
    roll: Tensor | None = None,
    patch: Tensor | None = None,
) -> drawing.Path:
    """Return a path from its changing parts, each (frames,), but `patch` (frames, 2). Missing parts are 0."""
    rest = torch.zeros(frames)
    x, y, zoom, roll = (rest if value is None else value for value in (x, y, zoom, roll))
    patch = torch.zeros(frames, 2) if patch is None else patch
    return drawing.Path(torch.stack((x, y), -1)[None], zoom[None], roll[None], patch[None])


def around(frames: int) -> Tensor:
    """Return a path around a rectangle, clockwise from its upper left corner, (frames, 2)."""
    corners = torch.tensor([[-0.4, -0.25], [0.4, -0.25], [0.4, 0.25], [-0.4, 0.25], [-0.4, -0.25]])
    return F.interpolate(corners.T[None], frames, mode="linear", align_corners=True)[0].T


def smooth(steps: Tensor) -> Tensor:
    """Return noise (frames, 2) like that of a hand: the mean over 9 frames."""
    return F.avg_pool1d(steps.T[None], 9, 1, 4)[0].T


def shape(half_side: float, squareness: float) -> Shapes:
    """Return one foreground object, or none if `half_side` is 0."""
    one = torch.ones(1)
    return Shapes(one * (half_side > 0), half_side * torch.ones(1, 2), squareness * one, 0 * one)


def photo(name: str, canvas: int) -> Scenes:
    """Return a scene of the middle square of a photograph, `canvas` pixels wide."""
    pixels = textures.photograph(name)
    side = min(pixels.shape[1:])
    top, left = ((length - side) // 2 for length in pixels.shape[1:])
    square = pixels[None, :, top : top + side, left : left + side]
    pixels = F.interpolate(square, canvas, mode="bilinear", antialias=True).clamp(0, 1)
    return Scenes(pixels, pixels)


def frames_of(video: Video) -> NDArray[np.uint8]:
    """Return the frames of a video, (frames, height, width, 3)."""
    pixels = drawing.picture(video.scenes, video.path, video.shapes, video.size)[0]
    grey_levels: NDArray[np.uint8] = (pixels * 255).round().byte().permute(1, 2, 3, 0).numpy()
    return grey_levels


def encode(video: Video, out: Path) -> None:
    """Draw a video and write it into a folder."""
    path = out / video.name
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = {"fflags": "+bitexact"}  # no dates and no random ids: the same bytes when drawn again
    with av.open(path, "w", options=exact) as container:
        stream = container.add_stream(video.codec, rate=video.rate, options={**video.options, "flags": "+bitexact"})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = video.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = video.time_base
        stream.codec_context.thread_count = 1
        for pixels, time in zip(frames_of(video), video.times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, video.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@click.command()
@click.option("--out", default="examples/videos", show_default=True, type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Draw the example videos into a folder."""
    torch.set_num_threads(1)
    for video in videos():
        encode(video, out)
        click.echo(f"{out / video.name}: {len(video.times)} frames, {(out / video.name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
