"""Small rasters, made at test time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

AUSTIN = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)
"""The six numbers of an Inria-like grid: 0.3 m pixels in EPSG:26914."""


def write_raster(
    path: Path,
    array: np.ndarray | None = None,
    *,
    size: tuple[int, int] = (128, 128),
    bands: int = 3,
    crs: Any = "EPSG:26914",
    transform: tuple[float, ...] | None = AUSTIN,
    dtype: str = "uint8",
    seed: int = 0,
    **profile: Any,
) -> Path:
    """Write (bands, rows, cols) or (rows, cols) pixels, random when `array` is None, as a GeoTIFF (or `driver=`)."""
    import rasterio
    from affine import Affine

    if array is None:
        high = 256 if dtype == "uint8" else 4096
        array = np.random.default_rng(seed).integers(0, high, (bands, *size)).astype(dtype)
    stack = array[np.newaxis] if array.ndim == 2 else array
    grid = {} if transform is None else {"transform": Affine(*transform)}
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"driver": "GTiff", "crs": crs, **grid, **profile}
    with rasterio.open(
        path, "w", count=stack.shape[0], height=stack.shape[1], width=stack.shape[2], dtype=stack.dtype, **settings
    ) as target:
        target.write(stack)
    return path


def rectangles(height: int, width: int) -> np.ndarray:
    """Return a 0/255 mask with a building in every 64 px square."""
    rows, cols = np.mgrid[:height, :width]
    return np.where((rows % 64 > 16) & (rows % 64 < 48) & (cols % 64 > 8) & (cols % 64 < 40), 255, 0).astype(np.uint8)
