"""Averaging a stage's map over space, or over time and space."""

from typing import Literal

from torch import Tensor

Pool = Literal["none", "space", "all"]


def pool_map(x: Tensor, pool: Pool) -> Tensor:
    """(N, T', H', W', C) as it is, averaged over space to (N, T', C), or over all to (N, C)."""
    if pool == "none":
        return x
    return x.mean((2, 3)) if pool == "space" else x.mean((1, 2, 3))
