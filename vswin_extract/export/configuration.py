"""What is written beside exported features: facts, and a configuration with the numbers that make times come out."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vswin_extract.export.grid import Grid

Files = Mapping[str, str]
"""Text by file name."""


@dataclass(frozen=True)
class Plan:
    """What a configuration tells of. `place`: the destination as it was named; `shape`: of a row; `longest`: the most
    rows of a video; `grid`: None where rows are resampled to `length`, or the format needs none."""

    place: str
    shape: tuple[int, ...]
    length: int | None
    longest: int
    grid: Grid | None


def actionformer(plan: Plan) -> Files:
    """The dataset section of a YAML configuration."""
    if plan.grid is None:
        time = "(k + 0.5) * duration / rows seconds; such features are read by dataset_name: anet"
        numbers: dict[str, Any] = {
            "feat_stride": -1, "num_frames": 1.0, "max_seq_len": plan.length, "force_upsampling": False,
            "default_fps": 30,
        }  # fmt: skip
        rate = "the frame rate cancels out"
    else:
        time = "(k * feat_stride + 0.5 * num_frames) / fps seconds"
        numbers = {
            "feat_stride": plan.grid.stride,
            "num_frames": _number(2 * plan.grid.offset),
            "default_fps": plan.grid.rate,
        }
        rate = _rate(plan.grid)
    section = {
        "feat_folder": plan.place, "file_prefix": None, "file_ext": ".npy", "input_dim": plan.shape[-1],
        "downsample_rate": 1, **numbers,
    }  # fmt: skip
    lines = [f"  {name}: {json.dumps(value)}" for name, value in section.items()]
    return {
        "actionformer.yaml": f"# ActionFormer. Row k is at {time}.\n# default_fps: {rate}.\n"
        + "\n".join(["dataset:", *lines, ""])
    }


def opentad(plan: Plan) -> Files:
    """What a configuration takes over into `dataset`."""
    if plan.grid is None:
        time = "(k + 0.5) * duration / resize_length seconds; such features are read by AnetResizeDataset"
        numbers: dict[str, Any] = {"resize_length": plan.length}
    else:
        time = "(k * feature_stride * sample_stride + offset_frames) / fps seconds, where\n# fps is frame / duration"
        time += " of the annotations: take both from videos.json"
        numbers = {"feature_stride": plan.grid.stride, "sample_stride": 1, "offset_frames": int(plan.grid.offset)}
    features = ", ".join(f"{name}={value!r}" for name, value in numbers.items())
    return {
        "opentad.py": f"# OpenTAD. Row k is at {time}.\n"
        f"data_path = {plan.place.rstrip('/') + '/'!r}\n"
        f'features = dict(data_path=data_path, block_list=data_path + "missing_files.txt", {features})\n'
        "dataset = dict(train=dict(**features), val=dict(**features), test=dict(**features))\n"
        'load = dict(type="LoadFeats", feat_format="npy")  # the first step of each pipeline\n'
        f"in_channels = {plan.shape[-1]}  # of model.projection\n"
    }


def moment_detr(plan: Plan) -> Files:
    """Options of its training and inference."""
    seconds = _clip_seconds(plan)
    whole = abs(seconds - round(seconds)) < 1e-9
    note = "" if whole else "\n# Moment-DETR's own --clip_length takes whole seconds only; others' take fractions."
    return {
        "moment-detr.txt": f"# Moment-DETR. Row k is seconds [k, k + 1) * clip_length.{note}\n"
        f"--v_feat_dirs {shlex.quote(plan.place)} --v_feat_dim {plan.shape[-1]} "
        f"--clip_length {round(seconds) if whole else seconds} --max_v_l {plan.longest}\n"
    }


def tvr(plan: Plan) -> Files:
    """Options of its baselines."""
    return {
        "tvr.txt": "# TVR (TVRetrieval). Row k is seconds [k, k + 1) * clip_length.\n"
        f"--vid_feat_path {shlex.quote(plan.place.rstrip('/') + '/features.h5')} --vid_feat_size {plan.shape[-1]} "
        f"--clip_length {_clip_seconds(plan)} --max_ctx_l {plan.longest}\n"
    }


def _clip_seconds(plan: Plan) -> float:
    if plan.grid is None or plan.grid.rate is None:
        raise TypeError("rows of one length in seconds were made sure of before")
    return plan.grid.stride / plan.grid.rate


def _rate(grid: Grid) -> str:
    return "of all videos" if grid.rate else "differs; take fps of each video from videos.json into your annotations"


def _number(value: Any) -> int | float:
    return int(value) if value == int(value) else float(value)
