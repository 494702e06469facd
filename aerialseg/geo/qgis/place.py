"""Where grids lie, in the words that other programs use: CRS codes, WKT, bounds in another CRS, outlines in WGS 84.

Nothing here opens a file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as reproject_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.geobox import GeoBox

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""
WGS84 = CRS.from_epsg(4326)
DIGITS, CENTIMETRE = 8, 1e-7
"""Of degrees."""
EDGE_STEPS = 8
"""An edge that is straight on the scene's own grid is a curve on another; this many pieces follow it."""


def crs_code(crs: CRS) -> str | None:
    """Return a CRS's code, as EPSG:26914; None when it has none or is not quite what the code stands for."""
    try:
        authority = crs.to_authority(confidence_threshold=90)
        if authority is None or CRS.from_authority(*authority) != crs:
            return None
    except (CRSError, CPLE_BaseError):
        return None
    return ":".join(authority)


def outline(box: GeoBox, target: CRS) -> tuple[tuple[float, float], ...] | None:
    """Return the corners and edges of a grid in `target`, as a closed counter-clockwise ring of (x, y).

    None when the grid has no place on the ground, or none that `target` can express.
    """
    if not box.georeferenced or not box.usable or box.crs is None:
        return None
    steps = EDGE_STEPS if box.crs != target else 1
    up = [index / steps for index in range(steps)]
    pixels = [(0.0, s) for s in up] + [(s, 1.0) for s in up] + [(1.0, 1 - s) for s in up] + [(1 - s, 0.0) for s in up]
    t, width, height = box.transform, box.width, box.height
    xs = [t.a * x * width + t.b * y * height + t.c for x, y in pixels]
    ys = [t.d * x * width + t.e * y * height + t.f for x, y in pixels]
    if box.crs != target:
        try:
            xs, ys = reproject_points(box.crs, target, xs, ys)
        except (CRSError, CPLE_BaseError):
            return None
    if not np.isfinite([xs, ys]).all():
        return None
    ring = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    if _signed_area(ring) < 0:
        ring.reverse()
    return *ring, ring[0]


def bounds_in(box: GeoBox, target: CRS) -> Bounds | None:
    """Return the upright rectangle around a grid in `target`; None when it has no place there."""
    ring = outline(box, target)
    return None if ring is None else around([(*min_xy(ring), *max_xy(ring))])


def footprint(box: GeoBox) -> tuple[dict[str, Any] | None, Bounds | None]:
    """Return a grid's outline in degrees as GeoJSON, and its bounds; (None, None) without a place on the ground.

    Points on the line between others, to a centimetre, are left out. Across the 180th meridian the outline is two
    polygons and the bounds' west is larger than their east (RFC 7946, 3.1.9 and 5.2).
    """
    ring = outline(box, WGS84)
    if ring is None:
        return None, None
    shape, (west, south), (east, north) = shapely.Polygon(ring), min_xy(ring), max_xy(ring)
    if east - west <= 180 and west >= -180 and east <= 180:
        return _geojson([shape]), (west, south, east, north)
    turned = shapely.Polygon([(x % 360, y) for x, y in ring])
    before = turned.intersection(shapely.box(0, -90, 180, 90))
    behind = shapely.transform(turned.intersection(shapely.box(180, -90, 360, 90)), lambda points: points - (360, 0))
    west, _, east, _ = (x if x <= 180 else x - 360 for x in turned.bounds)
    return _geojson([part for part in (before, behind) if part.area > 0]), (west, south, east, north)


def rounded(degrees: Sequence[float]) -> list[float]:
    """Return degrees to the millimetre; behind that, PROJ's versions differ."""
    return [round(number, DIGITS) for number in degrees]


def around(rectangles: Sequence[Bounds]) -> Bounds | None:
    """Return the rectangle around rectangles; None around none."""
    if not rectangles:
        return None
    west, south, east, north = zip(*rectangles, strict=True)
    return min(west), min(south), max(east), max(north)


def min_xy(ring: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the smallest x and the smallest y of points."""
    return min(x for x, _ in ring), min(y for _, y in ring)


def max_xy(ring: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the largest x and the largest y of points."""
    return max(x for x, _ in ring), max(y for _, y in ring)


def _geojson(polygons: Sequence[Any]) -> dict[str, Any]:
    """Return polygons, whose outer rings GeoJSON wants counter-clockwise, simplified and rounded."""
    plain = [shapely.geometry.polygon.orient(polygon.simplify(CENTIMETRE)) for polygon in polygons]
    rings = [[rounded(point) for point in polygon.exterior.coords] for polygon in plain]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def _signed_area(ring: Sequence[tuple[float, float]]) -> float:
    """Return twice the area, positive when the ring runs counter-clockwise (x right, y up)."""
    following = [*ring[1:], ring[0]]
    return math.fsum(x * v - u * y for (x, y), (u, v) in zip(ring, following, strict=True))
