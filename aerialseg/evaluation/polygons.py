"""How well predicted building polygons follow true ones: not only where they are, but their corners and walls.

Polygons are matched one to one at IoU 0.5, the best pairs first; each matched pair is then compared by

PoLiS                  mean distance of either's corners to the other's outline, in metres (Avbelj et al. 2015,
                       https://doi.org/10.1109/LGRS.2014.2330695)
maximum tangent angle  the worst angle between a stretch of the predicted outline and its projection on the true one
                       (Girard et al. 2021, https://arxiv.org/abs/2004.14875), 0 to 90 degrees
C-IoU                  IoU times one minus the relative difference of the numbers of corners (Zorzi et al. 2022,
                       https://arxiv.org/abs/2111.15491)

and averaged. The vertex ratio is predicted over true corners of all matched pairs. Everything is measured in metres, in
the UTM zone of the first scene.

Only the area of interest, ground that was predicted and labelled, is judged: polygons are matched by what lies on it,
and one that leaves it is not counted, neither is its match, as with the objects of a mask.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.features
import shapely
import shapely.geometry
from pyproj import CRS, Transformer, aoi
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import ProjError

from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.masks import decide_rule, read_mask
from aerialseg.geo.opening import open_raster, without_warnings
from aerialseg.geo.raster import block_windows
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.geo.areas import Area
    from aerialseg.geo.masks import ResolvedRule
    from aerialseg.geo.vectors import VectorLayer

    Shapes = NDArray[np.object_]
    Points = NDArray[np.float64]

MATCH_IOU = 0.5
SPACING_M = 0.5
"""Between the points along a predicted outline whose direction is compared."""
MOST_STRETCH = 2.0
"""A stretch that the projection makes longer or shorter than this many times lies around a corner: no direction."""
HAIR_M = 0.01
"""Ground grows by this much: scenes that touch leave no seam, and rounded corners on an edge do not leave it."""
STRAIGHT = 512
"""Pixels along an edge that another projection may bend, before it gets a point of its own."""


@dataclass(frozen=True, slots=True)
class PolygonScores:
    """Polygons that lie on the known ground; means over matched pairs, nan without any."""

    true: int
    predicted: int
    matched: int
    true_left_out: int
    """Polygons that leave the known ground or lie beyond it, and the matches of such; `predicted_left_out` likewise."""
    predicted_left_out: int
    iou: float
    c_iou: float
    polis_m: float
    max_tangent_angle_deg: float
    vertex_ratio: float

    @property
    def precision(self) -> float:
        """Share of predicted polygons that match."""
        return self.matched / self.predicted if self.predicted else math.nan

    @property
    def recall(self) -> float:
        """Share of true polygons that are matched."""
        return self.matched / self.true if self.true else math.nan

    @property
    def f1(self) -> float:
        """2 matches / (true + predicted)."""
        return 2 * self.matched / (self.true + self.predicted) if self.true + self.predicted else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return plain values, None where undefined."""
        shares = {name: getattr(self, name) for name in ("precision", "recall", "f1")}
        values: dict[str, Any] = to_values(asdict(self) | shares)
        return values


def score_polygons(
    predicted: VectorLayer,
    true: Sequence[VectorLayer],
    metric: CRS,
    ground: shapely.Geometry,
    min_area_m2: float = 0.0,
) -> PolygonScores:
    """Compare the predicted polygons with those of true vector files, on the `ground` where both are known.

    All is measured in `metric`, the CRS of the ground, which counts in metres. Polygons smaller than `min_area_m2` are
    left out of both.
    """
    both = _moved([predicted], metric), _moved(true, metric)
    own, other = (shapes[shapely.area(shapes) >= min_area_m2] for shapes in both)
    (own_pieces, own_counted), (pieces, counted) = (_on_ground(shapes, ground) for shapes in (own, other))
    pairs = match_polygons(own_pieces, pieces)
    for i, j, _ in pairs:
        own_counted[i] = counted[j] = own_counted[i] and counted[j]
    matched = [(own[i], other[j], iou) for i, j, iou in pairs if counted[j]]
    kept = int(np.count_nonzero(counted)), int(np.count_nonzero(own_counted))
    numbers = *kept, len(matched), len(other) - kept[0], len(own) - kept[1]
    return PolygonScores(*numbers, *(_measure(matched) if matched else (math.nan,) * 5))


def _measure(matched: list[tuple[shapely.Polygon, shapely.Polygon, float]]) -> tuple[float, ...]:
    """Return the mean IoU, C-IoU, PoLiS and tangent angle of matched polygons, and the vertex ratio."""
    corners = np.array([(len(_vertices(a)), len(_vertices(b))) for a, b, _ in matched], dtype=np.float64)
    ious = np.array([iou for _, _, iou in matched])
    unlike = np.abs(corners[:, 0] - corners[:, 1]) / corners.sum(axis=1)
    angles = [tangent_angle(a, b) for a, b, _ in matched]
    return (
        float(ious.mean()),
        float((ious * (1 - unlike)).mean()),
        float(np.mean([polis(a, b) for a, b, _ in matched])),
        math.degrees(float(np.mean(angles))),
        float(corners[:, 0].sum() / corners[:, 1].sum()),
    )


def match_polygons(predicted: Shapes, true: Shapes) -> list[tuple[int, int, float]]:
    """Return (predicted, true, IoU) of the one-to-one matches at IoU >= 0.5, the best first."""
    j, i = shapely.STRtree(predicted).query(true)
    one, other = shapely.area(predicted[i]), shapely.area(true[j])
    alike = np.minimum(one, other) > MATCH_IOU * np.maximum(one, other) * (1 - 1e-9)  # cheap, and every match is
    i, j, one, other = i[alike], j[alike], one[alike], other[alike]
    shared = shapely.area(shapely.intersection(predicted[i], true[j]))
    iou = shared / (one + other - shared)
    taken: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for place in np.lexsort((j, i, -iou)):
        a, b, value = int(i[place]), int(j[place]), float(iou[place])
        if value >= MATCH_IOU and a not in taken[0] and b not in taken[1]:
            taken[0].add(a)
            taken[1].add(b)
            pairs.append((a, b, value))
    return pairs


def polis(one: shapely.Polygon, other: shapely.Polygon) -> float:
    """Return the PoLiS distance: half the mean distance of one's corners to the other's outline, and vice versa."""
    parts = []
    for a, b in ((one, other), (other, one)):
        parts.append(shapely.distance(shapely.points(_vertices(a)), shapely.boundary(b)).mean() / 2)
    return float(sum(parts))


def tangent_angle(predicted: shapely.Polygon, true: shapely.Polygon) -> float:
    """Return the largest angle, in radians, between the predicted outline and its projection on the true one.

    Unlike the authors' code this leaves out stretches whose projection bends around a true corner: a chord across a
    corner has no direction of a wall, and would be the worst of nearly every building.
    """
    rings = [true.exterior, *true.interiors]
    worst = 0.0
    for ring in (predicted.exterior, *predicted.interiors):
        points = shapely.get_coordinates(shapely.segmentize(ring, SPACING_M))
        projected, ring_number, place = _project(points, rings)
        steps, shadows = np.diff(points, axis=0), np.diff(projected, axis=0)
        lengths, shadow_lengths = np.hypot(*steps.T), np.hypot(*shadows.T)
        along = np.abs(np.diff(place))
        around = np.array([outline.length for outline in rings])[ring_number[1:]]
        straight = shadow_lengths > 0.999 * np.minimum(along, around - along)
        judged = straight & (np.diff(ring_number) == 0)
        judged &= (shadow_lengths * MOST_STRETCH > lengths) & (shadow_lengths < lengths * MOST_STRETCH)
        if judged.any():
            cosine = np.abs((steps * shadows).sum(axis=1)[judged]) / (lengths * shadow_lengths)[judged]
            worst = max(worst, math.acos(min(1.0, float(cosine.min()))))
    return worst


def _project(points: Points, rings: list[shapely.LinearRing]) -> tuple[Points, NDArray[np.int64], NDArray[np.float64]]:
    """Return each point's nearest one on the rings, the number of that ring, and how far along it lies."""
    placed = shapely.points(points)
    nearest = np.argmin([shapely.distance(placed, ring) for ring in rings], axis=0)
    lines = np.array(rings, dtype=object)[nearest]
    place = shapely.line_locate_point(lines, placed)
    return shapely.get_coordinates(shapely.line_interpolate_point(lines, place)), nearest, place


def _vertices(shape: shapely.Polygon) -> Points:
    """Return the corners of all rings, each ring's last one left out: it is the first again."""
    rings = (shape.exterior, *shape.interiors)
    return np.concatenate([shapely.get_coordinates(ring)[:-1] for ring in rings])


def _moved(layers: Sequence[VectorLayer], crs: CRS) -> Shapes:
    """Return the polygons of all layers in one CRS."""
    together: Shapes = np.concatenate([moved(layer.shapes, layer.path, layer.crs, crs) for layer in layers])
    polygons: Shapes = together[shapely.get_dimensions(together) == 2]
    return polygons


def _on_ground(shapes: Shapes, ground: shapely.Geometry) -> tuple[Shapes, NDArray[np.bool_]]:
    """Return what of each polygon lies on the ground, and whether that is all of it."""
    shapely.prepare(ground)
    whole = shapely.covered_by(shapes, ground)
    pieces = shapes.copy()
    pieces[~whole] = shapely.intersection(shapes[~whole], ground)
    return pieces, whole


def area_of_interest(
    predictions: Sequence[Path], area: VectorLayer | None, ground: Area | None = None
) -> tuple[CRS, shapely.Geometry]:
    """Return the valid pixels of all predictions that lie in `area` and on the `ground` asked for.

    In a CRS that counts in metres, and that CRS.

    Raises BadDataError when a prediction has no place.
    """
    rule, parts = decide_rule(predictions), []
    metric: CRS | None = None
    for path in predictions:
        outline, box = _valid_outline(path, rule)
        if box.crs is None or not box.georeferenced:
            raise BadDataError(f"{one_line(path)}: has no place, so no polygons can be judged there")
        if ground is not None:
            outline = shapely.intersection(outline, shapely.union_all(ground.on(one_line(path), box).inner.shapes))
        own, t = CRS.from_wkt(box.crs.to_wkt()), box.transform
        metric = metric or _utm(path, own, t @ (box.width / 2, box.height / 2))
        placed = shapely.affinity.affine_transform(outline, (t.a, t.b, t.d, t.e, t.c, t.f))
        parts.append(moved(placed, path, own, metric))
    if metric is None:
        raise ValueError("ground is made of at least one prediction")
    shape = shapely.union_all([_grown(part) for part in parts])
    if area is not None:
        labelled = _grown(shapely.union_all(moved(area.shapes, area.path, area.crs, metric)))
        shape = shapely.intersection(shape, labelled)
    return metric, shape


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
            (top, bottom), (left, right) = window.toranges()
            valid = read_mask(mask, rule, window)[1]
            if valid.all():
                parts.append(shapely.box(left, top, right, bottom))
                continue
            with without_warnings():
                found = list(rasterio.features.shapes(valid.view(np.uint8), valid, connectivity=4))
            parts += [shapely.affinity.translate(shapely.geometry.shape(shape), left, top) for shape, _ in found]
    return shapely.segmentize(shapely.union_all(parts), STRAIGHT), box


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
    zones = query_utm_crs_info("WGS 84", aoi.AreaOfInterest(lon, lat, lon, lat))
    if not zones:
        raise BadDataError(f"{one_line(path)}: lies at latitude {lat:.1f}, where no UTM zone is to measure in")
    return CRS.from_epsg(zones[0].code)
