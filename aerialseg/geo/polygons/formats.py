"""Writing footprints to a vector file, a chunk at a time: GeoPackage, FlatGeobuf, GeoJSON (RFC 7946) and GeoParquet.

Equal footprints in equal order make equal bytes: dates are pinned. Every file carries a mark, by which this program
knows it for its own, what it was made from and, once it is sealed, whether it was edited since: as a layer's
description in a GeoPackage, else in the first or last bytes.

Writing footprints through GDAL: GeoPackage, chunk by chunk, and FlatGeobuf, copied from one.

Dates are pinned, so that equal footprints in equal order make equal bytes.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import warnings
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely

from aerialseg.errors import BadDataError, OutputError, UsageError, one_line
from aerialseg.geo.opening import write_error
from aerialseg.geo.polygons.shape import join_footprints
from aerialseg.geo.qgis.sealed import BLANK
from aerialseg.geo.qgis.styles import DATE, write_building_style

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyproj import CRS

    from aerialseg.geo.polygons.shape import Footprints

SUFFIXES = (".gpkg", ".fgb", ".geojson", ".parquet")
MARK = "aerialseg-buildings"
"""Followed by ":" and the digest of what the file was made from, and by the seal over what is in it."""
MARKED_BYTES = 1 << 16
GEOJSON_DECIMALS = 9
"""A tenth of a millimetre."""
_MARK = re.compile(rf"{MARK}:([0-9a-f]{{64}})".encode())


class BuildingFile(Protocol):
    """A file that is being written under a temporary name."""

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Begin a layer; what is added from now on belongs to it."""

    def add(self, footprints: Footprints) -> None:
        """Take footprints in the layer's CRS."""

    def finish(self) -> None:
        """Write the rest and close the file."""


def create_buildings(temporary: Path, final: Path, digest: str) -> BuildingFile:
    """Begin the file that the suffix asks for at `temporary`, which exists and is empty; `final` is for messages.

    Its mark has room for a seal, which `seal_buildings` puts there at last.
    """
    mark = f"{MARK}:{digest} {BLANK}"
    match final.suffix.lower():
        case ".gpkg":
            return GeoPackage(temporary, final, mark)
        case ".fgb":
            return FlatGeobuf(temporary, final, mark)
        case ".geojson":
            return GeoJson(temporary, mark)
        case ".parquet":
            return GeoParquet(temporary, mark)
    raise UsageError(f"{one_line(final)}: {final.suffix or 'no suffix'} is not one of {', '.join(SUFFIXES)}")


def read_mark(path: Path) -> str | None:
    """Return the digest that a file of ours carries; None for a stranger's, or when there is none."""
    try:
        if path.suffix.lower() == ".gpkg":
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                text = "".join(
                    row[0] or "" for row in database.execute("SELECT description FROM gpkg_contents")
                ).encode()
        else:
            with path.open("rb") as stream:
                text = stream.read(MARKED_BYTES)
                stream.seek(max(0, path.stat().st_size - MARKED_BYTES))
                text += stream.read()
    except (OSError, sqlite3.Error):
        return None
    found = _MARK.search(text)
    return found[1].decode() if found else None


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
        for (name, scene, area, mean), geometry in zip(rows, shapely.to_geojson(rounded), strict=True):
            probability = None if math.isnan(mean) else mean
            about = json.dumps({"id": name, "scene": scene, "area_m2": area, "probability": probability})
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

    def __init__(self, temporary: Path, mark: str) -> None:
        self._path, self._mark = temporary, mark
        self._writer: Any = None

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Write the schema."""
        pyarrow, parquet = _pyarrow()
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "orientation": "counterclockwise"}
        columns = {"geometry": {**geometry, "crs": json.loads(crs.to_json())}}
        about = {"version": "1.1.0", "primary_column": "geometry", "columns": columns}
        fields = [("id", pyarrow.string()), ("scene", pyarrow.string()), ("area_m2", pyarrow.float64()),
                  ("probability", pyarrow.float64()), ("geometry", pyarrow.binary())]  # fmt: skip
        metadata = {"geo": json.dumps(about), "made_by": self._mark}
        self._schema = pyarrow.schema(fields, metadata=metadata)
        self._writer = parquet.ParquetWriter(self._path, self._schema, compression="zstd")

    def add(self, footprints: Footprints) -> None:
        """Write a row group."""
        pyarrow, _ = _pyarrow()
        columns = {**footprints.columns, "geometry": shapely.to_wkb(footprints.shapes)}
        arrays = [
            pyarrow.array(column, type=self._schema.field(name).type, from_pandas=True)
            for name, column in columns.items()
        ]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def finish(self) -> None:
        """Write the footer."""
        self._writer.close()


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
    """One layer after another, version 1.3 for older programs, with a spatial index."""

    def __init__(self, temporary: Path, final: Path, mark: str) -> None:
        self._path, self._final, self._mark = temporary, final, mark
        self._layers: dict[str, str] = {}
        self._rows = 0
        temporary.unlink()  # GDAL wants to create the file itself

    def begin_layer(self, name: str, crs: CRS) -> None:
        """Create a layer with all of its columns."""
        self._layers[name] = crs.to_wkt()
        self._write(join_footprints([]), append=False)

    def add(self, footprints: Footprints) -> None:
        """Append rows."""
        self._write(footprints, append=True)
        self._rows += len(footprints)

    def finish(self) -> None:
        """Write the style by which QGIS shows it, and read back that the file is whole."""
        try:
            write_building_style(self._path)
            with closing(sqlite3.connect(self._path)) as database:
                whole = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
                tables = (f'SELECT count(*) FROM "{layer}"' for layer in self._layers)
                rows = sum(database.execute(query).fetchone()[0] for query in tables)
        except sqlite3.Error as error:
            raise write_error(self._final, str(error)) from error
        if not whole or rows != self._rows:
            raise write_error(self._final, "not all rows read back as written")

    def _write(self, rows: Footprints, *, append: bool) -> None:
        from pyogrio.raw import write

        layer, crs = list(self._layers.items())[-1]
        first = len(self._layers) == 1 and not append
        with writing_vectors(self._final):
            write(
                self._path, shapely.to_wkb(rows.shapes), list(rows.columns.values()), list(rows.columns), layer=layer,
                driver="GPKG", geometry_type="Polygon", crs=crs, append=not first,
                dataset_options={"VERSION": "1.3"} if first else None,
                layer_options=None if append else {"DESCRIPTION": self._mark},
            )  # fmt: skip


class FlatGeobuf:
    """A GeoPackage beside it first, for the format is written in one go; then copied in a stream."""

    def __init__(self, temporary: Path, final: Path, mark: str) -> None:
        self._path, self._final, self._mark = temporary, final, mark
        self._staging = temporary.with_suffix(".gpkg")
        self._staging.touch()
        self._package = GeoPackage(self._staging, final, mark)
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


@contextmanager
def writing_vectors(final: Path) -> Iterator[None]:
    """Pin GDAL's dates, so that equal content makes equal bytes, and turn its errors into StorageError."""
    import pyogrio

    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": DATE})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)  # pyogrio's about a missing CRS
            yield
    except (RuntimeError, ValueError) as error:
        raise write_error(final, str(error)) from error
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
