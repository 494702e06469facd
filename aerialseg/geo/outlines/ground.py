"""Metres and square metres on the ground around a raster, whatever its CRS counts in.

In a projection that is true to scale, lengths and areas are those of its plane, times its unit. Degrees, and
projections with a false scale such as Web Mercator, are measured on the ellipsoid; lengths there are those of a
transverse Mercator projection around the raster's centre, on the same datum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import CRS, Proj, Transformer
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import TransverseMercatorConversion
from pyproj.exceptions import ProjError

from aerialseg.errors import BadDataError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aerialseg.geo.geobox import GeoBox

    Shapes = NDArray[np.object_]
    Points = NDArray[np.float64]

TRUE_AREA = 0.02
"""A projection whose areas are off by more is not measured in its plane; UTM and national grids stay below 0.002."""


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """How to measure around one raster."""

    crs: CRS
    origin: tuple[float, float]
    """The raster's centre, in the CRS."""
    unit_m: float | None
    """Metres in a unit of the plane; None where the plane is not true to scale."""

    @classmethod
    def of(cls, box: GeoBox) -> Ground:
        """Return the ground around a georeferenced raster."""
        if box.crs is None:
            raise ValueError("a raster without a CRS has no ground")
        crs, t = CRS.from_wkt(box.crs.to_wkt()), box.transform
        col, row = box.width / 2, box.height / 2
        origin = (t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f)
        unit = None if crs.is_geographic or not _true_to_scale(crs, origin) else float(box.crs.units_factor[1])
        return cls(crs, origin, unit)

    def area_m2(self, shapes: Shapes) -> NDArray[np.float64]:
        """Return the areas of polygons in the CRS."""
        if self.unit_m is not None:
            planar: NDArray[np.float64] = shapely.area(shapes) * self.unit_m**2
            return planar
        placed, geod = shapely.transform(shapes, self._to_degrees()), self.crs.get_geod()
        if geod is None:
            raise BadDataError(f"{one_line(self.crs.name)}: has no ellipsoid to measure areas on; reproject the mask")
        return np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in placed])

    def to_metres(self) -> Callable[[Points], Points]:
        """Return what takes points (n, 2) of the CRS to metres from about the raster's centre."""
        if self.unit_m is None:
            return self._between(self.crs, self._local())
        origin, unit = np.array(self.origin), self.unit_m
        return lambda points: (points - origin) * unit

    def from_metres(self) -> Callable[[Points], Points]:
        """Return the way back."""
        if self.unit_m is None:
            return self._between(self._local(), self.crs)
        origin, unit = np.array(self.origin), self.unit_m
        return lambda points: points / unit + origin

    def to_crs(self, target: CRS) -> Callable[[Points], Points]:
        """Return what takes points of the CRS to another; raises BadDataError where there is no way."""
        return self._between(self.crs, target)

    def _to_degrees(self) -> Callable[[Points], Points]:
        return self._between(self.crs, self.crs.geodetic_crs)

    def _local(self) -> CRS:
        (longitude, latitude) = self._to_degrees()(np.array([self.origin]))[0]
        centred = TransverseMercatorConversion(latitude, longitude, 0, 0, 1)
        return ProjectedCRS(centred, name="around the raster", geodetic_crs=self.crs.geodetic_crs)

    def _between(self, source: CRS, target: CRS) -> Callable[[Points], Points]:
        try:
            way = Transformer.from_crs(source, target, always_xy=True)
        except ProjError as error:
            name, other = one_line(self.crs.name), one_line(target.name)
            raise BadDataError(f"no way from CRS {name} to {other}: {one_line(str(error))}") from error

        def move(points: Points) -> Points:
            return np.stack(way.transform(points[:, 0], points[:, 1]), axis=1)

        return move


def _true_to_scale(crs: CRS, origin: tuple[float, float]) -> bool:
    """Return whether areas in the plane are those on the ellipsoid, as far as anybody can say."""
    if crs.geodetic_crs is None:
        return True
    way = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    longitude, latitude = way.transform(*origin)
    try:
        scale = Proj(crs).get_factors(longitude, latitude).areal_scale
    except ProjError:
        return True
    return bool(abs(scale - 1) <= TRUE_AREA)
