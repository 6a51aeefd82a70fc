"""Full-size checkpoints in published layouts: pull, verify, convert and extract with logits."""

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
from vswin_extract.checks import golden
from vswin_extract.decoding.decoders import open_decoder
from vswin_extract.files import file_sha256
from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.weights.fit import expected_shapes
from vswin_extract.weights.recipe import Recipe
from vswin_extract.weights.registry import Published, manifest

TOLERANCE = 4e-5
NAME = "published"
FIXTURES = {"t": "t_16x112", "s": "s_8x96", "b": "b_32x64", "l": "l_4x64"}
FRAMES, SIDE, CLIP_LEN = 10, 64, 4


@pytest.mark.parametrize("layout", ["official_t", "official_b", "mmaction2_t", "torchvision_t"])
def test_checkpoints_in_published_layouts_are_made_correctly(layout: str) -> None:
    """The code that makes the checkpoints of S and L below makes exactly the known keys and shapes of T and B."""
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
    """A folder, and the address of a server on this machine that offers its files."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pulled(run: Run, row: Published, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pull a row of the manifest, and return the file in the cache."""
    monkeypatch.setitem(manifest(), row.name, row)
    done = run("vswin", "weights", "pull", row.name)
    assert done.returncode == 0, done.stderr
    assert "as published" in done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A lossless video of noise and a moving wave."""
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
    mine = tmp_path / "mine.safetensors"
    verify_and_convert(run, pulled(run, row, monkeypatch), variant, facts["num_classes"], mine)
    file.unlink()

    model = load_model(mine, device="cpu", precision="fp32")
    assert isinstance(model.network, CpuSwin)
    model.network.mean, model.network.std = torch.zeros(96), torch.ones(96)  # the fixtures' clips are normalised
    for what, error in errors(model.network, name).items():
        assert error < TOLERANCE, what
    recipe = model.recipe
    del model
    gc.collect()

    network = VideoSwin(variant, facts["num_classes"]).eval()
    network.load_state_dict(state, assign=True)
    extract_and_compare(run, video, mine, network, recipe)


def verify_and_convert(run: Run, pulled: Path, variant: Variant, classes: int, mine: Path) -> None:
    try:
        shown = run("vswin", "weights", "verify", NAME)
        assert shown.returncode == 0, shown.stdout
        assert re.search(r"^ok +finite", shown.stdout, re.MULTILINE)
        done = run("vswin", "weights", "convert", NAME, mine)
        assert f"variant {variant.name}, window {'x'.join(map(str, variant.window))}, " in done.stdout
        assert f"{classes} classes" in done.stdout
    finally:
        pulled.unlink()  # other tests use the same cache


def extract_and_compare(run: Run, video: Path, weights: Path, network: VideoSwin, recipe: Recipe) -> None:
    out = weights.with_name("out.h5")
    options = [
        "--logits", "--stage", 4, "--clip-len", CLIP_LEN, "--frame-interval", 1, "--size", SIDE, "--resize", SIDE,
    ]  # fmt: skip
    done = run("vswin-extract", video, out, "--weights", weights, "--precision", "fp32", "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    with open_decoder("pyav", video) as decoder:
        frames = torch.from_numpy(np.stack([frame.picture().rgb() for frame in decoder]))
    assert len(frames) == FRAMES
    normalised = (frames - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    with torch.inference_mode(), open_features(out) as features:
        stored = features[video.name]
        assert network.head is not None
        assert stored.logits.shape == (3, network.head.out_features)
        for k, (first, _) in enumerate(stored.frames[:].tolist()):
            shown_frames = normalised[[min(i, FRAMES - 1) for i in range(first, first + CLIP_LEN)]]
            maps = network(shown_frames.permute(3, 0, 1, 2)[None])
            embedding = pool_map(maps[4], "all")
            assert relative_error(stored.stage4[k], maps[4][0]) < TOLERANCE
            assert relative_error(stored.embedding[k], embedding[0]) < TOLERANCE
            assert relative_error(stored.logits[k], network.head(embedding)[0]) < TOLERANCE
