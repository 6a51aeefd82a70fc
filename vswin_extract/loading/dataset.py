"""An output as a dataset of PyTorch, with one item for each video."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vswin_extract.errors import UsageError
from vswin_extract.formatting import name_some, plural
from vswin_extract.loading.sequences import Feature
from vswin_extract.store.features import open_features

if TYPE_CHECKING:
    from vswin_extract.network.pooling import CropPool, Pool

Fit = Literal["resample", "pad"]


class FeatureDataset(Dataset[dict[str, Any]]):
    """Features by video, for a `torch.utils.data.DataLoader` with any number of workers, forked or spawned.

    `name`, `pool` and `crop_pool` as in `vswin_extract.loading.sequences.Feature`. `length`: bring every video to so
    many rows, by interpolation between clips ("resample") or by leaving out the last rows and appending zeros ("pad").
    `l2`: divide each row by its length. `ids`: only these videos, in this order. `follow`: as in `open_features`.
    Raises UsageError.

    An item is a dictionary:

        id        the id of the video
        features  (T, C) float32; (T, T', C) or (T, T', H', W', C) by `pool`; (T, crops, ...) if crops are kept
        times     (T, 2) float64, the seconds [begin, end) of each row; zeros for padding
        mask      (T,) bool, False for padding

        >>> dataset = vswin_extract.FeatureDataset("out.h5", "stage4", length=8)
        >>> len(dataset), dataset[1]["id"], dataset[1]["features"].shape
        (2, 'shapes.mkv', torch.Size([8, 128]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str = "embedding",
        *,
        pool: "Pool" = "all",
        length: int | None = None,
        fit: Fit = "resample",
        l2: bool = False,
        crop_pool: "CropPool" = "mean",
        ids: Iterable[str] | None = None,
        follow: bool = False,
    ) -> None:
        if fit not in get_args(Fit):
            raise UsageError(f"fit must be resample or pad, not {fit!r}")
        self.file = open_features(path, follow=follow)
        feature = Feature(name, pool, length, l2, crop_pool)
        self.feature = feature if fit == "resample" else replace(feature, length=None)
        self.shape = self.feature.shape(self.file)
        """Shape of a row: (C,), (T', C) or (T', H', W', C), with the crops before it if they are kept."""
        self.length = length
        self.ids = list(self.file if ids is None else ids)
        if lost := [video_id for video_id in self.ids if video_id not in self.file]:
            count = plural(len(lost), "video")
            raise UsageError(f"{self.file.file.filename} lacks {count} of `ids`: {name_some(lost)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        video_id = self.ids[index]
        values, times = map(torch.from_numpy, self.feature.read(self.file[video_id]))
        mask = torch.ones(len(values), dtype=torch.bool)
        if self.length is not None:
            values, times, mask = (_fitted(tensor, self.length) for tensor in (values, times, mask))
        return {"id": video_id, "features": values, "times": times, "mask": mask}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of videos for models of temporal localization (ActionFormer): shorter ones are padded with zeros.

    Returns id (a list of N), features (N, C, T), mask (N, 1, T) and times (N, T, 2). Raises UsageError if rows are
    maps, or have crops.

        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=vswin_extract.collate)
        >>> batch = next(iter(loader))
        >>> batch["features"].shape, batch["mask"].shape
        (torch.Size([2, 128, 8]), torch.Size([2, 1, 8]))
    """
    if items[0]["features"].ndim != 2:
        raise UsageError(
            "a batch for localization is made of rows (T, C), not of maps or crops; use pool all, and crop-pool mean"
        )
    longest = max(len(item["features"]) for item in items)
    features, times, mask = (
        torch.stack([_fitted(item[name], longest) for item in items]) for name in ("features", "times", "mask")
    )
    return {
        "id": [item["id"] for item in items],
        "features": features.transpose(1, 2).contiguous(),
        "mask": mask[:, None],
        "times": times,
    }


def _fitted(rows: Tensor, length: int) -> Tensor:
    """Return the first `length` rows, padded with zeros if there are fewer."""
    missing = length - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing > 0 else rows[:length]
