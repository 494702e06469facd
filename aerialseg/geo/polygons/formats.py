"""Writing footprints to a vector file, a chunk at a time: GeoPackage, FlatGeobuf, GeoJSON (RFC 7946) and GeoParquet.

Equal footprints in equal order make equal bytes: dates are pinned. Every file carries a mark with what it was made from
and room for a digest of its content: as a layer's description in a GeoPackage, else in the first or last bytes. What
the mark is for, `aerialseg.geo.ownership` knows.
"""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import contextmanager, suppress
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely

from aerialseg.errors import BadDataError, OutputError, UsageError, one_line
from aerialseg.files import PLACEHOLDER
from aerialseg.geo.geopackage import count_rows, write_table, writing_vectors
from aerialseg.geo.opening import write_error
from aerialseg.geo.ownership import BUILDINGS
from aerialseg.geo.polygons.shape import join_footprints
from aerialseg.geo.styles import write_building_style

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyproj import CRS

    from aerialseg.geo.polygons.shape import Footprints

SUFFIXES = (".gpkg", ".fgb", ".geojson", ".parquet")
PIXEL_BYTES = {".gpkg": 0.5, ".fgb": 0.8, ".geojson": 0.5, ".parquet": 0.1}
"""Disk that a pixel of a dense town's mask takes as part of outlines; of a FlatGeobuf with what lies beside it."""
LEAST_BYTES = 200_000
"""Disk that a GeoPackage of nothing takes."""
GEOJSON_DECIMALS = 9
"""A tenth of a millimetre."""


class BuildingFile(Protocol):
    """A file that is being written under a temporary name."""

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Begin a layer; what is added from now on belongs to it."""

    def add(self, footprints: Footprints) -> None:
        """Take footprints in the layer's CRS."""

    def finish(self) -> None:
        """Write the rest and close the file."""


def polygon_bytes(suffix: str, pixels: int) -> int:
    """Return about how much disk the outlines of masks of so many pixels take; stairs of single pixels take more."""
    return int(LEAST_BYTES + PIXEL_BYTES[suffix] * pixels)


def create_buildings(temporary: Path, final: Path, digest: str, *, inside: bool = False) -> BuildingFile:
    """Begin the file that the suffix asks for at `temporary`, which exists and is empty; `final` is for messages.

    Its mark holds `digest`, which says what it was made from, and room for the digest of its content, which
    `ownership.embed_digest_in` puts there at last. `inside` says whether footprints come with that column.
    """
    mark = f"{BUILDINGS}:{digest} {PLACEHOLDER}"
    match final.suffix.lower():
        case ".gpkg":
            return GeoPackage(temporary, final, mark, inside=inside)
        case ".fgb":
            return FlatGeobuf(temporary, final, mark, inside=inside)
        case ".geojson":
            return GeoJson(temporary, mark)
        case ".parquet":
            return GeoParquet(temporary, mark, inside=inside)
    raise UsageError(f"{one_line(final)}: {final.suffix or 'no suffix'} is not one of {', '.join(SUFFIXES)}")


class GeoJson:
    """Text, in longitude and latitude, feature by feature."""

    def __init__(self, temporary: Path, mark: str) -> None:
        self._path, self._between = temporary, "\n"
        self._append(f'{{"type": "FeatureCollection", "made_by": "{mark}", "features": [')

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Take WGS 84 as given; the format has no layers and no other CRS."""

    def add(self, footprints: Footprints) -> None:
        """Write features."""
        bounds = shapely.bounds(footprints.shapes)
        across = np.flatnonzero(bounds[:, 2] - bounds[:, 0] > 180)
        shapes = footprints.shapes.copy()
        shapes[across] = [_cut_at_180(shape) for shape in shapes[across]]
        rounded = shapely.transform(shapes, lambda points: np.round(points, GEOJSON_DECIMALS))
        rows = zip(*(column.tolist() for column in footprints.columns.values()), strict=True)
        lines = []
        for row, geometry in zip(rows, shapely.to_geojson(rounded), strict=True):
            about = json.dumps({name: _in_json(value) for name, value in zip(footprints.columns, row, strict=True)})
            lines.append(f'{{"type": "Feature", "properties": {about}, "geometry": {geometry}}}')
        if lines:
            self._append(self._between + ",\n".join(lines))
            self._between = ",\n"

    def finish(self) -> None:
        """End the collection."""
        self._append("\n]}\n")

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(text)


class GeoParquet:
    """Version 1.1 of the format, geometry as WKB."""

    def __init__(self, temporary: Path, mark: str, *, inside: bool) -> None:
        self._path, self._mark, self._inside = temporary, mark, inside
        self._sink: Any = None
        self._writer: Any = None

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Write the schema."""
        pyarrow, parquet = _pyarrow()
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "orientation": "counterclockwise"}
        columns = {"geometry": {**geometry, "crs": json.loads(crs.to_json())}}
        about = {"version": "1.1.0", "primary_column": "geometry", "columns": columns}
        fields = [("id", pyarrow.string()), ("scene", pyarrow.string()), ("area_m2", pyarrow.float64()),
                  ("probability", pyarrow.float64()), ("taken", pyarrow.date32()), ("taken_from", pyarrow.string()),
                  *([("inside", pyarrow.float64())] if self._inside else []),
                  ("geometry", pyarrow.binary())]  # fmt: skip
        metadata = {"geo": json.dumps(about), "made_by": self._mark}
        self._schema = pyarrow.schema(fields, metadata=metadata)
        self._sink = pyarrow.OSFile(str(self._path), "wb")
        with self._closed_on_error():
            self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def add(self, footprints: Footprints) -> None:
        """Write a row group."""
        pyarrow, _ = _pyarrow()
        columns = {**footprints.columns, "geometry": shapely.to_wkb(footprints.shapes)}
        arrays = [
            pyarrow.array(column, type=self._schema.field(name).type, from_pandas=True)
            for name, column in columns.items()
        ]
        with self._closed_on_error():
            self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def finish(self) -> None:
        """Write the footer."""
        with self._closed_on_error():
            self._writer.close()
            self._sink.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Close the file when a write fails: pyarrow's writer keeps it open, and nobody could remove it on Windows."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._sink.close()
            raise


def _in_json(value: Any) -> Any:
    """Return an attribute as JSON has it: null for what is not known, a day as text."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.isoformat() if isinstance(value, date) else value


def _cut_at_180(shape: shapely.Geometry) -> shapely.Geometry:
    """Return a polygon that crosses the 180th meridian as two parts, as RFC 7946 (3.1.9) wants it."""
    turn, east_only = np.array([360.0, 0.0]), np.array([1.0, 0.0])
    eastwards = shapely.transform(shape, lambda points: np.where(points * east_only < 0, points + turn, points))
    west, east = (shapely.intersection(eastwards, shapely.box(left, -90, left + 180, 90)) for left in (0, 180))
    parts = [*shapely.get_parts(west), *shapely.get_parts(shapely.transform(east, lambda points: points - turn))]
    return shapely.multipolygons([part if part.exterior.is_ccw else part.reverse() for part in parts])


def require_writer(target: Path) -> None:
    """Raise before any work when the suffix is unknown, what it needs is missing, or the name is not UTF-8."""
    try:
        str(target).encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{one_line(target)}: the name is not UTF-8; give another one with -o") from error
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{one_line(target)}: {target.suffix or 'no suffix'} is not one of {', '.join(SUFFIXES)}")
    if target.suffix.lower() == ".parquet":
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OutputError(
            "GeoParquet needs pyarrow, which is not installed: pip install 'aerialseg[parquet]', or write .gpkg"
        ) from error
    return pyarrow, pyarrow.parquet


class GeoPackage:
    """One layer after another, with a spatial index."""

    def __init__(self, temporary: Path, final: Path, mark: str, *, inside: bool) -> None:
        self._path, self._final, self._mark, self._inside = temporary, final, mark, inside
        self._layer, self._crs, self._rows = "", "", 0

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Create a layer with all of its columns."""
        self._layer, self._crs = name, crs.to_wkt()
        self._write(join_footprints([], inside=self._inside), self._mark)

    def add(self, footprints: Footprints) -> None:
        """Append rows."""
        self._write(footprints)

    def finish(self) -> None:
        """Write the style by which QGIS shows it, and read back that the file is whole."""
        try:
            write_building_style(self._path)
            rows = count_rows(self._path)
        except sqlite3.Error as error:
            raise write_error(self._final, str(error)) from error
        if rows != self._rows:
            raise write_error(self._final, "not all rows read back as written")

    def _write(self, rows: Footprints, description: str | None = None) -> None:
        outlines = shapely.to_wkb(rows.shapes)
        with writing_vectors(self._final):
            write_table(self._path, self._layer, outlines, rows.columns, self._crs, description)
        self._rows += len(rows)


class FlatGeobuf:
    """A GeoPackage beside it first, for the format is written in one go; then copied in a stream."""

    def __init__(self, temporary: Path, final: Path, mark: str, *, inside: bool) -> None:
        self._path, self._final, self._mark = temporary, final, mark
        self._staging = temporary.with_suffix(".gpkg")
        self._staging.touch()
        self._package = GeoPackage(self._staging, final, mark, inside=inside)
        self._layer, self._crs = "", ""

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Begin the only layer."""
        self._layer, self._crs = name, crs.to_wkt()
        self._package.begin_layer(name, crs)

    def add(self, footprints: Footprints) -> None:
        """Take footprints."""
        self._package.add(footprints)

    def finish(self) -> None:
        """Copy what was gathered."""
        from pyogrio.raw import open_arrow, write_arrow

        self._package.finish()
        self._path.unlink()
        options = {"DESCRIPTION": self._mark}
        with writing_vectors(self._final), open_arrow(self._staging, layer=self._layer) as (meta, stream):
            write_arrow(
                stream, self._path, layer=self._layer, driver="FlatGeobuf", geometry_type="Polygon", crs=self._crs,
                geometry_name=meta["geometry_name"], layer_options=options,
            )  # fmt: skip
