"""Reading a patchwork of masks from the top down as the one raster it is, as the corners of its buildings.

Where pieces overlap, a pixel is building if any of them says so, and has the largest of their probabilities.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.geo.masks import ResolvedRule, read_mask
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.outlines.corners import Corners, by_place, find_corners, join

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.geo.outlines.patchwork import Patchwork, Piece

STRIP_PIXELS = 1 << 22
STRIP_ROWS = (64, 1024)
PROBABILITY_NODATA = 255


def read_corners(patchwork: Patchwork, rule: ResolvedRule) -> Iterator[tuple[Corners, int]]:
    """Yield the corners of the buildings, strip by strip, and how many pixels were read for them.

    The corners' sums are those of the probabilities 0..254 of building pixels and of their number, where probability is
    known. Memory: a strip of about 4 million pixels, five times that in bytes with probabilities eight times more.
    """
    width = patchwork.width
    above = np.zeros(width + 2, dtype=np.bool_)
    columns = np.zeros((2, width + 1), dtype=np.int64)
    with _Readers(rule) as readers:
        for top, bottom, active in _strips(patchwork):
            readers.keep(active)
            spans = [_Span.read(span, top, bottom, readers) for span in _side_by_side(active)]
            below = np.zeros(width + 2, dtype=np.bool_)
            for span in spans:
                below[span.left + 1 : span.right + 1] = span.building[0, 1:-1]
            border = find_corners(np.stack([above, below]), top, 0, (columns[:1], columns[1:]))
            inner = [span.corners(top, columns) for span in spans]
            above = np.zeros(width + 2, dtype=np.bool_)
            for span in spans:
                above[span.left + 1 : span.right + 1] = span.building[-1, 1:-1]
            found = join([border, *inner])
            pixels = sum(span.building.shape[0] * (span.right - span.left) for span in spans)
            yield (by_place(found) if len(spans) > 1 else found), pixels


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """Pieces side by side in a strip, without a gap."""

    left: int
    right: int
    building: NDArray[np.bool_]
    """(rows, cols + 2), with a column of background on either side."""
    sums: NDArray[np.int64] | None
    """(2, rows, cols + 1): sums of probability and of known pixels left of each pixel corner; None: all unknown."""

    @classmethod
    def read(cls, pieces: Sequence[Piece], top: int, bottom: int, readers: _Readers) -> _Span:
        left, right = min(piece.col for piece in pieces), max(piece.right for piece in pieces)
        building = np.zeros((bottom - top, right - left + 2), dtype=np.bool_)
        quanta = None
        for piece in pieces:
            window = Window(0, top - piece.row, piece.box.width, bottom - top)
            inside = slice(piece.col - left + 1, piece.right - left + 1)
            building[:, inside] |= readers.mask(piece, window)
            if piece.probability is not None:
                found, known = readers.probability(piece, window)
                if quanta is None:
                    quanta = np.full(building.shape, -1, dtype=np.int16)
                quanta[:, inside] = np.maximum(quanta[:, inside], np.where(known, found, np.int16(-1)))
        sums = None if quanta is None else _row_sums(building, quanta)
        return cls(left, right, building, sums)

    def corners(self, top: int, columns: NDArray[np.int64]) -> Corners:
        """Return the corners below the strip's first row, and add the strip to the sums of whole columns."""
        if self.sums is None:
            still = columns[:, self.left : self.right + 1]
            rows = (len(self.building) - 1, self.right - self.left + 1)
            tables = np.broadcast_to(still[0], rows), np.broadcast_to(still[1], rows)
            return find_corners(self.building, top + 1, self.left, tables)
        own = columns[:, self.left : self.right + 1]
        for row in range(self.sums.shape[1]):
            own += self.sums[:, row]
            self.sums[:, row] = own
        return find_corners(self.building, top + 1, self.left, (self.sums[0], self.sums[1]))


class _Readers:
    """The files of the pieces that are being read; a class because it holds what is open."""

    def __init__(self, rule: ResolvedRule) -> None:
        self._rule = rule
        self._open: dict[Path, tuple[DatasetReader, ExitStack]] = {}

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(())

    def keep(self, active: Sequence[Piece]) -> None:
        """Close the files of pieces that are not active."""
        used = {path for piece in active for path in (piece.mask, piece.probability)}
        for path in [path for path in self._open if path not in used]:
            self._open.pop(path)[1].close()

    def mask(self, piece: Piece, window: Window) -> NDArray[np.bool_]:
        """Read where the mask says building."""
        return read_mask(self._dataset(piece.mask), self._rule, window)[0]

    def probability(self, piece: Piece, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read quantised probabilities, and where they are known."""
        path = piece.probability
        if path is None:
            raise ValueError(f"{piece.name} has no probability")
        dataset = self._dataset(path)
        with raster_errors(path):
            quanta = dataset.read(1, window=window)
            known = (dataset.dataset_mask(window=window) != 0) & (quanta != PROBABILITY_NODATA)
        return quanta, known

    def _dataset(self, path: Path) -> DatasetReader:
        if path not in self._open:
            stack = ExitStack()
            self._open[path] = stack.enter_context(open_raster(path)), stack
        return self._open[path][0]


def _row_sums(building: NDArray[np.bool_], quanta: NDArray[np.int16]) -> NDArray[np.int64]:
    known = building & (quanta >= 0)
    sums = np.empty((2, len(building), building.shape[1] - 1), dtype=np.int64)
    np.cumsum(np.where(known, quanta, 0)[:, :-1], axis=1, out=sums[0])
    np.cumsum(known[:, :-1], axis=1, out=sums[1])
    return sums


def _strips(patchwork: Patchwork) -> Iterator[tuple[int, int, list[Piece]]]:
    """Yield first row, row below the last, and the pieces that reach across all rows; an empty row ends it."""
    pieces = patchwork.pieces
    cuts = sorted({row for piece in pieces for row in (piece.row, piece.bottom)})
    for top, bottom in pairwise(cuts):
        active = [piece for piece in pieces if piece.row <= top and bottom <= piece.bottom]
        if not active:  # nothing in between: one row closes what ends here
            yield top, top + 1, []
            continue
        rows = STRIP_PIXELS // sum(piece.box.width for piece in active)
        rows = 1 << max(min(rows, STRIP_ROWS[1]), STRIP_ROWS[0]).bit_length() - 1  # divides blocks of 256 and 512
        for row in range(top, bottom, rows):
            yield row, min(row + rows, bottom), active
    yield cuts[-1], cuts[-1] + 1, []


def _side_by_side(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return the pieces of a strip in runs without a gap, from left to right."""
    runs: list[list[Piece]] = []
    right = -1
    for piece in sorted(pieces, key=lambda piece: piece.col):
        if not runs or piece.col > right:
            runs.append([])
        runs[-1].append(piece)
        right = max(right, piece.right)
    return runs
