"""Token mixers whose pattern is learned: positions attend to those that a clustering or a sorting puts beside them.

Both work like the cores of mixers.py: maps [N, heads, H, W, channels of a head] in and out. They carry a warning: which
positions meet is decided by comparisons, so rounding in bfloat16 changes some of it (docs/mixers.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten

from aerialseg.models.groups import attend, attend_within, float32_island, partition, rectangle_means, widened


class Routing(nn.Module):
    """Attend within clusters of keys, cut into pieces of at most `size` positions; N size.

    Learned patterns (Routing Transformer, Roy et al., arXiv:2003.05997; pieces of a sorted sequence as in Reformer,
    Kitaev et al., arXiv:2001.04451). Centroids learn through the share by which they scale the values.
    """

    def __init__(self, heads: int, head: int, clusters: int, size: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(heads, clusters, head))
        self.size = size

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [x.flatten(2, 3) for x in (q, k, v)]
        with float32_island(q):  # rounding moves positions between clusters
            near = F.normalize(widened(flat[1]), dim=-1) @ F.normalize(widened(self.centroids), dim=-1).mT
            share, cluster = torch.softmax(4 * near, -1).max(-1)
        flat[2] = flat[2] * share[..., None].to(v.dtype)
        order = cluster.argsort(dim=-1, stable=True)[..., None]
        size = min(self.size, order.shape[2])
        pieces = [
            unflatten(F.pad(x.gather(2, order.expand_as(x)), (0, 0, 0, -x.shape[2] % size)), 2, (-1, size))
            for x in (*flat, cluster[..., None] + 1)
        ]
        mask = pieces[3] == pieces[3].mT
        mixed = attend(pieces[0], pieces[1], pieces[2], mask.flatten(0, 1)).flatten(2, 3)
        return unflatten(mixed.gather(2, order.argsort(dim=2).expand_as(flat[0])), 2, q.shape[2:4])


class Sinkhorn(nn.Module):
    """Each block attends to itself and to the block that a learned, softly sorted order puts beside it; N^2 / side^2.

    Tay et al., arXiv:2002.11296: scores between the blocks' mean keys, rows and columns normalised in turn, in float32.
    Blocks that reach over the edge are sorted with zeros there.
    """

    def __init__(self, heads: int, head: int, side: int) -> None:
        super().__init__()
        self.asks = nn.Parameter(torch.randn(heads, head, head) * head**-0.5)
        self.offers = nn.Parameter(torch.randn(heads, head, head) * head**-0.5)
        self.side = side

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cells = (min(self.side, q.shape[2]), min(self.side, q.shape[3]))
        with float32_island(q):
            means = rectangle_means(widened(k), *cells).squeeze(2)
            scores = (means @ self.asks) @ (means @ self.offers).mT * q.shape[-1] ** -0.5
            for _ in range(8):
                scores = scores - scores.logsumexp(-1, keepdim=True)
                scores = scores - scores.logsumexp(-2, keepdim=True)
        order = scores.exp().to(k.dtype)
        beside = [unflatten(order @ x.flatten(3), 3, x.shape[3:]) for x in (partition(k, cells), partition(v, cells))]
        return attend_within(q, k, v, cells, extra=(beside[0], beside[1]))
