"""Video summarisation (DSNet and PGL-SUM, which read the same HDF5 file), and anomaly detection (MGFN)."""

import importlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import torch
from outputs import make_output

from vswin_extract.export.export import export
from vswin_extract.store.features import open_features
from vswin_extract.video.sampling import Sampling

from .exports import FRACTION, Exported
from .table import Row

LONG = [("cat", 32 * 40, 25.0), ("dog", 32 * 25, 25.0)]


def _summary(folder: Path) -> tuple[Exported, Path, dict[str, str]]:
    """Return an export, a copy of its file with gtscore, as a user's annotations add it, and its groups by video."""
    made = Exported(folder, "summary", FRACTION, LONG)
    copy = Path(shutil.copy(made.folder / "summary.h5", folder / "copy.h5"))
    groups = {}
    with h5py.File(copy, "r+") as file:
        for name, group in file.items():
            groups[group["video_name"].asstr()[()]] = name
            group["gtscore"] = np.linspace(0, 1, len(group["features"]))
    return made, copy, groups


def dsnet(checkout: Path, folder: Path) -> list[Row]:
    made, path, groups = _summary(folder)
    sys.path.insert(0, str(checkout / "src"))
    data = importlib.import_module("helpers.data_helper")
    worst = 0.0
    names = list(groups)
    for name, item in zip(names, data.VideoDataset([f"{path}/{groups[name]}" for name in names]), strict=False):
        _, rows, _, changes, frames, _, picks, _ = item
        assert np.array_equal(rows, made.values[name])
        assert changes[-1][1] == frames - 1
        worst = max(worst, float(np.abs(picks / 25 - made.times[name][:, 0]).max()))
    return [Row("DSNet", "VideoDataset", "yes", worst)]


def pgl_sum(checkout: Path, folder: Path) -> list[Row]:
    """Each row alone is scored, and the frames are compared that its summary shows."""
    made, path, groups = _summary(folder)
    sys.path.insert(0, str(checkout / "inference"))
    tool = importlib.import_module("generate_summary")
    worst = 0.0
    with h5py.File(path) as file:
        for name, group in groups.items():
            picks, count = np.array(file[f"{group}/picks"]), np.array(file[f"{group}/n_frames"])
            assert np.array_equal(np.array(file[f"{group}/features"]), made.values[name])
            edges = np.append(picks, count)
            shots = np.stack([edges[:-1], edges[1:] - 1], 1)
            for row in range(0, len(picks), 7):
                scores = np.eye(len(picks))[row].tolist()
                shown = np.flatnonzero(tool.generate_summary([shots], [scores], [count], [picks])[0])
                inside = shown[(shown >= edges[row]) & (shown < edges[row + 1])]
                times = np.array([inside[0], inside[-1] + 1]) / 25
                worst = max(worst, float(np.abs(times - made.times[name][row]).max()))
    return [Row("PGL-SUM", "generate_summary", "yes", worst)]


def _ten_crops(source: Path) -> None:
    """Give an output ten crops of each clip, as --crop ten --crop-pool none does."""
    with h5py.File(source, "r+") as file:
        rows = file["embedding"][:]
        del file["embedding"], file["stage4"]
        if "videos" in file:
            del file["videos"]
        file["embedding"] = np.stack([rows + crop for crop in range(10)], 1)
        for name, more in (("preprocessing", {"crop": "ten"}), ("features", {"crop_pool": "none"})):
            file.attrs[name] = json.dumps({**json.loads(file.attrs[name]), **more})
        file.attrs["schema"] = "vswin-extract/2"


def mgfn(checkout: Path, folder: Path) -> list[Row]:
    """Each row alone is scored, and its test finds the frames of the row: the area under the curve is 1."""
    source = make_output(folder / "a.h5", [("cat", 16 * 40, 25.0), ("dog", 16 * 25, 25.0)], Sampling(16, 1))
    _ten_crops(source)
    export("ten-crop", source, folder / "made")
    sys.path.insert(0, str(checkout))
    sys.modules["visdom"] = ModuleType("visdom")  # draws, and is not used here
    sys.modules["datasets"] = package = ModuleType("datasets")  # not the library of this name
    package.__path__ = [str(checkout / "datasets")]
    torch.set_default_tensor_type = lambda _: None  # to one of CUDA
    options = shlex.split((folder / "made/ten-crop.txt").read_text(), comments=True)
    sys.argv = ["test.py", *options, "--gt", str(folder / "truth.npy")]
    run, data = importlib.import_module("test"), importlib.import_module("datasets.dataset")
    dataset = data.Dataset(run.args, test_mode=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1)
    worst = 0.0
    with open_features(source) as features:
        for item, name in (dataset[k] for k in range(len(dataset))):
            assert np.array_equal(item[..., :-1], features.file["embedding"][features[name].rows])
        times = np.concatenate([features[name].times[:] for _, name in (dataset[k] for k in range(len(dataset)))])
        for row in range(0, len(times), 13):
            scores = torch.eye(len(times))[row]
            truth = np.zeros(16 * len(times))
            frames = np.round(times[row] * 25).astype(int) + (0 if row < len(features["cat"]) else 16 * 40)
            truth[slice(*frames)] = 1
            np.save(folder / "truth.npy", truth)
            first = len(features["cat"])
            parts = iter([scores[:first], scores[first:]])
            found, _ = run.test(loader, _Scores(parts), run.args, "cpu")
            worst = max(worst, 1 - found)
    assert worst < 1e-9
    return [Row("MGFN", "Dataset, test", "yes", worst)]


class _Scores(torch.nn.Module):
    """A network that gives these scores to the rows of each video."""

    def __init__(self, parts: Iterator[torch.Tensor]) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, rows: torch.Tensor) -> tuple[None, None, None, None, torch.Tensor]:
        return None, None, None, None, next(self.parts)[None, None, :, None].squeeze(0)
