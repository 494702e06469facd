"""Where a raster's pixels lie on the ground: its size, transform and CRS, as one value; whether two agree.

Nothing here opens a file. Coordinates are the CRS's own; pixel offsets are (rows, cols).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyproj
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as reproject_points

from aerialseg.errors import BadDataError, folded, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rasterio.io import DatasetReader
    from rasterio.windows import Window

Gcp = tuple[float, float, float, float, float, str, str]
"""A ground control point: row, col, x, y, z, id, info."""

EARTH_RADIUS_M = 6378137.0
EARTH_ECCENTRICITY2 = 0.00669437999014
"""WGS 84; other ellipsoids differ by less than 0.02 %."""
TRUE_SCALE_TOLERANCE = 0.01
"""A projection whose metres are off by more (Web Mercator away from the equator) is measured on the ellipsoid."""
EXACT_SHIFT = 0.01
TOLERATED_SHIFT = 0.5
"""In pixels, at the worst corner; half a pixel is the difference between pixel-is-area and pixel-is-point."""
GSD_TOLERANCE = 0.1
"""The share by which a ground sample distance may differ from what a network has learned on."""


@dataclass(frozen=True, slots=True)
class GeoBox:
    """The grid of a raster; rotated and south-up grids are kept as they are."""

    height: int
    width: int
    transform: Affine
    """Pixel corner (col, row) to CRS coordinates; the identity when the file has none."""
    crs: CRS | None
    gcps: tuple[Gcp, ...] = ()
    gcps_crs: CRS | None = None

    @classmethod
    def of(cls, dataset: DatasetReader) -> GeoBox:
        """Return the grid of an open dataset."""
        points, points_crs = dataset.gcps
        gcps = tuple((p.row, p.col, p.x, p.y, p.z or 0.0, p.id or "", p.info or "") for p in points)
        return cls(dataset.height, dataset.width, dataset.transform, dataset.crs, gcps, points_crs if gcps else None)

    @property
    def georeferenced(self) -> bool:
        """Whether pixels have a place on the ground: a CRS and a transform (GCPs alone are not a grid)."""
        return self.crs is not None and self.transform != Affine.identity()

    @property
    def usable(self) -> bool:
        """Whether every pixel has a place of its own: six finite numbers, and a pixel has an area."""
        return all(map(math.isfinite, self.transform)) and self.transform.determinant != 0

    def require_usable(self, name: str) -> None:
        """Raise BadDataError, about the file called `name`, when pixels have no place of their own."""
        if not self.usable:
            raise BadDataError(f"{name}: its transform gives pixels no place or no area: gdal_translate -a_ullr ...")

    @property
    def bounds(self) -> BoundingBox:
        """The smallest upright rectangle around the four corners, in CRS units."""
        xs, ys = zip(*(_at(self.transform, *corner) for corner in self._corners()), strict=True)
        return BoundingBox(min(xs), min(ys), max(xs), max(ys))

    @property
    def gsd_m(self) -> float | None:
        """Ground sample distance in metres at the centre (the geometric mean of both axes); None when unknown.

        Degrees are measured on the ellipsoid, feet by the CRS's own unit, and a projection with a false scale, such as
        Web Mercator, on the ellipsoid too.
        """
        if self.crs is None or not self.georeferenced:
            return None
        unit = float(self.crs.units_factor[1])
        if self.crs.is_geographic:
            _, latitude = _at(self.transform, self.width / 2, self.height / 2)
            return _ellipsoidal_gsd_m(self.transform, unit, latitude)
        projected = math.sqrt(abs(self.transform.determinant)) * unit
        true = self._reprojected_gsd_m()
        return projected if true is None or abs(projected / true - 1) <= TRUE_SCALE_TOLERANCE else true

    def window_box(self, window: Window) -> GeoBox:
        """Return the grid of a window of this raster."""
        row, col = window.row_off, window.col_off
        gcps = tuple((p[0] - row, p[1] - col, *p[2:]) for p in self.gcps)
        t, (x, y) = self.transform, _at(self.transform, col, row)
        transform = t if t == Affine.identity() else Affine(t.a, t.b, x, t.d, t.e, y)
        return GeoBox(int(window.height), int(window.width), transform, self.crs, gcps, self.gcps_crs)

    def offset_to(self, other: GeoBox) -> tuple[float, float]:
        """Return where the origin of `other` lies on this grid, as (rows, cols) in pixels; the CRSs must agree."""
        col, row = _at(~self.transform, other.transform.c, other.transform.f)
        return row, col

    def largest_shift(self, other: GeoBox) -> float:
        """Return by how many pixels the corners of `other` miss those of this grid, the worst of the four."""
        shifts = []
        for own, theirs in zip(self._corners(), other._corners(), strict=True):
            col, row = _at(~self.transform, *_at(other.transform, *theirs))
            shifts.append(math.hypot(col - own[0], row - own[1]))
        return max(shifts)

    def describe(self) -> str:
        """Return the grid in a few words, for a message."""
        t = self.transform
        crs = "no CRS" if self.crs is None else self.crs.to_string()
        crs = crs if len(crs) < 40 else f"{crs[:36]}..."
        return f"{self.height}x{self.width} px at ({t.c:.10g}, {t.f:.10g}), pixel {t.a:.6g} x {t.e:.6g}, {crs}"

    def _corners(self) -> tuple[tuple[float, float], ...]:
        return (0.0, 0.0), (self.width, 0.0), (0.0, self.height), (self.width, self.height)

    def _reprojected_gsd_m(self) -> float | None:
        """Measure the centre pixel on the ellipsoid; None when the CRS has no place on the earth."""
        steps = ((0, 0), (1, 0), (0, 1))
        points = [_at(self.transform, self.width / 2 + col, self.height / 2 + row) for col, row in steps]
        try:
            lons, lats = reproject_points(self.crs, "EPSG:4326", *map(list, zip(*points, strict=True)))
        except (CRSError, CPLE_BaseError):
            return None
        if not all(map(math.isfinite, (*lons, *lats))):
            return None
        columns = lons[1] - lons[0], lats[1] - lats[0]
        rows = lons[2] - lons[0], lats[2] - lats[0]
        local = Affine(columns[0], rows[0], 0, columns[1], rows[1], 0)
        return _ellipsoidal_gsd_m(local, math.pi / 180, lats[0])


def same_horizontal(one: CRS | None, other: CRS | None) -> bool:
    """Return whether two CRSs, in whatever words, give a place on the ground the same coordinates; heights aside."""
    if one is None or other is None or one == other:
        return one == other
    return _same_horizontal(one.to_wkt(), other.to_wkt())


def by_horizontal(systems: Iterable[CRS]) -> list[list[int]]:
    """Return the places of CRSs in groups that are one, heights aside, in the order of their first members."""
    groups: list[list[int]] = []
    known: dict[str, list[int]] = {}
    firsts: list[CRS] = []
    for index, crs in enumerate(systems):
        wkt = crs.to_wkt()
        if wkt not in known:
            number = next((number for number, first in enumerate(firsts) if same_horizontal(first, crs)), len(groups))
            if number == len(groups):
                firsts.append(crs)
                groups.append([])
            known[wkt] = groups[number]
        known[wkt].append(index)
    return groups


def heights_note(name: str, one: CRS, other: CRS) -> str | None:
    """Say that the raster `name`, in one CRS, is laid on ground in the other, which tells other heights or none."""
    if one == other:
        return None
    told, taken = (pyproj.CRS.from_wkt(crs.to_wkt()).name for crs in (one, other))
    return f"{name}: its CRS, {one_line(told)}, differs from {one_line(taken)} in heights only; taken as one"


def check_same_grid(one: GeoBox, other: GeoBox, names: tuple[object, object]) -> str | None:
    """Return None when two rasters share a grid, or a warning when they miss by up to half a pixel.

    CRSs that differ in heights only are one, with a warning. A raster without georeferencing is taken to lie on the
    other's pixels when the sizes agree; with a warning when only one has none. Raises BadDataError with both grids and
    the offset in pixels.
    """
    here, there = (one_line(str(name)) for name in names)
    for name, box in ((here, one), (there, other)):
        box.require_usable(name)
    grids = f"{here} is {one.describe()}; {there} is {other.describe()}"
    same_size = (one.height, one.width) == (other.height, other.width)
    if not (one.georeferenced and other.georeferenced):
        if not same_size:
            raise BadDataError(f"{there}: does not fit {here}: {grids}; cut both to one grid")
        return _said_of_bare((here, one), (there, other))
    row, col = one.offset_to(other)
    shift = one.largest_shift(other)
    same_pixels = same_size and shift <= TOLERATED_SHIFT
    if not same_horizontal(one.crs, other.crs):
        way = f"if only its label is wrong, {_relabel(one, there)}" if same_pixels else "gdalwarp it to the same grid"
        raise BadDataError(f"{there}: is in another CRS than {here}: {grids}; {way}")
    offset = f"offset {row:+.2f} rows, {col:+.2f} columns"
    if not same_pixels:
        raise BadDataError(f"{there}: does not lie on the grid of {here}: {grids}; {offset}; cut both to one grid")
    if shift > EXACT_SHIFT:
        return f"{there}: lies {shift:.2f} px off {here} ({offset}); taken pixel by pixel"
    return None if one.crs is None or other.crs is None else heights_note(there, other.crs, one.crs)


def _said_of_bare(first: tuple[str, GeoBox], second: tuple[str, GeoBox]) -> str | None:
    """Return a warning when of two rasters of one size just one has a place."""
    if first[1].georeferenced == second[1].georeferenced:
        return None
    (name, bare), (_, placed) = (second, first) if first[1].georeferenced else (first, second)
    if bare.crs is None and bare.largest_shift(placed) <= TOLERATED_SHIFT:
        return f"{name}: has no CRS; taken pixel by pixel; {_relabel(placed, name)} says where it lies"
    return f"{name}: has no georeferencing; taken pixel by pixel"


def _relabel(box: GeoBox, name: str) -> str:
    """Return the command that gives a file the CRS of `box`."""
    code = "" if box.crs is None else box.crs.to_string()
    return f"gdal_edit.py -a_srs {code if code.startswith('EPSG:') else 'EPSG:...'} {name}"


def heights_notes(rasters: Sequence[tuple[str, CRS]]) -> list[str]:
    """Say of rasters, by name and CRS, which are taken for one CRS with others that tell other heights or none."""
    groups = by_horizontal(crs for _, crs in rasters)
    notes = (heights_note(*rasters[index], rasters[members[0]][1]) for members in groups for index in members)
    return folded(note for note in notes if note is not None)


@lru_cache(maxsize=256)
def _same_horizontal(one: str, other: str) -> bool:
    try:
        flat = [CRS.from_wkt(pyproj.CRS.from_wkt(wkt).to_2d().to_wkt()) for wkt in (one, other)]
    except (CRSError, pyproj.exceptions.CRSError):
        return False
    return bool(flat[0] == flat[1])


def gsd_differs(gsd_m: float | None, expected_m: float | None) -> bool:
    """Return whether a known ground sample distance is another one to a network than the known one it expects."""
    if not gsd_m or not expected_m:
        return False
    return abs(gsd_m / expected_m - 1) > GSD_TOLERANCE


def _at(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Return where a transform takes a point; affine 2 and 3 spell this differently."""
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _ellipsoidal_gsd_m(transform: Affine, radians: float, latitude: float) -> float:
    """Return the root of a pixel's area on WGS 84, given its sides in angular units at a latitude in those units."""
    sine = math.sin(latitude * radians)
    flattened = 1 - EARTH_ECCENTRICITY2 * sine * sine
    meridian = EARTH_RADIUS_M * (1 - EARTH_ECCENTRICITY2) / flattened**1.5
    parallel = EARTH_RADIUS_M / math.sqrt(flattened) * math.sqrt(max(0.0, 1 - sine * sine))
    return math.sqrt(abs(transform.determinant) * radians**2 * meridian * parallel)
