"""The configurations that are written beside exported features, with the numbers from which times are computed."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vswin_extract.export.grid import Grid

Texts = Mapping[str, str]
"""Text by file name."""


@dataclass(frozen=True)
class ExportFacts:
    """What a configuration says of an export. `place`: the destination as the user named it. `shape`: of a row.
    `longest`: the most rows of a video. `grid`: None if rows are resampled to `length`, or if the format needs none."""

    place: str
    shape: tuple[int, ...]
    length: int | None
    longest: int
    grid: Grid | None


def actionformer(facts: ExportFacts) -> Texts:
    """Return the dataset section of a YAML configuration."""
    if facts.grid is None:
        time = "(k + 0.5) * duration / rows seconds; set dataset_name: anet to read these features"
        numbers: dict[str, Any] = {
            "feat_stride": -1, "num_frames": 1.0, "max_seq_len": facts.length, "force_upsampling": False,
            "default_fps": 30,
        }  # fmt: skip
        rate = "the frame rate cancels out"
    else:
        time = "(k * feat_stride + 0.5 * num_frames) / fps seconds"
        numbers = {
            "feat_stride": facts.grid.stride,
            "num_frames": _number(2 * facts.grid.offset),
            "default_fps": facts.grid.rate,
        }
        rate = _rate(facts.grid)
    section = {
        "feat_folder": facts.place, "file_prefix": None, "file_ext": ".npy", "input_dim": facts.shape[-1],
        "downsample_rate": 1, **numbers,
    }  # fmt: skip
    lines = [f"  {name}: {json.dumps(value)}" for name, value in section.items()]
    return {
        "actionformer.yaml": f"# ActionFormer. Row k is at {time}.\n# default_fps: {rate}.\n"
        + "\n".join(["dataset:", *lines, ""])
    }


def opentad(facts: ExportFacts) -> Texts:
    """Return a part of a Python configuration."""
    if facts.grid is None:
        time = "(k + 0.5) * duration / resize_length seconds; AnetResizeDataset reads these features"
        numbers: dict[str, Any] = {"resize_length": facts.length}
    else:
        time = "(k * feature_stride * sample_stride + offset_frames) / fps seconds, where\n# fps is frame / duration"
        time += " of the annotations: take both from videos.json"
        numbers = {"feature_stride": facts.grid.stride, "sample_stride": 1, "offset_frames": int(facts.grid.offset)}
    features = ", ".join(f"{name}={value!r}" for name, value in numbers.items())
    return {
        "opentad.py": f"# OpenTAD. Row k is at {time}.\n"
        f"data_path = {facts.place.rstrip('/') + '/'!r}\n"
        f'features = dict(data_path=data_path, block_list=data_path + "missing_files.txt", {features})\n'
        "dataset = dict(train=dict(**features), val=dict(**features), test=dict(**features))\n"
        'load = dict(type="LoadFeats", feat_format="npy")  # the first step of each pipeline\n'
        f"in_channels = {facts.shape[-1]}  # of model.projection\n"
    }


def moment_detr(facts: ExportFacts) -> Texts:
    """Return options of its training and inference."""
    seconds = _clip_seconds(facts)
    whole = abs(seconds - round(seconds)) < 1e-9
    note = (
        ""
        if whole
        else "\n# Moment-DETR itself accepts only whole seconds as --clip_length; other projects accept fractions."
    )
    return {
        "moment-detr.txt": f"# Moment-DETR. Row k is seconds [k, k + 1) * clip_length.{note}\n"
        f"--v_feat_dirs {shlex.quote(facts.place)} --v_feat_dim {facts.shape[-1]} "
        f"--clip_length {round(seconds) if whole else seconds} --max_v_l {facts.longest}\n"
    }


def tvr(facts: ExportFacts) -> Texts:
    """Return options of its baselines."""
    return {
        "tvr.txt": "# TVR (TVRetrieval). Row k is seconds [k, k + 1) * clip_length.\n"
        f"--vid_feat_path {shlex.quote(facts.place.rstrip('/') + '/features.h5')} --vid_feat_size {facts.shape[-1]} "
        f"--clip_length {_clip_seconds(facts)} --max_ctx_l {facts.longest}\n"
    }


def _clip_seconds(facts: ExportFacts) -> float:
    if facts.grid is None or facts.grid.rate is None:
        raise TypeError("this format needs rows of one length in seconds")
    return facts.grid.stride / facts.grid.rate


def _rate(grid: Grid) -> str:
    return "of all videos" if grid.rate else "differs; take fps of each video from videos.json into your annotations"


def _number(value: Any) -> int | float:
    return int(value) if value == int(value) else float(value)
