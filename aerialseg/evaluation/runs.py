"""Masks as horizontal runs, and which runs hang together: what objects are made of, a strip at a time.

A run is [start, end) on a line that holds the rows one after another with one empty column between them, so that runs
of different rows never touch: position = row x stride + column, stride = width + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


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

    def widened(self) -> Runs:
        """Return the runs with the column before and the column behind; two of them may overlap."""
        return Runs(self.starts - 1, self.ends + 1)

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
