"""Writing footprints through GDAL: GeoPackage, chunk by chunk, and FlatGeobuf, copied from one.

Dates are pinned, so that equal footprints in equal order make equal bytes.
"""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import shapely

from aerialseg.geo.opening import write_error
from aerialseg.geo.outlines.footprints import join_footprints
from aerialseg.geo.qgis.styles import DATE, write_building_style

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyproj import CRS

    from aerialseg.geo.outlines.footprints import Footprints


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
