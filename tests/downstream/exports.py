"""Outputs and exports for the projects' code, and the times that it ought to compute."""

import importlib
import importlib.machinery
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from outputs import MAP, Made, make_output

from vswin_extract.export.export import Format, export
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import FeatureFile, open_features
from vswin_extract.video.sampling import Sampling

Array = NDArray[Any]
CHANNELS = MAP[-1]
VIDEOS: list[Made] = [("cat", 203, 25.0), ("dog", 131, 25.0), ("seven", 7, 25.0), ("one", 1, 25.0)]
MIXED: list[Made] = [("cat", 203, 25.0), ("dog", 131, 30000 / 1001), ("seven", 7, 24.0), ("one", 1, 25.0)]
OVERLAPPING = Sampling(16, 1, 4)
CENTRED = Sampling(16, 2, 16, align="center")
TWO_SECONDS = Sampling(25, 2)
FRACTION = Sampling(16, 2)
EACH_FRAME = Sampling(16, 1, 1, Fraction(15), align="center")


class Exported:
    """An output and an export of it. `expected`: the seconds of the centres of rows, by video."""

    def __init__(
        self,
        folder: Path,
        format: Format,
        sampling: Sampling,
        videos: list[Made] | None = None,
        length: int | None = None,
        **layout: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.h5")))
        self.source = make_output(folder / f"{number}.h5", videos or VIDEOS, sampling)
        self.folder = folder / f"{number}.{format}"
        self.notes = export(format, self.source, self.folder, Feature(length=length), **layout).notes
        with open_features(self.source) as features:
            read = {name: Feature(length=length).read(video) for name, video in features.items()}
            self.values = {name: values for name, (values, _) in read.items()}
            self.times = {name: times for name, (_, times) in read.items()}
            self.expected = {name: self.times[name].mean(1) if length else centres(features, name) for name in features}
            self.durations = {name: video.info["duration"] for name, video in features.items()}


def centres(features: FeatureFile, name: str) -> Array:
    """Return the centres of clips, by the sampling; those of whole clips are the middle of their stored times."""
    stored = features.info["sampling"]
    names = ("clip_len", "frame_interval", "stride", "align", "tail")
    sampling = Sampling(**{key: stored[key] for key in names})
    video = features[name]
    fps = float(Fraction(stored["fps"])) if stored["fps"] else video.info["fps"]
    computed = np.array([sampling.start(k) + sampling.span / 2 for k in range(len(video))]) / fps
    times = video.times[:]
    whole = np.isclose(times[:, 1] - times[:, 0], sampling.span / fps)
    assert np.allclose(times.mean(1)[whole], computed[whole])
    return computed


def torchvision_fits() -> bool:
    """Return whether torchvision was built for this torch. If not, an empty module takes its place, because projects
    import it for parts that are not run here."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = module = ModuleType("torchvision")
        module.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
        return False
    return True
