"""The numbers of other projects' configurations, by their published names, and the numbers that an export brings.

Numbers are facts of the files named here, at the commits that `vswin_extract.export.formulas` names.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vswin_extract.export.export import Format

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A configuration. `file`: its name in the project. `numbers`: what times are computed from."""

    project: str
    file: str
    format: Format
    numbers: Numbers


def _actionformer(project: str, file: str, dataset: str, stride: int, frames: int, **more: Any) -> Published:
    """With the defaults of libs/core/config.py."""
    numbers = {
        "dataset_name": dataset, "feat_stride": stride, "num_frames": frames, "default_fps": None,
        "downsample_rate": 1, "max_seq_len": 2304, "force_upsampling": False, **more,
    }  # fmt: skip
    return Published(project, f"configs/{file}.yaml", "actionformer", numbers)


def _opentad(file: str, kind: str, stride: int, offset: int, fps: int = -1) -> Published:
    """With the defaults of opentad/datasets/base/padding_dataset.py and sliding_dataset.py."""
    numbers = {"type": kind, "feature_stride": stride, "sample_stride": 1, "offset_frames": offset, "fps": fps}
    return Published("OpenTAD", f"configs/_base_/datasets/{file}.py", "opentad", numbers)


PUBLISHED = (
    _actionformer("ActionFormer", "thumos_i3d", "thumos", 4, 16),
    _actionformer("ActionFormer", "anet_i3d", "anet", 16, 16, default_fps=25, max_seq_len=192, force_upsampling=True),
    _actionformer("ActionFormer", "anet_tsp", "anet", 16, 16, default_fps=15, max_seq_len=192, force_upsampling=True),
    _actionformer("ActionFormer", "epic_slowfast_noun", "epic", 16, 32, default_fps=30),
    _actionformer("ActionFormer", "epic_slowfast_verb", "epic", 16, 32, default_fps=30),
    _actionformer("ActionFormer", "ego4d_egovlp", "ego4d", 16, 16, default_fps=30, max_seq_len=1024),
    _actionformer("ActionFormer", "ego4d_slowfast", "ego4d", 16, 32, default_fps=30, max_seq_len=1024),
    _actionformer("TriDet", "thumos_i3d", "thumos", 4, 16),
    _actionformer("TriDet", "anet_tsp", "anet", 16, 16, default_fps=15, max_seq_len=768),
    _actionformer("TriDet", "epic_slowfast_noun", "epic", 16, 32, default_fps=30),
    _actionformer("TriDet", "epic_slowfast_verb", "epic", 16, 32, default_fps=30),
    _opentad("thumos-14/features_i3d_pad", "ThumosPaddingDataset", 4, 8),
    _opentad("thumos-14/features_i3d_train_trunc_test_sw", "ThumosSlidingDataset", 4, 8),
    _opentad("activitynet-1.3/features_tsp_pad", "AnetPaddingDataset", 16, 8, 15),
    _opentad("hacs-1.1.1/features_slowfast_pad", "AnetPaddingDataset", 8, 16, 15),
    _opentad("fineaction/features_internvideo_pad", "AnetPaddingDataset", 16, 8, 30),
    _opentad("epic_kitchens-100/features_slowfast_noun", "EpicKitchensPaddingDataset", 16, 16, 30),
    _opentad("epic_kitchens-100/features_slowfast_noun_train_trunc_test_sw", "EpicKitchensSlidingDataset", 16, 16, 30),
    _opentad("charades/features_i3d_pad", "EpicKitchensPaddingDataset", 8, 0, 24),
    Published("Moment-DETR", "moment_detr/config.py", "moment-detr", {"clip_length": 2, "max_v_l": 75}),
    Published("QD-DETR", "qd_detr/config.py", "moment-detr", {"clip_length": 2, "max_v_l": 75}),
    Published("lighthouse", "configs/dataset/qvhighlight.yml", "moment-detr", {"clip_length": 2, "max_v_l": 75}),
    Published("TVR", "baselines/crossmodal_moment_localization/config.py", "tvr", {"clip_length": 1.5}),
)


def read_ours(folder: Path, format: Format) -> Numbers:
    """Return what an exported configuration says, by the project's names."""
    if format == "actionformer":
        read = yaml.safe_load((folder / "actionformer.yaml").read_text())
        return {**{name: value for name, value in read.items() if name != "dataset"}, **read["dataset"]}
    if format == "opentad":
        names: Numbers = {}
        exec((folder / "opentad.py").read_text(), names)
        return dict(names["dataset"]["test"])
    words = shlex.split((folder / f"{format}.txt").read_text(), comments=True)
    options: Numbers = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    for name in ("clip_length", "max_v_l", "max_ctx_l"):
        if name in options:
            options[name] = json.loads(options[name])
    return options


def annotations(folder: Path) -> dict[str, Numbers]:
    """Return what videos.json says of each video."""
    return dict(json.loads((folder / "videos.json").read_text())["database"])
