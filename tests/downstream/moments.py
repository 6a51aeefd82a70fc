"""Moment retrieval: Moment-DETR, QD-DETR, lighthouse, UMT, TVR, VSLNet; and mmaction2's proposals."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch

from .configurations import annotations, read_ours
from .exports import FRACTION, TWO_SECONDS, VIDEOS, Exported, torchvision_fits
from .table import Row

LONG = [*VIDEOS, ("long", 25 * 200, 25.0)]


def _queries(made: Exported, folder: Path, seconds: float, name: str) -> Path:
    """Write a query for each row of each video, whose moment is the row, and features of its text."""
    lines: list[dict[str, Any]] = []
    for video, entry in annotations(made.folder).items():
        for k in range(entry["rows"]):
            lines.append(
                {
                    "qid": len(lines), "query": "x", "vid": video, "duration": entry["duration"],
                    "relevant_windows": [[k * seconds, (k + 1) * seconds]], "relevant_clip_ids": [k],
                    "saliency_scores": [[1, 1, 1]],
                }
            )  # fmt: skip
            np.savez(folder / f"qid{len(lines) - 1}.npz", last_hidden_state=np.ones((3, 4), np.float32))
    path = folder / name
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


class _Echo(torch.nn.Module):
    """A network that predicts the spans that it is given one after another: those of the labels."""

    def __init__(self, spans: list[torch.Tensor]) -> None:
        super().__init__()
        self.spans = iter(spans)

    def forward(self, src_vid: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        spans = next(self.spans)[None]
        return {
            "pred_logits": torch.zeros(*spans.shape[:2], 2), "pred_spans": spans,
            "saliency_scores": torch.zeros(src_vid.shape[:2]),
        }  # fmt: skip


def _detr(project: str, dataset: Any, inference: Any, collate: Any, made: Exported, **options: Any) -> float:
    """Return the largest difference between the stored times of rows and the moments that a network's inference says,
    where the network has learnt its labels to the digit."""
    items = [dataset[k] for k in range(len(dataset))]
    loader = torch.utils.data.DataLoader(dataset, collate_fn=collate, batch_size=1)
    network = _Echo([item["model_inputs"]["span_labels"] for item in items])
    opt = SimpleNamespace(device="cpu", pin_memory=False, span_loss_type="l1", no_sort_results=True, debug=False)
    opt.__dict__.update(options)
    if project == "lighthouse":
        found, _ = inference.compute_mr_results(None, network, loader, opt)
    else:
        found, _ = inference.compute_mr_results(network, loader, opt)
    worst = 0.0
    first = {name: next(k for k, item in enumerate(items) if item["meta"]["vid"] == name) for name in made.values}
    for k, (item, each) in enumerate(zip(items, found, strict=True)):
        name = item["meta"]["vid"]
        values, row = made.values[name], k - first[name]
        features = item["model_inputs"]["video_feat"].numpy()[:, : values.shape[1]]
        assert np.allclose(features, values / np.linalg.norm(values, axis=1, keepdims=True), atol=1e-3)
        window = np.array(each["pred_relevant_windows"][0][:2])
        worst = max(worst, abs(float(window.mean()) - float(made.expected[name][row])))
    return worst


def _detr_rows(project: str, package: str, checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    data = importlib.import_module(f"{package}.start_end_dataset")
    inference = importlib.import_module(f"{package}.inference")
    made = Exported(folder, "moment-detr", TWO_SECONDS)
    ours = read_ours(made.folder, "moment-detr")
    path = _queries(made, folder, ours["clip_length"], "queries.jsonl")
    dataset = data.StartEndDataset(
        "hl", str(path), [ours["v_feat_dirs"]], str(folder), max_v_l=ours["max_v_l"], clip_len=ours["clip_length"],
        ctx_mode="video_tef",
    )  # fmt: skip
    options = {"clip_length": ours["clip_length"], "max_v_l": ours["max_v_l"], "a_feat_dir": None}
    worst = _detr(project, dataset, inference, data.start_end_collate, made, **options)
    rows = [Row(project, "StartEndDataset, compute_mr_results, 2 s", "yes", worst)]
    config = importlib.import_module(f"{package}.config")
    for case, videos, sampling in (("1.28 s", None, FRACTION), ("longer than 150 s", LONG, TWO_SECONDS)):
        made = Exported(folder, "moment-detr", sampling, videos)
        assert made.notes
        if sampling is FRACTION:
            parser = config.BaseOptions()
            parser.initialize()
            kinds = [action.type for action in parser.parser._actions if "--clip_length" in action.option_strings]
            assert kinds == [int]
            rows.append(Row(project, f"BaseOptions, {case}", "no: it takes whole seconds, and a note says so", None))
        else:
            rows.append(Row(project, f"compute_mr_results, {case}", "ends at 150 s, and a note says what to set", None))
    return rows


def moment_detr(checkout: Path, folder: Path) -> list[Row]:
    return _detr_rows("Moment-DETR", "moment_detr", checkout, folder)


def qd_detr(checkout: Path, folder: Path) -> list[Row]:
    return _detr_rows("QD-DETR", "qd_detr", checkout, folder)


def lighthouse(checkout: Path, folder: Path) -> list[Row]:
    hides = [place for place in sys.path if (Path(place) / "training/__init__.py").is_file()]  # as this repository
    sys.path[:] = [str(checkout), str(checkout / "training"), *(each for each in sys.path if each not in hides)]
    torchvision_fits()
    evaluate = importlib.import_module("training.evaluate")
    data = importlib.import_module("training.dataset")
    rows = []
    for name, sampling, case in (("qvhighlight", TWO_SECONDS, "2 s"), ("activitynet", FRACTION, "1.28 s")):
        made = Exported(folder, "moment-detr", sampling)
        ours = read_ours(made.folder, "moment-detr")
        path = _queries(made, folder, ours["clip_length"], "queries.jsonl")
        dataset = data.StartEndDataset(
            name, None, str(path), [ours["v_feat_dirs"]], None, str(folder), max_v_l=ours["max_v_l"],
            clip_len=ours["clip_length"], ctx_mode="video_tef",
        )  # fmt: skip
        options = {"dset_name": name, "clip_length": ours["clip_length"], "model_name": "moment_detr"}
        worst = _detr("lighthouse", dataset, evaluate, data.start_end_collate, made, **options)
        rows.append(Row("lighthouse", f"StartEndDataset, compute_mr_results, {name}, {case}", "yes", worst))
    return rows


def umt(checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    package = ModuleType("datasets")  # whose __init__ needs torchtext, for another dataset
    package.__path__ = [str(checkout / "datasets")]
    sys.modules["datasets"] = package
    data = importlib.import_module("datasets.qvhighlights")
    head = importlib.import_module("models.blocks.head")
    made = Exported(folder, "moment-detr", TWO_SECONDS)
    ours = read_ours(made.folder, "moment-detr")
    path = _queries(made, folder, ours["clip_length"], "queries.jsonl")
    for name, values in made.values.items():
        np.save(folder / f"{name}.npy", np.ones((len(values), 3), np.float32))
    dataset = data.QVHighlights(str(path), [ours["v_feat_dirs"], ours["v_feat_dirs"]], str(folder), str(folder))
    worst = 0.0
    seen, row = "", 0
    for k in range(len(dataset)):
        item = dataset[k]
        name = dataset.label[k]["vid"]
        seen, row = name, row + 1 if seen == name else 0
        values = made.values[name]
        assert np.array_equal(item["video"].data.numpy()[:, : values.shape[1]], values)
        own = SimpleNamespace(kernel=1, unit=ours["clip_length"], max_num_moments=1)
        score = torch.nn.functional.one_hot(torch.tensor([row]), len(values)).float()
        found = head.BoundaryHead.get_boundary(own, score, torch.zeros_like(score), torch.zeros_like(score))
        for window in (found[0, 0, :2], item["boundary"].data[0]):
            worst = max(worst, abs(float(window.mean()) - float(made.expected[name][row])))
    return [Row("UMT", "QVHighlights, BoundaryHead, 2 s", "yes", worst)]


def tvr(checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    package = "baselines.crossmodal_moment_localization"
    data = importlib.import_module(f"{package}.start_end_dataset")
    inference = importlib.import_module(f"{package}.inference")
    made = Exported(folder, "tvr", FRACTION)
    ours = read_ours(made.folder, "tvr")
    seconds = ours["clip_length"]
    lines: list[dict[str, Any]] = []
    with h5py.File(folder / "texts.h5", "w") as texts:
        for video, entry in annotations(made.folder).items():
            for k in range(entry["rows"]):
                texts[str(len(lines))] = np.ones((3, 4), np.float32)
                moment = [(k + 0.25) * seconds, (k + 0.75) * seconds]
                lines.append(
                    {
                        "desc_id": len(lines), "desc": "x", "vid_name": video, "duration": entry["duration"],
                        "ts": moment, "row": k,
                    }
                )  # fmt: skip
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    dataset = data.StartEndDataset(
        "tvr", str(folder / "queries.jsonl"), str(folder / "texts.h5"), None, 30, ours["max_ctx_l"],
        ours["vid_feat_path"], seconds, normalize_vfeat=False,
    )  # fmt: skip
    worst = 0.0
    for k in range(len(dataset)):
        item, name, row = dataset[k], lines[k]["vid_name"], lines[k]["row"]
        values = made.values[name]
        assert np.array_equal(item["model_inputs"]["video_feat"].numpy(), values)
        assert int(item["model_inputs"]["st_ed_indices"][0]) == row
        score = np.eye(len(values), dtype=np.float32)[None, row]
        found = inference.get_svmr_res_from_st_ed_probs(
            score, score, [item["meta"]], {name: 0}, seconds, min_pred_l=0, max_pred_l=100, max_before_nms=1
        )
        worst = max(worst, abs(float(np.mean(found[0]["predictions"][0][1:3])) - float(made.expected[name][row])))
    return [Row("TVR", "StartEndDataset, get_svmr_res_from_st_ed_probs, 1.28 s", "yes", worst)]


def vslnet(checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    tools = importlib.import_module("util.data_util")
    made = Exported(folder, "npy", FRACTION, length=128, stem=True)
    videos = tools.load_video_features(str(made.folder), 128)
    assert videos.keys() == made.values.keys()
    worst = 0.0
    for name, values in videos.items():
        assert np.array_equal(values, made.values[name])
        duration = annotations(made.folder)[name]["duration"]
        for row in range(0, len(values), 17):
            centre = float(made.expected[name][row])
            begin, end = tools.index_to_time(row, row, len(values), duration)
            worst = max(worst, abs(float(begin + end) / 2 - centre))
            first, last, _ = tools.time_to_index(float(begin), float(end), len(values), duration)
            assert (first, last) == (row, row)
    return [Row("VSLNet", "load_video_features, index_to_time, 128 rows", "yes", worst)]


def mmaction2(checkout: Path, folder: Path) -> list[Row]:
    sys.path.insert(0, str(checkout))
    torchvision_fits()
    loading = importlib.import_module("mmaction.datasets.transforms.loading")
    proposals = importlib.import_module("mmaction.models.localizers.utils.proposal_utils")
    made = Exported(folder, "csv", FRACTION, length=100, stem=True)
    worst = 0.0
    for name, facts in json.loads((made.folder / "mmaction2.json").read_text()).items():
        results = {**facts, "video_name": name, "feature_path": str(made.folder / f"{name}.csv")}
        results["annotations"] = [{"segment": [float(c), float(c)], "label": "x"} for c in made.expected[name]]
        results = loading.LoadLocalizationFeature().transform(results)
        assert np.array_equal(results["raw_feature"].T, made.values[name])
        labels = loading.GenerateLocalizationLabels().transform(results)["gt_bbox"].mean(1) * 100 - 0.5
        worst = max(worst, float(np.abs(labels - np.arange(100)).max() * facts["duration_second"] / 100))
        rows = (np.arange(100) + 0.5) / 100
        boxes = np.stack([rows, rows, np.ones(100)], 1)
        found = proposals.post_processing(boxes, {**facts, "video_name": name}, 0.4, 0.5, 0.9, 100, 16)
        seconds = sorted(each["segment"][0] for each in found)
        worst = max(worst, float(np.abs(np.array(seconds) - made.expected[name][: len(seconds)]).max()))
    return [Row("mmaction2", "LoadLocalizationFeature, post_processing, 100 rows", "yes", worst)]
