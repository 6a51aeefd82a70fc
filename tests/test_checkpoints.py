"""Checkpoints are read strictly, unfitting ones are refused, and our own format is written and read."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import layouts
from safetensors import safe_open
from torch import Tensor

from vswin_extract import load_model
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.files import file_sha256
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.checkpoints import Checkpoint, StateDict, save_checkpoint, tensors_sha256
from vswin_extract.weights.load import read_checkpoint
from vswin_extract.weights.recipe import Recipe


@pytest.fixture(scope="module")
def official() -> StateDict:
    """All tensors of an official checkpoint, filled with zeros."""
    return {name: zeros(shape, name) for name, shape in layouts()["official_t"].items()}


def zeros(shape: Sequence[int], name: str = "") -> Tensor:
    """Zeros of any shape that take the space of one, in memory and in a file."""
    return torch.zeros((), dtype=torch.int64 if name.endswith("index") else torch.float32).expand(*shape)


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def changed(state: StateDict, remove: str = "", add: StateDict | None = None) -> StateDict:
    return {**{name: value for name, value in state.items() if name != remove}, **(add or {})}


QKV = "backbone.layers.2.blocks.3.attn.qkv.weight"


@pytest.mark.parametrize(
    ("remove", "add", "says"),
    [
        (QKV, {}, "lacks stages.2.blocks.3.attn.qkv.weight"),
        ("", {"backbone.extra.weight": torch.zeros(3)}, "unknown tensors: backbone.extra.weight"),
        ("", {QKV: torch.zeros(5, 5)}, rf"{QKV} is \(5, 5\) instead of \(1152, 384\)"),
        ("cls_head.fc_cls.bias", {}, "lacks head.bias"),
        ("backbone.norm.weight", {}, "lacks norm.weight"),
    ],
)
def test_unfitting_tensors_are_named(
    official: StateDict, tmp_path: Path, remove: str, add: StateDict, says: str
) -> None:
    path = save({"state_dict": changed(official, remove, add)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=says):
        read_checkpoint(path)


def test_a_missing_last_block_is_noticed(official: StateDict, tmp_path: Path) -> None:
    """The blocks that are there do not decide the depths: no variant has five blocks in stage 3."""
    state = {name: value for name, value in official.items() if "layers.2.blocks.5." not in name}
    with pytest.raises(WeightsError, match=r"variant t.*stages.2.blocks.5"):
        read_checkpoint(save({"state_dict": state}, tmp_path / "w.pth"))


def test_the_variant_can_be_given(official: StateDict, tmp_path: Path) -> None:
    path = save({"state_dict": official}, tmp_path / "w.pth")
    assert read_checkpoint(path, "t").variant == VARIANTS["t"]
    with pytest.raises(WeightsError, match="variant s"):
        read_checkpoint(path, "s")
    with pytest.raises(WeightsError, match="xl"):
        read_checkpoint(path, "xl")


def test_window_and_classes_follow_from_the_shapes(official: StateDict, tmp_path: Path) -> None:
    state = {
        name: torch.zeros(31 * 169, value.shape[1]) if name.endswith("bias_table") else value
        for name, value in official.items()
    }
    state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"] = torch.zeros(174, 768), torch.zeros(174)
    read = read_checkpoint(save({"state_dict": state}, tmp_path / "w.pth"))
    assert (read.variant.window, read.num_classes) == ((16, 7, 7), 174)
    odd = changed(official, add={name: torch.zeros(77, 3) for name in official if name.endswith("bias_table")})
    with pytest.raises(WeightsError, match="77 rows"):
        read_checkpoint(save({"state_dict": odd}, tmp_path / "odd.pth"))


def test_a_backbone_without_head(official: StateDict, tmp_path: Path) -> None:
    state = {name: value for name, value in official.items() if not name.startswith("cls_head")}
    assert read_checkpoint(save({"state_dict": state}, tmp_path / "w.pth")).num_classes == 0


class RunsCode:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"x": RunsCode()}}, tmp_path / "zip.pth")
    torch.save({"x": RunsCode()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(RunsCode()))
    for path in tmp_path.iterdir():
        with pytest.raises(WeightsError, match="refused") as refused:
            read_checkpoint(path)
        assert "torch.save" in str(refused.value)
        assert path.name == "bare.pth" or "run code of" in str(
            refused.value
        )  # torch does not name the code of a bare pickle
    assert "must not be printed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", bytes(8) + b"{", b"\x80\x02}q\x00."])
def test_files_that_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_checkpoint(path)


def test_the_first_bytes_of_a_web_page_are_shown(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<html><body>404</body></html>")
    with pytest.raises(WeightsError, match="<html><bo"):
        read_checkpoint(tmp_path / "w.pth")


def test_tables_of_other_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="patch_embed"):
        read_checkpoint(save({"conv1.weight": torch.zeros(3)}, tmp_path / "a.pth"))
    with pytest.raises(WeightsError, match="layout"):
        read_checkpoint(save({"patch_embed.proj.weight": torch.zeros(96, 3, 2, 4, 4)}, tmp_path / "b.pth"))
    with pytest.raises(WeightsError, match="state_dict"):
        read_checkpoint(save([1, 2], tmp_path / "c.pth"))
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_our_format_is_read_as_it_was_written(small_weights: Path, tmp_path: Path) -> None:
    read = read_checkpoint(small_weights)
    assert (read.layout, read.variant, read.num_classes) == ("vswin-extract", VARIANTS["nano"], 3)
    assert read.classes == ("one", "two", "three")
    assert read.recipe == Recipe(size=32, resize=32, clip_len=8, frame_interval=2)
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, read.state, read.variant, read.recipe, read.classes)
    second = read_checkpoint(again)
    assert second.state.keys() == read.state.keys()
    assert all(torch.equal(second.state[name], read.state[name]) for name in read.state)
    with safe_open(again, "pt") as stored:
        assert stored.metadata()["tensors_sha256"] == tensors_sha256(read.state)
        assert json.loads(stored.metadata()["recipe"])["clip_len"] == 8


def test_a_converted_file_is_mapped_not_copied(small_weights: Path, tmp_path: Path) -> None:
    """All processes of a machine share the pages of a mapped file."""
    path = tmp_path / "mapped.safetensors"
    path.write_bytes(small_weights.read_bytes())
    read = read_checkpoint(path)
    assert read.sha256 == file_sha256(path)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert ranges
    for name, value in read.state.items():
        assert any(begin <= value.data_ptr() < end for begin, end in ranges), name


def built(checkpoint: Checkpoint) -> VideoSwin:
    network = VideoSwin(checkpoint.variant, checkpoint.num_classes)
    network.load_state_dict(checkpoint.state)
    return network.eval()


def test_only_the_wanted_stages_are_computed(small_weights: Path) -> None:
    network = built(read_checkpoint(small_weights))
    ran = []
    for number, stage in enumerate(network.stages, 1):
        stage.register_forward_hook(lambda *_, number=number: ran.append(number))
    maps = network(torch.zeros(1, 3, 4, 32, 32), (2,))
    assert (list(maps), ran) == ([2], [1, 2])


def test_shapes_of_every_stage_and_pooling(small_weights: Path) -> None:
    model = load_model(str(small_weights), device="cpu")
    clips = torch.randint(0, 256, (2, 7, 50, 70, 3), dtype=torch.uint8)
    features = model(clips, (1, 2, 3, 4), logits=True)
    shapes = {stage: tuple(x.shape) for stage, x in features.stages.items()}
    sides = {1: (13, 18), 2: (7, 9), 3: (4, 5), 4: (2, 3)}
    assert shapes == {stage: (2, 4, *side, model.variant.channels(stage)) for stage, side in sides.items()}
    assert features.embedding is not None
    assert features.logits is not None
    assert torch.allclose(features.embedding, features.stages[4].mean((1, 2, 3)))
    assert torch.allclose(features.logits, model.network.head(features.embedding))  # type: ignore[misc]
    space = model(clips, (3,), "space").stages[3]
    assert torch.allclose(space, features.stages[3].mean((2, 3)))
    assert torch.allclose(model(clips, (3,), "all").stages[3], space.mean(1), atol=1e-6)
    nothing = model(clips, (2,), embedding=False)
    assert nothing.embedding is None


def test_the_backbone_refuses_wrong_input(small_weights: Path) -> None:
    model = load_model(str(small_weights), device="cpu")
    clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(UsageError, match="uint8"):
        model(clips.float())
    with pytest.raises(UsageError, match=r"not \[5\]"):
        model(clips, (5,))
    with pytest.raises(UsageError, match="stage"):
        model(clips, embedding=False)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 4e-3)])
def test_reduced_precision_is_near(small_weights: Path, precision: Any, tolerance: float) -> None:
    clips = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = load_model(str(small_weights), device="cpu", precision="fp32")(clips).embedding
    near = load_model(str(small_weights), device="cpu", precision=precision)(clips).embedding
    assert exact is not None
    assert near is not None
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).norm() / exact.norm()) < tolerance
