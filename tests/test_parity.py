"""Our numbers against those of the published implementations, which were computed in float64 on drawn weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity import Network, clip, errors, fixture, published_state, relative_error, write
from torch import Tensor

from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.cuda import CudaSwin
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.weights.golden import drawn_state, drawn_tensor
from vswin_extract.weights.inflation import inflate_state
from vswin_extract.weights.load import read_checkpoint

TOLERANCE = 4e-5
FORWARD = ["t_16x112", "t_odd_9x75x90", "s_8x96", "b_32x64", "b16_32x64", "l_4x64"]


def network(variant: Variant, state: dict[str, Tensor], classes: int) -> VideoSwin:
    with torch.device("meta"):
        made = VideoSwin(variant, classes)
    made.load_state_dict(state, strict=True, assign=True)
    return made.eval()


def check(made: Network, name: str) -> None:
    assert max(errors(made, name).values()) < TOLERANCE


@pytest.mark.parametrize("name", FORWARD)
def test_network_gives_the_published_numbers(name: str) -> None:
    facts, _ = fixture(name)
    variant = replace(VARIANTS[facts["arch"]], window=tuple(facts["window"]))
    made = network(variant, drawn_state(variant, facts["num_classes"]), facts["num_classes"]).requires_grad_(False)
    check(made, name)
    check(CpuSwin(made, torch.float32), name)

    # These weights amplify every rounding, so bfloat16 is held to what PyTorch's own way to it gives.
    usual = errors(made, name, autocast=True)
    for what, error in errors(CpuSwin(made, torch.bfloat16), name).items():
        assert error < usual[what], what

    # What a GPU computes, its kernel replaced by the plain twin. This takes the parameters over.
    check(CudaSwin(made, torch.float32), name)
    for what, error in errors(CudaSwin(made, torch.bfloat16), name).items():
        assert error < 1.2 * usual[what], what


def test_neither_threads_nor_batches_change_a_bit() -> None:
    """What makes a run's features the same however its clips were shared out among cores."""
    clips = clip("threads", (3, 3, 8, 96, 80))
    made = VideoSwin(VARIANTS["nano"]).requires_grad_(False)
    made.init_weights(torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            tiled = CpuSwin(made, dtype)
            torch.set_num_threads(1)
            expected = tiled(clips)[4]
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(tiled(clips)[4], expected)
                assert torch.get_num_threads() == threads
                assert torch.equal(torch.cat([tiled(one)[4] for one in torch.split(clips, 1)]), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_it_gives_the_published_numbers() -> None:
    facts, _ = fixture("t_16x112")
    state = drawn_state(VARIANTS["t"], facts["num_classes"])
    made = CudaSwin(network(VARIANTS["t"], state, facts["num_classes"]).requires_grad_(False), torch.float32)
    made.compute = torch.compile(made.compute, dynamic=False)
    check(made, "t_16x112")


@pytest.mark.parametrize(
    ("layout", "found", "name"),
    [
        ("official_t", "official", "t_16x112"),
        ("official_t", "official", "t_odd_9x75x90"),
        ("mmaction2_t", "mmaction2", "t_16x112"),
        ("torchvision_t", "torchvision", "t_16x112"),
        ("swin2d_t_w7", "swin2d", "inflate_t_w7"),
        ("timm_t_w7", "timm", "inflate_t_w7"),
    ],
)
def test_every_layout_loads_and_gives_the_published_numbers(layout: str, found: str, name: str, tmp_path: Path) -> None:
    read = read_checkpoint(write(layout, tmp_path / "weights.pth"))
    assert read.layout == found
    assert read.variant == VARIANTS["t"]
    check(network(read.variant, read.state, read.num_classes), name)


def test_official_b_loads(tmp_path: Path) -> None:
    """Its fixture has 600 classes where this layout has 400, so the head is compared apart."""
    read = read_checkpoint(write("official_b", tmp_path / "weights.pth"))
    assert (read.variant, read.num_classes) == (VARIANTS["b"], 400)
    backbone = {name: value for name, value in read.state.items() if not name.startswith("head.")}
    check(network(read.variant, backbone, 0), "b_32x64")
    assert torch.equal(read.state["head.weight"], drawn_tensor("cls_head.fc_cls.weight", (400, 1024)))
    published_state.cache_clear()


def test_a_larger_2d_window_is_resized(tmp_path: Path) -> None:
    """Window 12 to 7, in both 2D layouts alike, by cubic convolution."""
    microsoft = read_checkpoint(write("swin2d_b_w12", tmp_path / "microsoft.pth"))
    timm = read_checkpoint(write("timm_b_w12", tmp_path / "timm.pth"))
    assert microsoft.variant == timm.variant == VARIANTS["b"]
    assert microsoft.state.keys() == timm.state.keys()
    for name, value in microsoft.state.items():
        assert torch.equal(value, timm.state[name]), name
    published_state.cache_clear()

    plane = np.random.default_rng(0).standard_normal((23, 23))
    name = "x.relative_position_bias_table"
    table = inflate_state({name: torch.from_numpy(plane.reshape(-1, 1))}, VARIANTS["b"])[name]
    taps = cubic_convolution(23, 13)
    expected = np.tile((taps @ plane @ taps.T).reshape(-1, 1), (15, 1))
    assert relative_error(table, expected) < 1e-5


def cubic_convolution(source: int, target: int) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.75, edges repeated, as a (target, source) matrix."""

    def kernel(x: float) -> float:
        a, x = -0.75, abs(x)
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((target, source))
    for row in range(target):
        at = (row + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[row, min(max(tap, 0), source - 1)] += kernel(at - tap)
    return matrix


def test_a_still_clip_gives_the_2d_features_at_every_time(tmp_path: Path) -> None:
    """What inflation is for (section 3.3): the 3D network sees no motion where there is none."""
    read = read_checkpoint(write("swin2d_t_w7", tmp_path / "weights.pth"))
    assert read.num_classes == 0
    assert any("not used" in note for note in read.notes)
    made = network(read.variant, read.state, 0)
    # as large as whole windows of the last stage: a shrunken window's bias is not the same at every time
    still = clip("still", (1, 3, 1, 224, 224)).expand(1, 3, 16, 224, 224).double()
    with torch.inference_mode():
        maps = made.double()(still, (1, 2, 3, 4))
    for stage, features in maps.items():
        first = features[:, :1].expand_as(features)
        assert relative_error(features, first) < 1e-12, stage
