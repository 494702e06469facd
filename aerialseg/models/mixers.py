"""Token mixers: how the positions of a feature map [N, C, H, W] exchange information; at least one of each family.

The families are those of the survey "Efficient Transformers" (Tay et al., arXiv:2009.06732). Every mixer takes maps of
any size: groups over the edge are padded and their padding masked, nothing is resized; and a sample's result depends
on that sample alone. Recurrence, the survey's remaining family, hands memory from one segment of a text to the next and
has no meaning for tiles that are independent. Stages are the pyramid's business.

Inside, queries, keys and values are maps [N, heads, H, W, channels of a head], which a core turns into one; groups of
positions are [N, heads, groups, positions, channels]. Where the pattern is learned (routing, sinkhorn), comparisons
decide which positions meet, so rounding in bfloat16 changes some of it (docs/mixers.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten

Core: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
MIXERS: Final = (
    *("identity", "conv", "pool", "fourier", "full", "window", "grid", "axial", "global", "latent", "pooled"),
    *("linformer", "nystrom", "linear", "performer", "routing", "sinkhorn"),
)


@dataclass(frozen=True, slots=True)
class MixerSize:
    """What the mixers of one stage have in common."""

    channels: int
    head: int = 32
    """Channels of a head; divides `channels`."""
    window: int = 8
    """Side of a window, of a grid's group, of a block, in positions."""
    landmarks: int = 8
    """Side of the square of landmarks, latent points or projections."""
    ratio: int = 1
    """Positions per pooled key along each axis."""


def make_mixer(name: str, size: MixerSize) -> nn.Module:
    """Build the mixer `name` of MIXERS: [N, C, H, W] in and out."""
    match name:
        case "identity":
            return nn.Identity()
        case "conv":  # ConvNeXt: Liu et al., arXiv:2201.03545
            return nn.Conv2d(size.channels, size.channels, 7, padding=3, groups=size.channels)
        case "pool":
            return Pool()
        case "fourier":
            return Fourier()
    heads, side, count = size.channels // size.head, size.landmarks, size.landmarks**2
    cores: dict[str, Callable[[], Core]] = {
        "full": lambda: full,
        "window": lambda: partial(window, side=size.window),
        "grid": lambda: partial(grid, side=size.window),
        "axial": lambda: axial,
        "global": lambda: GlobalWindow(heads, size.head, max(1, count // 4), size.window),
        "latent": lambda: Latent(heads, size.head, count),
        "pooled": lambda: partial(pooled, ratio=size.ratio),
        "linformer": lambda: Linformer(side),
        "nystrom": lambda: partial(nystrom, side=side),
        "linear": lambda: linear,
        "performer": lambda: Performer(size.head, count),
        "routing": lambda: Routing(heads, size.head, side, size.window**2),
        "sinkhorn": lambda: Sinkhorn(heads, size.head, size.window),
    }
    return Attention(size, cores[name]())


class Attention(nn.Module):
    """Queries, keys and values of each position (1x1 convolution), `core` between them, and a 1x1 convolution."""

    def __init__(self, size: MixerSize, core: Core) -> None:
        super().__init__()
        self.head = size.head
        self.qkv = nn.Conv2d(size.channels, 3 * size.channels, 1, bias=False)
        self.core = core
        self.out = nn.Conv2d(size.channels, size.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        split = unflatten(self.qkv(x), 1, (3, -1, self.head))
        q, k, v = split.permute(1, 0, 2, 4, 5, 3).unbind(0)
        mixed = self.core(q, k, v).to(q.dtype)
        projected: Tensor = self.out(mixed.permute(0, 1, 4, 2, 3).flatten(1, 2))
        return projected


class Pool(nn.Module):
    """Mean of the 3x3 neighbourhood inside the map, less the position: PoolFormer, Yu et al., arXiv:2111.11418."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class Fourier(nn.Module):
    """Real part of the orthonormal Fourier transform over channels, rows and cols: FNet, Lee-Thorp, arXiv:2105.03824.

    In float32: half precision has no transform of every length.
    """

    def forward(self, x: Tensor) -> Tensor:
        with float32_island(x):
            spectrum: Tensor = torch.fft.fftn(widened(x), dim=(1, 2, 3), norm="ortho")
            return spectrum.real.to(x.dtype)


def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let every position attend to every other: Vaswani et al., arXiv:1706.03762; N^2."""
    return attend_to(q, as_group(k), as_group(v))


def window(q: Tensor, k: Tensor, v: Tensor, *, side: int) -> Tensor:
    """Attend within windows of `side` x `side`, which do not shift: Swin, Liu et al., arXiv:2103.14030; N side^2."""
    return attend_within(q, k, v, (min(side, q.shape[2]), min(side, q.shape[3])))


def grid(q: Tensor, k: Tensor, v: Tensor, *, side: int) -> Tensor:
    """Attend to positions at equal strides, at most `side` x `side` of them over the whole map; N side^2.

    Strided pattern (Child et al., arXiv:1904.10509) as in MaxViT's grid attention (Tu et al., arXiv:2204.01697).
    """
    return attend_within(q, k, v, (-(-q.shape[2] // side), -(-q.shape[3] // side)), strided=True)


def axial(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend along the row, then let the column attend to what the rows gathered; N (H + W).

    Ho et al., arXiv:1912.12180; both steps share queries and keys, so one mixer already reaches the whole map.
    """
    rows = attend(q, k, v)
    return attend(q.transpose(2, 3), k.transpose(2, 3), rows.transpose(2, 3)).transpose(2, 3)


def pooled(q: Tensor, k: Tensor, v: Tensor, *, ratio: int) -> Tensor:
    """Attend to the means of `ratio` x `ratio` positions: PVT, Wang et al., arXiv:2102.12122; N^2 / ratio^2."""
    return attend_to(q, rectangle_means(k, ratio, ratio), rectangle_means(v, ratio, ratio))


def nystrom(q: Tensor, k: Tensor, v: Tensor, *, side: int, iterations: int = 6) -> Tensor:
    """Low rank by at most `side`^2 landmarks, means of q and of k: Xiong et al., arXiv:2102.03902; N side^2.

    softmax(q k') pinv(softmax(q' k')) softmax(q' k) v with the paper's iterative pseudo-inverse, started from each
    matrix's own norms; in float32.
    """
    with float32_island(q):
        q, k, v = widened(q), widened(k), widened(v)
        cells = (-(-q.shape[2] // side), -(-q.shape[3] // side))
        few_q, few_k = rectangle_means(q, *cells), rectangle_means(k, *cells)
        scale = q.shape[-1] ** -0.5
        left = torch.softmax(scale * as_group(q) @ few_k.mT, -1)
        inner = torch.softmax(scale * few_q @ few_k.mT, -1)
        right = attend(few_q, as_group(k), as_group(v))
        return unflatten(left @ (_inverse(inner, iterations) @ right), 3, q.shape[2:4]).squeeze(2)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Kernel elu(x) + 1 in place of the softmax: Katharopoulos et al., arXiv:2006.16236; N.

    In float32: float16 sums over 65,536 positions are finite and wrong.
    """
    with float32_island(q):
        return _by_kernel(F.elu(widened(q)) + 1, F.elu(widened(k)) + 1, widened(v))


class Performer(nn.Module):
    """Softmax kernel by positive orthogonal random features, FAVOR+: Choromanski et al., arXiv:2009.14794; N features.

    The features are drawn once and kept with the weights, so that a model predicts the same twice; in float32.
    """

    directions: Tensor

    def __init__(self, head: int, features: int) -> None:
        super().__init__()
        blocks = [torch.linalg.qr(torch.randn(head, head))[0].mT for _ in range(-(-features // head))]
        lengths = torch.randn(features, head).norm(dim=1, keepdim=True)
        self.register_buffer("directions", torch.cat(blocks)[:features] * lengths)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with float32_island(q):
            scale = q.shape[-1] ** -0.25
            directions = self.directions.to(widened(q).dtype)
            by_q, by_k = (
                x @ directions.mT - x.square().sum(-1, keepdim=True) / 2
                for x in (widened(q) * scale, widened(k) * scale)
            )
            # A factor of a query, and one common to all keys, cancels; taking out the largest keeps exp in range.
            q = torch.exp(by_q - by_q.amax(-1, keepdim=True)) + 1e-6
            k = torch.exp(by_k - by_k.amax((2, 3, 4), keepdim=True)) + 1e-6
            return _by_kernel(q, k, widened(v))


class Latent(nn.Module):
    """`points` learned queries gather the map, and every position attends to what they hold; N points.

    Inducing points (Set Transformer, Lee et al., arXiv:1810.00825; Perceiver, Jaegle et al., arXiv:2103.03206). Keys
    and values are gathered by the same weights.
    """

    def __init__(self, heads: int, head: int, points: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(heads, 1, points, head))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_to(q, *_gather(self.points, k, v))


class GlobalWindow(nn.Module):
    """Each position attends to its window and to `points` global tokens, in one softmax; N (side^2 + points).

    A combination of patterns (ETC, Ainslie et al., arXiv:2004.08483; BigBird, Zaheer et al., arXiv:2007.14062). The
    global tokens gather the whole map by learned queries.
    """

    def __init__(self, heads: int, head: int, points: int, side: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(heads, 1, points, head))
        self.side = side

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cells = (min(self.side, q.shape[2]), min(self.side, q.shape[3]))
        return attend_within(q, k, v, cells, extra=_gather(self.points, k, v))


class Linformer(nn.Module):
    """Keys and values projected to side^2 weighted sums of positions: Wang et al., arXiv:2006.04768; N side^2.

    The paper's projection is a matrix for one N. Here each of its rows is a learned picture of side x side, read at
    the map's positions by linear interpolation and divided by the positions per element, so that it fits maps of any
    size; it starts as the identity.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.eye(side**2).reshape(side**2, side, side))
        self.values = nn.Parameter(torch.eye(side**2).reshape(side**2, side, side))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_to(q, _project(self.keys, k), _project(self.values, v))


def _gather(points: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Let learned points [heads, 1, M, channels] gather keys and values of the whole map by the same weights."""
    queries = points.to(k.dtype).expand(k.shape[0], -1, -1, -1, -1)
    keys, values = attend(queries, as_group(k), torch.cat((as_group(k), as_group(v)), -1)).chunk(2, -1)
    return keys, values


def _project(picture: Tensor, x: Tensor) -> Tensor:
    """Sum a map's positions with the weights that a picture [M, side, side] has there."""
    with float32_island(x):
        rows, cols = _hats(x.shape[2], picture), _hats(x.shape[3], picture)
        weights = (rows @ picture @ cols.mT).flatten(1) * (picture[0].numel() / (x.shape[2] * x.shape[3]))
    return weights.to(x.dtype) @ as_group(x)


def _hats(length: int, picture: Tensor) -> Tensor:
    """Return the matrix [length, side] that reads a picture's row at `length` positions, centres kept in place."""
    side = picture.shape[-1]
    places = (torch.arange(length, device=picture.device, dtype=picture.dtype) + 0.5) * (side / length) - 0.5
    distance = places.clamp(0, side - 1)[:, None] - torch.arange(side, device=picture.device, dtype=picture.dtype)
    return (1 - distance.abs()).relu()


def _inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the pseudo-inverse of row-stochastic matrices by Razavi's cubic iteration (arXiv:2102.03902)."""
    one = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    found = matrix.mT / (matrix.sum(-2).amax(-1) * matrix.sum(-1).amax(-1))[..., None, None]
    for _ in range(iterations):
        step = matrix @ found
        found = found @ (13 * one - step @ (15 * one - step @ (7 * one - step))) / 4
    return found


def _by_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with weights q k' of positive features, in an order that never forms them."""
    q, k, flat = q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)
    return unflatten(q @ (k.mT @ flat) / (q @ k.sum(2)[..., None]), 2, v.shape[2:4])


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
