"""The published sizes of Video Swin as plain data, and the small size that comes with this package.

Source: Liu et al., "Video Swin Transformer" (CVPR 2022), section 3.3; heads and depths as in the published
configurations (SwinTransformer/Video-Swin-Transformer, configs/_base_/models/swin/).
"""

from dataclasses import dataclass

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

    def same_sizes(self, other: "Variant") -> bool:
        """True if `other` has the same layers. Window and name may differ."""
        return (self.embed_dim, self.depths, self.heads) == (other.embed_dim, other.depths, other.heads)


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
