"""Reading a raster with other pixels than it has: at another ground sample distance, or shrunk to a small picture.

A grid at another ground sample distance keeps the scene's CRS, origin and orientation; only its pixels are larger or
smaller. Areas are averaged when pixels grow and interpolated linearly when they shrink, over valid pixels alone. Both
are done along rows and then along columns, with weights that depend on a pixel's place in the grid alone: however a
raster is cut into windows, or into scenes, its pixels come out the same to the last bit, which GDAL's warp does not
promise. A small picture holds the sum or mean of every cell of a coarse grid, read once from top to bottom; memory does
not grow with the raster, only with its blocks and the picture. Overviews are not used: those beside a file may hold
anything (see `aerialseg.geo.opening`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.windows import Window

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.raster import block_windows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Reader = Callable[[Window], "tuple[NDArray[np.uint8], NDArray[np.bool_]]"]
"""Reads a window inside a grid: pixels (bands, rows, cols) and which of them are valid (rows, cols)."""
ROWS_AT_ONCE = 64
"""Rows that are in memory as float32 at a time."""
NEGLIGIBLE = 1e-3
MAJORITY = 0.5 - 1e-6
"""A pixel is valid when this share of its area is."""
WHOLE = 1 - 1e-5
"""A share above this is all of it, but for rounding."""
PIXELS_AT_ONCE = 2**21


def at_gsd(box: GeoBox, gsd_m: float) -> GeoBox:
    """Return the grid of the same ground with pixels of `gsd_m` metres; the shape of a pixel stays as it is.

    The grid itself comes back when it differs by less than a thousandth: 0.3 m is seldom stored as exactly 0.3.
    """
    if box.gsd_m is None:
        raise ValueError("a grid without a place on the ground has no ground sample distance")
    factor = gsd_m / box.gsd_m
    if abs(factor - 1) < NEGLIGIBLE:
        return box
    height, width = max(1, round(box.height / factor)), max(1, round(box.width / factor))
    return GeoBox(height, width, box.transform @ Affine.scale(factor), box.crs)


def resampled(read: Reader, source: GeoBox, target: GeoBox) -> Reader:
    """Return a reader of `target`'s grid on top of a reader of `source`'s; both grids share CRS and origin."""
    factor = target.transform.a / source.transform.a if source.transform.a else target.transform.b / source.transform.b
    return rescaled(read, (source.height, source.width), factor)


def rescaled(read: Reader, shape: tuple[int, int], factor: float) -> Reader:
    """Return a reader of a grid whose pixels are `factor` times as long, on top of one of `shape` (rows, cols) pixels.

    A new pixel that lies partly beyond the old grid is made from the part inside.
    """
    return partial(_read_rescaled, read, shape, float(f"{factor:.12g}"))


@dataclass(frozen=True, slots=True)
class _Taps:
    """Which old pixels make each new pixel of an axis, and how much each counts; float32 weights that sum to one."""

    places: NDArray[np.intp]
    """[taps, new pixels], counted from `first`; the same pixel twice where there are fewer."""
    weights: NDArray[np.float32]
    first: int
    stop: int

    @classmethod
    def of(cls, start: int, stop: int, factor: float, length: int) -> _Taps:
        """Return the taps of the new pixels [start, stop) over an axis of `length` old ones."""
        new = np.arange(start, stop)
        if factor > 1:
            begin, end = np.minimum(new * factor, length), np.minimum((new + 1) * factor, length)
            places = np.floor(begin).astype(np.intp) + np.arange(ceil(factor) + 1)[:, np.newaxis]
            weights = np.clip(np.minimum(end, places + 1) - np.maximum(begin, places), 0, None)
        else:
            centres = np.clip((new + 0.5) * factor - 0.5, 0, length - 1)
            lower = np.floor(centres)
            places = lower.astype(np.intp) + np.arange(2)[:, np.newaxis]
            weights = np.stack([1 - (centres - lower), centres - lower])
        places = np.minimum(places, length - 1)
        first = int(places.min())
        shares = (weights / weights.sum(axis=0)).astype(np.float32)
        return cls(places - first, shares, first, int(places.max()) + 1)


def _read_rescaled(
    read: Reader, shape: tuple[int, int], factor: float, window: Window
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window of the new grid; memory: the old pixels under it as uint8, and some rows as float32."""
    rows, cols = (
        _Taps.of(start, stop, factor, length) for (start, stop), length in zip(window.toranges(), shape, strict=True)
    )
    pixels, valid = read(Window.from_slices((rows.first, rows.stop), (cols.first, cols.stop)))
    values = np.empty((len(pixels), int(window.height), int(window.width)), dtype=np.uint8)
    enough = np.empty(values.shape[1:], dtype=np.bool_)
    whole = bool(valid.all())
    pixels = pixels if whole else np.where(valid, pixels, 0)
    for start in range(0, len(enough), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        sums = _weighted(pixels, rows, cols, chunk)
        enough[chunk] = True
        if not whole:
            shares = _weighted(valid[np.newaxis], rows, cols, chunk)[0]
            enough[chunk] = shares >= MAJORITY
            shares[(shares > WHOLE) | ~enough[chunk]] = 1
            sums /= shares
            sums[:, ~enough[chunk]] = 0
        values[:, chunk] = np.clip(np.rint(sums, out=sums), 0, 255, out=sums)
    return values, enough


def _weighted(stack: NDArray[Any], rows: _Taps, cols: _Taps, chunk: slice) -> NDArray[np.float32]:
    """Return the weighted sums of the new rows in `chunk`: float32 [planes, rows, new columns]."""
    down = _blended(stack, 1, rows.places[:, chunk], rows.weights[:, chunk, np.newaxis])
    return _blended(down, 2, cols.places, cols.weights)


def _blended(
    stack: NDArray[Any], axis: int, places: NDArray[np.intp], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the sum over taps of what lies at `places` along an axis times its weight."""
    shape = *stack.shape[:axis], places.shape[1], *stack.shape[axis + 1 :]
    total, taken, part = np.zeros(shape, np.float32), np.empty(shape, stack.dtype), np.empty(shape, np.float32)
    for place, weight in zip(places, weights, strict=True):
        np.take(stack, place, axis=axis, out=taken, mode="clip")  # in range by construction, and twice as fast
        total += np.multiply(taken, weight, out=part)
    return total


def small_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return rows and columns of a raster shrunk to `size` along its longer side; never enlarged."""
    longer = max(height, width)
    if longer <= size:
        return height, width
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def block_mean(
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
            add_cells(sums, layers, row_cells[rows], col_cells[cols])
            advance(layers[0].size / 1e6)
    return np.zeros((0, height, width)) if sums is None else sums / cell_sizes(row_cells, col_cells)


def shrink(layers: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the cell means of an array (layers, rows, cols) in memory."""
    rows, cols = (np.arange(n) * m // n for n, m in zip(layers.shape[1:], shape, strict=True))
    sums = np.zeros((len(layers), *shape))
    add_cells(sums, layers, rows, cols)
    means: NDArray[np.float64] = sums / cell_sizes(rows, cols)
    return means


def cell_sizes(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pixels each cell has, given the cell that each row and column of a raster falls into."""
    sizes: NDArray[np.int64] = np.outer(np.bincount(rows), np.bincount(cols))
    return sizes


def add_cells(sums: NDArray[Any], layers: NDArray[Any], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> None:
    """Add an array (layers, rows, cols) to the sums of its cells, in place.

    `rows` and `cols` say which row and column of `sums` each of the array's falls into: each into that of the one
    before it or into the next. Floats are summed in the type of `sums`, whole numbers as such: numpy makes a copy of
    the type of the sums first, so bytes are summed in 32 bits, and 16 million pixels of 255 fit.
    """
    for axis, cells in ((2, cols), (1, rows)):
        kind = sums.dtype if layers.dtype.kind == "f" else np.uint32 if layers.dtype.itemsize == 1 else np.int64
        layers = np.add.reduceat(layers, np.flatnonzero(np.diff(cells, prepend=-1)), axis=axis, dtype=kind)
    sums[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += layers
