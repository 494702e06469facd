"""How well outlines agree: boundary IoU and boundary F1 at fixed distances in pixels, counted strip by strip.

Boundary IoU (Cheng et al., https://arxiv.org/abs/2103.16562) is the IoU of two bands: building pixels whose centre lies
within d pixels of a background pixel's, in truth and in prediction. At a share of the image's size, as in the paper, a
band swallows whole houses; 3 and 5 pixels do not. Boundary F1 (Csurka et al., BMVC 2013) asks how many outline pixels,
building with a background pixel next to them, lie within d pixels of the other side's outline.
Ground without data, and what lies beyond the scene, is neither building nor background: no outline runs along it.

Masks are counted as bits, 64 pixels to a word, at a small part of what bytes cost: a mask of (rows, cols) is uint64
(rows, words), and column c is bit c % 64 of word c // 64. Bits beyond the last column are zero in what `pack` returns;
they may be set in what `grow` returns, so a result is always cut by a packed mask.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

DISTANCES = (3, 5)
"""Pixels: 0.9 and 1.5 m at Inria's ground sample distance."""
HALO = max(DISTANCES) + 1
"""Rows of context that decide a row: an outline pixel within the distance, and its neighbour."""
Bits = NDArray[np.uint64]
WORD = 64


@dataclass(frozen=True, slots=True)
class BoundaryCounts:
    """Pixels of bands and outlines at one distance; a score without pixels to judge is nan."""

    both: int = 0
    """In the band of prediction and of truth."""
    either: int = 0
    predicted: int = 0
    """Outline pixels of the prediction; `predicted_near` of them lie near the true outline."""
    predicted_near: int = 0
    true: int = 0
    """Outline pixels of the truth; `true_near` of them lie near the predicted outline."""
    true_near: int = 0

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        """Pool two counts of one distance."""
        return BoundaryCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def iou(self) -> float:
        """Boundary IoU: the bands' intersection over their union."""
        return self.both / self.either if self.either else math.nan

    @property
    def f1(self) -> float:
        """Boundary F1: harmonic mean of the near shares of both outlines; 0 when one side has none at all."""
        if not self.predicted or not self.true:
            return 0.0 if self.predicted or self.true else math.nan
        precision, recall = self.predicted_near / self.predicted, self.true_near / self.true
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class BoundaryCounter:
    """Counts a scene's strips, top to bottom; a class because it keeps the rows whose context is yet to come."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(DISTANCES, BoundaryCounts())
        self._kept: tuple[Bits, Bits, Bits] | None = None
        self._judged = 0
        """Of the kept rows, those at the top that are context only."""

    def add(self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_]) -> None:
        """Take full-width rows (rows, cols); what is not `valid` may hold anything."""
        planes = pack(prediction & valid), pack(truth & valid), pack(valid)
        if self._kept is not None:
            planes = tuple(np.concatenate(pair) for pair in zip(self._kept, planes, strict=True))  # type: ignore[assignment]
        rows = len(planes[0])
        ready = rows - HALO
        if ready > self._judged:
            self._judge(planes, self._judged, ready)
            top = max(0, ready - HALO)
            planes = tuple(plane[top:].copy() for plane in planes)  # type: ignore[assignment]
            self._judged = ready - top
        self._kept = planes

    def finish(self) -> dict[int, BoundaryCounts]:
        """Judge the last rows and return the counts by distance."""
        if self._kept is not None and len(self._kept[0]) > self._judged:
            self._judge(self._kept, self._judged, len(self._kept[0]))
        self._kept = None
        return self._counts

    def _judge(self, planes: tuple[Bits, Bits, Bits], first: int, last: int) -> None:
        prediction, truth, valid = planes
        around_prediction, around_truth = valid & ~prediction, valid & ~truth
        outline, true_outline = prediction & grow(around_prediction, 1), truth & grow(around_truth, 1)
        judged = np.s_[first:last]
        totals = count(outline[judged]), count(true_outline[judged])
        for distance in DISTANCES:
            band = (prediction & grow(around_prediction, distance))[judged]
            true_band = (truth & grow(around_truth, distance))[judged]
            near = count((outline & grow(true_outline, distance))[judged])
            true_near = count((true_outline & grow(outline, distance))[judged])
            self._counts[distance] += BoundaryCounts(
                count(band & true_band), count(band | true_band), totals[0], near, totals[1], true_near
            )


def pack(mask: NDArray[np.bool_]) -> Bits:
    """Return a boolean mask (rows, cols) as bits (rows, words)."""
    rows, cols = mask.shape
    packed = np.zeros((rows, -(-cols // WORD) * (WORD // 8)), dtype=np.uint8)
    packed[:, : -(-cols // 8)] = np.packbits(mask, axis=1, bitorder="little")
    words: Bits = packed.view("<u8")
    return words


def count(bits: Bits) -> int:
    """Return how many bits are set."""
    return int(_set_bits()[np.ascontiguousarray(bits).view(np.uint16)].sum(dtype=np.int64))


def grow(bits: Bits, radius: int) -> Bits:
    """Return the pixels whose centre lies within `radius` pixels (Euclidean) of a set pixel's, those included.

    Nothing is known beyond the array: rows that matter there must be in it. A disk is a stack of horizontal runs, so
    it takes 2 x radius shifts along the rows and as many of whole rows.
    """
    across, reached = bits.copy(), 0
    grown = np.zeros_like(bits)
    for down in range(radius, -1, -1):  # from the disk's narrowest row to its widest
        while reached < math.isqrt(radius * radius - down * down):
            reached += 1
            right, back = np.uint64(reached), np.uint64(WORD - reached)
            across |= (bits << right) | (bits >> right)
            across[:, 1:] |= bits[:, :-1] >> back
            across[:, :-1] |= bits[:, 1:] << back
        if down == 0:
            grown |= across
        elif down < len(bits):
            grown[down:] |= across[:-down]
            grown[:-down] |= across[down:]
    return grown


@cache
def _set_bits() -> NDArray[np.uint8]:
    """Return the number of set bits of every 16-bit value (numpy counts them itself from 2.0 on only)."""
    table = np.zeros(1 << 16, dtype=np.uint8)
    for bit in range(16):
        table[1 << bit : 2 << bit] = table[: 1 << bit] + 1
    return table
