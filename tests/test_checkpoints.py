"""Checkpoints are read strictly, unfitting ones are refused, and our own format is written and read."""

import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numbered
import numpy as np
import pytest
import torch
from conftest import Run
from parity import in_layout, layouts
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vswin_extract import load_model, open_features
from vswin_extract.checks.golden import drawn_state
from vswin_extract.errors import UsageError, WeightsError
from vswin_extract.files import file_sha256
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.variants import VARIANTS, Variant
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


@pytest.fixture(scope="module")
def nano() -> StateDict:
    """A checkpoint of nano in the official layout, with a head of three classes."""
    return in_layout("official", VARIANTS["nano"], drawn_state(VARIANTS["nano"], 3))


def prefixed(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: value for name, value in state.items()}


def average(state: StateDict) -> StateDict:
    return {name: value * 1.01 if value.is_floating_point() else value for name, value in state.items()}


def without_backbone(state: StateDict) -> StateDict:
    return {name.removeprefix("backbone."): value for name, value in state.items()}


def expect_state(found: Checkpoint, expected: Checkpoint) -> None:
    assert (found.variant, found.num_classes, found.layout) == (
        expected.variant, expected.num_classes, expected.layout,
    )  # fmt: skip
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(value, expected.state[name]) for name, value in found.state.items())


PREFIXES = ("module.", "model.", "_orig_mod.", "module.model.", "module._orig_mod.", "ema_model.module.", "a.b.c.d.")
FAMILIES = ("bare", "mmaction2", "torchvision", "ours", "swin2d")


@pytest.mark.parametrize(
    ("family", "prefix"), [*(("official", each) for each in PREFIXES), *((each, "module.") for each in FAMILIES)]
)
def test_a_prefix_of_all_names_is_left_out(nano: StateDict, family: str, prefix: str, tmp_path: Path) -> None:
    if family == "ours":
        state = drawn_state(VARIANTS["nano"], 3)
    elif family == "swin2d":
        state = {
            name: value[:, :, 0] if name.endswith("patch_embed.proj.weight") else value
            for name, value in without_backbone(in_layout("official", *flat_nano())).items()
        }
    elif family in ("mmaction2", "torchvision"):
        state = in_layout(family, VARIANTS["nano"], drawn_state(VARIANTS["nano"], 3))
    else:
        state = without_backbone(nano) if family == "bare" else nano
    plain = read_checkpoint(save({"state_dict": state}, tmp_path / "plain.pth"))
    assert not any("prefix" in note or "begin with" in note for note in plain.notes)
    wrapped = read_checkpoint(save({"state_dict": prefixed(prefix, state)}, tmp_path / "wrapped.pth"))
    expect_state(wrapped, plain)
    assert [prefix in note for note in wrapped.notes].count(True) == 1


def flat_nano() -> tuple[Variant, StateDict]:
    variant = replace(VARIANTS["nano"], window=(1, 7, 7))
    return variant, drawn_state(variant)


def test_a_prefix_is_said_once_in_a_run(nano: StateDict, run: Run, one_video: Path, tmp_path: Path) -> None:
    wrapped = save(prefixed("module.", nano), tmp_path / "wrapped.pth")
    done = run("vswin-extract", one_video, tmp_path / "out.h5", "--weights", wrapped, *SMALL)
    assert (done.returncode, done.stderr.count("'module.'")) == (0, 1), done.stderr
    done = run("vswin", "weights", "convert", wrapped, tmp_path / "out.safetensors")
    assert (done.returncode, done.stderr.count("'module.'")) == (0, 1), done.stderr


SMALL = ("--clip-len", "4", "--size", "32", "--precision", "fp32")


@pytest.fixture(scope="module")
def one_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    numbered.write(path, 12)
    return path


def test_tensors_beside_the_network_are_named(nano: StateDict, tmp_path: Path) -> None:
    """As Lightning stores the parameters of a loss."""
    beside = {"criterion.weight": torch.zeros(3), "loss.weight": torch.zeros(())}
    plain = read_checkpoint(save(nano, tmp_path / "plain.pth"))
    for number, state in enumerate((prefixed("model.", nano), nano, prefixed("encoder.", without_backbone(nano)))):
        read = read_checkpoint(save({"state_dict": {**state, **beside}}, tmp_path / f"{number}.pth"))
        expect_state(read, plain)
        [note] = [note for note in read.notes if "criterion.weight" in note]
        assert "loss.weight" in note


@pytest.mark.parametrize("outside", ["norm.weight", "backbone.norm.weight", "model.norm.weight", "MODEL.backbone.x"])
def test_a_part_of_the_network_is_not_taken_for_something_beside_it(
    nano: StateDict, outside: str, tmp_path: Path
) -> None:
    """A tensor that the network lacks is not replaced by one outside of it; one within its prefix must belong to it."""
    state = changed(prefixed("model.", nano), "model.backbone.norm.weight", {outside: torch.zeros(128)})
    with pytest.raises(WeightsError, match=r"lacks norm\.weight"):
        read_checkpoint(save(state, tmp_path / "moved.pth"))
    state = {**prefixed("model.", nano), "model.backbone.extra": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"model\.backbone\.extra"):
        read_checkpoint(save(state, tmp_path / "extra.pth"))
    state = {**prefixed("model.", nano), "model.cls_head.extra": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"model\.cls_head\.extra"):
        read_checkpoint(save(state, tmp_path / "head.pth"))


def test_of_several_networks_none_is_guessed(nano: StateDict, tmp_path: Path) -> None:
    both = {**prefixed("student.", nano), **prefixed("teacher.", average(nano))}
    with pytest.raises(WeightsError, match=r"student.*teacher"):
        read_checkpoint(save({"state_dict": both}, tmp_path / "both.pth"))
    with pytest.raises(WeightsError, match=r"student.*teacher"):
        read_checkpoint(save({"student": nano, "teacher": average(nano)}, tmp_path / "tables.pth"))
    main = read_checkpoint(save({"state_dict": nano, "teacher": average(nano)}, tmp_path / "main.pth"))
    assert torch.equal(main.state["norm.weight"], nano["backbone.norm.weight"])
    assert any("teacher" in note for note in main.notes)


AVERAGES: dict[str, Callable[[StateDict], Any]] = {
    "state_dict_ema": lambda state: state,
    "model_ema": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},  # torchvision
    "ema_state_dict": lambda state: state,
    "ema": lambda state: {"decay": 0.999, "module": state},
    "ema_model": lambda state: {"state_dict": prefixed("module.", state)},
    "modelEma": lambda state: state,
    "EMA": lambda state: state,
}


@pytest.mark.parametrize("key", AVERAGES)
@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_averaged_weights_are_taken_if_asked_for(nano: StateDict, container: str, key: str, tmp_path: Path) -> None:
    path = save({container: nano, "epoch": 3, key: AVERAGES[key](average(nano))}, tmp_path / "w.pth")
    usual, averaged = read_checkpoint(path), read_checkpoint(path, ema=True)
    assert any("--ema" in note and key in note for note in usual.notes)
    assert any(key in note for note in averaged.notes)
    assert not any("--ema" in note for note in averaged.notes)
    assert torch.equal(usual.state["norm.weight"], nano["backbone.norm.weight"])
    assert torch.equal(averaged.state["norm.weight"], nano["backbone.norm.weight"] * 1.01)
    assert (usual.num_classes, averaged.num_classes) == (3, 3)
    assert usual.sha256 == file_sha256(path)
    assert averaged.sha256.startswith(f"{usual.sha256}+{key}")


def test_averaged_weights_beside_others_in_one_table(nano: StateDict, tmp_path: Path) -> None:
    state = {**prefixed("model.", nano), **prefixed("model_ema.module.", average(nano)), "model_ema.n": torch.zeros(())}
    path = save({"state_dict": state}, tmp_path / "w.pth")
    assert torch.equal(read_checkpoint(path).state["norm.weight"], nano["backbone.norm.weight"])
    averaged = read_checkpoint(path, ema=True)
    assert torch.equal(averaged.state["norm.weight"], nano["backbone.norm.weight"] * 1.01)
    assert "model_ema" in averaged.sha256


def test_averaged_weights_alone_need_no_option(nano: StateDict, tmp_path: Path) -> None:
    path = save({"state_dict_ema": nano, "epoch": 1}, tmp_path / "w.pth")
    for ema in (False, True):
        read = read_checkpoint(path, ema=ema)
        assert any("state_dict_ema" in note for note in read.notes)
        assert read.sha256 == file_sha256(path)


def test_mmengine_stores_the_average_as_the_usual_weights(nano: StateDict, tmp_path: Path) -> None:
    other = {"steps": torch.tensor(7), **prefixed("module.", average(nano))}
    path = save({"state_dict": nano, "ema_state_dict": other}, tmp_path / "w.pth")
    assert any("mmengine" in note for note in read_checkpoint(path).notes)
    with pytest.raises(WeightsError, match="mmengine"):
        read_checkpoint(path, ema=True)


def test_no_averaged_weights(nano: StateDict, run: Run, one_video: Path, tmp_path: Path) -> None:
    schema = {"state_dict": nano, "schema": {"x": torch.zeros(1)}, "optimizer": {"state": {0: {"ema": torch.zeros(1)}}}}
    path = save(schema, tmp_path / "w.pth")
    assert read_checkpoint(path).notes == ()
    with pytest.raises(WeightsError, match="--ema"):
        read_checkpoint(path, ema=True)
    for command in (
        ("vswin-extract", one_video, tmp_path / "out.h5", "--weights", path),
        ("vswin", "weights", "show", path),
        ("vswin", "weights", "convert", path, tmp_path / "out.safetensors"),
        ("vswin", "weights", "inflate", path, "-o", tmp_path / "out.safetensors"),
        ("vswin-extract", one_video, tmp_path / "out.h5", "--weights", "nano"),
    ):
        done = run(*command, "--ema")
        assert done.returncode not in (0, 4), command
        assert "--ema" in done.stderr
    assert run("vswin", "weights", "verify", path, "--ema").returncode == 4


def test_averaged_weights_are_other_weights_to_a_run(
    nano: StateDict, run: Run, one_video: Path, tmp_path: Path
) -> None:
    path = save({"state_dict": nano, "state_dict_ema": average(nano)}, tmp_path / "w.pth")
    out, usual = tmp_path / "out.h5", tmp_path / "usual.h5"
    options = ["--weights", path, *SMALL]
    assert run("vswin-extract", one_video, out, *options, "--ema", "--shard", "0/2").returncode == 0
    refused = run("vswin-extract", one_video, out, *options, "--shard", "1/2")
    assert (refused.returncode != 0, "weights_sha256" in refused.stderr) == (True, True), refused.stderr
    assert run("vswin-extract", one_video, out, *options, "--ema").returncode == 0
    assert run("vswin-extract", one_video, usual, *options).returncode == 0
    with open_features(out) as averaged, open_features(usual) as other:
        assert averaged.info["weights_sha256"] == f"{file_sha256(path)}+state_dict_ema"
        assert other.info["weights_sha256"] == file_sha256(path)
        assert not np.allclose(averaged["a.mp4"].embedding, other["a.mp4"].embedding)
        api = load_model(path, ema=True, device="cpu", precision="fp32")
        assert api.sha256 == averaged.info["weights_sha256"]
    assert "state_dict_ema" in run("vswin", "inspect", out).stdout
    # a search finds that the file was made with averaged weights
    found = run("vswin", "search", out, one_video, "--weights", path, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"][0]["score"] == pytest.approx(1, abs=1e-5)

    converted = tmp_path / "averaged.safetensors"
    assert run("vswin", "weights", "convert", path, converted, "--ema").returncode == 0
    assert torch.equal(read_checkpoint(converted).state["norm.weight"], nano["backbone.norm.weight"] * 1.01)
    shown = json.loads(run("vswin", "weights", "show", path, "--ema", "--json").stdout)
    assert shown["sha256"].endswith("+state_dict_ema")


def test_names_of_a_foreign_file_are_shown(nano: StateDict, tmp_path: Path) -> None:
    foreign = {"conv1.weight": torch.zeros(3), "layer1.0.bn1.bias": torch.zeros(3)}
    for number, content in enumerate((foreign, {"state_dict": foreign}, {"net": foreign, "x": {"y": torch.zeros(1)}})):
        with pytest.raises(WeightsError, match=r"conv1\.weight, layer1\.0\.bn1\.bias"):
            read_checkpoint(save(content, tmp_path / f"{number}.pth"))
    vit = {"encoder.patch_embed.proj.weight": torch.zeros(96, 3, 2, 4, 4), "encoder.trunk.0.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"trunk\.0\.weight"):
        read_checkpoint(save(vit, tmp_path / "vit.pth"))


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
    logits = model.network.head(features.embedding)  # type: ignore[misc]
    assert torch.allclose(features.logits, logits, atol=1e-5)  # which are not computed clip by clip here
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
    with pytest.raises(UsageError, match="5 is no stage"):
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found_at_load(
    nano: StateDict, run: Run, one_video: Path, value: float, tmp_path: Path
) -> None:
    name = "backbone.layers.2.blocks.1.mlp.fc1.weight"
    broken = nano[name].clone()
    broken[3, 2] = value
    path = save({"state_dict": {**nano, name: broken}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=re.escape(name)):
        read_checkpoint(path)
    done = run("vswin-extract", one_video, tmp_path / "out.h5", "--weights", path, *SMALL)
    assert (done.returncode, name in done.stderr, "--precision" in done.stderr) == (2, True, False)
    assert not list(tmp_path.glob("out.*"))


def test_large_finite_values_load(nano: StateDict, tmp_path: Path) -> None:
    """Their sum is infinite in their type; they are not."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in nano.items()}
    state["backbone.norm.weight"] = torch.full_like(state["backbone.norm.weight"], 65000)
    state["backbone.norm.bias"] = torch.full((128,), 3e38)
    read = read_checkpoint(save(state, tmp_path / "w.pth"))
    assert float(read.state["norm.bias"][0]) == pytest.approx(3e38)


def test_half_precision_that_would_make_infinite_values_is_refused(nano: StateDict, run: Run, tmp_path: Path) -> None:
    state = {**nano, "backbone.norm.bias": torch.full((128,), 1e5)}
    path, out = save(state, tmp_path / "w.pth"), tmp_path / "out.safetensors"
    done = run("vswin", "weights", "convert", path, out, "--half")
    assert (done.returncode, "norm.bias" in done.stderr, "--half" in done.stderr) == (2, True, True)
    assert not out.exists()


def test_a_recipe_that_was_given_once_is_kept(small_weights: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    given = "--clip-len 16 --size 64 --mean 127.5 127.5 127.5 --std 128 128 128".split()
    assert run("vswin", "weights", "convert", small_weights, out, *given).returncode == 0
    grey, scale = (127.5,) * 3, (128.0,) * 3
    assert read_checkpoint(out).recipe == Recipe(64, 64, grey, scale, clip_len=16, frame_interval=2)
    for wrong in (["--clip-len", "0"], ["--std", "0", "1", "1"], ["--resize", "16"]):
        done = run("vswin", "weights", "convert", small_weights, tmp_path / "wrong.safetensors", *wrong)
        assert (done.returncode, wrong[1] in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "wrong.safetensors").exists()


def test_weights_that_fp16_cannot_hold_are_refused_before_any_video(nano: StateDict, tmp_path: Path) -> None:
    name = "backbone.layers.2.blocks.1.mlp.fc1.weight"
    path = save({**nano, name: torch.full_like(nano[name], 1e5)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"stages\.2\.blocks\.1\.mlp\.fc1\.weight of w\.pth .*--precision"):
        load_model(path, device="cpu", precision="fp16")
    assert load_model(path, device="cpu", precision="fp32").precision == "fp32"


@pytest.mark.parametrize("recipe", [{"std": (0.0, 1.0, 1.0)}, {"mean": (0.0, float("nan"), 0.0)}])
def test_a_recipe_that_makes_no_pixels_is_refused(small_weights: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    with safe_open(small_weights, "pt") as stored:
        metadata = dict(stored.metadata())
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    metadata["recipe"] = json.dumps({**json.loads(metadata["recipe"]), **recipe})
    del metadata["metadata_sha256"]  # which earlier versions did not write
    save_file(tensors, tmp_path / "w.safetensors", metadata)
    with pytest.raises(WeightsError, match="std"):
        read_checkpoint(tmp_path / "w.safetensors")
