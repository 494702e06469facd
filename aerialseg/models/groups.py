"""Groups of positions and attention inside them: the groundwork of the token mixers (mixers.py).

Maps are [N, heads, H, W, channels of a head]; groups are [N, heads, groups, positions, channels].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, unflatten


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention inside each group; `mask` [N heads or 1, groups, 1 or M, M] is True where a key is seen."""
    # The fused kernels want four axes; groups stand where they expect heads.
    mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)
    return unflatten(mixed, 0, q.shape[:2])


def attend_to(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let every position of the map `q` attend to all keys and values of one group; returns a map."""
    return unflatten(attend(as_group(q), k, v), 3, q.shape[2:4]).squeeze(2)


def attend_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cells: tuple[int, int],
    *,
    strided: bool = False,
    extra: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend within the groups of `partition`, and to the `extra` keys and values (one group for all, or one each)."""
    height, width = q.shape[2:4]
    split = [partition(x, cells, strided=strided) for x in (q, k, v)]
    mask = None
    if height % cells[0] or width % cells[1]:
        inside = partition(torch.ones_like(q[:1, :1, ..., :1], dtype=torch.bool), cells, strided=strided)
        mask = inside[0].mT
    if extra is not None:
        more = [x.to(split[1].dtype).expand(-1, -1, split[1].shape[2], -1, -1) for x in extra]
        split[1:] = [torch.cat(pair, 3) for pair in zip(split[1:], more, strict=True)]
        mask = None if mask is None else torch.cat((mask, mask.new_ones(*mask.shape[:3], more[0].shape[3])), -1)
    mixed = attend(split[0], split[1], split[2], mask)
    outer = (-(-height // cells[0]), -(-width // cells[1]))
    groups, positions = (cells, outer) if strided else (outer, cells)
    whole = unflatten(unflatten(mixed, 3, positions), 2, groups)
    order = (0, 1, 4, 2, 5, 3, 6) if strided else (0, 1, 2, 4, 3, 5, 6)
    return whole.permute(order).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def partition(x: Tensor, cells: tuple[int, int], *, strided: bool = False) -> Tensor:
    """Cut a map into groups, zeros beyond the edge.

    A group is a rectangle of `cells` (rows, cols), or, `strided`, the positions that have the same place in all of
    them.
    """
    rows, cols = cells
    x = F.pad(x, (0, 0, 0, -x.shape[3] % cols, 0, -x.shape[2] % rows))
    x = unflatten(unflatten(x, 3, (-1, cols)), 2, (-1, rows))
    order = (0, 1, 3, 5, 2, 4, 6) if strided else (0, 1, 2, 4, 3, 5, 6)
    return x.permute(order).flatten(4, 5).flatten(2, 3)


def rectangle_means(x: Tensor, rows: int, cols: int) -> Tensor:
    """Return one group of the means of rows x cols rectangles of a map; those at the edge are of what is there."""
    cells = (min(rows, x.shape[2]), min(cols, x.shape[3]))
    flat = x.flatten(0, 1).permute(0, 3, 1, 2)
    means = F.avg_pool2d(flat, cells, ceil_mode=True, count_include_pad=False)
    return unflatten(means.flatten(2).mT, 0, x.shape[:2]).unsqueeze(2)


def as_group(x: Tensor) -> Tensor:
    """Return a map as one group of all its positions."""
    return x.flatten(2, 3).unsqueeze(2)


def float32_island(x: Tensor) -> torch.autocast:
    """Return a context without autocast: what is computed in it from `widened` tensors is float32."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)


def widened(x: Tensor) -> Tensor:
    """Return float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
