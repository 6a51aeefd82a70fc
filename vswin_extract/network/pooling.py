"""Averages of a stage's map over space, or over time and space; and whether features are averaged over crops."""

from typing import Literal

from torch import Tensor

Pool = Literal["none", "space", "all"]
CropPool = Literal["mean", "none"]


def pool_map(x: Tensor, pool: Pool) -> Tensor:
    """Average a map (N, T', H', W', C) over space to (N, T', C), over time and space to (N, C), or not at all.

    Stage 4 averaged over time and space is the embedding, the input of the I3D head's classifier.
    """
    if pool == "none":
        return x
    return x.mean((2, 3)) if pool == "space" else x.mean((1, 2, 3))
