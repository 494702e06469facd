"""Buildings found, missed and invented: objects matched one to one at IoU 0.5, by size, in one pass down the scene.

An object is a 4-connected part of a mask. A predicted object is right when it shares IoU >= 0.5 with a true one, each
serving one match only (SpaceNet's rule, https://arxiv.org/abs/1807.01232). That they do so needs no assignment: for an
object to reach IoU 0.5 with two others, these would have to be its two exact halves, and such halves touch, which makes
them one object. Ground without data belongs to no object, and an object that touches it was cut by it: it is not
counted, neither is its match. An object at the scene's edge is cut alike in both masks and counts.

Masks are read as horizontal runs, a strip at a time. A run is [start, end) on a line that holds the rows one after
another with one empty column between them, so that runs of different rows never touch: position = row x stride +
column, stride = width + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

SIZES = ("small", "medium", "large", "unsized")
LIMITS_M2 = (50.0, 200.0)
"""Small buildings, on which models fail first, are below 50 m2, large ones above 200 m2; of a scene without
georeferencing no size is known."""
BySize = tuple[int, ...]
ZEROS: BySize = (0, 0, 0, 0)
Ids = NDArray[np.int64]


if TYPE_CHECKING:
    from collections.abc import Callable

    Flags = NDArray[np.bool_]
    OnWrong = Callable[[str, "Runs"], None]
    """Told of each object that is "missed" or "invented", with its runs: positions are row x (width + 1) + column."""


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """Objects by size, in the order of SIZES; a score without objects to judge is nan."""

    true: BySize = ZEROS
    found: BySize = ZEROS
    """Of `true`, those that a predicted object matches."""
    predicted: BySize = ZEROS
    right: BySize = ZEROS
    """Of `predicted`, those that match a true object; sizes are the predicted ones."""
    cut: int = 0
    """Objects of either side that were left out, for ground without data cuts them or their match."""

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        """Pool two counts."""
        pairs = zip(self._sizes(), other._sizes(), strict=True)
        true, found, predicted, right = (tuple(map(sum, zip(*pair, strict=True))) for pair in pairs)
        return ObjectCounts(true, found, predicted, right, self.cut + other.cut)

    @property
    def recall(self) -> float:
        """Share of true objects that were found."""
        return _ratio(sum(self.found), sum(self.true))

    @property
    def precision(self) -> float:
        """Share of predicted objects that are right."""
        return _ratio(sum(self.right), sum(self.predicted))

    @property
    def f1(self) -> float:
        """Share of all objects, true and predicted, that match: the harmonic mean of precision and recall.

        Of one size alone it is the same share: there `found` and `right` may differ, for a match may change the size.
        """
        return _ratio(sum(self.found) + sum(self.right), sum(self.true) + sum(self.predicted))

    def of_size(self, size: int) -> ObjectCounts:
        """Return the counts of one size, an index of SIZES, alone."""
        kept = ((*ZEROS[:size], part[size], *ZEROS[size + 1 :]) for part in self._sizes())
        true, found, predicted, right = kept
        return ObjectCounts(true, found, predicted, right)

    def _sizes(self) -> tuple[BySize, ...]:
        return self.true, self.found, self.predicted, self.right


class ObjectCounter:
    """Counts the objects of a scene's strips, top to bottom; a class because it holds the objects not yet complete.

    Memory grows with the objects that a strip touches, not with those of the scene.
    """

    def __init__(self, width: int, pixel_m2: float | None, on_wrong: OnWrong | None = None) -> None:
        self._stride, self._pixel_m2, self._on_wrong = width + 1, pixel_m2, on_wrong
        self._sides = (_Side(keeping=on_wrong is not None), _Side(keeping=on_wrong is not None))
        self._row = 0
        self._pairs = _Pairs.none()
        self._unknown = Runs.none()
        self._counts = ObjectCounts()

    def add(self, prediction: Flags, truth: Flags, valid: Flags) -> None:
        """Take full-width rows (rows, cols); what is not `valid` may hold anything."""
        rows = len(valid)
        whole = bool(valid.all())
        unknown = Runs.none() if whole else Runs.of(~valid).moved(self._stride)
        masks = (prediction, truth) if whole else (prediction & valid, truth & valid)
        strips = [Runs.of(mask).moved(self._stride) for mask in masks]  # row 0 is the last row of the strip above
        around = unknown.after(self._unknown)
        for side, strip in zip(self._sides, strips, strict=True):
            side.extend(strip, around, self._stride, rows)
            side.keep(strip.moved((self._row - 1) * self._stride))
        self._row += rows
        self._unknown = around.since(rows * self._stride).moved(-rows * self._stride)
        self._pairs = self._pairs.joined(self._sides, strips)
        self._settle()

    def finish(self) -> ObjectCounts:
        """Complete the objects of the last row and return the counts."""
        for side in self._sides:
            side.close()
        self._settle()
        return self._counts

    def _settle(self) -> None:
        """Count and forget the objects that are complete along with all they overlap."""
        predicted, true = self._sides
        edges = self._pairs.prediction, self._pairs.truth + len(predicted.area)
        groups, group = components(len(predicted.area) + len(true.area), edges)
        pending = np.zeros(groups, dtype=np.bool_)
        pending[group[np.concatenate((predicted.last_ids, true.last_ids + len(predicted.area)))]] = True
        done = ~pending[group]
        done_predicted, done_true = done[: len(predicted.area)], done[len(predicted.area) :]
        matches = self._pairs.matches(predicted.area, true.area, done_predicted)
        self._counts += self._judge(matches, done_predicted, done_true)
        self._pairs = self._pairs.without(done_predicted, done_true)
        predicted.drop(done_predicted)
        true.drop(done_true)

    def _judge(self, matches: tuple[Ids, Ids], done_predicted: Flags, done_true: Flags) -> ObjectCounts:
        predicted, true = self._sides
        cut = predicted.cut.copy(), true.cut.copy()
        cut[0][matches[0]] |= true.cut[matches[1]]
        cut[1][matches[1]] |= predicted.cut[matches[0]]
        counted = done_predicted & ~cut[0], done_true & ~cut[1]
        matched = np.zeros_like(done_predicted), np.zeros_like(done_true)
        for side in (0, 1):
            matched[side][matches[side]] = True
        for side, kind in ((0, "invented"), (1, "missed")):
            if self._on_wrong is not None:
                self._sides[side].hand_over(counted[side] & ~matched[side], partial(self._on_wrong, kind))
        left_out = int(np.count_nonzero(done_predicted & cut[0])) + int(np.count_nonzero(done_true & cut[1]))
        return ObjectCounts(
            self._by_size(true.area[counted[1]]),
            self._by_size(true.area[counted[1] & matched[1]]),
            self._by_size(predicted.area[counted[0]]),
            self._by_size(predicted.area[counted[0] & matched[0]]),
            left_out,
        )

    def _by_size(self, pixels: Ids) -> BySize:
        if self._pixel_m2 is None:
            return 0, 0, 0, len(pixels)
        area = pixels * self._pixel_m2
        small, large = (area < LIMITS_M2[0]).sum(), (area > LIMITS_M2[1]).sum()
        return int(small), int(len(area) - small - large), int(large), 0


class _Side:
    """The objects of one mask that are not settled yet, numbered 0, 1, ...; a class because it is all state."""

    def __init__(self, *, keeping: bool) -> None:
        self._keeping, self._kept, self._kept_ids = keeping, Runs.none(), np.empty(0, dtype=np.int64)
        """The runs of all objects, in positions of the whole scene, when somebody wants to see them."""
        self.area = np.empty(0, dtype=np.int64)
        """In pixels, so far."""
        self.cut = np.empty(0, dtype=np.bool_)
        """Whether the object touches ground without data."""
        self.last, self.last_ids = Runs.none(), np.empty(0, dtype=np.int64)
        """The runs of the last row, moved to row 0, and whose they are."""
        self.renumbered = np.empty(0, dtype=np.int64)
        """What the latest strip made of the objects' numbers before it."""
        self.strip_ids = np.empty(0, dtype=np.int64)
        """Whose the runs of the latest strip are."""

    def extend(self, strip: Runs, unknown: Runs, stride: int, rows: int) -> None:
        """Add a strip whose rows are 1 to `rows`; `unknown` are the runs without data in rows 0 to `rows`."""
        before = len(self.area)
        runs = strip.after(self.last)
        nodes = np.concatenate((self.last_ids, before + np.arange(len(strip))))
        upper, lower = overlaps(runs.moved(stride), runs)
        count, number = components(before + len(strip), (nodes[upper], nodes[lower]))
        area = np.zeros(count, dtype=np.int64)
        np.add.at(area, number, np.concatenate((self.area, strip.ends - strip.starts)))
        cut = np.zeros(count, dtype=np.bool_)
        cut[number[:before][self.cut]] = True
        if len(unknown):
            # With the column before and the column behind two runs may overlap, which does no harm here.
            for beside in (Runs(runs.starts - 1, runs.ends + 1), runs.moved(stride), runs.moved(-stride)):
                cut[number[nodes[_touching(beside, unknown)]]] = True
        self.area, self.cut, self.renumbered, self.strip_ids = area, cut, number[:before], number[before:]
        self.last = runs.since(rows * stride).moved(-rows * stride)
        self.last_ids = number[nodes[len(nodes) - len(self.last) :]]

    def keep(self, strip: Runs) -> None:
        """Keep the runs of the latest strip, if runs are kept."""
        if self._keeping:
            self._kept_ids = np.concatenate((self.renumbered[self._kept_ids], self.strip_ids))
            self._kept = strip.after(self._kept)

    def hand_over(self, wanted: Flags, take: Callable[[Runs], None]) -> None:
        """Give the runs of each wanted object to `take`."""
        chosen = np.flatnonzero(wanted[self._kept_ids])
        order = chosen[np.argsort(self._kept_ids[chosen], kind="stable")]
        firsts = np.flatnonzero(np.diff(self._kept_ids[order], prepend=-1))
        for part in np.split(order, firsts[1:]) if len(order) else ():
            take(Runs(self._kept.starts[part], self._kept.ends[part]))

    def close(self) -> None:
        """Say that nothing follows below the last row."""
        self.last, self.last_ids = Runs.none(), np.empty(0, dtype=np.int64)

    def drop(self, done: Flags) -> None:
        """Forget settled objects."""
        number = np.cumsum(~done) - 1
        if self._keeping:
            left = ~done[self._kept_ids]
            self._kept = Runs(self._kept.starts[left], self._kept.ends[left])
            self._kept_ids = number[self._kept_ids[left]]
        self.area, self.cut, self.last_ids = self.area[~done], self.cut[~done], number[self.last_ids]


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Predicted and true objects that overlap, and by how many pixels."""

    prediction: Ids
    truth: Ids
    pixels: Ids

    @classmethod
    def none(cls) -> _Pairs:
        return cls(*(np.empty(0, dtype=np.int64) for _ in range(3)))

    def joined(self, sides: tuple[_Side, _Side], strips: list[Runs]) -> _Pairs:
        """Return the pairs after a strip that both sides were extended by."""
        predicted, true = sides
        i, j = overlaps(*strips)
        prediction = np.concatenate((predicted.renumbered[self.prediction], predicted.strip_ids[i]))
        truth = np.concatenate((true.renumbered[self.truth], true.strip_ids[j]))
        pixels = np.concatenate((self.pixels, shared(strips[0], strips[1], (i, j))))
        keys, place = np.unique(prediction * max(1, len(true.area)) + truth, return_inverse=True)
        total = np.zeros(len(keys), dtype=np.int64)
        np.add.at(total, place, pixels)
        return _Pairs(*np.divmod(keys, max(1, len(true.area))), total)

    def matches(self, predicted: Ids, true: Ids, done: Flags) -> tuple[Ids, Ids]:
        """Return the pairs of settled objects with IoU >= 0.5; every object is in one of them at most."""
        union = predicted[self.prediction] + true[self.truth] - self.pixels
        good = done[self.prediction] & (2 * self.pixels >= union)
        return self.prediction[good], self.truth[good]

    def without(self, done_predicted: Flags, done_true: Flags) -> _Pairs:
        """Return the pairs that are left, in the numbers that the sides give the objects that are left."""
        left = ~done_predicted[self.prediction]
        numbers = np.cumsum(~done_predicted) - 1, np.cumsum(~done_true) - 1
        return _Pairs(numbers[0][self.prediction[left]], numbers[1][self.truth[left]], self.pixels[left])


def _touching(runs: Runs, others: Runs) -> Flags:
    """Return which runs overlap any of the others."""
    last = np.searchsorted(others.starts, runs.ends, side="left")
    touching: Flags = last > np.searchsorted(others.ends, runs.starts, side="right")
    return touching


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs in reading order; they neither touch nor overlap."""

    starts: Ids
    ends: Ids

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Runs:
        """Return the runs of True in a mask (rows, cols)."""
        rows, cols = mask.shape
        framed = np.zeros((rows, cols + 1), dtype=np.bool_)
        framed[:, :cols] = mask
        line = framed.ravel()
        changes = np.flatnonzero(line[1:] != line[:-1]) + 1
        if line[0]:
            changes = np.concatenate(([0], changes))
        return cls(changes[::2].astype(np.int64), changes[1::2].astype(np.int64))

    @classmethod
    def none(cls) -> Runs:
        """Return no runs."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        """Return how many runs there are."""
        return len(self.starts)

    def moved(self, by: int) -> Runs:
        """Return the runs `by` positions further on."""
        return Runs(self.starts + by, self.ends + by)

    def after(self, other: Runs) -> Runs:
        """Return the runs of `other`, which all lie before these, and then these."""
        return Runs(np.concatenate((other.starts, self.starts)), np.concatenate((other.ends, self.ends)))

    def since(self, position: int) -> Runs:
        """Return the runs that start at `position` or later."""
        first = int(np.searchsorted(self.starts, position))
        return Runs(self.starts[first:], self.ends[first:])


def overlaps(one: Runs, other: Runs) -> tuple[Ids, Ids]:
    """Return the indexes (i, j) of every pair of runs with a position in common; O(n log n)."""
    first = np.searchsorted(other.ends, one.starts, side="right")
    counts = np.searchsorted(other.starts, one.ends, side="left") - first
    i = np.repeat(np.arange(len(one)), counts)
    j = np.arange(len(i)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    return i, j


def shared(one: Runs, other: Runs, pairs: tuple[Ids, Ids]) -> Ids:
    """Return how many positions each of the `pairs` of overlapping runs has in common."""
    i, j = pairs
    length: Ids = np.minimum(one.ends[i], other.ends[j]) - np.maximum(one.starts[i], other.starts[j])
    return length


def components(count: int, edges: tuple[Ids, Ids]) -> tuple[int, Ids]:
    """Return how many connected parts a graph of `count` nodes has, and the part 0, 1, ... of each node.

    Every root hangs itself below its smallest neighbouring root, paths are cut short, and so on; the roots at least
    halve each time (Shiloach and Vishkin 1982, on arrays).
    """
    parent = np.arange(count)
    a, b = edges
    while len(a):
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter
    roots = parent == np.arange(count)
    number = np.cumsum(roots) - 1
    return int(np.count_nonzero(roots)), number[parent]
