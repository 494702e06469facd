"""Writing rasters: small tiles in one go, large masks strip by strip, then a cloud-optimised copy.

Profiles are built from scratch; of the scene only size, transform, CRS and ground control points are taken over. A file
gets its final name only after it was closed, opened again and compared with what should be in it: a GeoTIFF whose
writer died opens cleanly and reads as zeros, and GDAL does not always report a full disk.
"""

from __future__ import annotations

import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from aerialseg.errors import AerialsegError, BadDataError, one_line
from aerialseg.files import staged
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import create_raster, open_raster, update_raster, write_error, writing_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray
    from rasterio.io import DatasetReader, DatasetWriter

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
    profile = _profile(box, stack.dtype, stack.shape[0], compress, blocksize)
    with staged(path) as temporary:
        with writing_errors(path, stack.nbytes), create_raster(temporary, **profile, nodata=nodata) as target:
            _georeference(target, box)
            target.update_tags(**(tags or {}))
            target.write(stack)
            if marked is not None:
                target.write_mask(marked)
        with writing_errors(path, stack.nbytes), open_raster(temporary) as written:
            placed = _has_place(written, box)
            same = np.array_equal(written.read(), stack, equal_nan=stack.dtype.kind == "f")
            same = same and (marked is None or np.array_equal(written.dataset_mask() != 0, marked))
        _require_intact(path, same=same, placed=placed)


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
        self._profile = {**profile, "nodata": nodata}
        self._tags = dict(tags or {})
        self._contexts = ExitStack()

    def __enter__(self) -> StripWriter:
        with writing_errors(self._path):
            self._target = self._contexts.enter_context(create_raster(self._path, **self._profile))
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
        try:
            with writing_errors(self._path):
                self._contexts.close()
        except AerialsegError:
            if error is None:  # else the caller's own failure says more than that the file could not be closed
                raise
        if error is None:
            self._verify()

    def _verify(self) -> None:
        covered = sum(rows for rows, _ in self._strips.values())
        if covered != self._box.height:
            raise ValueError(f"{covered} of {self._box.height} rows were written")
        with writing_errors(self._path), open_raster(self._path) as written:
            placed, same = _has_place(written, self._box), True
            for row, (rows, checksum) in self._strips.items():
                strip = written.read(1, window=Window(0, row, self._box.width, rows))
                same = same and zlib.crc32(strip.data) == checksum
        _require_intact(self._path, same=same, placed=placed)


def finish_cog(
    temporary: Path, final: Path, *, tags: Mapping[str, str], resampling: str = "mode", blocksize: int = 512
) -> None:
    """Copy a finished temporary GeoTIFF to a cloud-optimised one with overviews, verify it, and give it its name.

    `tags` are added to those of the temporary file. Memory does not grow with the raster; the GIL is released while
    copying. Raises StorageError or OutputError, leaving an older `final` as it was.
    """
    options = {
        "COMPRESS": "DEFLATE",
        "BLOCKSIZE": blocksize,
        "OVERVIEW_RESAMPLING": resampling.upper(),
        "BIGTIFF": "IF_SAFER",
    }
    needed = temporary.stat().st_size * 4 // 3
    with writing_errors(final), update_raster(temporary) as target:
        target.update_tags(**tags)
    with staged(final) as staging:
        with writing_errors(final, needed), open_raster(temporary) as source:
            rasterio.shutil.copy(source, staging, driver="COG", **options)
        with writing_errors(final, needed), open_raster(temporary) as source, open_raster(staging) as copy:
            placed, same = _has_place(copy, GeoBox.of(source)), _same_pixels(source, copy)
        _require_intact(final, same=same, placed=placed)


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


def _georeference(target: DatasetWriter, box: GeoBox) -> None:
    if box.gcps and not box.georeferenced:
        target.gcps = ([GroundControlPoint(*point) for point in box.gcps], box.gcps_crs)
        return
    if box.crs is not None:
        target.crs = box.crs
    if box.transform != Affine.identity():
        target.transform = box.transform


def _has_place(written: DatasetReader, box: GeoBox) -> bool:
    """Return whether a file read back lies where it should, by its own bytes alone.

    What a GeoTIFF cannot hold, GDAL puts into a .aux.xml beside the temporary name, where it would be lost.
    """
    found = GeoBox.of(written)
    if Path(f"{written.name}.aux.xml").exists():
        return False
    if box.gcps and not box.georeferenced:
        return [point[:5] for point in box.gcps] == [point[:5] for point in found.gcps]
    return bool(found.transform == box.transform and found.crs == box.crs)


def _require_intact(path: Path, *, same: bool, placed: bool) -> None:
    """Raise unless a file that was read back has the pixels and the place that were written."""
    if not same:
        raise write_error(path, "the file does not read back as written")
    if not placed:
        raise BadDataError(f"{one_line(path)}: a GeoTIFF cannot hold the scene's CRS: gdalwarp the scene to another")


def _same_pixels(first: DatasetReader, second: DatasetReader) -> bool:
    height, width = first.height, first.width
    if (second.height, second.width, second.count) != (height, width, first.count):
        return False
    rows = max(STRIP_BLOCK, COMPARED_PIXELS // width // STRIP_BLOCK * STRIP_BLOCK)
    strips = (Window(0, row, width, min(rows, height - row)) for row in range(0, height, rows))
    nan = first.dtypes[0].startswith("float")
    return all(
        np.array_equal(first.read(1, window=strip), second.read(1, window=strip), equal_nan=nan) for strip in strips
    )
