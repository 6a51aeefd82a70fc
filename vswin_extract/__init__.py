"""Video Swin Transformer features of videos, in HDF5.

    load_model     a pretrained model: clips of pixels in, or video files; features out
    extract        videos to one HDF5 file
    open_features  read such a file: a mapping from video id to features, with search
    FeatureDataset the same as a torch.utils.data.Dataset, with `collate` for temporal localization

docs/python.md describes all of them, with examples.

Names are imported when they are first used, so that `import vswin_extract` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vswin_extract.backbone import Backbone, Features
    from vswin_extract.errors import VideoError, VswinError
    from vswin_extract.explore.query import Moment
    from vswin_extract.explore.search import SearchResult
    from vswin_extract.job.events import Finished
    from vswin_extract.loading.dataset import FeatureDataset, collate
    from vswin_extract.python.memory import VideoInMemory
    from vswin_extract.python.model import Model, VideoOptions, load_model
    from vswin_extract.python.opened import SearchableFile, open_features
    from vswin_extract.python.stream import VideoStream
    from vswin_extract.run.api import extract
    from vswin_extract.store.features import FeatureFile, VideoFeatures, VideoRows

HOMES = {
    "load_model": "python.model",
    "Model": "python.model",
    "VideoOptions": "python.model",
    "VideoStream": "python.stream",
    "VideoInMemory": "python.memory",
    "Backbone": "backbone",
    "Features": "backbone",
    "extract": "run.api",
    "Finished": "job.events",
    "open_features": "python.opened",
    "SearchableFile": "python.opened",
    "FeatureFile": "store.features",
    "VideoFeatures": "store.features",
    "VideoRows": "store.features",
    "SearchResult": "explore.search",
    "Moment": "explore.query",
    "FeatureDataset": "loading.dataset",
    "collate": "loading.dataset",
    "VswinError": "errors",
    "VideoError": "errors",
}
"""The module of each name, in the order of docs/python.md."""

__all__ = [
    "Backbone",
    "FeatureDataset",
    "FeatureFile",
    "Features",
    "Finished",
    "Model",
    "Moment",
    "SearchResult",
    "SearchableFile",
    "VideoError",
    "VideoFeatures",
    "VideoInMemory",
    "VideoOptions",
    "VideoRows",
    "VideoStream",
    "VswinError",
    "collate",
    "extract",
    "load_model",
    "open_features",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vswin-extract")
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
