"""Draw videos to measure with: H.264, a square that moves over a textured, moving background."""

from pathlib import Path

import av
import numpy as np


def draw(
    path: Path, frames: int, width: int = 640, height: int = 360, rate: int = 30, preset: str = "veryfast"
) -> Path:
    generator = np.random.default_rng(len(path.name))
    tile = generator.integers(0, 255, (height // 8 + 8, width // 8 + 8, 3), np.uint8)
    ground = np.kron(tile, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": preset})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            x, y = number % 60, (number // 2) % 60
            picture = ground[y : y + height, x : x + width].copy()
            left = (7 * number) % (width - 80)
            picture[height // 3 : height // 3 + 80, left : left + 80] = (200, 40, number % 256)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
