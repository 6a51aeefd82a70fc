"""Full-size checkpoints as they are published, all the way: pull, verify, convert, extract with logits."""

import functools
import gc
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import Run
from parity import errors, fixture, in_layout, layouts, relative_error, write

from vswin_extract import load_model, open_features
from vswin_extract.decoding.decoders import open_decoder
from vswin_extract.files import file_sha256
from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights import checkpoints, golden
from vswin_extract.weights.checkpoints import expected_shapes
from vswin_extract.weights.registry import Published, manifest

TOLERANCE = 4e-5
NAME = "published"
FIXTURES = {"t": "t_16x112", "s": "s_8x96", "b": "b_32x64", "l": "l_4x64"}
FRAMES, SIDE, CLIP_LEN = 10, 64, 4


@pytest.mark.parametrize("layout", ["official_t", "official_b", "mmaction2_t", "torchvision_t"])
def test_layouts_are_extended_as_they_are(layout: str) -> None:
    """What makes the checkpoints below full-size ones of S and L makes exactly the known keys and shapes of T and B."""
    family, arch = layout.rsplit("_", 1)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in expected_shapes(VARIANTS[arch], 400).items()}
    made = {key: list(value.shape) for key, value in in_layout(family, VARIANTS[arch], state).items()}
    assert made == layouts()[layout]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where a server of this machine offers what is in it."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pulled(run: Run, row: Published, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in the cache, after it was downloaded from where the row says."""
    monkeypatch.setitem(manifest(), row.name, row)
    done = run("vswin", "weights", "pull", row.name)
    assert done.returncode == 0, done.stderr
    assert "as published" in done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Noise and a moving wave, lossless."""
    path = tmp_path / "noise.mkv"
    t, y, x = np.ogrid[:FRAMES, :SIDE, :SIDE]
    wave = 100 + 80 * np.sin(0.3 * x + 0.2 * y - 0.6 * t)
    noise = np.random.RandomState(0).randint(0, 60, (FRAMES, SIDE, SIDE, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in np.clip(wave[..., None] + noise, 0, 255).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "arch", "name"),
    [
        *((family, arch, FIXTURES[arch]) for family in ("official", "mmaction2", "torchvision") for arch in "tsb"),
        ("official", "b", "b16_32x64"),
        ("mmaction2", "l", "l_4x64"),
    ],
)
def test_from_the_server_to_the_features(
    family: str, arch: str, name: str, run: Run, publisher: tuple[Path, str], video: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    facts, _ = fixture(name)
    variant = replace(VARIANTS[arch], window=tuple(facts["window"]))
    state = golden.drawn_state(variant, facts["num_classes"])
    folder, address = publisher
    file = write(family, folder / f"{name}.pth", in_layout(family, variant, state))
    row = replace(
        manifest()["t-k400"],
        name=NAME,
        url=f"{address}/{file.name}",
        layout=family,
        variant=arch,
        dataset="drawn",
        classes=facts["num_classes"],
        sha256=file_sha256(file)[:8],
        megabytes=0.0,
    )
    there = pulled(run, row, monkeypatch)
    try:
        shown = run("vswin", "weights", "verify", NAME)
        assert shown.returncode == 0, shown.stdout
        assert re.search(r"^ok +finite", shown.stdout, re.MULTILINE)
        mine = tmp_path / "mine.safetensors"
        done = run("vswin", "weights", "convert", NAME, mine)
        assert f"variant {arch}, window {'x'.join(map(str, variant.window))}, " in done.stdout
        assert f"{facts['num_classes']} classes" in done.stdout
    finally:
        there.unlink()  # the cache is the whole session's
    file.unlink()

    model = load_model(mine, device="cpu", precision="fp32")
    read = checkpoints.read(mine)
    normalised_in = CpuSwin(checkpoints.build(read.state, read.variant, read.num_classes), torch.float32)
    for what, error in errors(normalised_in, name).items():
        assert error < TOLERANCE, what
    recipe = model.recipe
    del model, read, normalised_in
    gc.collect()

    out = tmp_path / "out.h5"
    options = [
        "--logits",
        "--stage",
        4,
        "--clip-len",
        CLIP_LEN,
        "--frame-interval",
        1,
        "--size",
        SIDE,
        "--resize",
        SIDE,
    ]
    done = run("vswin-extract", video, out, "--weights", mine, "--precision", "fp32", "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    network = VideoSwin(variant, facts["num_classes"]).eval()
    network.load_state_dict(state, assign=True)
    with open_decoder("pyav", video) as decoder:
        frames = torch.from_numpy(np.stack([frame.rgb() for frame in decoder]))
    assert len(frames) == FRAMES
    normalised = (frames - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    with torch.inference_mode(), open_features(out) as features:
        stored = features[video.name]
        assert stored.logits.shape == (3, facts["num_classes"])
        for k, (first, _) in enumerate(stored.frames[:].tolist()):
            shown_frames = normalised[[min(i, FRAMES - 1) for i in range(first, first + CLIP_LEN)]]
            maps = network(shown_frames.permute(3, 0, 1, 2)[None])
            embedding = pool_map(maps[4], "all")
            assert network.head is not None
            assert relative_error(stored.stage4[k], maps[4][0]) < TOLERANCE
            assert relative_error(stored.embedding[k], embedding[0]) < TOLERANCE
            assert relative_error(stored.logits[k], network.head(embedding)[0]) < TOLERANCE
