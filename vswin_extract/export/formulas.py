"""The times that other projects compute for rows. Each formula stands here once, with the lines that it was read from.

Each function returns the seconds of the centres of `rows` rows. `numbers` is what the project's configuration says, and
`video` what its annotations say of the video. Commits: ActionFormer 61ea7eb, TriDet 764b816, OpenTAD 3dd7b03,
Moment-DETR b7e553a, QD-DETR 56c63b2, lighthouse d095eaa, UMT bde05e3, TVRetrieval d99a9ea, VSLNet 9256b81,
mmaction2 4d6c934.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Facts = Mapping[str, Any]
Seconds = NDArray[np.float64]
Formula = Callable[[int, Facts, Facts], Seconds]


def actionformer(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """ActionFormer, libs/modeling/meta_archs.py:740; libs/datasets/thumos14.py:150, epic_kitchens.py:160,
    ego4d.py:164, anet.py:156-190. TriDet, libs/modeling/meta_archs.py:924, and the same files."""
    fps = video["fps"] if numbers["default_fps"] is None else numbers["default_fps"]
    stride, frames = numbers["feat_stride"] * numbers["downsample_rate"], numbers["num_frames"]
    if stride <= 0:  # of anet only
        stride = frames = video["duration"] * fps / rows
    elif numbers["force_upsampling"] and numbers.get("dataset_name") == "anet":  # to max_seq_len rows
        stride = frames = ((rows - 1) * stride + frames) / rows
    return (np.arange(rows) * stride + 0.5 * frames) / fps  # type: ignore[no-any-return]


def opentad(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """OpenTAD, opentad/models/utils/post_processing/utils.py:251-258; the rate is that of opentad/datasets/anet.py:103,
    epic_kitchens.py:48, thumos.py:59."""
    if "resize_length" in numbers:
        return (np.arange(rows) + 0.5) / numbers["resize_length"] * video["duration"]  # type: ignore[no-any-return]
    kind, fps = numbers.get("type", "Anet"), numbers["fps"]
    if kind.startswith("Thumos") or (fps <= 0 and not kind.startswith("Epic")):
        fps = video["frame"] / video["duration"]
    stride = int(numbers["feature_stride"] * numbers["sample_stride"])
    return np.asarray((np.arange(rows) * stride + int(numbers["offset_frames"])) / fps)


def moment_detr(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """Moment-DETR, moment_detr/inference.py:122; QD-DETR, qd_detr/inference.py:213; lighthouse,
    training/evaluate.py:220."""
    rows = min(rows, numbers["max_v_l"])
    return (np.arange(rows) + 0.5) / rows * video["duration"]  # type: ignore[no-any-return]


def moment_detr_labels(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """Where labels are put in training. Moment-DETR and QD-DETR, start_end_dataset.py:161 and 258; lighthouse,
    training/dataset.py:412."""
    return clip_lengths(min(rows, numbers["max_v_l"]), numbers, video)


def clip_lengths(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """TVRetrieval, baselines/crossmodal_moment_localization/inference.py:231 and 430."""
    return (np.arange(rows) + 0.5) * numbers["clip_length"]  # type: ignore[no-any-return]


def umt(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """UMT, models/blocks/head.py:137-140."""
    return (np.arange(rows) + 0.5) * numbers["unit"]  # type: ignore[no-any-return]


def mmaction2(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """mmaction2, mmaction/models/localizers/utils/proposal_utils.py:118; 16 is its feature_extraction_interval."""
    return (np.arange(rows) + 0.5) / rows * _covered(video["duration_frame"] // 16 * 16, video)


def mmaction2_labels(rows: int, numbers: Facts, video: Facts) -> Seconds:
    """Where labels are put in training. mmaction2, mmaction/datasets/transforms/loading.py:1836."""
    return (np.arange(rows) + 0.5) / rows * _covered(video["feature_frame"], video)


def _covered(frames: int, video: Facts) -> float:
    return float(frames / video["duration_frame"] * video["duration_second"])


FORMULAS: dict[str, tuple[Formula, ...]] = {
    "actionformer": (actionformer,),
    "opentad": (opentad,),
    "moment-detr": (moment_detr, moment_detr_labels),
    "tvr": (clip_lengths,),
    "csv": (mmaction2, mmaction2_labels),
}
"""By the formats that come with what their project computes times from."""
