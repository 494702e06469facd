"""Reading a scene's pixels as a network wants them: a window of chosen bands as uint8, and where they are valid.

Which bands and values those are was decided when the scene was checked (`Source`); files are opened elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.geo.inspection import Source
from aerialseg.geo.opening import raster_errors
from aerialseg.geo.validity import read_valid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader


def read_window(dataset: DatasetReader, source: Source, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window that lies inside the scene: pixels (bands, rows, cols) uint8 and valid (rows, cols).

    A pixel is valid where the source's rule says so and every chosen band is finite. Raises BadDataError
    naming the block and the codec's message when the file is damaged there.
    """
    shape = int(window.height), int(window.width)
    pixels, valid = np.empty((len(source.bands), *shape), dtype=np.uint8), np.empty(shape, dtype=np.bool_)
    read_window_into(dataset, source, window, pixels, valid)
    return pixels, valid


def read_window_into(
    dataset: DatasetReader, source: Source, window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Do what `read_window` does into arrays, or views of larger ones, of the caller's."""
    row, col = int(window.row_off), int(window.col_off)
    bottom, right = row + int(window.height), col + int(window.width)
    if row < 0 or col < 0 or bottom > dataset.height or right > dataset.width:
        raise ValueError(f"window {window} lies outside a raster of {dataset.height}x{dataset.width}")
    place = f"rows {row}-{bottom - 1}, columns {col}-{right - 1}"
    with raster_errors(source.path, place):
        direct = source.scale is None and source.dtype == "uint8"
        values = dataset.read(source.bands, window=window, out=pixels if direct else None)
        valid[:] = read_valid(dataset, source.validity, window, values) if source.has_mask else True
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    if not direct:
        pixels[:] = values if source.scale is None else scaled(values, source.scale)


def scaled(values: NDArray[np.generic], scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Map lo..hi to 0..255, rounded and clipped; NaN becomes 0. The values may be of any type, the result is uint8."""
    lo, hi = scale
    exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    scaled = np.subtract(values, lo, dtype=exact)
    scaled *= exact(255 / (hi - lo))
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    pixels: NDArray[np.uint8] = scaled.astype(np.uint8)
    return pixels


def block_windows(dataset: DatasetReader, pixels: int = 2**22) -> Iterator[Window]:
    """Yield windows that cover the raster once, row after row, of about `pixels` pixels and of whole blocks.

    They are as wide as the raster unless its rows of blocks are far too large for that. Blocks larger than four times
    `pixels` (a file stored as one strip) are cut, since a block in memory costs less than eight arrays of its size.
    """
    block_rows, block_cols = dataset.block_shapes[0]
    height, width = dataset.height, dataset.width
    cols = width
    if block_rows * width > 2 * pixels:
        cols = min(width, max(1, pixels // block_rows // block_cols) * block_cols)
    rows = max(1, pixels // cols)
    if block_rows * cols <= 4 * pixels:
        rows = max(1, rows // block_rows) * block_rows
    for row in range(0, height, rows):
        for col in range(0, width, cols):
            yield Window(col, row, min(cols, width - col), min(rows, height - row))
