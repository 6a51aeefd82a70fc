"""Video Swin Transformer features of videos, in HDF5.

    load_model     a pretrained backbone: uint8 clips in, features out
    extract        videos to one HDF5 file
    open_features  read such a file: a mapping from video id to features
    FeatureDataset the same as a torch.utils.data.Dataset, with `collate` for temporal localization

Names are imported when they are first used, so that `import vswin_extract` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vswin_extract.backbone import Backbone, Features, load_model
    from vswin_extract.errors import VswinError
    from vswin_extract.loading.dataset import FeatureDataset, collate
    from vswin_extract.run.api import extract
    from vswin_extract.store.features import FeatureFile, VideoFeatures, open_features

_HOMES = {
    "Backbone": "backbone",
    "Features": "backbone",
    "load_model": "backbone",
    "FeatureDataset": "loading.dataset",
    "collate": "loading.dataset",
    "extract": "run.api",
    "VswinError": "errors",
    "FeatureFile": "store.features",
    "VideoFeatures": "store.features",
    "open_features": "store.features",
}

__all__ = [
    "Backbone",
    "FeatureDataset",
    "FeatureFile",
    "Features",
    "VideoFeatures",
    "VswinError",
    "collate",
    "extract",
    "load_model",
    "open_features",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vswin-extract")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
