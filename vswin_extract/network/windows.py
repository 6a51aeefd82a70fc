"""Where the tokens of each window are in a map, as the attention kernels of `cuda` need it."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_extract.network.swin3d import Size3, fit_window

LOG2E = math.log2(math.e)
GROUP = 8
"""Tokens of a group."""
TILE = 64
"""Tokens that a kernel takes at once: 8 groups."""


class FrameGroups(NamedTuple):
    """The tokens of windows of at most 8 frames, in groups: those of one place, one after another in time.

    The 8x8 biases of two groups depend only on how far their places are apart, and the mask of two groups is the same
    for all their tokens, except in windows that the shift cuts in time. So the kernel looks up blocks, not tokens.

    `rows`: (windows, slots), the row of the padded map in which the token of each slot is, or -1. `groups`:
    (windows, slots / 8), the code of each group plus 65536 times its region; one row for all windows if nothing is
    masked. `cut`: (windows), 1 for windows that hold both ends of the map in time. `centre`: the block of two groups of
    one place is `centre`; of others, it is `centre` plus the difference of their codes. `places`: of a window.
    """

    rows: Tensor
    groups: Tensor
    cut: Tensor
    centre: int
    places: int


class WindowLayout(NamedTuple):
    """The windows of a map that `F.pad` has padded by `padding`.

    `rows`: (windows, tokens), the row of the padded map in which each token is. `regions`: (windows, tokens), the part
    of the map that each token comes from; if `masked`, tokens of different regions do not attend to each other.
    `codes`: (tokens); the place of two tokens in the bias table is the difference of their codes plus `centre`.
    `groups`: the same in groups, or None for windows that do not fit them. `frames`: of a window. `shift`: in time.
    """

    rows: Tensor
    regions: Tensor
    codes: Tensor
    centre: int
    masked: bool
    padding: tuple[int, ...]
    groups: FrameGroups | None
    frames: int
    shift: int


@lru_cache(maxsize=64)
def window_layout(size: Size3, full: Size3, shifted: bool, device: torch.device) -> WindowLayout:
    """Return the windows of a map of `size` in tokens: of shape `full`, or smaller if the map is smaller."""
    window, shift = fit_window(size, full, shifted)
    nt, nh, nw = (-(-side // w) for side, w in zip(size, window, strict=True))
    padded = (nt * window[0], nh * window[1], nw * window[2])
    with torch.inference_mode(False):  # cached, and a later call may train
        # for each place along an axis of the rolled map: its place in the map, and whether it was rolled to this end
        axes = [(torch.arange(side), side, s) for side, s in zip(padded, shift, strict=True)]
        t, h, w = ((rolled + s) % side for rolled, side, s in axes)
        pt, ph, pw = ((rolled >= side - s) * 2**axis for axis, (rolled, side, s) in enumerate(axes))
        rows = (t[:, None, None] * padded[1] + h[:, None]) * padded[2] + w
        regions = pt[:, None, None] + ph[:, None] + pw
        rows, regions = (
            grid.view(nt, window[0], nh, window[1], nw, window[2]).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
            for grid in (rows, regions)
        )
        # a smaller window reads the first rows and columns of the full window's index, as published
        number = torch.arange(window[0] * window[1] * window[2])
        strides = ((2 * full[1] - 1) * (2 * full[2] - 1), 2 * full[2] - 1, 1)
        places = (number // (full[1] * full[2]), number // full[2] % full[1], number % full[2])
        codes = places[0] * strides[0] + places[1] * strides[1] + places[2] * strides[2]
        centre = sum((side - 1) * stride for side, stride in zip(full, strides, strict=True))
        groups = frame_groups(rows, regions, window, any(shift), device) if fit_groups(window, full) else None
        rows, regions, codes = (each.int().to(device) for each in (rows, regions, codes))
    behind = [p - side for p, side in zip(padded, size, strict=True)]
    padding = (0, 0, 0, behind[2], 0, behind[1], 0, behind[0])
    return WindowLayout(rows, regions, codes, centre, any(shift), padding, groups, window[0], shift[0])


def fit_groups(window: Size3, full: Size3) -> bool:
    """Return True if windows fit groups of frames, with few empty slots, and their keys fit into shared memory."""
    places = window[1] * window[2]
    return window[1:] == full[1:] and GROUP // 2 < window[0] <= GROUP and places % GROUP <= 2 and places <= 64


def frame_groups(rows: Tensor, regions: Tensor, window: Size3, masked: bool, device: torch.device) -> FrameGroups:
    """Return windows in groups. `rows`, `regions`: (windows, tokens), see `WindowLayout`."""
    t, h, w = window
    windows, places = len(rows), h * w
    rows, regions = rows.view(windows, t, places), regions.view(windows, t, places)
    slots = -(-places * GROUP // TILE) * TILE
    row_of_slot = torch.full((windows, slots // GROUP, GROUP), -1)
    row_of_slot[:, :places, :t] = rows.transpose(1, 2)
    number = torch.arange(slots // GROUP)
    code = torch.where(number < places, number // w * (2 * w - 1) + number % w, 0)
    # a group belongs to the region of its first frame; the table of blocks has the mask in time
    region = torch.full((windows if masked else 1, slots // GROUP), 15)  # behind the last place: a region of no token
    region[:, :places] = regions[:, 0] if masked else 0
    cut = regions[:, 0, 0] != regions[:, -1, 0]
    of_slots, groups, cut = (each.int().to(device) for each in (row_of_slot.flatten(1), code + 65536 * region, cut))
    return FrameGroups(of_slots, groups, cut, (h - 1) * (2 * w - 1) + w - 1, places)


def block_table(table: Tensor, full: Size3, frames: int, shift: int, dtype: torch.dtype) -> Tensor:
    """Return the biases of two groups as blocks of queries by keys: (2, heads, blocks, 8, 8) of `dtype`.

    `table`: (heads, offsets), of windows of shape `full`. `frames`: of the windows. `shift`: in time. The second half
    is of windows that the shift cuts in time. The last block is that of groups that do not attend to each other.
    """
    heads = len(table)
    by_time = table.float().view(heads, 2 * full[0] - 1, -1).transpose(1, 2)  # heads blocks offsets in time
    query = torch.arange(GROUP, device=table.device)[:, None]
    key = torch.arange(GROUP, device=table.device)[None, :]
    offset = (query - key + full[0] - 1).clamp(0, 2 * full[0] - 2)
    apart = (query < frames - shift) != (key < frames - shift)
    plain = by_time[:, :, offset].masked_fill(key >= frames, -math.inf)
    blocks = torch.stack((plain, plain.masked_fill(apart, -math.inf) if shift else plain))
    return F.pad(blocks, (0, 0, 0, 0, 0, 1), value=-math.inf).to(dtype).contiguous()
