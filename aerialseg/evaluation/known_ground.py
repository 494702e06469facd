"""The ground on which polygons are judged: where the predictions have data, within the labelled area, in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.features
import shapely
import shapely.affinity
import shapely.geometry
from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import ProjError

from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.labels import decide_rule, read_mask
from aerialseg.geo.opening import in_memory, open_raster
from aerialseg.geo.raster import block_windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from aerialseg.evaluation.pairs import Pair
    from aerialseg.geo.labels import ResolvedRule
    from aerialseg.geo.vectors import Layer

HAIR_M = 0.01
"""Ground grows by this much: scenes that touch leave no seam, and rounded corners on an edge do not leave it."""
STRAIGHT = 512
"""Pixels along an edge that another projection may bend, before it gets a point of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownGround:
    """An area in a CRS that counts in metres."""

    metric: CRS
    shape: shapely.Geometry

    @classmethod
    def of(cls, pairs: Sequence[Pair], area: Layer | None) -> KnownGround:
        """Return the valid pixels of all predictions that lie in `area`; raises BadDataError when one has no place."""
        rule, parts = decide_rule([pair.prediction for pair in pairs]), []
        metric: CRS | None = None
        for pair in pairs:
            outline, box = _valid_outline(pair.prediction, rule)
            if box.crs is None or not box.georeferenced:
                raise BadDataError(f"{one_line(pair.prediction)}: has no place, so no polygons can be judged there")
            own, t = CRS.from_wkt(box.crs.to_wkt()), box.transform
            metric = metric or _utm(pair.prediction, own, t @ (box.width / 2, box.height / 2))
            placed = shapely.affinity.affine_transform(outline, (t.a, t.b, t.d, t.e, t.c, t.f))
            parts.append(moved(placed, pair.prediction, own, metric))
        if metric is None:
            raise ValueError("ground is made of at least one pair")
        shape = shapely.union_all([_grown(part) for part in parts])
        return cls(metric, shape if area is None else shapely.intersection(shape, _area(area, metric)))


def moved(shapes: Any, path: Path, crs: CRS, target: CRS) -> Any:
    """Return a shape, or an array of them, in another CRS; raises BadDataError naming the file when there is no way."""
    try:
        way = Transformer.from_crs(crs, target, always_xy=True)
    except ProjError as error:
        raise BadDataError(f"{one_line(path)}: no way from its CRS to metres: {one_line(str(error))}") from error
    return shapely.transform(shapes, way.transform, interleaved=False)


def _valid_outline(path: Path, rule: ResolvedRule) -> tuple[shapely.Geometry, GeoBox]:
    """Return the valid pixels of a mask as polygons in pixels (column, row), and its grid."""
    parts: list[shapely.Geometry] = []
    with open_raster(path) as mask:
        box = GeoBox.of(mask)
        for window in block_windows(mask):
            parts += _outlines(read_mask(mask, rule, window)[1], window)
    return shapely.segmentize(shapely.union_all(parts), STRAIGHT), box


def _outlines(valid: NDArray[np.bool_], window: Window) -> list[shapely.Geometry]:
    (top, bottom), (left, right) = window.toranges()
    if valid.all():
        return [shapely.box(left, top, right, bottom)]
    with in_memory():
        found = list(rasterio.features.shapes(valid.view(np.uint8), valid, connectivity=4))
    return [shapely.affinity.translate(shapely.geometry.shape(shape), left, top) for shape, _ in found]


def _area(layer: Layer, metric: CRS) -> shapely.Geometry:
    return _grown(shapely.union_all(moved(layer.shapes, layer.path, layer.crs, metric)))


def _grown(shape: shapely.Geometry) -> shapely.Geometry:
    return shapely.buffer(shape, HAIR_M, join_style="mitre")


def _utm(path: Path, crs: CRS, middle: tuple[float, float]) -> CRS:
    """Return the UTM zone of a place."""
    placed = moved(shapely.Point(middle), path, crs, CRS.from_epsg(4326))
    lon, lat = placed.x, placed.y
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise BadDataError(
            f"{one_line(path)}: its CRS has no way to longitude and latitude, so nothing can be measured in metres"
        )
    zones = query_utm_crs_info("WGS 84", AreaOfInterest(lon, lat, lon, lat))
    if not zones:
        raise BadDataError(f"{one_line(path)}: lies at latitude {lat:.1f}, where no UTM zone is to measure in")
    return CRS.from_epsg(zones[0].code)
