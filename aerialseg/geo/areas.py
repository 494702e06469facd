"""The ground that a user asks for: polygons of a file, or a rectangle in degrees, laid on the grid of a raster.

What lies within a margin around it is looked at, too, so that what reaches over the border is seen whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS, Geod

from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.geo.datum import transformer_between
from aerialseg.geo.vectors import Overlay, VectorLayer, overlay, read_layer, require_place

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.windows import Window

    from aerialseg.geo.geobox import GeoBox

    Shapes = NDArray[np.object_]

Keep = Literal["touching", "inside", "clip"]
MARGIN_M = 50.0
SIDES = 256
"""Parts of a rectangle's longer side: in another CRS it is curved."""
LEAST_SHARE = 1e-6
"""What shares less of itself with an area only shares its border."""
NUDGE_PX = 0.000618, 0.000414
WGS84 = "OGC:CRS84"


@dataclass(frozen=True, slots=True)
class AreaOptions:
    """Which ground is asked for; raises UsageError for nonsense.

    Example:
        >>> aerialseg.AreaOptions("13.3,52.4,13.5,52.6").bounds
        (13.3, 52.4, 13.5, 52.6)
    """

    text: str
    """A vector file, `FILE|layername=x`, or W,S,E,N in degrees."""
    where: str | None = None
    """An SQL condition: which polygons of the file are meant."""
    margin_m: float = MARGIN_M
    """Metres around it that are predicted, too, without being shown in a mask."""
    keep: Keep = "touching"
    """Which buildings are kept: those that touch it, those of which a point on their surface lies in it, both whole, or
    what of them lies in it."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin_m < math.inf:
            raise UsageError(f"--area-margin {self.margin_m:g}: give metres, 0 or more")
        if self.keep not in get_args(Keep):
            raise UsageError(f"--area-keep {one_line(self.keep)}: give one of {', '.join(get_args(Keep))}")
        bounds = self.bounds
        if bounds is None:
            return
        west, south, east, north = bounds
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise UsageError(
                f"--area {one_line(self.text)}: give W,S,E,N in degrees, W < E and S < N, or a vector file"
            )
        if self.where is not None:
            raise UsageError("--area-where chooses polygons of a file, and --area is a rectangle; leave it out")

    @property
    def path(self) -> Path | None:
        """The file, with its layer if one is named; None for a rectangle."""
        return Path(self.text) if self.bounds is None else None

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """West, south, east and north in degrees; None where a file is named."""
        try:
            west, south, east, north = map(float, self.text.split(","))
        except ValueError:
            return None
        return west, south, east, north


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """The polygons asked for."""

    layer: VectorLayer
    margin_m: float
    digest: str
    """Over all that decides which ground it is, the margin included."""
    keep: Keep = "touching"

    def on(self, name: str, box: GeoBox) -> Ground:
        """Lay it on the grid of the raster `name`; raises BadDataError where that has no place or no way leads to."""
        require_place(name, box, self.layer.paths)
        metres = _pixel_sides(box)
        reach = math.ceil(self.margin_m / min(metres)) + 1
        t = box.transform
        around = type(box)(
            box.height + 2 * reach,
            box.width + 2 * reach,
            t @ Affine.translation(-reach, -reach),
            box.crs,
        )
        shapes = shapely.transform(overlay([self.layer], around).shapes, lambda points: points - reach)
        shapes = shapes[shapely.get_dimensions(shapes) == 2]
        grown = shapely.transform(shapely.buffer(shapely.transform(shapes, lambda xy: xy * metres), self.margin_m),
                                  lambda xy: xy / metres)  # fmt: skip
        return Ground(box.height, box.width, _overlay(shapes), _overlay(grown))

    def shares(self, shapes: Shapes, box: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return which share of each polygon, in the CRS of `box`, lies in the area, and which are kept, as a whole.

        Of a point exactly on a border that two areas share, one of them is sure: it is moved a little, always alike.
        """
        placed = shapely.transform(shapes, lambda points: _affine(~box.transform, points))
        ground = self._around(placed, box)
        whole = shapely.union_all(ground)
        shapely.prepare(whole)
        share = np.where(shapely.contains(whole, placed), 1.0, 0.0)
        border = np.flatnonzero((share == 0) & shapely.intersects(whole, placed))
        share[border] = shapely.area(shapely.intersection(placed[border], whole)) / shapely.area(placed[border])
        if self.keep != "inside":
            return share, share > LEAST_SHARE
        points = shapely.transform(shapely.point_on_surface(placed), lambda xy: xy + NUDGE_PX)
        kept: NDArray[np.bool_] = np.zeros(len(shapes), dtype=np.bool_)
        kept[shapely.STRtree(ground).query(points, predicate="intersects")[0]] = True
        return share, kept

    def clip(self, shapes: Shapes, box: GeoBox) -> tuple[NDArray[np.intp], Shapes]:
        """Return what lies in the area of polygons in the CRS of `box`, piece by piece, and of which one each is."""
        placed = shapely.transform(shapes, lambda points: _affine(~box.transform, points))
        whole = shapely.union_all(self._around(placed, box))
        cut = np.flatnonzero(~shapely.contains(whole, placed))
        pieces = shapes.copy()
        common = shapely.intersection(placed[cut], whole)
        pieces[cut] = shapely.transform(common, lambda points: _affine(box.transform, points))
        single, which = shapely.get_parts(pieces, return_index=True)
        flat = shapely.get_dimensions(single) == 2
        return which[flat], single[flat]

    def _around(self, placed: Shapes, box: GeoBox) -> Shapes:
        """Return the area's polygons near some others, in pixel coordinates of `box`, as those are."""
        if not len(placed):
            return placed
        left, top, right, bottom = shapely.total_bounds(placed)
        col, row = math.floor(left) - 1, math.floor(top) - 1
        size = math.ceil(bottom) + 1 - row, math.ceil(right) + 1 - col
        near = type(box)(*size, box.transform @ Affine.translation(col, row), box.crs)
        shapes = shapely.transform(overlay([self.layer], near).shapes, lambda points: np.add(points, (col, row)))
        flat: Shapes = shapes[shapely.get_dimensions(shapes) == 2]
        return flat


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """An area in the pixel coordinates (x = column, y = row) of one raster."""

    height: int
    width: int
    inner: Overlay
    near: Overlay
    """Grown by the margin."""

    @property
    def met(self) -> bool:
        """Whether some of the raster's ground lies in the area."""
        frame = shapely.box(0, 0, self.width, self.height)
        return bool((shapely.area(shapely.intersection(self.inner.shapes, frame)) > 0).any())

    @property
    def shown(self) -> float:
        """How many of the raster's pixels lie in the area."""
        return self._pixels(self.inner)

    @property
    def run(self) -> float:
        """How many of them lie in it or in its margin."""
        return self._pixels(self.near)

    def _pixels(self, part: Overlay) -> float:
        frame = shapely.box(0, 0, self.width, self.height)
        return float(shapely.union_all(shapely.intersection(part.shapes, frame)).area)

    def shared(self, other: Overlay | None) -> Overlay:
        """Return what the area has in common with other polygons on the same raster."""
        if other is None:
            return self.inner
        common = shapely.intersection(shapely.union_all(self.inner.shapes), shapely.union_all(other.shapes))
        return _overlay(np.array([common], dtype=object))

    def near_windows(self, rectangles: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which rectangles (n, 4: left, top, right, bottom) touch the area or its margin."""
        touched: NDArray[np.bool_] = np.zeros(len(rectangles), dtype=np.bool_)
        touched[self.near.tree.query(shapely.box(*rectangles.T), predicate="intersects")[0]] = True
        return touched

    def cut(self, window: Window, values: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
        """Return the values (rows, cols) of a window, `nodata` where a pixel's centre lies outside the area."""
        return np.where(self.inner.burn(window), values, np.uint8(nodata))


def read_area(options: AreaOptions) -> Area:
    """Read the polygons that are asked for; raises what `read_layer` raises."""
    bounds = options.bounds
    if bounds is None:
        layer = read_layer(Path(options.text), where=options.where)
        if not (shapely.get_dimensions(layer.shapes) == 2).any():
            raise BadDataError(f"{layer.name}: holds no polygon; --area takes polygons")
        content: list[Any] = [layer.digests[0], layer.chosen[0], options.where]
    else:
        west, south, east, north = bounds
        frame = shapely.box(*bounds)
        shapes = np.array([shapely.segmentize(frame, max(east - west, north - south) / SIDES)], dtype=object)
        crs = CRS.from_user_input(WGS84)
        layer = VectorLayer((Path(options.text),), crs, shapes, shapely.STRtree(shapes), shapes, ("",), (None,))
        content = list(bounds)
    digest = hashlib.sha256(json.dumps([*content, options.margin_m]).encode()).hexdigest()
    return Area(layer, options.margin_m, digest, options.keep)


def _overlay(shapes: NDArray[np.object_]) -> Overlay:
    return Overlay(shapes, shapely.STRtree(shapes), 1.0)


def _affine(t: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = points.T
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def _pixel_sides(box: GeoBox) -> NDArray[np.float64]:
    """Return how many metres a pixel's width and its height are on the ground, at the raster's centre."""
    t, col, row = box.transform, box.width / 2, box.height / 2
    points = np.array([t @ (col, row), t @ (col + 1, row), t @ (col, row + 1)])
    way = transformer_between(box.crs.to_wkt(), CRS.from_user_input(WGS84).to_wkt()) if box.crs is not None else None
    if way is None:
        raise BadDataError("a raster without a CRS has no ground")
    longitude, latitude = way.transform(*points.T)
    _, _, metres = Geod(ellps="WGS84").inv([longitude[0]] * 2, [latitude[0]] * 2, longitude[1:], latitude[1:])
    sides = np.asarray(metres, dtype=np.float64)
    return sides if np.isfinite(sides).all() and (sides > 0).all() else np.full(2, box.gsd_m or 1.0)
