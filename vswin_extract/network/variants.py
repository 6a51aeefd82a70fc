"""The published sizes of Video Swin as plain data, the small size that comes with this package, and names of stages.

Source: Liu et al., "Video Swin Transformer" (CVPR 2022), section 3.3; heads and depths as in the published
configurations (SwinTransformer/Video-Swin-Transformer, configs/_base_/models/swin/).
"""

import operator
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vswin_extract.errors import UsageError

PATCH = (2, 4, 4)
"""Frames, rows and columns that one token covers; the same in every published model."""


@dataclass(frozen=True)
class Variant:
    """One size of the network. `window` is (frames, rows, columns) in tokens."""

    name: str
    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: tuple[int, int, int] = (8, 7, 7)

    def channels(self, stage: int) -> int:
        """Channels of stage 1..4: they double at each patch merging."""
        return int(self.embed_dim * 2 ** (stage - 1))

    def map_shape(self, stage: int, frames: int, size: int) -> tuple[int, int, int, int]:
        """Return (T', H', W', C) of the map of stage 1..4 of a clip of so many frames of `size` x `size` pixels."""
        side = -(-size // PATCH[1])
        for _ in range(stage - 1):
            side = -(-side // 2)  # patch merging pads an odd side
        return -(-frames // PATCH[0]), side, side, self.channels(stage)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("nano", 16, (1, 1, 4, 2), (1, 2, 4, 8), (4, 7, 7)),
        Variant("t", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        Variant("s", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        Variant("b", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
        Variant("l", 192, (2, 2, 18, 2), (6, 12, 24, 48)),
    )
}

STAGES = (1, 2, 3, 4)
StageNames = int | str | Iterable[int | str]
"""What names stages: 4, "4", "stage4", several as [3, 4] or "3,4", or "all". See `parse_stages`."""


def parse_stages(stages: StageNames) -> tuple[int, ...]:
    """Return the stages that are named, each once, in ascending order. Raises UsageError."""
    several = isinstance(stages, Iterable) and not isinstance(stages, str)
    return tuple(sorted({number for stage in (stages if several else [stages]) for number in _numbers(stage)}))  # type: ignore[union-attr]


def _numbers(stage: object) -> Iterable[int]:
    """Return the stages that a number or a word names."""
    if isinstance(stage, str):
        words = [word.strip().removeprefix("stage").strip() for word in stage.lower().removesuffix(",").split(",")]
        if words == ["all"]:
            return STAGES
        if all(word in ("1", "2", "3", "4") for word in words):
            return map(int, words)
    elif not isinstance(stage, bool):
        with suppress(TypeError):
            if (number := operator.index(stage)) in STAGES:  # type: ignore[arg-type]
                return (number,)
    raise UsageError(f"{stage!r} is no stage; stages are 1 to 4, several as 3,4, or all")
