"""Outlines of buildings from the corners of a mask, strip by strip: what is closed comes out, what is open is kept.

Along a row, and along a column, an outline's sides lie between the first corner and the second, the third and the
fourth, and so on; so each corner knows the next one, and rings are followed from corner to corner. Memory: the corners
of the strip and of the buildings that reach below it. The sum of any raster over a building is a signed sum of its
summed-area table over the building's corners, which is how mean probabilities come for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.geo.outlines.corners import ALONG_ROW, HOLE, LATER, Corners, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Finished buildings, by their first pixels in the order of rows and columns."""

    first: NDArray[np.int64]
    """(buildings, 2): row and column of each one's topmost, and there leftmost, pixel."""
    sums: NDArray[np.int64]
    """(2, buildings): what the tables of the corners sum up to over each one's pixels."""
    points: NDArray[np.int64]
    """(n, 2): row and column of the corners, ring after ring, none closed; on a north-up map outer rings run
    anticlockwise and holes clockwise."""
    rings: NDArray[np.int64]
    """How many points each ring has."""
    building: NDArray[np.int64]
    """Of which building each ring is; its outer ring comes first, holes follow."""

    def __len__(self) -> int:
        return len(self.first)


class Tracer:
    """Follows outlines through strips given from the top down; a class because it is all state."""

    def __init__(self) -> None:
        self._waiting = Corners.none()

    def add(self, fresh: Corners) -> Outlines:
        """Take the corners of the rows that follow and return the buildings that are complete with them.

        Rows must be complete. Rings that touch themselves in a point are split there into rings that do not.
        """
        corners = join([self._waiting, fresh])
        order, keys = _down_columns(corners)
        cycle, rings, owners, starts = _follow(*_links(corners, order))
        roots = _roots(corners, cycle, starts, order, keys)
        root = np.append(roots, -1)[cycle]
        self._waiting = corners.take(root < 0)
        return _outlines(corners, root, rings, owners, roots)


def _down_columns(corners: Corners) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners' order by columns and then rows, and their sorted keys (see `_key`)."""
    later = ((corners.kind & LATER) != 0).astype(np.int64)
    keys = _key(corners.col, corners.row, later)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def _key(col: NDArray[np.int64], row: NDArray[np.int64], later: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return what sorts corners by column, row, and of two in one place the upper piece's first."""
    key: NDArray[np.int64] = col * (1 << 34) + row * 2 + later
    return key


def _links(corners: Corners, order: NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
    """Return each corner's next one and its twin in the same place (or -1), and where open ways begin."""
    count = len(corners)
    index = np.arange(count)
    col = corners.col[order]
    top = np.append(True, col[1:] != col[:-1])[:count]
    upper = (index - np.maximum.accumulate(np.where(top, index, 0))) % 2 == 0
    above = np.flatnonzero(upper[:-1] & ~top[1:])
    partner = np.full(count, -1, dtype=np.int64)
    partner[order[above]] = order[above + 1]
    partner[order[above + 1]] = order[above]
    along = (corners.kind & ALONG_ROW) != 0
    following = np.where(along, index ^ 1, partner)
    same = np.flatnonzero((corners.row[1:] == corners.row[:-1]) & (corners.col[1:] == corners.col[:-1]))
    twin = np.full(count, -1, dtype=np.int64)
    twin[same], twin[same + 1] = same + 1, same
    return following.tolist(), twin.tolist(), np.flatnonzero(along & (partner < 0)).tolist()


def _follow(
    following: list[int], twin: list[int], heads: list[int]
) -> tuple[NDArray[np.int64], list[list[int]], list[int], list[int]]:
    """Return each corner's cycle (-1: open), the rings, whose cycle each ring is of, and the cycles' first corners.

    A cycle that passes a place twice is split there into several rings; the one with its first corner comes last.
    """
    fresh, way = -2, -1
    cycle = [fresh] * len(following)
    for corner in heads:
        while corner >= 0:
            cycle[corner] = way
            corner = following[corner]
    rings: list[list[int]] = []
    owners: list[int] = []
    starts: list[int] = []
    for start, seen in enumerate(cycle):
        if seen != fresh:
            continue
        path: list[int] = []
        passed: dict[int, int] = {}
        number, corner = len(starts), start
        while cycle[corner] == fresh:
            cycle[corner] = number
            if twin[corner] >= 0:
                since = passed.get(twin[corner])
                if since is None:
                    passed[corner] = len(path)
                else:
                    rings.append(path[since:])
                    owners.append(number)
                    del path[since:]
            path.append(corner)
            corner = following[corner]
        rings.append(path)
        owners.append(number)
        starts.append(start)
    return np.array(cycle, dtype=np.int64), rings, owners, starts


def _roots(
    corners: Corners,
    cycle: NDArray[np.int64],
    starts: Sequence[int],
    order: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the outer cycle of the building that each cycle is of; -1 where that is open.

    Left of a hole's first pixel lies a run of building pixels, and the side at which it begins is of the same building.
    """
    first = np.array(starts, dtype=np.int64)
    holes = np.flatnonzero((corners.kind[first] & HOLE) != 0)
    at = first[holes]
    beside = np.searchsorted(keys, _key(corners.run[at], corners.row[at], 1), side="right") - 1
    roots = list(range(len(starts)))
    for hole, parent in zip(holes.tolist(), cycle[order[beside]].tolist(), strict=True):
        roots[hole] = roots[parent] if parent >= 0 else -1  # a parent begins before its hole, and has its root
    return np.array(roots, dtype=np.int64)


def _outlines(
    corners: Corners, root: NDArray[np.int64], rings: list[list[int]], owners: list[int], roots: NDArray[np.int64]
) -> Outlines:
    """Gather the rings of finished buildings; `root` is each corner's outer cycle."""
    outer = np.flatnonzero(roots == np.arange(len(roots)))
    of_ring = roots[np.array(owners, dtype=np.int64)]
    last = np.append(np.array(owners[1:], dtype=np.int64) != np.array(owners[:-1], dtype=np.int64), True)[: len(owners)]
    is_hole = ~(last & (of_ring == np.array(owners, dtype=np.int64)))
    kept = np.flatnonzero(of_ring >= 0)
    kept = kept[np.lexsort((is_hole[kept], of_ring[kept]))]
    points = np.array([corner for ring in kept.tolist() for corner in rings[ring]], dtype=np.int64)
    lengths = np.array([len(rings[ring]) for ring in kept.tolist()], dtype=np.int64)
    first = np.array([rings[ring][0] for ring in kept[~is_hole[kept]].tolist()], dtype=np.int64)
    closed = root >= 0
    signed = np.where(corners.kind[closed] & ALONG_ROW, -corners.sums[:, closed], corners.sums[:, closed])
    sums = np.zeros((2, len(outer)), dtype=np.int64)
    numbers = np.searchsorted(outer, root[closed])
    for total, part in zip(sums, signed, strict=True):
        np.add.at(total, numbers, part)
    places = np.stack([corners.row, corners.col], axis=1)
    return Outlines(places[first], sums, places[points], lengths, np.searchsorted(outer, of_ring[kept]))
