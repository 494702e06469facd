"""Polygons from vector files, laid on a raster's grid: footprints to burn, areas to ask about.

A file is opened only after its first bytes have shown it to be of an allowed format, since drivers chosen by content
could be made to read other files. Attributes are never loaded; what counts as a building is said by a `where`.
Rasters are not read here: a polygon is moved to pixel coordinates (x = column, y = row) of a GeoBox, and burned there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio.features import rasterize

from aerialseg.errors import BadDataError, NoInputError, one_line
from aerialseg.files import is_regular, open_regular
from aerialseg.geo.opening import raster_errors, refuse_irregular_beside, refuse_remote, without_warnings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from rasterio.windows import Window

    from aerialseg.geo.geobox import GeoBox

    Shapes = NDArray[np.object_]

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile"}
"""The formats that are read, by suffix."""
MAGIC = {"GPKG": b"SQLite format 3\0", "FlatGeobuf": b"fgb\x03", "ESRI Shapefile": b"\0\0\x27\x0a", "GeoJSON": b"{"}
PIPELINE = b"gdal_streamed_alg"
"""JSON with this word makes GDAL >= 3.11 run a pipeline of commands, which may read any file."""
POLYGON = 3
"""shapely's type id."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorLayer:
    """The polygons of one vector file, in the file's own CRS."""

    path: Path
    crs: CRS
    shapes: Shapes
    tree: shapely.STRtree
    hull: shapely.Polygon
    """The convex hull of all polygons: the ground that was surely looked at."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Polygons in the pixel coordinates of one raster."""

    shapes: Shapes
    tree: shapely.STRtree
    covered: float
    """The share of the raster that lies within the hulls of the layers."""

    def burn(self, window: Window) -> NDArray[np.bool_]:
        """Return (rows, cols): True where a pixel's centre lies in a polygon; the window may run over the raster."""
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


def is_vector(path: Path) -> bool:
    """Return whether the name ends like a vector file that `read_layer` opens."""
    return path.suffix.lower() in DRIVERS


def read_layer(path: Path, *, where: str | None = None, empty_ok: bool = False) -> VectorLayer:
    """Read the polygons of a vector file; `where` is an SQL condition on its attributes.

    Invalid polygons are repaired; other geometries are left out with a warning. Raises UsageError when the path is not
    local, NoInputError when nothing is there or may be read, ReadError when the disk fails, and BadDataError when the
    content is of another format, has no CRS, or holds no polygon, unless that is `empty_ok`: a prediction may find
    nothing.
    """
    driver = _check_format(path)
    meta, geometry = _read_geometry(path, driver, where)
    if not meta["crs"]:
        raise BadDataError(f"{one_line(path)}: has no CRS, so its place is unknown; assign one, for example in QGIS")
    shapes, warnings = _only_polygons(path, shapely.from_wkb(geometry, on_invalid="ignore"))
    if not len(shapes) and not empty_ok:
        condition = f" where {where}" if where else ""
        raise BadDataError(f"{one_line(path)}: holds no polygon{condition}; at least one was expected")
    hull = shapely.convex_hull(shapely.geometrycollections(shapes))
    return VectorLayer(path, CRS.from_user_input(meta["crs"]), shapes, shapely.STRtree(shapes), hull, warnings)


def overlay(layers: Iterable[VectorLayer], box: GeoBox) -> Overlay:
    """Lay the layers' polygons on the grid of `box`; those that do not touch it are left out.

    Raises BadDataError when the raster has no CRS and transform, or its CRS cannot be reached from a layer's.
    """
    frame = shapely.box(0, 0, box.width, box.height)
    shapes: list[Shapes] = [np.empty(0, dtype=object)]
    hulls: list[Any] = []
    for layer in layers:
        name = one_line(layer.path)
        if not box.georeferenced or box.crs is None:
            raise BadDataError(f"{name}: polygons cannot be placed on a scene that has no CRS and transform")
        try:
            to_crs = Transformer.from_crs(layer.crs, CRS.from_wkt(box.crs.to_wkt()), always_xy=True)
        except ProjError as error:
            raise BadDataError(f"{name}: no way from its CRS to the scene's: {one_line(str(error))}") from error
        near = layer.shapes[np.sort(layer.tree.query(_around(box, layer, to_crs)))]
        moved = _moved(near, to_crs, ~box.transform)
        shapes.append(moved[shapely.intersects(moved, frame)])
        hulls.extend(_moved(np.array([layer.hull]), to_crs, ~box.transform))
    found = np.concatenate(shapes)
    covered = shapely.union_all(hulls).intersection(frame).area / frame.area
    return Overlay(found, shapely.STRtree(found), covered)


def _around(box: GeoBox, layer: VectorLayer, to_crs: Transformer) -> shapely.Polygon:
    """Return a rectangle in the layer's CRS that holds the raster; all of the layer where that is unclear."""
    corners = np.array([box.transform @ (x, y) for x in (0, box.width) for y in (0, box.height)])
    ground = (*corners.min(axis=0), *corners.max(axis=0))
    west, south, east, north = to_crs.transform_bounds(*ground, direction="INVERSE")
    if not np.isfinite([west, south, east, north]).all() or west > east:  # a pole or the 180th meridian
        return layer.hull.envelope
    margin = 0.01 * max(east - west, north - south)
    return shapely.box(west - margin, south - margin, east + margin, north + margin)


def _moved(shapes: Shapes, to_crs: Transformer, grid: Affine) -> Shapes:
    """Return shapes of a layer in pixel coordinates, without those that have no place there."""

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = to_crs.transform(points[:, 0], points[:, 1])
        return np.stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f], axis=1)

    moved = shapely.transform(shapes, move)
    placed: Shapes = moved[np.isfinite(shapely.bounds(moved)).all(axis=-1)]
    return placed


def _check_format(path: Path) -> str:
    """Return the driver for the path's suffix, once the content has shown to be of that format."""
    refuse_remote(path)
    name = one_line(path)
    with raster_errors(path):
        if not is_regular(path):
            raise NoInputError(f"{name}: no such file")
        refuse_irregular_beside(path)
        driver = DRIVERS.get(path.suffix.lower())
        if driver is None:
            raise BadDataError(f"{name}: {path.suffix or 'no suffix'} is not one of {', '.join(DRIVERS)}")
        with open_regular(path) as stream:
            head = stream.read(2**16 if driver == "GeoJSON" else 64)
    if driver == "GeoJSON":
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not head.startswith(MAGIC[driver]) or PIPELINE in head:
        raise BadDataError(f"{name}: the content is not {driver}, which the name promises; expected polygons")
    return driver


def _read_geometry(path: Path, driver: str, where: str | None) -> tuple[dict[str, Any], Shapes]:
    """Return pyogrio's metadata and the geometries as WKB; pyogrio's errors are RuntimeError and ValueError."""
    import pyogrio

    name = one_line(path)
    try:
        wanted = ("Polygon", "Surface", "Collection", "Unknown")
        layers = [layer for layer, kind in pyogrio.list_layers(path) if kind and any(word in kind for word in wanted)]
        if len(layers) != 1:
            found = one_line(", ".join(layers) or "none")
            raise BadDataError(f"{name}: layers that can hold polygons: {found}; keep exactly one in a file")
        actual = pyogrio.read_info(path, layer=layers[0])["driver"]
        if actual != driver:
            raise BadDataError(f"{name}: the content is {actual}, expected {driver}")
        meta, _, geometry, _ = pyogrio.raw.read(path, layer=layers[0], columns=[], where=where, force_2d=True)
    except (RuntimeError, ValueError) as error:
        advice = "check --where" if where else "check the file"
        raise BadDataError(f"{name}: cannot be read: {one_line(str(error))}; {advice}") from error
    return dict(meta), geometry


def _only_polygons(path: Path, shapes: Shapes) -> tuple[Shapes, tuple[str, ...]]:
    """Return single polygons, all valid, in the file's order, and what there is to say about the others."""
    polygonal = np.isin(shapely.get_type_id(shapes), (POLYGON, POLYGON + 3)) & ~shapely.is_empty(shapes)
    kept = shapes[polygonal]
    broken = ~shapely.is_valid(kept)
    kept[broken] = shapely.make_valid(kept[broken])
    parts = shapely.get_parts(shapely.get_parts(kept))  # a repaired polygon may be a collection of collections
    warnings = []
    if not polygonal.all():
        warnings.append(
            f"{one_line(path)}: {np.count_nonzero(~polygonal)} of {len(shapes)} features are no polygons; left out"
        )
    if broken.any():
        warnings.append(f"{one_line(path)}: {np.count_nonzero(broken)} invalid polygons were repaired")
    return parts[shapely.get_type_id(parts) == POLYGON], tuple(warnings)
