"""Writing rasters: small tiles in one go, large masks strip by strip, then a cloud-optimised copy.

Profiles are built from scratch; of the scene only size, transform, CRS and ground control points are taken over. A file
gets its final name only after it was closed, opened again and compared with what should be in it: a GeoTIFF whose
writer died opens cleanly and reads as zeros, and GDAL does not always report a full disk. Overviews of classes are made
here: each pixel is what most of the four below it are, for which GDAL's own `mode` takes more time than all the rest.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from aerialseg.errors import BadDataError, one_line
from aerialseg.files import exists, staged, temporary_file
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import create_raster, open_raster, write_error, writing_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader, DatasetWriter

COG_BLOCK = 512
PLAIN_ROWS = 16
"""Rows that lie together in the temporary file; GDAL holds some 64 MB of them while it copies blocks."""
COG_BYTES, PLAIN_BYTES = 0.1, 4 / 3
"""Disk that a pixel of a mask takes, compressed and with overviews, and before that in the plain file."""
ROWS = 512
"""An even number of rows that are looked at together, and a whole number of blocks of overviews."""
SHARE_BLOCK = 8
"""Side of the squares of an overview of a mask in which the share of 1 stays as it is."""
TWELFTHS = np.array([[12 * ones // max(known, 1) for ones in range(5)] for known in range(5)], np.uint8)
"""By valid quarters of a pixel and those among them that are 1: the share of 1 in twelfths, which are exact."""


def write_geotiff(  # noqa: PLR0913  (what a GeoTIFF can hold)
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


@dataclass(frozen=True, slots=True)
class BandMeaning:
    """How the values of a one-band raster are meant."""

    nodata: int
    resampling: Literal["mode", "share", "average"] = "mode"
    """How overviews are made: classes by majority, masks so that the share of 1 stays, measurements by their mean."""
    scale: float | None = None
    """What a stored value is multiplied by to give the real one; GDAL and QGIS apply it."""


def write_cog(
    path: Path,
    box: GeoBox,
    strips: Callable[[], Iterable[NDArray[np.uint8]]],
    layer: BandMeaning,
    *,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a one-band uint8 raster, given as full-width strips from the top down, as a cloud-optimised GeoTIFF.

    `strips` is called twice: to write, and to compare with what the finished file reads back as. A plain temporary file
    goes first, for GDAL's COG driver copies and cannot be fed; memory does not grow with the raster. The GIL is
    released while copying. Raises StorageError or OutputError, leaving an older file at `path` as it was, and
    BadDataError when a GeoTIFF cannot hold the CRS.
    """
    options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": COG_BLOCK}
    options["OVERVIEW_RESAMPLING"] = "AVERAGE" if layer.resampling == "average" else "MODE"
    needed = box.height * box.width
    with temporary_file(path.parent, ".tif") as plain:
        with writing_errors(path, needed):
            _write_plain(plain, box, strips(), layer, tags or {})
        with staged(path) as staging:
            # Overviews of classes the COG takes over; those of measurements it makes itself.
            classes = layer.resampling != "average"
            overviews = with_overviews(plain, layer, COG_BLOCK) if classes else nullcontext()
            with writing_errors(path, needed), overviews, open_raster(plain, overviews=True) as source:
                rasterio.shutil.copy(source, staging, driver="COG", BIGTIFF="IF_SAFER", **options)
            with writing_errors(path, needed), open_raster(staging) as copy:
                placed, same = _has_place(copy, box), _holds(copy, strips())
            _require_intact(path, same=same, placed=placed)


def _write_plain(
    path: Path, box: GeoBox, strips: Iterable[NDArray[np.uint8]], layer: BandMeaning, tags: Mapping[str, str]
) -> None:
    """Write an uncompressed GeoTIFF from the top down; whatever the height of a strip, nothing is written twice."""
    profile = {**_profile(box, np.dtype(np.uint8), 1, "NONE", COG_BLOCK), "tiled": False, "blockysize": PLAIN_ROWS}
    del profile["blockxsize"]
    row = 0
    with create_raster(path, **profile, nodata=layer.nodata) as target:
        _georeference(target, box)
        target.update_tags(**tags)
        if layer.scale is not None:
            target.scales, target.offsets = (layer.scale,), (0.0,)
        for strip in strips:
            rows, cols = strip.shape
            if cols != box.width or row + rows > box.height:
                raise ValueError(f"strip of {rows}x{cols} at row {row} does not fit {box.height}x{box.width}")
            target.write(strip, 1, window=Window(0, row, cols, rows))
            row += rows
    if row != box.height:
        raise ValueError(f"{row} of {box.height} rows were given")


def _holds(written: DatasetReader, strips: Iterable[NDArray[np.uint8]]) -> bool:
    """Return whether a file reads back as the strips that went into it."""
    row = 0
    for strip in strips:
        if not np.array_equal(written.read(1, window=Window(0, row, written.width, len(strip))), strip):
            return False
        row += len(strip)
    return bool(row == written.height)


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
    if exists(Path(f"{written.name}.aux.xml")):
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


@contextmanager
def with_overviews(plain: Path, layer: BandMeaning, largest: int) -> Iterator[None]:
    """Put overviews beside a temporary one-band uint8 raster for as long as the block lasts.

    Each halves the one before, until height and width are `largest` at most. GDAL takes NAME.ovr for the overview of
    NAME, and NAME.ovr.ovr for that one's. Raises what rasterio and the operating system raise.
    """
    made: list[Path] = []
    try:
        finer = plain
        while (coarser := _halve(finer, layer, largest, made)) is not None:
            finer = coarser
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _halve(path: Path, layer: BandMeaning, largest: int, made: list[Path]) -> Path | None:
    """Write the overview of a raster, note it in `made` and return it; None when the raster is small enough."""
    with open_raster(path) as source:
        height, width = source.shape
        if max(height, width) <= largest:
            return None
        overview, owed = Path(f"{path}.ovr"), 0
        made.append(overview)
        size = {"height": -(-height // 2), "width": -(-width // 2), "count": 1, "dtype": "uint8"}
        with create_raster(overview, driver="GTiff", nodata=layer.nodata, BIGTIFF="IF_SAFER", **size) as target:
            for row in range(0, height, ROWS):
                rows = source.read(1, window=Window(0, row, width, min(ROWS, height - row)))
                if layer.resampling == "share":
                    half, owed = same_share(rows, layer.nodata, owed)
                else:
                    half = majority(rows, layer.nodata)
                target.write(half, 1, window=Window(0, row // 2, half.shape[1], len(half)))
    if overview.stat().st_size < size["height"] * size["width"]:  # GDAL does not always say that a disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return overview


def same_share(values: NDArray[np.uint8], nodata: int, owed: int = 0) -> tuple[NDArray[np.uint8], int]:
    """Halve a mask of 0, 1 and nodata so that in every 8 by 8 pixels as many are 1 as make up the area of 1 there.

    By majority, houses smaller than four pixels would vanish and towns with them. A pixel's share of 1 is taken over
    its valid quarters, in twelfths; within a block the pixels of the largest shares become 1, and of equal ones some,
    spread evenly. `owed` is the part of a pixel, in twelfths, that the blocks above and to the left left over; what is
    left over in the end is returned beside the [half the rows, half the columns], rounded up. Nodata counts only where
    there is nothing else; an odd last row or column stands for two of its kind.
    """
    height, width = (-(-length // 2) for length in values.shape)
    values = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2)), mode="edge")
    filled = np.pad(values, [(0, -length % (2 * SHARE_BLOCK)) for length in values.shape])
    corners = [filled[row::2, col::2] for row in (0, 1) for col in (0, 1)]
    half = corners[0].copy()
    unlike = (half != corners[1]) | (half != corners[2]) | (half != corners[3])
    shape = half.shape[0] // SHARE_BLOCK, SHARE_BLOCK, half.shape[1] // SHARE_BLOCK, SHARE_BLOCK
    place = np.nonzero(unlike.reshape(shape).any(axis=(1, 3)))  # elsewhere the area is a whole number of pixels
    four = np.stack([corner.reshape(shape)[place[0], :, place[1]] for corner in corners])
    known = (four != nodata).sum(axis=0, dtype=np.uint8)
    shares = TWELFTHS[known, (four == 1).sum(axis=0, dtype=np.uint8)].reshape(-1, SHARE_BLOCK**2)
    area = owed + np.cumsum(shares.sum(axis=1, dtype=np.int64))
    wanted = np.diff((area + 6) // 12, prepend=(owed + 6) // 12)
    chosen = _largest(shares, wanted).reshape(known.shape).view(np.uint8)
    half.reshape(shape)[place[0], :, place[1]] = np.where(known == 0, np.uint8(nodata), chosen)
    last = int(area[-1]) if len(area) else owed
    return np.ascontiguousarray(half[:height, :width]), last - (last + 6) // 12 * 12


def _largest(shares: NDArray[np.uint8], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of each row's shares, 0 to 12, are among its `wanted` largest; of equal ones some, spread evenly."""
    least, left = np.full(len(shares), -1, np.int8), wanted.astype(np.uint16)
    for share in np.flatnonzero(np.bincount(shares.ravel()))[::-1]:  # until there are more of one than are still wanted
        count = np.count_nonzero(shares == share, axis=1)
        undecided, enough = least < 0, count > left
        least = np.where(undecided & enough, np.int8(share), least)
        left = np.where(undecided & ~enough, left - count, left).astype(np.uint16)
    equal = shares == least[:, None]
    order = equal.cumsum(axis=1, dtype=np.uint16)
    many = np.maximum(order[:, -1:], 1)
    spread = order * left[:, None] // many > (order - np.uint16(1)) * left[:, None] // many
    chosen: NDArray[np.bool_] = (shares > least[:, None]) | (equal & spread & (left > 0)[:, None])
    return chosen


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
