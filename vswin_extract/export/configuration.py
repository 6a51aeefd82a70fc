"""The configurations that are written beside exported features, with the numbers from which times are computed.

Each comes with every number that its project multiplies or divides by, so that none of another dataset stays.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vswin_extract.export.grid import Grid
from vswin_extract.export.layout import FileLayout

Texts = Mapping[str, str]
"""Text by file name."""
Numbers = dict[str, Any]


@dataclass(frozen=True)
class ExportFacts:
    """What a configuration says of an export. `place`: the destination, absolute. `shape`: of a row. `longest`: the
    most rows of a video. `grid`: None if rows are resampled to `length`, or if the format needs none."""

    place: str
    shape: tuple[int, ...]
    length: int | None
    longest: int
    grid: Grid | None
    layout: FileLayout


def numbers(format: str, facts: ExportFacts) -> Numbers:
    """Return what a format's project computes times from, by its own names."""
    grid, length = facts.grid, facts.length
    if format == "actionformer":
        if grid is None:
            return {
                "feat_stride": -1, "num_frames": 1.0, "default_fps": 30, "downsample_rate": 1, "max_seq_len": length,
                "force_upsampling": False,
            }  # fmt: skip
        return {
            "feat_stride": grid.stride, "num_frames": _number(2 * grid.offset), "default_fps": grid.rate,
            "downsample_rate": 1, "force_upsampling": False,
        }  # fmt: skip
    if format == "opentad":
        if grid is None:
            return {"resize_length": length, "sample_stride": 1}
        return {
            "feature_stride": grid.stride, "sample_stride": 1, "offset_frames": int(grid.offset),
            "fps": grid.rate or -1,
        }  # fmt: skip
    if format in ("moment-detr", "tvr"):
        return {"clip_length": _whole(clip_seconds(facts)), "max_v_l": facts.longest}
    return {}


def actionformer(facts: ExportFacts) -> Texts:
    """Return the keys that replace those of a YAML configuration."""
    found, key = numbers("actionformer", facts), facts.layout.key
    head = ["# ActionFormer and TriDet. Merge this into a configuration: a key here replaces the key of that name."]
    if facts.grid is None:
        head += [
            "# Row k is at (k + 0.5) * duration / rows seconds, so the frame rate cancels out. Only the dataset anet",
            "# reads such rows.",
            "dataset_name: anet",
        ]
    else:
        head.append("# Row k is at (k * feat_stride + 0.5 * num_frames) / fps seconds.")
        if found["default_fps"] is None:
            head.append("# Frame rates differ: take fps of each video from videos.json into your annotations.")
    head.append(f"# {'Only the dataset epic reads .npz files.' if key else 'The dataset epic needs --key feats.'}")
    section = {
        "feat_folder": facts.place, "file_prefix": None, "file_ext": f"{facts.layout.suffix}.np{'z' if key else 'y'}",
        "input_dim": facts.shape[-1], **found,
    }  # fmt: skip
    lines = [f"  {name}: {json.dumps(value)}" for name, value in section.items()]
    return {"actionformer.yaml": "\n".join([*head, "dataset:", *lines, ""])}


def opentad(facts: ExportFacts) -> Texts:
    """Return a part of a Python configuration."""
    found = numbers("opentad", facts)
    if facts.grid is None:
        notes = ["Row k is at (k + 0.5) * duration / resize_length seconds. AnetResizeDataset reads these features."]
    else:
        notes = [
            "Row k is at (k * feature_stride * sample_stride + offset_frames) / fps seconds. The Thumos datasets, and",
            "the Anet datasets where fps is -1, take frame / duration for fps: take both from videos.json into your",
            "annotations.",
        ]
        if found["fps"] == -1:
            notes.append(
                "Frame rates differ here: the Epic datasets, also used for Charades, cannot read these features."
            )
    features = ", ".join(f"{name}={value!r}" for name, value in found.items())
    return {
        "opentad.py": "# OpenTAD. Replace these settings of a configuration, of each of train, val and test.\n"
        + "".join(f"# {note}\n" for note in notes)
        + f"data_path = {facts.place.rstrip('/') + '/'!r}\n"
        f'features = dict(data_path=data_path, block_list=data_path + "missing_files.txt", {features})\n'
        "dataset = dict(train=dict(**features), val=dict(**features), test=dict(**features))\n"
        f'load = dict(type="LoadFeats", feat_format="npy", prefix="", suffix={facts.layout.suffix!r})\n'
        "# load is the first step of each pipeline\n"
        f"in_channels = {facts.shape[-1]}  # of model.projection\n"
    }


def moment_detr(facts: ExportFacts) -> Texts:
    """Return options of its training and inference."""
    found = numbers("moment-detr", facts)
    seconds, last = found["clip_length"], math.ceil(found["clip_length"] * facts.longest)
    refused = "" if isinstance(seconds, int) else " They refuse this one."
    return {
        "moment-detr.txt": "# Moment-DETR, QD-DETR, lighthouse and UMT. Row k is seconds [k, k + 1) * clip_length.\n"
        "# All but UMT multiply predictions by duration: take duration of each video from videos.json into your\n"
        "# annotations. It is rows * clip_length, by which they divide labels. video_duration is that of the video.\n"
        f"# Moment-DETR and QD-DETR take whole seconds as --clip_length.{refused} In inference they round to\n"
        f"# 2 seconds and end at 150: set clip_length={seconds} and max_ts_val={last} of PostProcessorDETR in their\n"
        "# inference.py.\n"
        f"# lighthouse: set clip_length: {seconds} and max_v_l: {facts.longest} in configs/dataset/. It rounds to\n"
        "# clip_length, and ends at 150 seconds, 300 for castella, and nowhere for activitynet, tacos and\n"
        "# youtube_highlight: see training/evaluate.py.\n"
        f"# UMT: set unit={seconds} in configs/_base_/plugins/mr.py; its saliency labels are for clips of 2 seconds.\n"
        f"--v_feat_dirs {shlex.quote(facts.place)} --v_feat_dim {facts.shape[-1]} "
        f"--clip_length {seconds} --max_v_l {facts.longest}\n"
    }


def tvr(facts: ExportFacts) -> Texts:
    """Return options of its baselines."""
    found = numbers("tvr", facts)
    return {
        "tvr.txt": "# TVR (TVRetrieval). Row k is seconds [k, k + 1) * clip_length.\n"
        f"--vid_feat_path {shlex.quote(facts.place.rstrip('/') + '/features.h5')} --vid_feat_size {facts.shape[-1]} "
        f"--clip_length {found['clip_length']} --max_ctx_l {facts.longest}\n"
    }


def clip_retrieval(facts: ExportFacts) -> Texts:
    """Return options of its server."""
    return {
        "clip-retrieval.txt": "# clip-retrieval back. image_path names a part of a video, as in a.mp4#t=1.28,2.56\n"
        "# for seconds 1.28 to 2.56. Ask with deduplicate=False (the default of ClipClient is True), because clips\n"
        "# that follow one another are alike.\n"
        '--columns_to_return \'["image_path", "caption", "video", "start", "end"]\'\n'
    }


def dataset_card(files: str) -> str:
    """Return the README.md from which Hugging Face's load_dataset learns which files are data."""
    return (
        f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n\n'
        "Video Swin features, written by vswin export. `export.json` says where they come from.\n"
    )


def clip_seconds(facts: ExportFacts) -> float:
    """Return the seconds that a row covers where rows follow one another."""
    if facts.grid is None or facts.grid.rate is None:
        raise TypeError("this format needs rows of one length in seconds")
    return facts.grid.stride / facts.grid.rate


def _whole(seconds: float) -> int | float:
    return round(seconds) if abs(seconds - round(seconds)) < 1e-9 else seconds


def _number(value: Any) -> int | float:
    return int(value) if value == int(value) else float(value)
