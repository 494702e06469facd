"""Looking at a large raster small: the mean of every cell of a coarse grid, read once from top to bottom.

Overviews are not used: those beside a file may hold anything (see `aerialseg.geo.opening`). Memory does not grow with
the raster, only with its blocks and the small picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.geo.masks import block_windows
from aerialseg.geo.opening import open_raster, raster_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

PIXELS_AT_ONCE = 2**21


def small_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return rows and columns of a raster shrunk to `size` along its longer side; never enlarged."""
    longer = max(height, width)
    if longer <= size:
        return height, width
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def cell_means(
    path: Path,
    bands: tuple[int, ...],
    shape: tuple[int, int],
    look: Callable[[NDArray[Any]], NDArray[Any]],
    advance: Callable[[float], None],
) -> NDArray[np.float64]:
    """Return the mean of each cell, (layers, *shape), of what `look` makes of the bands' values (bands, rows, cols).

    `look` may return other layers than it was given, of the same rows and columns. `advance` is told how many million
    pixels were read, and may raise to stop. Raises what `open_raster` and reading raise.
    """
    height, width = shape
    with open_raster(path) as dataset, raster_errors(path):
        row_cells = np.arange(dataset.height) * height // dataset.height
        col_cells = np.arange(dataset.width) * width // dataset.width
        sums: NDArray[np.float64] | None = None
        for window in block_windows(dataset, PIXELS_AT_ONCE):
            layers = look(dataset.read(list(bands), window=window))
            if sums is None:
                sums = np.zeros((len(layers), height, width))
            rows, cols = (slice(*bounds) for bounds in window.toranges())
            summed = _summed(_summed(layers, col_cells[cols], 2), row_cells[rows], 1)
            first_row, first_col = row_cells[rows.start], col_cells[cols.start]
            place = np.s_[:, first_row : first_row + summed.shape[1], first_col : first_col + summed.shape[2]]
            sums[place] += summed
            advance(layers[0].size / 1e6)
    counts = np.bincount(row_cells)[:, np.newaxis] * np.bincount(col_cells)
    return np.zeros((0, height, width)) if sums is None else sums / counts


def shrink(layers: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the cell means of an array (layers, rows, cols) in memory."""
    rows, cols = (np.arange(n) * m // n for n, m in zip(layers.shape[1:], shape, strict=True))
    counts = np.bincount(rows)[:, np.newaxis] * np.bincount(cols)
    means: NDArray[np.float64] = _summed(_summed(layers, cols, 2), rows, 1) / counts
    return means


def _summed(layers: NDArray[Any], cells: NDArray[np.int64], axis: int) -> NDArray[Any]:
    """Sum neighbouring rows or columns that fall into one cell; whole numbers stay whole.

    numpy makes a copy of the type of the sums first, so bytes are summed in 32 bits: 16 million pixels of 255 fit.
    """
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    kind = np.float64 if layers.dtype.kind == "f" else np.uint32 if layers.dtype.itemsize == 1 else np.int64
    summed: NDArray[Any] = np.add.reduceat(layers, starts, axis=axis, dtype=kind)
    return summed
