"""Overviews of classes: each pixel of a smaller raster is what most of the four below it are.

GDAL's own `mode` takes more time than all the rest of a mask's COG; for two by two pixels it is a few comparisons.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.geo.opening import create_raster, open_raster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ROWS = 512
"""An even number of rows that are looked at together."""


@contextmanager
def with_overviews(plain: Path, nodata: int, largest: int) -> Iterator[None]:
    """Put overviews beside a temporary one-band uint8 raster for as long as the block lasts.

    Each halves the one before, until height and width are `largest` at most. GDAL takes NAME.ovr for the overview of
    NAME, and NAME.ovr.ovr for that one's. Raises what rasterio and the operating system raise.
    """
    made: list[Path] = []
    try:
        finer = plain
        while (coarser := _halve(finer, nodata, largest, made)) is not None:
            finer = coarser
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _halve(path: Path, nodata: int, largest: int, made: list[Path]) -> Path | None:
    """Write the overview of a raster, note it in `made` and return it; None when the raster is small enough."""
    with open_raster(path) as source:
        height, width = source.shape
        if max(height, width) <= largest:
            return None
        overview = Path(f"{path}.ovr")
        made.append(overview)
        size = {"height": -(-height // 2), "width": -(-width // 2), "count": 1, "dtype": "uint8"}
        with create_raster(overview, driver="GTiff", nodata=nodata, BIGTIFF="IF_SAFER", **size) as target:
            for row in range(0, height, ROWS):
                rows = source.read(1, window=Window(0, row, width, min(ROWS, height - row)))
                half = majority(rows, nodata)
                target.write(half, 1, window=Window(0, row // 2, half.shape[1], len(half)))
    if overview.stat().st_size < size["height"] * size["width"]:  # GDAL does not always say that a disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return overview


def majority(values: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
    """Return what most of each two by two pixels are, [half the rows, half the columns], rounded up.

    Of equal numbers the first counts, from the left and the top; nodata counts only where there is nothing else. An odd
    last row or column stands for two of its kind.
    """
    height, width = values.shape
    if height % 2 or width % 2:
        values = np.pad(values, ((0, height % 2), (0, width % 2)), mode="edge")
    four = [np.ascontiguousarray(values[row::2, col::2]) for row in (0, 1) for col in (0, 1)]
    chosen = four[0]
    mixed = np.flatnonzero((chosen != four[1]) | (chosen != four[2]) | (chosen != four[3]))
    a, b, c, d = (corner.ravel()[mixed] for corner in four)
    first = np.where(a != nodata, a, np.where(b != nodata, b, np.where(c != nodata, c, d)))
    decided = np.where((c == d) & (c != nodata), c, first)
    decided = np.where(((b == c) | (b == d)) & (b != nodata), b, decided)
    chosen.ravel()[mixed] = np.where(((a == b) | (a == c) | (a == d)) & (a != nodata), a, decided)
    return chosen
