"""Reading a scene at another ground sample distance, window by window.

The new grid keeps the scene's CRS, origin and orientation; only its pixels are larger or smaller. Areas are averaged
when pixels grow and interpolated linearly when they shrink, over valid pixels alone. GDAL's warped virtual rasters are
not used: opening one brings back the virtual driver that `aerialseg.geo` switches off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.quiet import in_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

Reader = Callable[[Window], "tuple[NDArray[np.uint8], NDArray[np.bool_]]"]
"""Reads a window inside a grid: pixels (bands, rows, cols) and which of them are valid (rows, cols)."""
MARGIN = 2
"""Source pixels read around a window, for the interpolation at its edge."""
NEGLIGIBLE = 1e-3
MAJORITY = 0.5 - 1e-6
"""A pixel is valid when this share of its area is."""


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

    def read_resampled(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        around = _source_window(window, factor, source)
        pixels, valid = read(around)
        shares = _warp(valid[np.newaxis].astype(np.float32), source.window_box(around), target.window_box(window))[0]
        sums = _warp(
            np.where(valid, pixels, 0).astype(np.float32), source.window_box(around), target.window_box(window)
        )
        enough = shares >= MAJORITY
        sums[:, enough] /= shares[enough]
        sums[:, ~enough] = 0
        return np.clip(np.rint(sums), 0, 255).astype(np.uint8), enough

    return read_resampled


def _source_window(window: Window, factor: float, source: GeoBox) -> Window:
    """Return the source pixels that a window of the target needs."""
    spans = []
    for (start, stop), length in zip(window.toranges(), (source.height, source.width), strict=True):
        first = min(max(0, math.floor(start * factor) - MARGIN), length - 1)
        spans.append((first, min(length, math.ceil(stop * factor) + MARGIN)))
    return Window.from_slices(*spans)


def _warp(pixels: NDArray[np.float32], source: GeoBox, target: GeoBox) -> NDArray[np.float32]:
    growing = abs(target.transform.determinant) > abs(source.transform.determinant)
    warped = np.zeros((pixels.shape[0], target.height, target.width), dtype=np.float32)
    resampling = Resampling.average if growing else Resampling.bilinear
    with in_memory():
        reproject(
            pixels, warped, src_transform=source.transform, src_crs=source.crs, dst_transform=target.transform,
            dst_crs=target.crs, resampling=resampling, num_threads=1,
        )  # fmt: skip
    return warped
