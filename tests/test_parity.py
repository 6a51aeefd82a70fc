"""Our numbers against those of the published implementations, which were computed in float64 on drawn weights."""

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity import clip, errors, fixture, published_state, relative_error, write

from vswin_extract.checks.golden import drawn_state, drawn_tensor
from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.cuda import CudaSwin
from vswin_extract.network.inference import InferenceNetwork, as_frames
from vswin_extract.network.reference import ReferenceSwin
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant
from vswin_extract.weights.checkpoints import StateDict
from vswin_extract.weights.fit import build_network
from vswin_extract.weights.inflation import inflate_state
from vswin_extract.weights.load import read_checkpoint

CPU = torch.device("cpu")
TOLERANCE = 4e-5
SLOW = ("t_16x112", "s_8x96", "l_4x64", "b_32x64", "b16_32x64")
NAMES = ["t_odd_9x75x90", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@lru_cache(maxsize=1)
def drawn(name: str) -> VideoSwin:
    """Return the network of a fixture."""
    facts, _ = fixture(name)
    variant = replace(VARIANTS[facts["arch"]], window=tuple(facts["window"]))
    return of_state(drawn_state(variant, facts["num_classes"]), variant, facts["num_classes"])


def of_state(state: StateDict, variant: Variant, classes: int) -> VideoSwin:
    return build_network(state, variant, classes).requires_grad_(False).eval()


def check(network: InferenceNetwork, name: str) -> None:
    assert max(errors(network, name).values()) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_networks_give_the_published_numbers(name: str) -> None:
    """`CudaSwin` on a CPU computes attention by the kernel's reference implementation."""
    network = drawn(name)
    check(ReferenceSwin(network, CPU, torch.float32), name)
    check(CpuSwin(network, torch.float32), name)
    check(CudaSwin(network, CPU, torch.float32), name)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_as_near_to_the_published_numbers_as_autocast(name: str) -> None:
    """These weights amplify every rounding error, so bfloat16 is compared with PyTorch's own bfloat16."""
    network = drawn(name)
    autocast = errors(ReferenceSwin(network, CPU, torch.bfloat16), name)
    for what, error in errors(CpuSwin(network, torch.bfloat16), name).items():
        assert error < autocast[what], what
    for what, error in errors(CudaSwin(network, CPU, torch.bfloat16), name).items():
        assert error < 1.2 * autocast[what], what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_batches_change_a_bit(dtype: torch.dtype) -> None:
    """So a run's features do not depend on how its clips were shared out among cores."""
    clips = clip("threads", (3, 3, 4, 40, 48)).permute(0, 2, 3, 4, 1)
    network = VideoSwin(VARIANTS["nano"]).requires_grad_(False)
    network.init_weights(torch.Generator().manual_seed(0))
    cpu_swin = CpuSwin(network, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = cpu_swin(*as_frames(clips), (4,))[4]
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(cpu_swin(*as_frames(clips), (4,))[4], expected)
            assert torch.get_num_threads() == threads
            each = [cpu_swin(*as_frames(one), (4,))[4] for one in torch.split(clips, 1)]
            assert torch.equal(torch.cat(each), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_it_gives_the_published_numbers() -> None:
    network = CudaSwin(drawn("t_16x112"), CPU, torch.float32)
    network.compile_for(1)
    check(network, "t_16x112")


@pytest.mark.parametrize(
    "layout", ["mmaction2_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("official_t", "torchvision_t"))]
)
def test_every_3d_layout_gives_the_drawn_parameters(layout: str, tmp_path: Path) -> None:
    """The numbers of these parameters are compared above."""
    read = read_checkpoint(write(layout, tmp_path / "weights.pth"))
    assert read.layout == layout.removesuffix("_t")
    assert (read.variant, read.num_classes) == (VARIANTS["t"], 400)
    check_equal(read.state, drawn_t())


@cache
def drawn_t() -> StateDict:
    return drawn_state(VARIANTS["t"], 400)


def check_equal(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_both_2d_layouts_give_the_published_numbers(tmp_path: Path) -> None:
    microsoft = read_checkpoint(write("swin2d_t_w7", tmp_path / "microsoft.pth"))
    timm = read_checkpoint(write("timm_t_w7", tmp_path / "timm.pth"))
    assert (microsoft.layout, timm.layout) == ("swin2d", "timm")
    assert microsoft.variant == timm.variant == VARIANTS["t"]
    check_equal(timm.state, microsoft.state)
    check(CpuSwin(of_state(microsoft.state, microsoft.variant, 0), torch.float32), "inflate_t_w7")


@pytest.mark.slow
def test_official_b_loads(tmp_path: Path) -> None:
    """Its fixture has 600 classes and this layout has 400, so the head is compared separately."""
    read = read_checkpoint(write("official_b", tmp_path / "weights.pth"))
    assert (read.variant, read.num_classes) == (VARIANTS["b"], 400)
    backbone = {name: value for name, value in read.state.items() if not name.startswith("head.")}
    check(CpuSwin(of_state(backbone, read.variant, 0), torch.float32), "b_32x64")
    assert torch.equal(read.state["head.weight"], drawn_tensor("cls_head.fc_cls.weight", (400, 1024)))
    published_state.cache_clear()


@pytest.mark.slow
def test_a_window_of_12_is_resized_in_both_2d_layouts(tmp_path: Path) -> None:
    microsoft = read_checkpoint(write("swin2d_b_w12", tmp_path / "microsoft.pth"))
    timm = read_checkpoint(write("timm_b_w12", tmp_path / "timm.pth"))
    assert microsoft.variant == timm.variant == VARIANTS["b"]
    check_equal(timm.state, microsoft.state)
    published_state.cache_clear()


def test_a_larger_2d_window_is_resized_by_cubic_convolution() -> None:
    plane = np.random.default_rng(0).standard_normal((23, 23))
    name = "x.relative_position_bias_table"
    table = inflate_state({name: torch.from_numpy(plane.reshape(-1, 1))}, VARIANTS["b"])[name]
    taps = cubic_convolution(23, 13)
    expected = np.tile((taps @ plane @ taps.T).reshape(-1, 1), (15, 1))
    assert relative_error(table, expected) < 1e-5


def cubic_convolution(source: int, target: int) -> NDArray[np.float64]:
    """Return Keys' kernel with a = -0.75 and repeated edges as a (target, source) matrix."""

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


@pytest.mark.slow
def test_a_still_clip_gives_the_same_features_at_every_time(tmp_path: Path) -> None:
    """The purpose of inflation (section 3.3). `test_inflation` does the same with small weights."""
    read = read_checkpoint(write("swin2d_t_w7", tmp_path / "weights.pth"))
    assert read.num_classes == 0
    assert any("not used" in note for note in read.notes)
    network = of_state(read.state, read.variant, 0)
    # the last stage has whole windows: the bias of a shrunken one is not the same at every time
    still = clip("still", (1, 3, 1, 224, 224)).expand(1, 3, 16, 224, 224).double()
    with torch.inference_mode():
        maps = network.double()(still, (1, 2, 3, 4))
    for stage, features in maps.items():
        first = features[:, :1].expand_as(features)
        assert relative_error(features, first) < 1e-12, stage
