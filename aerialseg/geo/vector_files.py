"""Polygons out of vector files: which formats are read, the guards before them, layers, and conditions on attributes.

A file is opened only after its first bytes have shown it to be of an allowed format, since drivers chosen by content
could be made to read other files. Of the attributes only those that a condition names are read, and it is SQLite's SQL
over them whatever the format: drivers differ in what `kind = 'House'` finds and in what a missing value is.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from aerialseg.errors import BadDataError, one_line
from aerialseg.files import is_regular, open_regular
from aerialseg.geo.digest import LAYER_NAME as LAYER
from aerialseg.geo.digest import content_digest
from aerialseg.geo.geopackage import require_tables
from aerialseg.geo.opening import raster_errors, refuse_irregular_beside, refuse_remote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Shapes = NDArray[np.object_]

DRIVERS = {
    ".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile",
    ".geojsonl": "GeoJSONSeq", ".geojsons": "GeoJSONSeq", ".ndjson": "GeoJSONSeq", ".kml": "KML", ".parquet": "Parquet",
}  # fmt: skip
"""The formats that are read, by suffix."""
MAGIC = {
    "GPKG": (b"SQLite format 3\0",),
    "FlatGeobuf": (b"fgb\x03",),
    "ESRI Shapefile": (b"\0\0\x27\x0a",),
    "GeoJSON": (b"{", b"\x1e{"),
    "GeoJSONSeq": (b"{", b"\x1e{"),
    "KML": (b"<?xml", b"<kml"),
    "Parquet": (b"PAR1",),
}
TEXT = {"GeoJSON", "GeoJSONSeq", "KML"}
OPENED_AS = {"GeoJSON": {"GeoJSON", "GeoJSONSeq"}, "GeoJSONSeq": {"GeoJSON", "GeoJSONSeq"}, "KML": {"KML", "LIBKML"}}
"""What GDAL may call a format: one feature on one line is both kinds of GeoJSON."""
PIPELINE = b"gdal_streamed_alg"
"""JSON with this word makes GDAL >= 3.11 run a pipeline of commands, which may read any file."""
REFUSED = {"GeoJSON": (PIPELINE,), "GeoJSONSeq": (PIPELINE,), "KML": (b"<!DOCTYPE", b"<!ENTITY", b"NetworkLink")}
"""What makes a driver look elsewhere."""
POLYGON = 3
"""shapely's type id."""
COLLECTION = 7
TRIANGLE = 17
PATCHED = {15: COLLECTION, 16: COLLECTION, TRIANGLE: POLYGON}
"""WKB's types of 3D surfaces, TINs and triangles, and what they are without heights."""
SHOWN = 20
"""Columns that a message names."""
ROW = "row of aerialseg"
"""The name of a column that no file has."""


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """What a file, or one of its layers, holds."""

    crs: CRS
    shapes: Shapes
    """Single polygons, all valid, lines and points, in the file's order."""
    features: int
    """As many as the condition holds for."""
    strange: int
    """Features without a geometry that has a place."""
    repaired: int
    columns: tuple[str, ...]
    digest: str
    """Of the file, from before it was read."""
    values: NDArray[np.object_] | None = None
    """What the column that was asked for says of each shape."""


def is_vector(path: Path) -> bool:
    """Return whether the name ends like a vector file that `read_polygons` opens."""
    return split_layer(path)[0].suffix.lower() in DRIVERS


def split_layer(path: Path) -> tuple[Path, str | None]:
    """Return a file and the layer that its path names in QGIS's way: `a.gpkg|layername=houses`."""
    file, separator, layer = str(path).partition(LAYER)
    return (Path(file), layer) if separator else (path, None)


def with_layer(path: Path, layer: str) -> Path:
    """Return a path that names a layer of a file."""
    return Path(f"{path}{LAYER}{layer}")


def read_polygons(path: Path, where: str | None = None, column: str | None = None) -> Polygons:
    """Read the polygons of a vector file; `where` is a condition in SQLite's SQL on its attributes and `fid`.

    `column` is one whose values are wanted.

    Invalid polygons are repaired; collections are taken apart; lines and points are kept, too, since gdal_rasterize
    burns them; features without a geometry are counted. Raises
    UsageError when the path is not local, NoInputError when nothing is there or may be read, ReadError when the disk
    fails, and BadDataError when the content is of another format, has no CRS, or `where` is no condition on it.
    """
    path, layer = split_layer(path)
    driver, name = _check_format(path), one_line(path)
    if driver == "Parquet" and layer is not None:
        raise BadDataError(f"{name}: Parquet has no layers; leave out {one_line(layer)}")
    with raster_errors(path):
        digest = content_digest(path)
    wanted = where if column is None else f"{where or ''}\n{column}"
    crs, geometry, columns, names = _read_parquet(path, wanted) if driver == "Parquet" else _read(path, layer, wanted)
    if crs is None:
        raise BadDataError(f"{name}: has no CRS, so its place is unknown; assign one, for example in QGIS")
    if column is not None and column not in names:
        raise BadDataError(f"{name}: has no column {one_line(column)}; its columns are {named_columns(names)}")
    values = None if column is None else np.array([*columns[column].tolist(), None], dtype=object)[:-1]
    if where is not None:
        try:
            rows = _rows_where(columns, len(geometry), where)
            geometry, values = geometry[rows], None if values is None else values[rows]
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise BadDataError(
                f"{name}: --where {one_line(where)}: {one_line(str(error))}; its columns are {named_columns(names)}"
            ) from error
    plain = np.array([*map(_without_patches, geometry), None], dtype=object)[:-1]
    shapes, owner, repaired = _single(shapely.from_wkb(plain, on_invalid="fix"))
    strange, told = len(geometry) - len(np.unique(owner)), None if values is None else values[owner]
    return Polygons(crs, shapes, len(geometry), strange, repaired, tuple(names), digest, told)


def named_columns(names: Iterable[str]) -> str:
    """Return columns' names for a message."""
    every = [one_line(name) for name in names]
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return (", ".join(every[:SHOWN]) or "none") + more


def _check_format(path: Path) -> str:
    """Return the driver for the path's suffix, once the content has shown to be of that format."""
    refuse_remote(path)
    name = one_line(path)
    with raster_errors(path):
        if not is_regular(path):
            path.stat()  # says what is wrong with the path
            raise BadDataError(f"{name}: is not a regular file")
        refuse_irregular_beside(path)
        driver = DRIVERS.get(path.suffix.lower())
        if driver is None:
            raise BadDataError(f"{name}: {path.suffix or 'no suffix'} is not one of {', '.join(DRIVERS)}")
        with open_regular(path) as stream:
            head = stream.read(2**16 if driver in TEXT else 64)
    if driver in TEXT:
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not head.startswith(MAGIC[driver]) or any(word in head for word in REFUSED.get(driver, ())):
        raise BadDataError(f"{name}: the content is not {driver}, which the name promises; expected polygons")
    if driver == "GPKG":
        require_tables(path)
    return driver


def _read(
    path: Path, layer: str | None, where: str | None
) -> tuple[CRS | None, Shapes, dict[str, NDArray[Any]], list[str]]:
    """Return CRS, geometries as WKB, the attributes `where` needs and the names of all; by pyogrio."""
    import pyogrio

    name, driver = one_line(path), DRIVERS[path.suffix.lower()]
    try:
        layer = _chosen_layer(pyogrio.list_layers(path), layer, name)
        about = pyogrio.read_info(path, layer=layer)
        if about["driver"] not in OPENED_AS.get(driver, {driver}):
            raise BadDataError(f"{name}: the content is {about['driver']}, expected {driver}")
        names = [str(column) for column in about["fields"]]
        meta, fids, geometry, values = pyogrio.raw.read(
            path, layer=layer, columns=_named_in(names, where), force_2d=True, return_fids=True, datetime_as_string=True
        )
    except (RuntimeError, ValueError) as error:  # what pyogrio raises
        raise BadDataError(f"{name}: cannot be read: {one_line(str(error))}; check the file") from error
    columns = {"fid": fids} | {str(field): column for field, column in zip(meta["fields"], values, strict=True)}
    return CRS.from_user_input(meta["crs"]) if meta["crs"] else None, geometry, columns, names


def _chosen_layer(layers: Iterable[tuple[str, str | None]], wanted: str | None, name: str) -> str:
    """Return the layer that is asked for, or else the only one that can hold polygons; raises BadDataError."""
    known = {str(layer): kind for layer, kind in layers}
    if wanted is not None:
        if wanted not in known:
            raise BadDataError(f"{name}: has no layer {one_line(wanted)}; its layers are {named_columns(known)}")
        return wanted
    words = ("Polygon", "Surface", "Collection", "Unknown")
    found = [layer for layer, kind in known.items() if kind and any(word in kind for word in words)]
    if len(found) != 1:
        listed = named_columns(found)
        advice = f"choose one with --layer NAME, or as {name}{LAYER}NAME" if found else "expected one"
        raise BadDataError(f"{name}: layers that can hold polygons: {listed}; {advice}")
    return found[0]


def _read_parquet(path: Path, where: str | None) -> tuple[CRS | None, Shapes, dict[str, NDArray[Any]], list[str]]:
    """Return what `_read` does, of a GeoParquet file; by pyarrow, since the drivers at hand do not read it."""
    name = one_line(path)
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadDataError(
            f"{name}: GeoParquet needs pyarrow, which is not installed: pip install 'aerialseg[parquet]', or give .gpkg"
        ) from error
    try:
        with raster_errors(path), parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {})[b"geo"])
            primary = about["primary_column"]
            geometry = about["columns"][primary]
            if geometry["encoding"] != "WKB":
                raise BadDataError(f"{name}: its geometries are {one_line(str(geometry['encoding']))}, expected WKB")
            crs = geometry.get("crs", "OGC:CRS84")
            names = [column for column in file.schema_arrow.names if column != primary]
            table = file.read(columns=[primary, *_named_in(names, where)])
            wkb = np.array(table.column(primary).to_pylist(), dtype=object)
            columns = {
                column: np.array([*table.column(column).to_pylist(), None], dtype=object)[:-1]
                for column in _named_in(names, where)
            }
        known = None if crs is None else CRS.from_user_input(crs if isinstance(crs, str) else json.dumps(crs))
    except (ArrowException, CRSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadDataError(f"{name}: cannot be read as GeoParquet: {one_line(str(error))}; check the file") from error
    return known, wkb, {"fid": np.arange(len(wkb)), **columns}, names


def _named_in(names: Iterable[str], where: str | None) -> list[str]:
    """Return the columns that a condition may mean."""
    return [] if where is None else [column for column in names if column.lower() in where.lower()]


def _rows_where(columns: Mapping[str, NDArray[Any]], count: int, where: str) -> NDArray[np.intp]:
    """Return the rows, in order, that a condition holds for; raises what sqlite3 does for one it cannot read."""
    kept = {name.lower(): name for name in columns} | {name.lower(): name for name in columns if name in where}
    rows = {name: list(map(_plain, columns[name].tolist())) for name in kept.values()}
    declared = [f'"{name.replace(chr(34), chr(34) * 2)}" {_affinity(values)}' for name, values in rows.items()]
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute(f'CREATE TABLE features ("{ROW}" INTEGER PRIMARY KEY, {", ".join(declared)})')
        values = zip(range(count), *rows.values(), strict=True)
        base.executemany(f"INSERT INTO features VALUES ({', '.join('?' * (len(rows) + 1))})", values)
        base.set_authorizer(_only_reads)
        found = base.execute(f'SELECT "{ROW}" FROM features WHERE (\n{where}\n) ORDER BY 1').fetchall()
    return np.array(found, dtype=np.intp).reshape(-1)


def _plain(value: Any) -> Any:
    """Return an attribute as SQLite takes it."""
    return value if value is None or isinstance(value, str | int | float | bytes) else str(value)


def _affinity(values: Iterable[Any]) -> str:
    """Return the type by which SQLite compares a column with '1' and 1 alike."""
    return "TEXT" if any(isinstance(value, str) for value in values) else "NUMERIC"


def _only_reads(action: int, name: str | None, *_: object) -> int:
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _without_patches(wkb: bytes | None) -> bytes | None:
    """Return a triangle as a polygon and a surface of patches as a collection of polygons, which shapely can read."""
    if wkb is None or len(wkb) < 9:
        return wkb
    order = "<" if wkb[0] else ">"
    kind, count = struct.unpack_from(f"{order}II", wkb, 1)
    if kind not in PATCHED:
        return wkb
    plain = bytearray(wkb)
    struct.pack_into(f"{order}I", plain, 1, PATCHED[kind])
    at = 9
    try:
        for _ in range(0 if kind == TRIANGLE else count):
            rings = struct.unpack_from(f"{order}I", plain, at + 5)[0]
            struct.pack_into(f"{order}I", plain, at + 1, POLYGON)
            at += 9
            for _ in range(rings):
                at += 4 + 16 * struct.unpack_from(f"{order}I", plain, at)[0]
    except struct.error:
        return None
    return bytes(plain)


def _single(shapes: Shapes) -> tuple[Shapes, NDArray[np.intp], int]:
    """Return single polygons, all valid, lines and points, in the file's order.

    And which feature each is of, and how many were repaired.
    """
    owner = np.arange(len(shapes))
    while (nested := shapely.get_type_id(shapes) == COLLECTION).any():
        parts, index = shapely.get_parts(shapes[nested], return_index=True)
        owner = np.concatenate([owner[~nested], owner[nested][index]])
        order = np.argsort(owner, kind="stable")
        shapes, owner = np.concatenate([shapes[~nested], parts])[order], owner[order]
    usable = ~shapely.is_empty(shapes) & np.isfinite(shapely.bounds(shapes)).all(axis=-1)
    kept, owner = shapes[usable], owner[usable]
    polygonal = shapely.get_dimensions(kept) == 2
    broken = polygonal & ~shapely.is_valid(kept)
    kept[broken] = shapely.make_valid(kept[broken])
    kept, index = shapely.get_parts(kept, return_index=True)
    parts, again = shapely.get_parts(kept, return_index=True)  # a repaired polygon may be a collection of collections
    index = index[again]
    single = ~polygonal[index] | (shapely.get_dimensions(parts) == 2)
    return parts[single], owner[index][single], int(np.count_nonzero(broken))
