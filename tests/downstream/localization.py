"""ActionFormer, TriDet and OpenTAD (temporal action localization), ASFormer (action segmentation)."""

import importlib
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from .configurations import PUBLISHED, annotations, read_ours
from .exports import CENTRED, EACH_FRAME, MIXED, OVERLAPPING, Exported, torchvision_fits
from .table import Row


def _annotated(made: Exported, subset: str, path: Path) -> Path:
    """Write annotations with an action around the centre of each row, of at most a fifth of a second."""
    database: dict[str, Any] = annotations(made.folder)
    for name, entry in database.items():
        centres = made.expected[name]
        halves = np.clip(np.minimum(centres, made.durations[name] - centres), 0.0006, 0.1)
        segments = np.stack([centres - halves, centres + halves], 1).tolist()
        actions = [{"segment": each, "label": "x", "label_id": 0} for each in segments]
        entry |= {"subset": subset, "annotations": actions}
    path.write_text(json.dumps({"database": database}))
    return path


def actionformer(checkout: Path, folder: Path) -> list[Row]:
    return _actionformer("ActionFormer", "PtTransformer", checkout, folder)


def tridet(checkout: Path, folder: Path) -> list[Row]:
    return _actionformer("TriDet", "TriDet", checkout, folder)


def _actionformer(project: str, model: str, checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    sys.modules["nms_1d_cpu"] = ModuleType("nms_1d_cpu")  # compiled, and not used here
    core, datasets = importlib.import_module("libs.core"), importlib.import_module("libs.datasets")
    heads = importlib.import_module("libs.modeling.meta_archs")
    rows = []
    for published in PUBLISHED:
        if published.project != project:
            continue
        config = core.load_config(str(checkout / published.file))
        key = "feats" if config["dataset_name"] == "epic" else None
        cases: dict[str, Exported] = {
            "one rate": Exported(folder, "actionformer", OVERLAPPING, key=key),
            "several rates": Exported(folder, "actionformer", OVERLAPPING, MIXED, key=key),
        }
        if config["dataset_name"] == "anet":
            cases["resized"] = Exported(folder, "actionformer", OVERLAPPING, MIXED, length=32)
        worst, kind = 0.0, ""
        for made in cases.values():
            path = _annotated(made, "validation", folder / "annotations.json")
            ours = read_ours(made.folder, "actionformer")
            name = ours.pop("dataset_name", config["dataset_name"])
            settings = {**config["dataset"], **ours, "json_file": str(path), "num_classes": 1}
            dataset = datasets.make_dataset(name, False, ("validation",), **settings)
            assert len(dataset) == len(made.expected)
            kind = type(dataset).__name__
            for item in (dataset[k] for k in range(len(dataset))):
                wanted, duration = made.expected[item["video_id"]], made.durations[item["video_id"]]
                count = len(wanted)
                assert np.array_equal(item["feats"].numpy().T, made.values[item["video_id"]])
                k = torch.arange(count, dtype=torch.float64)
                found = {
                    **{n: item[n] for n in ("video_id", "fps", "duration", "feat_stride", "feat_num_frames")},
                    "segments": torch.stack([k, k], 1), "scores": torch.ones(count), "labels": torch.zeros(count),
                }  # fmt: skip
                network = SimpleNamespace(test_nms_method="none")
                seconds = getattr(heads, model).postprocessing(network, [found])[0]["segments"].mean(1).numpy()
                worst = max(worst, float(np.abs(seconds - np.clip(wanted, 0, duration)).max()))
                labels = item["segments"].double().mean(1) * item["feat_stride"] / item["fps"]
                worst = max(worst, float((labels - k * item["feat_stride"] / item["fps"]).abs().max()))
        rows.append(Row(project, f"{kind}, {Path(published.file).stem}: {', '.join(cases)}", "yes", worst))
    return rows


def opentad(checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    fits = torchvision_fits()
    datasets = importlib.import_module("opentad.datasets")
    config = importlib.import_module("mmengine.config")
    place = checkout / "opentad/models/utils/post_processing/utils.py"
    spec = importlib.util.spec_from_file_location("post_processing", place)  # its package needs compiled operators
    assert spec is not None
    assert spec.loader is not None
    post = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(post)
    rows = []
    for published in [*(each for each in PUBLISHED if each.project == "OpenTAD"), None]:
        if published is None:
            file, length = "configs/_base_/datasets/activitynet-1.3/features_tsp_resize.py", 32
        else:
            file, length = published.file, None
        epic = published is not None and published.numbers["type"].startswith("Epic")
        worst, kind = 0.0, ""
        for videos in (None, MIXED):
            made = Exported(folder, "opentad", CENTRED, videos, length)
            if epic and videos is MIXED:
                assert any("Epic" in note for note in made.notes)
                continue
            merged = _opentad_config(config, checkout / file, made, folder)
            for split in ("val", "test"):
                if length and not fits:  # torchvision_align, by default
                    merged.dataset[split].pipeline[2].tool = "interpolate"
                dataset = datasets.build_dataset(merged.dataset[split])
                kind = type(dataset).__name__
                worst = max(worst, _opentad_difference(dataset, split, made, post))
        name = f"{kind}, {'/'.join(Path(file).with_suffix('').parts[-2:])}: one rate"
        rows.append(Row("OpenTAD", name if epic else f"{name}, several rates", "yes", worst))
    rows.append(Row("OpenTAD", "EpicKitchens datasets: several rates", "no, and a note says so", None))
    return rows


def _opentad_config(config: Any, base: Path, made: Exported, folder: Path) -> Any:
    """Return a configuration with our lines below a published one."""
    published = config.Config.fromfile(str(base))
    subset = published.dataset.test.subset_name
    path = _annotated(made, subset, folder / "annotations.json")
    (folder / "classes.txt").write_text("x\n")
    text = f"_base_ = [{str(base)!r}]\n" + (made.folder / "opentad.py").read_text()
    (folder / "config.py").write_text(text)
    merged = config.Config.fromfile(str(folder / "config.py"))
    for split in ("val", "test"):
        merged.dataset[split].update(ann_file=str(path), class_map=str(folder / "classes.txt"), subset_name=subset)
        merged.dataset[split].pipeline[0] = merged.load
    return merged


def _opentad_difference(dataset: Any, split: str, made: Exported, post: Any) -> float:
    worst = 0.0
    names = set()
    for k in range(len(dataset)):
        item = dataset[k]
        meta = item["metas"]
        name = meta["video_name"]
        names.add(name)
        wanted, values = made.expected[name], made.values[name]
        assert int(item["masks"].sum()) == len(values)
        assert np.allclose(item["inputs"].numpy().T[: len(values)], values, atol=2e-3)  # ResizeFeat rounds to half
        row = torch.arange(len(values), dtype=torch.float64)
        wide = 1 if "resize_length" in meta else 0  # there, row k is [k, k + 1) of resize_length parts
        seconds = post.convert_to_seconds(torch.stack([row, row + wide], 1), meta).mean(1).numpy()
        worst = max(worst, float(np.abs(seconds - np.clip(wanted, 0, meta["duration"])).max()))
        if split == "val" and type(dataset).__name__.startswith("Anet") and len(item["gt_segments"]) == len(values):
            labels = item["gt_segments"].double().mean(1).numpy()  # the others round to whole frames
            if "snippet_stride" in meta:
                labels = (labels * meta["snippet_stride"] + meta["offset_frames"]) / meta["fps"]
            else:
                labels = labels / meta["resize_length"] * meta["duration"]
            worst = max(worst, float(np.abs(labels - wanted).max()))
    if split == "test":  # in val, videos without a whole action in a window are left out
        assert names == set(annotations(made.folder))
    return worst


def asformer(checkout: Path, folder: Path) -> list[Row]:
    """Row k is frame k of the video at 15 frames a second, with a label for each."""
    sys.path.insert(0, str(checkout))
    batches = importlib.import_module("batch_gen")
    made = Exported(folder, "npy", EACH_FRAME, stem=True, transpose=True)
    truth = folder / "groundTruth"
    truth.mkdir()
    for name, values in made.values.items():
        (truth / f"{name}.txt").write_text("x\n" * len(values))
    (folder / "all.bundle").write_text("".join(f"{name}.txt\n" for name in made.values))
    random.seed(0)
    generator = batches.BatchGenerator(1, {"x": 0}, f"{truth}/", f"{made.folder}/", 1)
    generator.read_data(str(folder / "all.bundle"))
    worst, loaded = 0.0, 0
    while generator.has_next():
        features, labels, _, names = generator.next_batch(1)
        name = names[0].split(".")[0]
        assert np.array_equal(features[0].numpy().T, made.values[name])
        worst = max(worst, float(np.abs(np.arange(labels.shape[1]) / 15 - made.expected[name]).max()))
        loaded += 1
    assert loaded == len(made.values)
    return [Row("ASFormer", "BatchGenerator", "yes", worst)]
