"""The network that is trained: nano, with the layers that only training needs, and how its weights begin."""

import math
from itertools import product

import torch
from torch import Generator, Tensor, nn

from training.teacher import FEATURES
from vswin_extract.network.pooling import pool_map
from vswin_extract.network.swin3d import Block, VideoSwin, WindowAttention
from vswin_extract.weights.recipe import Recipe

RECIPE = Recipe(size=224, resize=224, clip_len=32, frame_interval=2)


class Student(nn.Module):
    """The network with the layers that only training needs.

    `flow`: stage 4 to the motion of each token, 2 values. `order`: the embedding to 4 scores of an order and the
    slowing. `appearance`: the embedding to the features of the teacher.
    """

    def __init__(self, net: VideoSwin) -> None:
        super().__init__()
        self.net = net
        width = net.variant.channels(4)
        self.flow = nn.Linear(width, 2)
        self.order = nn.Linear(width, 5)
        self.appearance = nn.Linear(width, FEATURES)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return stage 4 (N, T', H', W', C) and the embedding (N, C) of normalised clips (N, 3, T, H, W)."""
        stage4 = self.net(clips)[4]
        return stage4, pool_map(stage4, "all")


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels (N, T, H, W, 3) in 0 to 255 as (N, 3, T, H, W), normalised by the recipe."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (RECIPE.mean, RECIPE.std))
    return ((pixels.float() - mean) / std).permute(0, 4, 1, 2, 3)


@torch.no_grad()
def initialise(net: VideoSwin, generator: Generator) -> None:
    """Fill a network with weights from which it learns motion in minutes. From the published ones, nano does not.

    Weights are scaled to their width (the published 0.02 is for wide networks). Residual branches start small. The bias
    of each head prefers tokens that are near in space, and in the frame before, the same frame or the frame after.
    Stage 1 starts as `motion_energy`.
    """
    net.init_weights(generator)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
        elif isinstance(module, WindowAttention):
            t, h, w = (torch.arange(1.0 - side, side) for side in module.window)
            near = -0.15 * (h[:, None] ** 2 + w**2)  # rows columns
            for head, table in enumerate(module.relative_position_bias_table.T):
                step = (0, 1, -1)[(head + 1) % 3]
                table += (near - 0.5 * (t[:, None, None] - step).abs()).flatten()
    for module in net.modules():
        if isinstance(module, Block):
            module.attn.proj.weight *= 0.2
            module.mlp.fc2.weight *= 0.2
    first = next(module for module in net.modules() if isinstance(module, Block))
    motion_energy(net.patch_embed.proj.weight, first.mlp.fc1.weight, first.mlp.fc2.weight, generator)


def motion_energy(patch: Tensor, fc1: Tensor, fc2: Tensor, generator: Generator) -> None:
    """Fill the patch embedding and the first MLP with a motion detector (Adelson and Bergen, 1985).

    The embedding takes the lowest cosines in space of the sum and of the difference of a patch's two frames, and two
    colours. In a moving picture, the difference at one frequency follows the sum at the next frequency, and the sign
    gives the direction. So the MLP multiplies such pairs: a product is 4ab = (a+b)^2 - (a-b)^2, and a square is
    approximately gelu(x) + gelu(-x).
    """
    grid = sorted(product(range(4), range(4)), key=lambda f: (sum(f), f))[:6]
    cosines = torch.cos(math.pi * torch.arange(4)[:, None] * (torch.arange(4) + 0.5) / 4)  # frequency pixel
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]) / 3
    filters = [
        torch.einsum("c,t,h,w->cthw", colour, torch.tensor(frames), cosines[u], cosines[v]) * (1 + u + v)
        for colour, frequencies in zip(colours, (grid, grid[:1], grid[:1]), strict=True)
        for u, v in frequencies
        for frames in ([1.0, 1.0], [1.0, -1.0])
    ]
    patch.copy_(torch.stack(filters) / 16)
    sums, differences = range(0, 2 * len(grid), 2), range(1, 2 * len(grid), 2)
    pairs = [
        (differences[i], sums[j])
        for (i, (u, v)), (j, (p, q)) in product(enumerate(grid), enumerate(grid))
        if abs(u - p) + abs(v - q) == 1
    ]
    pairs += [(i, i) for i in (*differences[:2], *sums[1:3])]  # the energy of single filters
    mix, _ = torch.linalg.qr(torch.randn(len(fc2), len(fc2), generator=generator))
    fc1.zero_()
    for number, (a, b) in enumerate(pairs):
        corners = ((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1))
        for unit, (plus, minus, sign) in enumerate(corners, 4 * number):
            fc1[unit, a] += plus
            fc1[unit, b] += minus
            fc2[:, unit] = 6 * sign * mix[:, number]
