"""`vswin weights inflate`: a 2D Swin becomes a 3D one, and a still clip must give the 2D features."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numbered
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from parity import in_layout, relative_error
from torch import Tensor

from vswin_extract import load_model
from vswin_extract.checks import golden
from vswin_extract.errors import WeightsError
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.checkpoints import StateDict, save_checkpoint
from vswin_extract.weights.fit import expected_shapes
from vswin_extract.weights.inflation import (
    check_still,
    inflate_state,
    maps_2d,
    resizing_difference,
    still_picture,
    window_side,
)
from vswin_extract.weights.load import read_checkpoint
from vswin_extract.weights.recipe import Recipe

SMALL = VARIANTS["nano"]


def flat_state() -> StateDict:
    """Draw a 2D Swin of the sizes of nano, under our names."""
    shapes = expected_shapes(replace(SMALL, window=(1, 7, 7)), 0)
    drawn = {name: golden.drawn_tensor("flat/" + name, shape) for name, shape in shapes.items()}
    return {**drawn, "patch_embed.proj.weight": golden.drawn_tensor("flat/patch", (SMALL.embed_dim, 3, 4, 4))}


@pytest.fixture(scope="module")
def microsoft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the layout of Microsoft's files."""
    path = tmp_path_factory.mktemp("flat") / "swin_nano_patch4_window7_224.pth"
    by_name = {}
    for ours, value in flat_state().items():
        merge = re.sub(r"^stages\.(\d)\.merge", lambda m: f"layers.{int(m[1]) - 1}.downsample", ours)
        by_name[merge.replace("stages.", "layers.")] = value
    by_name["head.weight"], by_name["head.bias"] = torch.zeros(10, SMALL.channels(4)), torch.zeros(10)
    torch.save({"model": by_name}, path)
    return path


def test_inflate(run: Run, microsoft: Path, tmp_path: Path) -> None:
    out = tmp_path / "inflated.safetensors"
    done = run("vswin", "weights", "inflate", microsoft, "-o", out, "--window", "2x7x7")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"stage (\d) (\S+?)[, ]", done.stdout)
    assert [int(stage) for stage, _ in found] == [1, 2, 3, 4]
    assert all(float(error) < 1e-12 for _, error in found)
    assert "10 image classes" in done.stderr
    model = load_model(out, device="cpu", precision="fp32")
    assert (model.variant, model.num_classes) == (replace(SMALL, window=(2, 7, 7)), 0)

    # the same in float32, from the file, by the network that extraction uses
    picture = torch.arange(224 * 224 * 3).mul(7919).remainder(251).to(torch.uint8).view(1, 1, 224, 224, 3)
    maps = model(picture.expand(-1, 8, -1, -1, -1), (1, 4)).stages
    pixels = (picture[0, 0].double() - torch.tensor(model.recipe.mean)) / torch.tensor(model.recipe.std)
    expected = maps_2d(flat_state(), model.variant, pixels.permute(2, 0, 1)[None])
    for stage in (1, 4):
        for step in maps[stage][0]:
            assert relative_error(step, expected[stage]) < 1e-5

    (link := tmp_path / "link.safetensors").symlink_to(out)
    assert run("vswin", "weights", "inflate", microsoft, "-o", link, "--overwrite").returncode == 0
    assert link.is_symlink()
    link.unlink()
    again = run("vswin", "weights", "inflate", microsoft, "-o", out)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    twice = run("vswin", "weights", "inflate", out, "-o", tmp_path / "twice.safetensors")
    assert (twice.returncode, "3D" in twice.stderr) == (2, True)
    odd = run("vswin", "weights", "inflate", microsoft, "-o", tmp_path / "x.safetensors", "--window", "8x7")
    assert (odd.returncode, "8x7x7" in odd.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "stages.2.blocks.1.attn.relative_position_bias_table"])
def test_a_wrong_inflation_is_noticed(microsoft: Path, name: str) -> None:
    right = read_checkpoint(microsoft, window=(2, 7, 7))
    wrong = right.state[name].clone()
    wrong[0] += 0.1  # in a table: one offset in time, the bias of one head
    with pytest.raises(WeightsError, match="stage 1"):
        check_still(replace(right, state={**right.state, name: wrong}))
    assert max(check_still(right).values()) < 1e-12


def test_a_wrong_table_for_one_stage_is_noticed(microsoft: Path) -> None:
    """The 2D network is computed from the file's own tensors, so that what inflation gets wrong is not wrong there."""
    right = read_checkpoint(microsoft, window=(2, 7, 7))
    bases = [name for name in right.state_2d if name.startswith("stages.3.") and name.endswith("bias_table")]
    resized = {name: golden.drawn_tensor(name, (27 * 27, SMALL.heads[3])) for name in bases}
    state_2d = {**right.state_2d, **resized}  # as timm's swin_s3: windows of 14 in one stage, and 7 in others
    wrong = replace(right, state_2d=state_2d, state=inflate_state(state_2d, right.variant))
    with pytest.raises(WeightsError, match="stage 4"):
        check_still(wrong)
    for name in (bases[0], "stages.0.blocks.0.attn.relative_position_bias_table"):
        table = right.state[name]
        across = table.view(3, 13, 13, -1).transpose(1, 2).reshape(table.shape)  # rows and columns exchanged
        with pytest.raises(WeightsError, match="stage 4"):
            check_still(replace(right, state={**right.state, name: across}))


@pytest.mark.parametrize(
    ("wide", "timm"),
    [
        (r"layers\.2\.blocks\.\d\.attn", True),  # timm's swin_s3_tiny_224: 7, 7, 14, 7
        (r"layers\.3\.blocks\.\d\.attn", False),
        (r"layers\.2\.blocks\.2\.attn", False),  # one block of a stage
        (r"layers\.0\.blocks\.0\.attn", False),
    ],
)
def test_windows_that_differ_are_refused(run: Run, microsoft: Path, wide: str, timm: bool, tmp_path: Path) -> None:
    state = torch.load(microsoft, weights_only=True)["model"]
    for name, value in list(state.items()):
        if re.match(wide, name) and name.endswith("bias_table"):
            state[name] = torch.zeros(27 * 27, value.shape[1])
        if timm and ".downsample." in name:
            later = re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) + 1}", name)
            state[later] = state.pop(name)
    torch.save(state, tmp_path / "s3.pth")
    done = run("vswin", "weights", "inflate", tmp_path / "s3.pth", "-o", tmp_path / "out.safetensors")
    assert done.returncode != 0
    assert re.search(wide + r"\.relative_position_bias_table has 729 rows", done.stderr)
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(WeightsError, match="169"):
        read_checkpoint(tmp_path / "s3.pth")


@pytest.mark.parametrize("rows", [168, 144, 170])
def test_tables_of_no_square_window_are_refused(microsoft: Path, rows: int, tmp_path: Path) -> None:
    state = torch.load(microsoft, weights_only=True)["model"]
    for name, value in state.items():
        if name.endswith("bias_table"):
            state[name] = torch.zeros(rows, value.shape[1])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"{rows} rows"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("window", ["2x7x7", "1x12x12", "1x5x9", "16x3x3"])
def test_what_inflate_writes_loads_again(run: Run, microsoft: Path, window: str, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done = run("vswin", "weights", "inflate", microsoft, "-o", out, "--window", window)
    assert done.returncode == 0, done.stderr
    sides = tuple(map(int, window.split("x")))
    found, again = read_checkpoint(microsoft, window=sides), read_checkpoint(out)  # type: ignore[arg-type]
    assert (again.variant.window, again.layout) == (sides, "vswin-extract")
    assert all(torch.equal(value, found.state[name]) for name, value in again.state.items())
    resized = window != "2x7x7"
    assert bool(resizing_difference(found)) == resized
    assert ("own window" in done.stdout) == resized
    assert all((error > 1e-4) == resized for error in resizing_difference(found).values())
    clip = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    assert load_model(out, device="cpu", precision="fp32")(clip, (4,)).stages[4].shape == (1, 2, 2, 2, 128)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    "window",
    [
        *((8, 8, 8), (1, 7, 7)),
        *(pytest.param(window, marks=pytest.mark.slow) for window in ((8, 12, 12), (5, 5, 5), (16, 7, 7))),
    ],
)
def test_windows_of_other_sides_in_the_official_layout(
    run: Run, window: tuple[int, int, int], index: bool, tmp_path: Path
) -> None:
    """A window of 5x5x5 has as many biases as one of 1x14x14; the index tells them apart."""
    variant = replace(SMALL, window=window)
    state = in_layout("official", variant, golden.drawn_state(variant, 3))
    if not index:
        state = {name: value for name, value in state.items() if not name.endswith("index")}
    path = tmp_path / "official.pth"
    torch.save({"state_dict": state}, path)
    if window == (5, 5, 5) and not index:
        with pytest.raises(WeightsError, match=r"5x5x5.*1x14x14"):
            read_checkpoint(path)
        return
    assert read_checkpoint(path).variant == variant
    if window == (8, 12, 12):
        numbered.write(tmp_path / "a.mp4", 10)
        options = ("--clip-len", "4", "--size", "64", "--stage", "4", "--logits")
        done = run("vswin-extract", tmp_path / "a.mp4", tmp_path / "out.h5", "--weights", path, *options)
        assert done.returncode == 0, done.stderr


def test_a_3d_checkpoint_cannot_be_compared(small_weights: Path) -> None:
    with pytest.raises(WeightsError, match="2D"):
        check_still(read_checkpoint(small_weights))


def test_a_resized_window_is_noted(microsoft: Path) -> None:
    assert not any("resized" in note for note in read_checkpoint(microsoft).notes)
    resized = read_checkpoint(microsoft, window=(8, 12, 12))
    assert any("7x7" in note and "12x12" in note for note in resized.notes)
    assert window_side(resized.state_2d) == 7


def test_naming_the_variant_keeps_the_window_of_our_file(microsoft: Path, tmp_path: Path) -> None:
    inflated, out = read_checkpoint(microsoft, window=(8, 12, 12)), tmp_path / "inflated.safetensors"
    save_checkpoint(out, inflated.state, inflated.variant, Recipe(), (), "drawn")
    assert read_checkpoint(out, variant="nano").variant == inflated.variant


def test_the_2d_backbone_of_a_detector(microsoft: Path, tmp_path: Path) -> None:
    state = torch.load(microsoft, weights_only=True)["model"]
    path = tmp_path / "detector.pth"
    torch.save({f"backbone.{name}": value for name, value in state.items() if "head" not in name}, path)
    inflated = read_checkpoint(path)
    assert all(torch.equal(value, inflated.state[name]) for name, value in read_checkpoint(microsoft).state.items())


def test_the_2d_network_is_that_of_the_paper() -> None:
    """Compare with a second implementation without windows: attention over all tokens, masks, bias by offset."""
    state = {name: value.double() for name, value in flat_state().items()}
    picture = still_picture(112)  # not a whole number of windows in stage 4, where windows are cut off
    found = maps_2d(flat_state(), SMALL, picture)
    x = F.conv2d(picture, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)[0]
    x = norm(x.permute(1, 2, 0), state, "patch_embed.norm")  # H W C
    for stage in range(3):
        if stage:
            corners = [x[row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = norm(torch.cat(corners, -1), state, f"stages.{stage}.merge.norm")
            x = x @ state[f"stages.{stage}.merge.reduction.weight"].T
        for block in range(SMALL.depths[stage]):
            x = swin_block(x, state, f"stages.{stage}.blocks.{block}", SMALL.heads[stage], block % 2 == 1)
        assert relative_error(found[stage + 1], x) < 1e-10, stage


def swin_block(x: Tensor, state: StateDict, name: str, heads: int, shifted: bool) -> Tensor:
    height, width, channels = x.shape
    offset = 4 if shifted and height > 7 else 0  # windows shifted by 3 begin at 3, 10, 17…
    y, xx = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    window = (y + offset) // 7 * 1000 + (xx + offset) // 7
    together = window[:, None] == window[None, :]
    row = (y[:, None] - y[None, :] + 6) * 13 + (xx[:, None] - xx[None, :] + 6)
    bias = state[f"{name}.attn.relative_position_bias_table"][row.clamp(0, 168)]  # tokens tokens heads
    tokens = norm(x, state, f"{name}.norm1").flatten(0, 1)
    q, k, v = linear(tokens, state, f"{name}.attn.qkv").view(-1, 3, heads, channels // heads).unbind(1)
    scores = torch.einsum("ihc,jhc->hij", q, k) / math.sqrt(channels // heads) + bias.permute(2, 0, 1)
    weights = scores.masked_fill(~together, -math.inf).softmax(-1)
    attended = torch.einsum("hij,jhc->ihc", weights, v).flatten(1)
    x = x + linear(attended, state, f"{name}.attn.proj").view_as(x)
    hidden = F.gelu(linear(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
    return x + linear(hidden, state, f"{name}.mlp.fc2")


def norm(x: Tensor, state: StateDict, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x: Tensor, state: StateDict, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
