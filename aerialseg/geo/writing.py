"""Writing rasters: small tiles in one go, large masks strip by strip, then a cloud-optimised copy.

Profiles are built from scratch; of the scene only size, transform, CRS and ground control points are taken over. A file
gets its final name only after it was closed, opened again and compared with what should be in it: a GeoTIFF whose
writer died opens cleanly and reads as zeros, and GDAL does not always report a full disk.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from aerialseg.files import staged
from aerialseg.geo.opening import create_raster, open_raster, update_raster, write_error, writing_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray

    from aerialseg.geo.geobox import GeoBox

STRIP_BLOCK = 512
COMPARED_PIXELS = 1 << 22
"""Two rasters are compared in strips of about this many pixels."""


def write_geotiff(
    path: Path,
    array: NDArray[Any],
    box: GeoBox,
    *,
    nodata: float | None = None,
    tags: Mapping[str, str] | None = None,
    compress: str = "ZSTD",
    blocksize: int = 256,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Write a whole small raster, (bands, rows, cols) or (rows, cols), under its final name at once.

    `valid` (rows, cols), when not all true, is stored as an internal mask band. Raises StorageError or OutputError.
    """
    stack = array[np.newaxis] if array.ndim == 2 else array
    if stack.shape[1:] != (box.height, box.width):
        raise ValueError(f"array of {stack.shape[1:]} does not fit a grid of {box.height}x{box.width}")
    marked = None if valid is None or valid.all() else valid
    with staged(path) as temporary:
        profile = _profile(box, stack.dtype, stack.shape[0], compress, blocksize)
        with create_raster(temporary, **profile, nodata=nodata) as target:
            _georeference(target, box)
            target.update_tags(**(tags or {}))
            target.write(stack)
            if marked is not None:
                target.write_mask(marked)
        with writing_errors(temporary), open_raster(temporary) as written:
            same = np.array_equal(written.read(), stack, equal_nan=stack.dtype.kind == "f")
            if not same or (marked is not None and not np.array_equal(written.dataset_mask() != 0, marked)):
                raise write_error(path, "the file does not read back as written")


class StripWriter:
    """Writes a one-band raster from the top down to a temporary tiled GeoTIFF, for `finish_cog` to copy.

    Use it as a context manager in one thread. Leaving it closes the file and reads every strip back. Memory: one row of
    blocks. The caller chooses `path` (see `aerialseg.files.TEMPORARY`) and removes it.
    """

    def __init__(
        self, path: Path, box: GeoBox, dtype: DTypeLike, nodata: float | None, tags: Mapping[str, str] | None = None
    ) -> None:
        self._path, self._box = path, box
        self._strips: dict[int, tuple[int, int]] = {}
        profile = _profile(box, np.dtype(dtype), 1, "ZSTD", STRIP_BLOCK)
        self._opened = create_raster(path, **profile, nodata=nodata)
        self._tags = dict(tags or {})

    def __enter__(self) -> StripWriter:
        self._target = self._opened.__enter__()
        with writing_errors(self._path):
            _georeference(self._target, self._box)
            self._target.update_tags(**self._tags)
        return self

    def write(self, row: int, strip: NDArray[Any]) -> None:
        """Write full-width rows (rows, cols) starting at `row`."""
        rows, cols = strip.shape
        if cols != self._box.width or row < 0 or row + rows > self._box.height:
            raise ValueError(f"strip of {rows}x{cols} at row {row} does not fit {self._box.height}x{self._box.width}")
        strip = np.ascontiguousarray(strip)
        self._strips[row] = rows, zlib.crc32(strip.data)
        with writing_errors(self._path):
            self._target.write(strip, 1, window=Window(0, row, cols, rows))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)
        if error is None:
            self._verify()

    def _verify(self) -> None:
        covered = sum(rows for rows, _ in self._strips.values())
        if covered != self._box.height:
            raise ValueError(f"{covered} of {self._box.height} rows were written")
        with writing_errors(self._path), open_raster(self._path) as written:
            for row, (rows, checksum) in self._strips.items():
                strip = written.read(1, window=Window(0, row, self._box.width, rows))
                if zlib.crc32(strip.data) != checksum:
                    raise write_error(self._path, f"rows {row}-{row + rows - 1} do not read back as written")


def finish_cog(
    temporary: Path, final: Path, *, tags: Mapping[str, str], resampling: str = "mode", blocksize: int = 512
) -> None:
    """Copy a finished temporary GeoTIFF to a cloud-optimised one with overviews, verify it, and give it its name.

    `tags` are added to those of the temporary file. Memory does not grow with the raster; the GIL is released while
    copying. Raises StorageError or OutputError, leaving an older `final` as it was.
    """
    with update_raster(temporary) as target:
        target.update_tags(**tags)
    options = {
        "COMPRESS": "DEFLATE",
        "BLOCKSIZE": blocksize,
        "OVERVIEW_RESAMPLING": resampling.upper(),
        "BIGTIFF": "IF_SAFER",
    }
    with staged(final) as staging:
        with writing_errors(staging), open_raster(temporary) as source:
            rasterio.shutil.copy(source, staging, driver="COG", **options)
        if not _same_pixels(temporary, staging):
            raise write_error(final, "the copy does not read back as written")


def _profile(box: GeoBox, dtype: np.dtype[Any], bands: int, compress: str, blocksize: int) -> dict[str, Any]:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": box.height,
        "width": box.width,
        "count": bands,
        "dtype": dtype.name,
        "tiled": True,
        "blockxsize": blocksize,
        "blockysize": blocksize,
        "compress": compress,
        "interleave": "pixel",
        "BIGTIFF": "IF_SAFER",
    }
    if compress == "ZSTD":
        profile["ZSTD_LEVEL"] = 1
    if bands == 3:
        profile["photometric"] = "RGB"
    return profile


def _georeference(target: Any, box: GeoBox) -> None:
    if box.gcps:
        points = [GroundControlPoint(*point) for point in box.gcps]
        target.gcps = (points, box.gcps_crs)
        return
    if box.crs is not None:
        target.crs = box.crs
    if not box.transform.is_identity:
        target.transform = box.transform


def _same_pixels(first: Path, second: Path) -> bool:
    with writing_errors(second), open_raster(first) as one, open_raster(second) as other:
        if (one.height, one.width, one.crs, one.transform) != (other.height, other.width, other.crs, other.transform):
            return False
        return all(
            np.array_equal(one.read(1, window=strip), other.read(1, window=strip), equal_nan=one.dtypes[0][0] == "f")
            for strip in _strips(one.height, one.width)
        )


def _strips(height: int, width: int) -> Iterator[Window]:
    rows = max(STRIP_BLOCK, COMPARED_PIXELS // width // STRIP_BLOCK * STRIP_BLOCK)
    return (Window(0, row, width, min(rows, height - row)) for row in range(0, height, rows))
