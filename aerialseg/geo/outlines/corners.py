"""Where the outline of a mask turns: its corners, found by comparing pixels with their neighbours, whole rows at once.

Every building pixel is a square; outlines run along the sides of squares and turn where the four pixels around a point
are not alike in pairs. Where two building pixels touch by a corner only, the outline passes twice, and there are two
corners in one place: buildings are 4-connected. Positions are (row, col) of pixel corners on some grid of the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALONG_ROW, LATER, HOLE = np.uint8(1), np.uint8(2), np.uint8(4)
"""What a corner's kind says: the outline, with building on its left, leaves along the row; of two corners in one place,
this one belongs to the piece below; here begins a hole, if the ring begins here."""


@dataclass(frozen=True, slots=True, eq=False)
class Corners:
    """Corners in the order of rows and then columns, as arrays of one length."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    kind: NDArray[np.uint8]
    run: NDArray[np.int64]
    """Where a hole may begin: the column at which the building pixels left of it begin; -1 elsewhere."""
    sums: NDArray[np.int64]
    """(2, n): the caller's two summed-area tables at the corners."""

    @classmethod
    def none(cls) -> Corners:
        """Return no corners."""
        empty = np.empty(0, dtype=np.int64)
        return cls(empty, empty, np.empty(0, dtype=np.uint8), empty, np.empty((2, 0), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Corners:
        """Return some of the corners."""
        return Corners(*(getattr(self, field.name)[..., which] for field in fields(self)))


def join(parts: Sequence[Corners]) -> Corners:
    """Return the corners of all parts, in their order."""
    return Corners(*(np.concatenate([getattr(part, f.name) for part in parts], axis=-1) for f in fields(Corners)))


def by_place(corners: Corners) -> Corners:
    """Return the corners in the order of rows and columns; two in one place keep their order."""
    return corners.take(np.lexsort((corners.col, corners.row)))


def find_corners(
    block: NDArray[np.bool_], row: int, col: int, tables: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
) -> Corners:
    """Return the corners between the rows of `block` (rows + 1, cols + 2), whose first and last columns are False.

    The first corners lie between the first two rows, at `row`; the left side of the second column is at `col`.
    `tables`, each (rows, cols + 1), hold what `Corners.sums` takes; zeros when None.
    """
    turns = block[:-1] ^ block[1:]
    found = turns[:, :-1] & turns[:, 1:]
    found &= block[:-1, :-1] ^ block[:-1, 1:]  # a diagonal pair, where two corners lie in one place
    found |= turns[:, :-1] ^ turns[:, 1:]
    place = np.flatnonzero(found)
    if not len(place):
        return Corners.none()
    i, j = np.divmod(place, found.shape[1])
    code = block[i, j] * 8 + block[i, j + 1] * 4 + block[i + 1, j] * 2 + block[i + 1, j + 1]
    double = (code == 0b1001) | (code == 0b0110)
    if double.any():
        once = np.repeat(np.arange(len(place)), 1 + double)
        second = np.concatenate([[False], once[1:] == once[:-1]]).astype(np.int64)
        i, j, code = i[once], j[once], code[once]
    else:
        second = np.zeros(len(place), dtype=np.int64)
    kind = KINDS[second, code]
    run = _runs_before(block, i, j, (kind & HOLE) != 0)
    run[run >= 0] += col
    sums = np.zeros((2, len(i)), dtype=np.int64) if tables is None else np.stack([table[i, j] for table in tables])
    return Corners(i + row, j + col, kind, run, sums)


def _runs_before(
    block: NDArray[np.bool_], i: NDArray[np.int64], j: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return, counted from the block's first corner, where the run of building pixels left of a corner begins, or -1.

    The run lies in the row below the corner.
    """
    run = np.full(len(i), -1, dtype=np.int64)
    if wanted.any():
        rows, which = np.unique(i[wanted] + 1, return_inverse=True)
        lines, width = block[rows], block.shape[1]
        begins = np.flatnonzero(lines[:, 1:] & ~lines[:, :-1])  # in a grid one column narrower
        before = np.searchsorted(begins, which * (width - 1) + j[wanted], side="left") - 1
        run[wanted] = begins[before] % (width - 1)
    return run


def _kinds() -> NDArray[np.uint8]:
    """Return kinds by (second of two in one place, pixels above left, above right, below left, below right as bits)."""
    kinds = np.zeros((2, 16), dtype=np.uint8)
    for code in range(16):
        above_left, above_right, below_left, below_right = (code >> bit & 1 for bit in (3, 2, 1, 0))
        along = (above_right and not below_right) or (below_left and not above_left)
        kinds[:, code] = ALONG_ROW * bool(along) + HOLE * (code == 0b1110)
    kinds[1, 0b1001] |= LATER
    kinds[0, 0b0110] |= LATER
    return kinds


KINDS = _kinds()
