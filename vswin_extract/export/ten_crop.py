"""Features of ten crops, as networks that find anomalies in videos load them: MGFN, RTFM and others.

Their datasets take the path of a file <video>.npy (T, 10, C) from each line of a list. Their tests repeat the score of
a row for 16 frames. (carolchenyx/MGFN 98e9389: datasets/dataset.py:48, test.py:31; tianyu0207/RTFM cf938f4:
dataset.py:60, test_10crop.py:30)
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from vswin_extract.errors import UsageError
from vswin_extract.export.configuration import ExportFacts, Texts
from vswin_extract.export.summary import first_frame
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import FeatureFile

CROPS = 10
REPEATED = 16
"""Frames that a row stands for in the projects' tests."""


def keep_crops(features: FeatureFile, feature: Feature) -> Feature:
    """Return the feature with its crops kept. Raises UsageError unless the output has ten of each clip, and rows that
    stand for equal parts of a video."""
    if features.crops != CROPS:
        raise UsageError(
            f"{features.file.filename} does not have ten crops of each clip; extract with --crop ten --crop-pool none"
        )
    kept = replace(feature, crop_pool="none")
    if len(shape := kept.shape(features)) > 2:
        raise UsageError(f"ten-crop takes a vector a crop, not {' x '.join(map(str, shape[1:]))}; use --pool all")
    sampling = features.sampling
    offset = sampling.start(0) + Fraction(sampling.span - sampling.step, 2)
    if feature.length is None and (offset or sampling.tail == "shift"):
        raise UsageError(
            f"in ten-crop, row k stands for {sampling.step} frames from frame k * {sampling.step} on, but the centre "
            f"of a clip is elsewhere; extract with a --stride of {sampling.span} and --tail pad, or with an even "
            "--stride and --clip-len and --align center"
        )
    return kept


def ten_crop_texts(features: FeatureFile, facts: ExportFacts, names: Mapping[str, str]) -> Texts:
    """Return the list of files, and the numbers that the projects have to be told. `names`: of files, by id."""
    folder, channels = os.path.abspath(facts.place), facts.shape[-1]
    if broken := [path for path in (folder, *names.values()) if "\n" in path or "\r" in path]:
        raise UsageError(f"ten-crop has a list with a path in each line, which {broken[0]!r} cannot be")
    listed = shlex.quote(os.path.join(folder, "ten-crop.list"))
    return {
        "ten-crop.list": "".join(f"{os.path.join(folder, name)}.npy\n" for name in names.values()),
        "ten-crop.txt": f"# MGFN and RTFM. {_frames_of_rows(features, facts)}\n"
        "# Their dataset.py takes the first lines of a training list for videos with anomalies (810 of UCF-Crime):\n"
        "# put yours first, and set the number there. RTFM has the names of its lists there too.\n"
        f"# The network of MGFN has 2048 channels: make them {channels} in models/mgfn.py, also in forward().\n"
        f"--rgb-list {listed} --test-rgb-list {listed} --feature_size {channels}\n"
        f"# RTFM: --feature-size {channels}\n{_first_frames(features, facts, names)}",
    }


def _first_frames(features: FeatureFile, facts: ExportFacts, names: Mapping[str, str]) -> str:
    """Return a line for each segment of a file: the frame from which its frames are counted."""
    if facts.length is not None:
        return ""
    firsts = {name: first_frame(features[video_id]) for video_id, name in names.items()}
    lines = [f"# {name}: frame {first}\n" for name, first in firsts.items() if first]
    head = "# Frames of a segment are counted from its first one. It is, in the file:\n" if lines else ""
    return head + "".join(lines)


def _frames_of_rows(features: FeatureFile, facts: ExportFacts) -> str:
    """Say which frames a row stands for."""
    if facts.length is not None:
        return f"Rows are {facts.length} equal parts of a video, for training; their tests need rows of equal length."
    step, fps = features.sampling.step, features.sampling.fps
    of = f" of the video at {fps} frames a second" if fps else ""
    change = "" if step == REPEATED else f" Their tests repeat a score {REPEATED} times: make it {step} (np.repeat)."
    return f"Row k stands for frames [k, k + 1) * {step}{of}.{change}"
