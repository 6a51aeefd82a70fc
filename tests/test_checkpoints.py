"""Reading weights strictly, refusing what does not fit, and writing our own format."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe import layouts
from safetensors import safe_open
from torch import Tensor

from vswin_extract import load_model
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.files import file_sha256
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS
from vswin_extract.weights.checkpoints import Checkpoint, save_checkpoint, tensors_sha256
from vswin_extract.weights.load import read_checkpoint
from vswin_extract.weights.recipe import Recipe

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def official() -> State:
    """All keys of an official checkpoint, with values of no interest."""
    return {
        name: torch.zeros(shape, dtype=torch.int64 if name.endswith("index") else torch.float32)
        for name, shape in layouts()["official_t"].items()
    }


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def changed(state: State, remove: str = "", add: State | None = None) -> State:
    return {**{name: value for name, value in state.items() if name != remove}, **(add or {})}


QKV = "backbone.layers.2.blocks.3.attn.qkv.weight"


@pytest.mark.parametrize(
    ("remove", "add", "says"),
    [
        (QKV, {}, r"it lacks stages.2.blocks.3.attn.qkv.weight"),
        ("", {"backbone.extra.weight": torch.zeros(3)}, r"does not belong there: backbone.extra.weight"),
        ("", {QKV: torch.zeros(5, 5)}, rf"{QKV} is \(5, 5\) instead of \(1152, 384\)"),
        ("cls_head.fc_cls.bias", {}, "it lacks head.bias"),
        ("backbone.norm.weight", {}, "it lacks norm.weight"),
    ],
)
def test_what_does_not_fit_is_named(official: State, tmp_path: Path, remove: str, add: State, says: str) -> None:
    path = save({"state_dict": changed(official, remove, add)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=says):
        read_checkpoint(path)


def test_a_lost_last_block_is_missed(official: State, tmp_path: Path) -> None:
    """Depths are not believed just because the block count is whole: no variant has five blocks in stage 3."""
    state = {name: value for name, value in official.items() if "layers.2.blocks.5." not in name}
    with pytest.raises(WeightsError, match=r"variant t: it lacks stages.2.blocks.5"):
        read_checkpoint(save({"state_dict": state}, tmp_path / "w.pth"))


def test_the_variant_can_be_insisted_on(official: State, tmp_path: Path) -> None:
    path = save({"state_dict": official}, tmp_path / "w.pth")
    assert read_checkpoint(path, "t").variant == VARIANTS["t"]
    with pytest.raises(WeightsError, match="does not fit variant s: it lacks"):
        read_checkpoint(path, "s")
    with pytest.raises(WeightsError, match="unknown variant 'xl'"):
        read_checkpoint(path, "xl")


def test_window_and_classes_are_read_off_the_shapes(official: State, tmp_path: Path) -> None:
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


def test_a_backbone_without_head(official: State, tmp_path: Path) -> None:
    state = {name: value for name, value in official.items() if not name.startswith("cls_head")}
    assert read_checkpoint(save({"state_dict": state}, tmp_path / "w.pth")).num_classes == 0


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"x": Evil()}}, tmp_path / "zip.pth")
    torch.save({"x": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil()))
    for path in tmp_path.iterdir():
        with pytest.raises(WeightsError, match="refused") as refused:
            read_checkpoint(path)
        assert "it is not a plain table of tensors" in str(refused.value)
        assert path.name == "bare.pth" or "run code of" in str(refused.value)  # torch names it, if it gets so far
    assert "must not be printed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", bytes(8) + b"{", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_checkpoint(path)


def test_a_web_page_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<html><body>404</body></html>")
    with pytest.raises(WeightsError, match=r"no PyTorch file, but begins with b'<html><bo"):
        read_checkpoint(tmp_path / "w.pth")


def test_other_tables_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no patch_embed"):
        read_checkpoint(save({"conv1.weight": torch.zeros(3)}, tmp_path / "a.pth"))
    with pytest.raises(WeightsError, match="no known layout"):
        read_checkpoint(save({"patch_embed.proj.weight": torch.zeros(96, 3, 2, 4, 4)}, tmp_path / "b.pth"))
    with pytest.raises(WeightsError, match="holds no table"):
        read_checkpoint(save([1, 2], tmp_path / "c.pth"))
    with pytest.raises(WeightsError, match="no weights at"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_our_format_round_trip(small_weights: Path, tmp_path: Path) -> None:
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
    """So that its pages are there once for all processes of a machine."""
    path = tmp_path / "mapped.safetensors"
    path.write_bytes(small_weights.read_bytes())
    read = read_checkpoint(path)
    assert read.sha256 == file_sha256(path)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert spans
    for name, value in read.state.items():
        assert any(begin <= value.data_ptr() < end for begin, end in spans), name


def model_of(checkpoint: Checkpoint) -> VideoSwin:
    network = VideoSwin(checkpoint.variant, checkpoint.num_classes)
    network.load_state_dict(checkpoint.state)
    return network.eval()


def test_only_the_stages_asked_for_are_computed(small_weights: Path) -> None:
    network = model_of(read_checkpoint(small_weights))
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


def test_what_the_backbone_refuses(small_weights: Path) -> None:
    model = load_model(str(small_weights), device="cpu")
    clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(UsageError, match="must be uint8"):
        model(clips.float())
    with pytest.raises(UsageError, match=r"not \[5\]"):
        model(clips, (5,))
    with pytest.raises(UsageError, match="nothing to compute"):
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
