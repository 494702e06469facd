"""Polygons of vector files laid on a raster's grid: footprints to burn, areas to ask about.

Rasters are not read here: a polygon is moved to pixel coordinates (x = column, y = row) of a GeoBox, and burned there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.features import rasterize

from aerialseg.errors import BadDataError, counted, folded, one_line
from aerialseg.geo.datum import datum_note, transformer_between
from aerialseg.geo.opening import without_warnings
from aerialseg.geo.vector_files import named_columns, read_polygons, split_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pyproj import Transformer
    from rasterio.windows import Window

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.vector_files import Polygons

    Shapes = NDArray[np.object_]

MARGIN = 0.05
"""The share of a raster's extent by which the ground around it is larger, in the CRS of a layer."""
REACH = 1.0
"""Polygons that reach farther than this many extents are cut there before they are moved."""
THIN = {1: "line", 0: "point"}
"""What is burned beside polygons, by dimension."""
POINTS = 21
"""A side of the raster is followed into another CRS by so many points."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorLayer:
    """The polygons of vector files that have one CRS."""

    paths: tuple[Path, ...]
    crs: CRS
    shapes: Shapes
    tree: shapely.STRtree
    hulls: Shapes
    """The convex hull of all polygons of each file: the ground that was surely looked at."""
    digests: tuple[str, ...]
    """Of the files, from before they were read."""
    chosen: tuple[str | None, ...]
    """The layer of each file that was asked for."""
    warnings: tuple[str, ...] = ()
    values: NDArray[np.object_] | None = None
    """What the column that was asked for says of each shape."""

    @property
    def path(self) -> Path:
        """The first of its files."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """The file, or how many there are, for a message."""
        return named(self.paths)


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Polygons, perhaps lines and points among them, in the pixel coordinates of one raster."""

    shapes: Shapes
    tree: shapely.STRtree
    covered: float
    """The share of the raster that lies within the hulls of the layers."""
    files: frozenset[Path] = frozenset()
    """Those whose hulls come near the raster: no other can change what is burned."""

    def burn(self, window: Window) -> NDArray[np.bool_]:
        """Return (rows, cols): True where a pixel's centre lies in a polygon, or on the way of a line or point.

        The window may run over the raster.
        """
        (top, bottom), (left, right) = window.toranges()
        found = self.shapes[np.sort(self.tree.query(shapely.box(left, top, right, bottom)))]
        if not len(found):
            return np.zeros((bottom - top, right - left), dtype=np.bool_)
        shape, grid = (bottom - top, right - left), Affine.translation(left, top)
        with without_warnings():
            burned: NDArray[np.uint8] = rasterize(found, out_shape=shape, transform=grid, dtype=np.uint8)
        return burned.view(np.bool_)

    def share_of(self, window: Window) -> float:
        """Return the share of a window's area that lies in the polygons."""
        (top, bottom), (left, right) = window.toranges()
        box = shapely.box(left, top, right, bottom)
        found = self.shapes[self.tree.query(box, predicate="intersects")]
        return float(shapely.union_all(shapely.intersection(found, box)).area / box.area)


def named(paths: Sequence[Path]) -> str:
    """Return a file, or how many there are and the first, for a message."""
    first = one_line(paths[0])
    return first if len(paths) == 1 else f"{len(paths)} label files ({first} ...)"


def read_layer(
    path: Path, *, where: str | None = None, empty_ok: bool = False, column: str | None = None
) -> VectorLayer:
    """Read one vector file as `read_layers` does; without a polygon it may be if that is `empty_ok`."""
    (layer,) = read_layers([path], where=where, empty_ok=empty_ok, column=column)
    return layer


def read_layers(
    paths: Sequence[Path], *, where: str | None = None, empty_ok: bool = False, column: str | None = None
) -> tuple[VectorLayer, ...]:
    """Read the polygons of vector files, those of one CRS as one layer; `where` is a condition on their attributes.

    `column` is one whose values the layers keep.

    Files without a polygon are welcome beside others and said. Raises what `read_polygons` raises, and BadDataError
    when no file holds a polygon, unless that is `empty_ok`: a prediction may find nothing.
    """
    found = [read_polygons(path, where, column) for path in paths]
    empty = [path for path, content in zip(paths, found, strict=True) if not len(content.shapes)]
    condition = f" where {one_line(where)}" if where else ""
    dimensions = [shapely.get_dimensions(content.shapes) for content in found]
    if paths and not any((kind == 2).any() for kind in dimensions) and not empty_ok:
        columns = "" if where is None else f"; its columns are {named_columns(found[0].columns)}"
        what = f"{named(paths)}: holds no polygon{condition}; at least one was expected{columns}"
        raise BadDataError(what if len(paths) == 1 else what.replace("holds", "hold").replace("its", "the first's"))
    warnings = _what_is_odd(paths, found)
    if empty and len(paths) > 1:
        few, many = (
            ("is empty", "are empty")
            if where is None
            else (f"has no polygon{condition}", f"have no polygon{condition}")
        )
        warnings.append(
            f"{len(empty)} of {len(paths)} label files {few if len(empty) == 1 else many}: {one_line(empty[0])}"
        )
    systems: dict[str, list[int]] = {}
    for index, content in enumerate(found):
        systems.setdefault(content.crs.to_wkt(), []).append(index)
    layers: list[VectorLayer] = []
    for members in systems.values():
        shapes = np.concatenate([found[index].shapes for index in members])
        hulls = [shapely.convex_hull(shapely.geometrycollections(found[index].shapes)) for index in members]
        files, known = tuple(split_layer(paths[index])[0] for index in members), tuple(found[i].digest for i in members)
        said = () if layers else tuple(warnings)
        crs, tree = found[members[0]].crs, shapely.STRtree(shapes)
        chosen = tuple(split_layer(paths[index])[1] for index in members)
        told = [content.values for content in map(found.__getitem__, members) if content.values is not None]
        values = np.concatenate(told) if told else None
        layers.append(VectorLayer(files, crs, shapes, tree, np.array(hulls, dtype=object), known, chosen, said, values))
    return tuple(layers)


def _what_is_odd(paths: Sequence[Path], found: Sequence[Polygons]) -> list[str]:
    """Return lines on what was left out, what was repaired and what are no polygons, over all files."""
    strange, repaired = sum(content.strange for content in found), sum(content.repaired for content in found)
    features = sum(content.features for content in found)
    kinds = [shapely.get_dimensions(content.shapes) for content in found]
    counts = [(noun, sum(int(np.count_nonzero(kind == number)) for kind in kinds)) for number, noun in THIN.items()]
    thin = " and ".join(counted(count, noun) for noun, count in counts if count)
    lines = [f"{named(paths)}: {strange} of {features} features have no geometry; left out"] if strange else []
    lines += [f"{named(paths)}: {repaired} invalid polygons were repaired"] if repaired else []
    burned = f"{thin} among the polygons; the pixels they lie in are taken, as gdal_rasterize takes them"
    return lines + ([f"{named(paths)}: {burned}"] if thin else [])


def overlay(layers: Iterable[VectorLayer], box: GeoBox) -> Overlay:
    """Lay the layers' polygons on the grid of `box`; those that do not touch it are left out.

    Nothing is moved to the raster's CRS that does not lie near the raster: elsewhere a projection may have no answer,
    or a wrong one. Raises BadDataError when the raster has no CRS and transform, or its CRS cannot be reached from a
    layer's.
    """
    frame = shapely.box(0, 0, box.width, box.height)
    shapes: list[Shapes] = [np.empty(0, dtype=object)]
    hulls: list[Any] = []
    files: set[Path] = set()
    for layer in layers:
        if not box.georeferenced or box.crs is None:
            raise BadDataError(f"{layer.name}: polygons cannot be placed on a scene that has no CRS and transform")
        try:
            to_crs = transformer_between(layer.crs.to_wkt(), box.crs.to_wkt())
        except ProjError as error:
            raise BadDataError(f"{layer.name}: no way from its CRS to the scene's: {one_line(str(error))}") from error
        around = _around(box, layer.crs, to_crs)
        if around is None:
            continue
        near = np.unique(layer.tree.query(shapely.get_parts(around))[1])
        moved = _placed(layer.shapes[near], around, to_crs, ~box.transform)
        shapes.append(moved[shapely.intersects(moved, frame)])
        close = shapely.intersects(layer.hulls, around)
        files.update(layer.paths[index] for index in np.flatnonzero(close))
        hulls.extend(_placed(layer.hulls[close], around, to_crs, ~box.transform))
    found = np.concatenate(shapes)
    covered = shapely.union_all(hulls).intersection(frame).area / frame.area
    return Overlay(found, shapely.STRtree(found), covered, frozenset(files))


def require_place(name: str, box: GeoBox, files: Sequence[Path]) -> None:
    """Raise BadDataError, about the raster `name`, when vector files are to be laid on it and it has no place."""
    if not files or box.georeferenced:
        return
    lacks = "transform" if box.crs is not None else "CRS" if box.transform != Affine.identity() else "CRS and transform"
    way = "gdal_edit.py -a_srs EPSG:..." if lacks == "CRS" else "add its world file, or gdal_translate -a_srs -a_ullr"
    raise BadDataError(f"{name}: has no {lacks}, so {named(files)} cannot be laid on it: {way}")


def overlay_by_value(layer: VectorLayer, values: NDArray[Any], box: GeoBox) -> dict[Any, shapely.Geometry]:
    """Return the ground of each value of a layer's shapes that meets the raster, in pixel coordinates.

    Missing values (NaT) are left out. Raises what `overlay` raises.
    """
    found: dict[Any, shapely.Geometry] = {}
    near = overlay([layer], box)
    if not len(near.shapes):
        return found
    for value in np.unique(values[~np.isnat(values)]):
        shapes = layer.shapes[(values == value) & (shapely.get_dimensions(layer.shapes) == 2)]
        placed = overlay([replace(layer, shapes=shapes, tree=shapely.STRtree(shapes))], box).shapes
        if len(placed):
            found[value] = shapely.union_all(placed)
    return found


def datum_notes(layers: Iterable[VectorLayer], boxes: Iterable[GeoBox]) -> list[str]:
    """Say of each layer whose way to some raster is worse than a pixel for want of a grid; the first such raster's."""
    rasters = list(boxes)
    notes = ((datum_note(layer.name, box, layer.crs) for box in rasters) for layer in layers)
    return folded(line for line in (next(filter(None, found), None) for found in notes) if line is not None)


def places(layers: Iterable[VectorLayer], boxes: Iterable[GeoBox], rasters: str = "scenes") -> str:
    """Say where polygons and rasters lie, in degrees, for an error that says that they lie apart."""
    ground = [(layer.tree.geometries, layer.crs.to_wkt()) for layer in layers]
    theirs = [(shapely.total_bounds(shapes), crs) for shapes, crs in ground if len(shapes)]
    own = [(box.bounds, box.crs.to_wkt()) for box in boxes if box.georeferenced and box.crs is not None]
    return f"polygons lie at {_degrees(theirs)}, {rasters} at {_degrees(own)}"


def _degrees(places: Iterable[tuple[Sequence[float], str]]) -> str:
    found = []
    for bounds, crs in places:
        try:
            way = transformer_between(crs, CRS.from_epsg(4326).to_wkt())
            placed = way.transform_bounds(*bounds)
        except ProjError:
            placed = (math.inf,) * 4
        if np.isfinite(placed).all():
            found.append(placed)
    if not found:
        return "an unknown place"
    west, south, east, north = (
        min(each[0] for each in found), min(each[1] for each in found),
        max(each[2] for each in found), max(each[3] for each in found),
    )  # fmt: skip
    return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"


def _around(box: GeoBox, crs: CRS, to_crs: Transformer) -> shapely.MultiPolygon | None:
    """Return rectangles in a layer's CRS that hold the raster; None where that CRS has no place for it."""
    cols, rows = np.meshgrid(np.linspace(0, box.width, POINTS), np.linspace(0, box.height, POINTS))
    t = box.transform
    x, y = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
    own_x, own_y = to_crs.transform(x, y, direction="INVERSE")
    back_x, back_y = to_crs.transform(own_x, own_y)
    missed = np.hypot(back_x - x, back_y - y)
    known = np.isfinite(missed) & (missed <= math.sqrt(abs(t.determinant)))
    if not known.any():
        return None
    own_x, own_y = own_x[known], own_y[known]
    (west, east), (south, north) = (own_x.min(), own_x.max()), (own_y.min(), own_y.max())
    sides = [(west, east)]
    if crs.is_geographic:
        negative, positive = own_x[own_x < 0], own_x[own_x >= 0]
        if len(negative) and len(positive) and positive.min() - negative.max() > 180:
            sides = [(-180, negative.max()), (positive.min(), 180)]
        for pole in (-90.0, 90.0):
            col, row = (~t) @ to_crs.transform(0.0, pole)
            if 0 <= col <= box.width and 0 <= row <= box.height:
                sides, south, north = [(-180, 180)], min(south, pole), max(north, pole)
    margin = MARGIN * max(*(right - left for left, right in sides), north - south)
    return shapely.MultiPolygon(
        [shapely.box(left - margin, south - margin, right + margin, north + margin) for left, right in sides]
    )


def _placed(shapes: Shapes, around: shapely.MultiPolygon, to_crs: Transformer, grid: Affine) -> Shapes:
    """Return shapes of a layer in pixel coordinates, their far ends cut off; without those that have no place there."""
    west, south, east, north = shapely.bounds(around)
    reach = REACH * max(east - west, north - south)
    wide = shapely.union_all([shapely.box(*_grown(part.bounds, reach)) for part in around.geoms])
    far = ~shapely.within(shapes, wide)
    if far.any():
        with np.errstate(all="ignore"):  # corners out of all bounds
            cut = _cut(shapes[far], wide)
        shapes = np.concatenate([shapes[~far], cut])
    moved = _moved(shapes, to_crs, grid)
    lost = ~np.isfinite(shapely.bounds(moved)).all(axis=-1)
    if lost.any():
        again = _moved(_cut(shapes[lost], around), to_crs, grid)
        moved = np.concatenate([moved[~lost], again[np.isfinite(shapely.bounds(again)).all(axis=-1)]])
    return moved


def _cut(shapes: Shapes, around: shapely.Geometry) -> Shapes:
    """Return the parts of shapes that lie in an area, polygons of polygons and lines of lines."""
    parts, index = shapely.get_parts(shapely.intersection(shapes, around), return_index=True)
    same: Shapes = parts[shapely.get_dimensions(parts) == shapely.get_dimensions(shapes)[index]]
    return same


def _grown(bounds: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    west, south, east, north = bounds
    return west - by, south - by, east + by, north + by


def _moved(shapes: Shapes, to_crs: Transformer, grid: Affine) -> Shapes:
    """Return shapes of a layer in pixel coordinates."""

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = to_crs.transform(points[:, 0], points[:, 1])
        return np.stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f], axis=1)

    moved: Shapes = shapely.transform(shapes, move)
    return moved
