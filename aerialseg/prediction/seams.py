"""How much a scene's probabilities jump where windows begin and end, against everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aerialseg.counts import NODATA
from aerialseg.prediction.lattice import Lattice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.geo.windows import Axis
    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.forward import EngineSettings

EVERY = 4
"""One row in so many is looked at, and all those at window edges: 25 million differences in a third of the time."""


class SeamTally:
    """Adds up differences between neighbouring pixels, at window edges and elsewhere; a class because it is all state.

    A difference lies at a window's edge when a window of the lattice begins or ends between the two pixels (on the grid
    that was run: a resampled scene's edges are those nearest on its own). Pixels without data have no neighbours.
    """

    def __init__(self, row_edges: NDArray[np.bool_], col_edges: NDArray[np.bool_]) -> None:
        self._row_edges, self._col_edges = row_edges, col_edges
        self._sums = np.zeros(2, dtype=np.int64)
        """Differences elsewhere and at edges, in quanta."""
        self._counts = np.zeros(2, dtype=np.int64)
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    @classmethod
    def of(cls, canvas: Canvas, settings: EngineSettings) -> SeamTally:
        """Return an empty tally for a scene; memory: a byte for each of its rows and columns, and a row of pixels."""
        lattice = Lattice.of(canvas, settings.size, settings.overlap)
        box, factor = canvas.source.box, canvas.factor
        return cls(
            _edges(lattice.rows, canvas.row, box.height, factor), _edges(lattice.cols, canvas.col, box.width, factor)
        )

    def add(self, row: int, quanta: NDArray[np.uint8]) -> None:
        """Take the strip [rows, width] that begins at `row`, 255 where there is no data.

        Strips that do not follow the last one (a run that went on elsewhere) are not compared with it.
        """
        if self._last is not None and self._last[0] == row:
            self._count_rows(np.stack([self._last[1], quanta[0]]), row)
        self._count_rows(quanta, row + 1)
        some = quanta[-row % EVERY :: EVERY]
        marked = bool((some == NODATA).any())
        across = _differences(some[:, :-1], some[:, 1:], marked=marked)
        sums = across.sum(0, dtype=np.uint32).astype(np.int64)  # a strip has no more than 2^24 rows
        self._count(sums, _pairs(some[:, :-1], some[:, 1:], 0, marked), self._col_edges)
        self._last = row + len(quanta), quanta[-1].copy()

    def _count_rows(self, quanta: NDArray[np.uint8], row: int) -> None:
        """Add the differences between the rows; the second one is `row`."""
        upper = np.arange(row - 1, row - 2 + len(quanta))
        edges = self._row_edges[upper]
        chosen = np.flatnonzero(edges | (upper % EVERY == 0))
        one, other = quanta[chosen], quanta[chosen + 1]
        marked = bool((one == NODATA).any() or (other == NODATA).any())
        down = _differences(one, other, marked=marked)
        self._count(down.sum(1, dtype=np.int64), _pairs(one, other, 1, marked), edges[chosen])

    def _count(self, sums: NDArray[np.int64], pairs: NDArray[np.int64], edges: NDArray[np.bool_]) -> None:
        self._sums += sums[~edges].sum(), sums[edges].sum()
        self._counts += pairs[~edges].sum(), pairs[edges].sum()

    @property
    def index(self) -> float | None:
        """The mean difference at window edges over that elsewhere: 1 means no seam.

        None where one of them is unknown: a scene of one window, or without a single difference.
        """
        if not self._counts.all() or not self._sums[0]:
            return None
        elsewhere, edges = self._sums / self._counts
        return float(edges / elsewhere)


def _edges(axis: Axis, offset: int, length: int, factor: float) -> NDArray[np.bool_]:
    """Return for each pair of neighbouring pixels of a scene's axis whether a window begins or ends between them."""
    starts = np.array(axis.starts)
    borders = np.concatenate([starts[1:], starts[:-1] + axis.size])
    places = np.rint(borders * factor).astype(np.int64) - offset
    edges = np.zeros(max(0, length - 1), dtype=np.bool_)
    edges[places[(places > 0) & (places < length)] - 1] = True
    return edges


def _differences(one: NDArray[np.uint8], other: NDArray[np.uint8], *, marked: bool) -> NDArray[np.uint8]:
    """Return |one - other|, 0 where either has no data."""
    differences = np.maximum(one, other)
    np.subtract(differences, np.minimum(one, other), out=differences)
    if marked:
        differences[(one == NODATA) | (other == NODATA)] = 0
    return differences


def _pairs(one: NDArray[np.uint8], other: NDArray[np.uint8], axis: int, marked: bool) -> NDArray[np.int64]:
    """Return how many pairs have data, along `axis`."""
    if not marked:
        return np.full(one.shape[1 - axis], one.shape[axis], dtype=np.int64)
    pairs: NDArray[np.int64] = ((one != NODATA) & (other != NODATA)).sum(axis, dtype=np.int64)
    return pairs
