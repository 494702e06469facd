"""From a mosaic's outlines to footprints on the ground, with what is said about each: id, scene, area, probability.

Polygons along the pixels' edges, whole across masks; then small ones are left out; then they are simplified,
regularised, and brought to the CRS asked for. Nothing after the first step loses a building. Walls are straightened by
buildingregulariser, one building at a time in this process: its pool of processes costs more than it saves, and breaks
where `__main__` cannot be imported. What it drops, splits or bends out of shape stays as it was.

Areas are square metres on the ground, whatever the CRS counts in. In a projection that is true to scale they are those
of its plane, times its unit. Degrees, and projections with a false scale such as Web Mercator, are measured on the
ellipsoid; lengths there are those of a transverse Mercator projection around the raster's centre, on the same datum.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS, Proj, Transformer
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import TransverseMercatorConversion
from pyproj.exceptions import ProjError

from aerialseg.counts import QUANTA
from aerialseg.errors import BadDataError, counted, one_line
from aerialseg.geo.dates import days_of_buildings
from aerialseg.geo.datum import transformer_between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.areas import Area
    from aerialseg.geo.dates import DatePolygons
    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.polygons.trace import Outlines, PlacedMask

    Shapes = NDArray[np.object_]
    Points = NDArray[np.float64]
    Move = Callable[[Points], Points]

MOST_CHANGE = 0.3
"""What simplifying would change by a larger share of its area stays as it is."""
CHUNK = 20_000
"""Footprints that are written together."""
SMOOTHED_PX = 1.7
"""The stairs of a slanted wall are one pixel high; a tolerance of 0.5 m on 0.3 m pixels is the package's default."""
PARALLEL_PX = 3.3
"""Walls that run beside each other at less become one; the package's default on 0.3 m pixels is 1 m."""
SPECK_PX = 25
"""Smaller holes are gaps in a mask rather than courtyards: walls cannot be drawn around them, and they are closed."""
LEAST_IOU = 0.7
"""What has less in common with the raster's outline is no version of it: a square pixel cut to a triangle has 0.5."""
LEAST_M2, LEAST_PX = 4.0, 9
"""A network's specks are smaller, and no house is: the larger of both."""
LEAST_SHARED = 0.1
"""The share of the smaller of two buildings that lie on each other; masks that miss each other's grid share slivers."""
FRAME_PARTS = 20
"""A side of a mask is followed into another CRS in so many parts."""
TOGETHER = 256
TRUE_AREA = 0.005
"""A projection whose areas are off by more is not measured in its plane; UTM and national grids stay below 0.002."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is done to outlines."""

    min_area_m2: float | None = 0.0
    """None: the larger of 4 m2 and nine pixels, for holes alike."""
    simplify_m: float = 0.0
    regularise: bool = False
    crs: CRS | None = None
    """The CRS they are written in; None: their own."""
    dates: DatePolygons | None = None
    """Ground whose day is known better than a scene's."""
    area: Area | None = None
    """Only buildings of this ground."""

    @property
    def changes(self) -> bool:
        """Whether polygons leave the pixels' edges."""
        return self.regularise or self.simplify_m > 0


@dataclass(frozen=True, slots=True, eq=False)
class Footprints:
    """Buildings as they are written, arrays of one length."""

    id: NDArray[np.object_]
    scene: NDArray[np.object_]
    area_m2: NDArray[np.float64]
    probability: NDArray[np.float64]
    """NaN where it is not known."""
    taken: NDArray[np.datetime64]
    """The day, NaT where it is not known."""
    taken_from: NDArray[np.object_]
    shapes: Shapes
    inside: NDArray[np.float64] | None = None
    """The share of the outline, as it was traced, that lies in the area asked for; None without one."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What a file has beside geometry, by column."""
        columns = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "shapes"}
        return {name: column for name, column in columns.items() if column is not None}


@dataclass(slots=True)
class ShapeCounts:
    """What was done, counted on the way."""

    kept: int = 0
    removed: int = 0
    """Smaller than asked for."""
    floors_m2: set[float] = field(default_factory=set)
    """What that was."""
    unregularised: int = 0
    """Left along the pixels' edges, because the regulariser made something else of them."""


def join_footprints(parts: Sequence[Footprints], *, inside: bool = False) -> Footprints:
    """Return the footprints of all parts, in their order; of none, empty columns of the right types, `inside` too."""
    empty = {"area_m2": np.empty(0), "probability": np.empty(0), "taken": np.empty(0, dtype="datetime64[D]")}
    nothing = np.empty(0, dtype=object)
    names = [each.name for each in fields(Footprints) if each.name != "inside"]
    shares = [part.inside for part in parts if part.inside is not None]
    columns = (np.concatenate([empty.get(name, nothing), *(getattr(part, name) for part in parts)]) for name in names)
    return replace(Footprints(*columns), inside=np.concatenate([np.empty(0), *shares]) if shares or inside else None)


class Overlaps:
    """Buildings of masks that lie on each other off one grid, where nothing says which of them is meant; all state."""

    def __init__(self, mosaics: Sequence[Sequence[PlacedMask]], crs: CRS | None) -> None:
        """Find where the masks of one table, written in `crs` if not their own, lie on each other."""
        masks = [(number, mask) for number, mosaic in enumerate(mosaics) for mask in mosaic]
        frames = np.array([_frame(mask, crs) for _, mask in masks], dtype=object)
        self.pairs: list[tuple[str, str]] = []
        areas: dict[int, list[shapely.Geometry]] = defaultdict(list)
        for one, other in shapely.STRtree(frames).query(frames, predicate="intersects").T.tolist():
            (first, mask), (second, rival) = masks[one], masks[other]
            common = shapely.intersection(frames[one], frames[other]) if first < second else shapely.Polygon()
            if common.area * mask.box.height * mask.box.width > frames[one].area:  # more than a pixel
                self.pairs.append((one_line(mask.mask), one_line(rival.mask)))
                for number in (first, second):
                    areas[number].append(common)
        self._areas = {number: shapely.union_all(found) for number, found in areas.items()}
        self._held: dict[int, list[Any]] = defaultdict(list)

    def add(self, number: int, shapes: Shapes) -> None:
        """Take buildings of a mosaic as they are written."""
        if number in self._areas:
            self._held[number].extend(shapes[shapely.intersects(shapes, self._areas[number])])

    def note(self) -> str | None:
        """Return a line that says how many lie on each other, and on which masks; None when none does."""
        numbers = np.repeat(list(self._held), list(map(len, self._held.values()))).astype(np.int64)
        shapes = np.array([shape for held in self._held.values() for shape in held], dtype=object)
        one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        apart = numbers[one] < numbers[other]
        one, other = shapes[one[apart]], other[apart]
        shared, least = (
            shapely.area(shapely.intersection(one, shapes[other])),
            shapely.area([one, shapes[other]]).min(0),
        )
        double = len(np.unique(other[shared >= LEAST_SHARED * least]))
        if not double:
            return None
        more = f" and {counted(len(self.pairs) - 1, 'more pair')}" if len(self.pairs) > 1 else ""
        lie, are = ("lies", "is") if double == 1 else ("lie", "are")
        return (
            f"{counted(double, 'building')} {lie} on others and {are} there twice: {' and '.join(self.pairs[0])}{more}"
            " overlap and share no pixel grid; gdalwarp them to one grid, or give masks that do not overlap"
        )


def _frame(mask: PlacedMask, crs: CRS | None) -> shapely.Geometry:
    """Return the ground of a mask in a CRS, or its own; nothing where it has no place there."""
    box = mask.box
    around = shapely.segmentize(shapely.box(0, 0, box.width, box.height), max(box.width, box.height) / FRAME_PARTS)
    t, way = box.transform, None if crs is None else transformer_between(mask.crs.to_wkt(), crs.to_wkt())

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        cols, rows = points.T
        places = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
        return np.stack(places if way is None else way.transform(*places), axis=1)

    moved = shapely.transform(around, move)
    return shapely.make_valid(moved) if np.isfinite(shapely.bounds(moved)).all() else shapely.Polygon()


def gather(parts: Iterable[Footprints]) -> Iterator[Footprints]:
    """Yield the footprints of all parts, in their order, in chunks that are worth a write."""
    held: list[Footprints] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= CHUNK:
            yield join_footprints(held)
            held = []
    if any(map(len, held)):
        yield join_footprints(held)


def footprints(
    outlines: Outlines,
    mosaic: Sequence[PlacedMask],
    frames: Mapping[str, MetricFrame],
    shaping: Shaping,
    counts: ShapeCounts,
) -> Iterator[Footprints]:
    """Yield the footprints of a mosaic's outlines, a few at a time, and count them in `counts`.

    `frames` holds each mask's by name. A building belongs to the first mask that holds its first pixel, and its
    coordinates are counted on that one's grid. `area_m2` is that of the outline as it is written, measured in the
    scene's CRS. Raises BadDataError where the CRS asked for cannot be reached.
    """
    owner = np.full(len(outlines), -1, dtype=np.int64)
    row, col = outlines.first.T
    for index, placed in enumerate(mosaic):
        inside = (row >= placed.row) & (row < placed.bottom) & (col >= placed.col) & (col < placed.right)
        owner[inside & (owner < 0)] = index
    shapes = _polygons(outlines, mosaic, owner)
    known = np.where(outlines.sums[1] > 0, outlines.sums[1], np.nan)
    probability = np.round(outlines.sums[0] / known / QUANTA, 4)
    share = np.full(len(outlines), np.nan)
    for number in np.unique(owner).tolist():
        placed = mosaic[number]
        frame, own = frames[placed.name], np.flatnonzero(owner == number)
        if shaping.area is not None:
            share[own], kept = shaping.area.shares(shapes[own], placed.box)
            own = own[kept]
            if not len(own):
                continue
        areas = frame.area_m2(shapes[own])
        floor = _floor_m2(placed.box, frame) if shaping.min_area_m2 is None else shaping.min_area_m2
        large = areas >= floor
        counts.removed += int(np.count_nonzero(~large))
        counts.floors_m2.add(floor)
        own, areas, start = own[large], areas[large], 0
        if shaping.min_area_m2 is None:
            closed = _close_holes(shapes, own, frame, floor)
            areas[closed] = frame.area_m2(shapes[own[closed]])
        for changed, failed in _shaped(shapes[own], frame, placed.box.gsd_m, shaping):
            part = np.arange(start, start + len(changed))
            start += len(changed)
            counts.unregularised += failed
            counts.kept += len(changed)
            clipped = shaping.area is not None and shaping.area.keep == "clip"
            if shaping.area is not None and clipped:
                which, changed = shaping.area.clip(changed, placed.box)
                part = part[which]
            which = own[part]
            yield Footprints(
                _identifiers(placed, outlines.first[which]),
                np.full(len(changed), placed.name, dtype=object),
                np.round(frame.area_m2(changed) if shaping.changes or clipped else areas[part], 3),
                probability[which],
                *days_of_buildings(placed.taken, shaping.dates, shapes[which], placed.box),
                _finished(changed, frame, placed, shaping),
                None if shaping.area is None else np.round(share[which], 4),
            )


def _identifiers(placed: PlacedMask, first: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return scene:row:column of each building's first pixel; pieces of one that was cut are told apart by a number."""
    seen: dict[str, int] = {}
    found = []
    for row, col in (first - (placed.row, placed.col)).tolist():
        name = f"{placed.name}:{row}:{col}"
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return np.array([*found, None], dtype=object)[:-1]


def _polygons(outlines: Outlines, mosaic: Sequence[PlacedMask], owner: NDArray[np.int64]) -> Shapes:
    """Return polygons along the pixels' edges, in the CRS of the masks."""
    if not len(outlines):
        return np.empty(0, dtype=object)
    of_point = np.repeat(owner[outlines.building], outlines.rings)
    origin = np.array([(placed.row, placed.col) for placed in mosaic])
    row, col = (outlines.points - origin[of_point]).T
    a, b, c, d, e, f = np.array([tuple(placed.box.transform)[:6] for placed in mosaic])[of_point].T
    points = np.stack([c + a * col + b * row, f + d * col + e * row], axis=1)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(outlines.rings)), outlines.rings))
    polygons: Shapes = shapely.polygons(rings, indices=outlines.building)
    return polygons


def _floor_m2(box: GeoBox, frame: MetricFrame) -> float:
    """Return the area of what is taken for a building rather than for a speck: 4 m2, or nine pixels where larger."""
    corners = [box.transform @ (box.width / 2 + x, box.height / 2 + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    pixel = np.array([shapely.Polygon(corners)], dtype=object)
    return max(LEAST_M2, LEAST_PX * float(frame.area_m2(pixel)[0]))


def _close_holes(shapes: Shapes, own: NDArray[np.int64], frame: MetricFrame, floor_m2: float) -> NDArray[np.int64]:
    """Close smaller holes of the polygons `own`, in place; return which of `own` have changed."""
    closed = []
    for place in np.flatnonzero(shapely.get_num_interior_rings(shapes[own])).tolist():
        shape = shapes[own[place]]
        holes = np.array(shape.interiors, dtype=object)
        large = frame.area_m2(shapely.polygons(holes)) >= floor_m2
        if not large.all():
            shapes[own[place]] = shapely.Polygon(shape.exterior, holes[large].tolist())
            closed.append(place)
    return np.array(closed, dtype=np.int64)


def _shaped(shapes: Shapes, frame: MetricFrame, gsd_m: float | None, shaping: Shaping) -> Iterator[tuple[Shapes, int]]:
    """Yield the polygons simplified and regularised, in order, and how many could not be regularised."""
    if not shaping.changes:
        yield shapes, 0
        return
    to_metres, back = frame.metres()
    metric = shapely.transform(shapes, to_metres)
    if shaping.simplify_m:
        simpler = shapely.simplify(metric, shaping.simplify_m, preserve_topology=True)
        change = np.abs(shapely.area(simpler) / shapely.area(metric) - 1)  # half where a pixel became a triangle
        metric = np.where(shapely.is_valid(simpler) & (change <= MOST_CHANGE), simpler, metric)
    if not shaping.regularise:
        yield shapely.transform(metric, back), 0
        return
    for part, failed in regularise(metric, gsd_m or 1.0):
        yield shapely.transform(part, back), failed


def _finished(shapes: Shapes, frame: MetricFrame, placed: PlacedMask, shaping: Shaping) -> Shapes:
    """Return the polygons in the CRS asked for, valid, their outer rings anticlockwise."""
    if shaping.crs is not None:
        shapes = shapely.transform(shapes, way_between(frame.crs, shaping.crs))
        if not np.isfinite(shapely.bounds(shapes)).all():
            raise BadDataError(
                f"{one_line(placed.mask)}: has buildings without a place in {one_line(shaping.crs.name)}; choose"
                " another --crs"
            )
    broken = np.flatnonzero(~shapely.is_valid(shapes))
    if len(broken):
        shapes = shapes.copy()
        parts = [shapely.get_parts(shapely.get_parts(shape)) for shape in shapely.make_valid(shapes[broken])]
        shapes[broken] = [max(found, key=shapely.area) for found in parts]  # the others are slivers of rounding
    clockwise = ~shapely.is_ccw(shapely.get_exterior_ring(shapes))
    return np.where(clockwise, shapely.reverse(shapes), shapes) if clockwise.any() else shapes


def regularise(shapes: Shapes, gsd_m: float) -> Iterator[tuple[Shapes, int]]:
    """Yield polygons in metres regularised, in order and a few at a time, and how many of them stayed as they were.

    `gsd_m` is the size of the pixels they were traced from. Holes of less than 25 pixels are closed.
    """
    for start in range(0, len(shapes), TOGETHER):
        before = shapes[start : start + TOGETHER]
        filled = before.copy()
        for index in np.flatnonzero(shapely.get_num_interior_rings(before)):
            rings = shapely.get_rings(before[index])
            large = shapely.area(shapely.polygons(rings)) >= SPECK_PX * gsd_m**2
            filled[index] = shapely.polygons(rings[0], holes=rings[1:][large[1:]])
        after = _regularised(filled, gsd_m)
        good = _resemble(filled, after)
        yield np.where(good, after, before), int(np.count_nonzero(~good))


def _regularised(shapes: Shapes, gsd_m: float) -> Shapes:
    """Return what the package makes of each polygon; None where it fails or makes several of it."""
    try:
        found, index = _call(shapes, gsd_m)
    except Exception:  # whatever one odd polygon provokes must not cost the others
        if len(shapes) == 1:
            return np.array([None], dtype=object)
        middle = len(shapes) // 2
        return np.concatenate([_regularised(shapes[:middle], gsd_m), _regularised(shapes[middle:], gsd_m)])
    result = np.full(len(shapes), None, dtype=object)
    once = np.bincount(index, minlength=len(shapes)) == 1
    kept = once[index]
    result[index[kept]] = found[kept]
    return result


def _call(shapes: Shapes, gsd_m: float) -> tuple[Shapes, NDArray[np.int64]]:
    """Return the package's polygons, and of which input each of them is."""
    import geopandas
    from buildingregulariser import regularize_geodataframe

    frame = geopandas.GeoDataFrame({"building": np.arange(len(shapes))}, geometry=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = regularize_geodataframe(
            frame,
            simplify_tolerance=SMOOTHED_PX * gsd_m,
            parallel_threshold=PARALLEL_PX * gsd_m,
            allow_circles=False,
            num_cores=1,
        )
    return made.geometry.to_numpy(), made["building"].to_numpy()


def _resemble(before: Shapes, after: Shapes) -> NDArray[np.bool_]:
    """Return which pairs are valid polygons that have as many holes and lie about where they lay."""
    good: NDArray[np.bool_] = (shapely.get_type_id(after) == shapely.GeometryType.POLYGON) & shapely.is_valid(after)
    good &= shapely.get_num_interior_rings(after) == shapely.get_num_interior_rings(before)
    good &= np.isfinite(shapely.bounds(after)).all(axis=1)
    shared = np.zeros(len(before))
    shared[good] = shapely.area(shapely.intersection(before[good], after[good]))
    union = shapely.area(before) + np.nan_to_num(shapely.area(after)) - shared
    good &= shared >= LEAST_IOU * union
    return good


@dataclass(frozen=True, slots=True, eq=False)
class MetricFrame:
    """How to measure around one raster."""

    crs: CRS
    origin: tuple[float, float]
    """The raster's centre, in the CRS."""
    unit_m: float | None
    """Metres in a unit of the plane; None where the plane is not true to scale."""

    @classmethod
    def of(cls, box: GeoBox) -> MetricFrame:
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
        placed, geod = shapely.transform(shapes, way_between(self.crs, self.crs.geodetic_crs)), self.crs.get_geod()
        if geod is None:
            raise BadDataError(f"{one_line(self.crs.name)}: has no ellipsoid to measure areas on; reproject the mask")
        return np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in placed])

    def metres(self) -> tuple[Move, Move]:
        """Return what takes points (n, 2) of the CRS to metres from about the raster's centre, and what takes back."""
        if self.unit_m is None:
            (longitude, latitude) = way_between(self.crs, self.crs.geodetic_crs)(np.array([self.origin]))[0]
            centred = TransverseMercatorConversion(latitude, longitude, 0, 0, 1)
            local = ProjectedCRS(centred, name="around the raster", geodetic_crs=self.crs.geodetic_crs)
            return way_between(self.crs, local), way_between(local, self.crs)
        origin, unit = np.array(self.origin), self.unit_m
        return lambda points: (points - origin) * unit, lambda points: points / unit + origin


def way_between(source: CRS, target: CRS) -> Move:
    """Return what takes points (n, 2) from one CRS to another; raises BadDataError where there is no way."""
    try:
        way = Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        name, other = one_line(source.name), one_line(target.name)
        raise BadDataError(f"no way from CRS {name} to {other}: {one_line(str(error))}") from error
    return lambda points: np.stack(way.transform(points[:, 0], points[:, 1]), axis=1)


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
