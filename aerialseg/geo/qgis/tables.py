"""The tables of a vector file that this program wrote, and their CRS; features are not read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from rasterio.crs import CRS
from rasterio.errors import CRSError

from aerialseg.errors import BadDataError, one_line

if TYPE_CHECKING:
    from pathlib import Path

FLATGEOBUF = b"fgb\x03fgb"


def polygon_tables(path: Path) -> tuple[tuple[str | None, CRS | None], ...]:
    """Return (name, CRS) of each feature table of a GeoPackage, or of the one layer, without a name, of another file.

    Raises BadDataError when the file is not what its name says.
    """
    match path.suffix.lower():
        case ".gpkg":
            return _geopackage_tables(path)
        case ".fgb":
            return ((None, _flatgeobuf_crs(path)),)
        case _:
            return ((None, CRS.from_epsg(4326)),)  # GeoJSON knows no other (RFC 7946)


def _geopackage_tables(path: Path) -> tuple[tuple[str, CRS | None], ...]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT table_name, organization, organization_coordsys_id, definition FROM gpkg_geometry_columns"
                " JOIN gpkg_spatial_ref_sys USING (srs_id) ORDER BY table_name"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise BadDataError(f"{one_line(path)}: is not a GeoPackage: {one_line(str(error))}; make it again") from error
    return tuple((table, _crs(f"{organization}:{code}", definition)) for table, organization, code, definition in rows)


def _flatgeobuf_crs(path: Path) -> CRS | None:
    import pyogrio

    with path.open("rb") as stream:
        if not stream.read(8).startswith(FLATGEOBUF):
            raise BadDataError(f"{one_line(path)}: is not a FlatGeobuf; make it again")
    crs = pyogrio.read_info(path)["crs"]
    return None if crs is None else _crs(crs, crs)


def _crs(code: str, definition: str) -> CRS | None:
    for text in (code, definition):
        try:
            return CRS.from_user_input(text)
        except CRSError:
            continue
    return None
