"""GeoPackages, as GDAL writes them and as SQLite sees them: tables with pinned dates, styles, names, CRSs, content.

A GeoPackage changes its bytes whenever a GIS looks at it, so what counts as its content is what its tables say. What
the tables mean, and whose file it is, others know. Where a caller reads layers by name and CRS, the two other vector
formats that this program writes are read here, too.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import warnings
from contextlib import closing, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from aerialseg.errors import BadDataError, one_line
from aerialseg.files import exists, is_regular, open_regular
from aerialseg.geo.digest import irregular_beside
from aerialseg.geo.opening import write_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SUFFIX = ".gpkg"
DATE = "2000-01-01T00:00:00.000Z"
"""Written where a file wants to know when it changed, so that equal outputs have equal bytes."""
VERSION = {"VERSION": "1.3"}
"""Of the format, for older programs."""
FLATGEOBUF = b"fgb\x03fgb"
PENDING = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database while it is open."""
HOUSEKEEPING = ("sqlite_", "rtree_")
STEP, MOST_STEPS = 100_000, 5_000
"""Of SQLite's virtual machine; so many take some seconds, enough for a view of ten million features."""
REGISTERS = frozenset(
    f"gpkg_{name}" for name in ("contents", "ogr_contents", "extensions", "geometry_columns", "spatial_ref_sys")
)
"""Tables that programs keep up to date by themselves; a layer that somebody adds is a table of its own as well."""


@contextmanager
def writing_vectors(final: Path) -> Iterator[None]:
    """Pin GDAL's dates, so that equal content makes equal bytes, and turn its errors into StorageError.

    `final` is the name that messages give the file.
    """
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


def write_table(
    path: Path, table: str, outlines: Any, columns: Mapping[str, Any], crs: str | None, description: str | None = None
) -> None:
    """Append polygons to a table, which is begun with its `description` when it is new; call it in `writing_vectors`.

    `outlines` are N polygons as WKB, None for a row without one, `columns` N values each; `crs` is WKT. `path` may be
    an empty file that was reserved for the GeoPackage.
    """
    from pyogrio.raw import write

    if exists(path) and not path.stat().st_size:
        path.unlink()  # GDAL wants to create the file itself
    append = exists(path)
    write(
        path, outlines, list(columns.values()), list(columns), layer=table, driver="GPKG", geometry_type="Polygon",
        crs=crs, append=append, dataset_options=None if append else VERSION,
        layer_options=None if description is None else {"DESCRIPTION": description},
    )  # fmt: skip


def store_style(path: Path, name: str, description: str, style: str) -> None:
    """Make `style`, which is QGIS's XML, the default of every feature table, in the layout that QGIS itself creates."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog"
            " TEXT, f_table_schema TEXT, f_table_name TEXT, f_geometry_column TEXT, styleName TEXT, styleQML TEXT,"
            " styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT, ui TEXT, update_time DATETIME)"
        )
        query = "SELECT table_name, column_name FROM gpkg_geometry_columns ORDER BY table_name"
        for table, geometry in database.execute(query).fetchall():
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
                " styleQML, styleSLD, useAsDefault, description, owner, ui, update_time)"
                " VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '', '', ?)",
                (table, geometry, name, style, description, DATE),
            )
        database.execute(
            "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier, description, last_change, srs_id)"
            " VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (DATE,),
        )


def count_rows(path: Path) -> int:
    """Return how many rows the feature tables hold; raises sqlite3.Error unless the whole file is sound."""
    with closing(sqlite3.connect(path)) as database:
        if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("not all rows read back as written")
        tables = database.execute("SELECT table_name FROM gpkg_geometry_columns").fetchall()
        return sum(database.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0] for (table,) in tables)


def feature_tables(path: Path) -> tuple[tuple[str | None, CRS | None], ...]:
    """Return (name, CRS) of each feature table of a GeoPackage, or of the one layer, without a name, of another file.

    Features are not read. Raises BadDataError when the file is not what its name says.
    """
    match path.suffix.lower():
        case ".gpkg":
            try:
                with reading(path, "gpkg_geometry_columns", "gpkg_spatial_ref_sys") as database:
                    rows = database.execute(
                        "SELECT table_name, organization, organization_coordsys_id, definition FROM"
                        " gpkg_geometry_columns JOIN gpkg_spatial_ref_sys USING (srs_id) ORDER BY table_name"
                    ).fetchall()
            except sqlite3.DatabaseError as error:
                problem = one_line(str(error))
                raise BadDataError(f"{one_line(path)}: is not a GeoPackage: {problem}; make it again") from error
            return tuple((table, _crs(f"{owner}:{code}", definition)) for table, owner, code, definition in rows)
        case ".fgb":
            return ((None, _flatgeobuf_crs(path)),)
        case _:
            return ((None, CRS.from_epsg(4326)),)  # GeoJSON knows no other (RFC 7946)


def read_descriptions(path: Path) -> str:
    """Return what all tables are described as, one text after the other; raises sqlite3.Error and OSError."""
    with reading(path, "gpkg_contents") as database:
        described = database.execute("SELECT description FROM gpkg_contents").fetchall()
    return "".join(text for (text,) in described if isinstance(text, str))


def replace_in_descriptions(path: Path, old: str, new: str) -> None:
    """Put another text in the place of one in the tables' descriptions."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE gpkg_contents SET description = replace(description, ?, ?)", (old, new))


def tables_digest(path: Path) -> str:
    """Return a SHA-256 over the names, columns and rows of all tables but housekeeping; 100,000 rows take 0.6 s.

    The tables' descriptions are housekeeping. Raises sqlite3.Error and OSError.
    """
    digest = hashlib.sha256()
    with reading(path) as database:
        made = "SELECT name, sql, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
        for name, sql, kind in database.execute(made).fetchall():
            if name in REGISTERS or name.startswith(HOUSEKEEPING):
                continue
            digest.update(repr((name, sql, kind)).encode())
            if kind == "table":
                for row in database.execute(f"SELECT * FROM {_quoted(name)} ORDER BY rowid"):
                    digest.update(repr(row).encode())
    return digest.hexdigest()


def is_open_elsewhere(path: Path) -> bool:
    """Return whether another program has a GeoPackage open; what a crashed one left beside it is brought in first."""
    pending = [path.with_name(path.name + suffix) for suffix in PENDING]
    if path.suffix.lower() != SUFFIX or not any(map(os.path.lexists, pending)):
        return False
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return True
    return any(map(os.path.lexists, pending))


@contextmanager
def reading(path: Path, *tables: str, immutable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database, which stays as it is; another program may have it open, unless it is `immutable`.

    Raises sqlite3.Error unless `tables` are tables: a view of that name could be endless.
    """
    for file in (path, irregular_beside(path)):
        if file is not None and not is_regular(file):
            raise sqlite3.OperationalError(f"{one_line(file.name)} is not a regular file")
    options = "mode=ro&immutable=1" if immutable else "mode=ro"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True)) as database:
        made = dict(database.execute("SELECT name, type FROM sqlite_master").fetchall()) if tables else {}
        for table in tables:
            if made.get(table) != "table":
                raise sqlite3.DatabaseError(f"{table} is {'a view' if made.get(table) == 'view' else 'missing'}")
        yield database


def require_tables(path: Path) -> None:
    """Raise BadDataError for a GeoPackage whose schema is broken, or with a view that takes too long: GDAL would hang.

    What the format itself keeps are tables; layers may be views, which may be endless.
    """
    name = ""
    try:
        with reading(
            path, immutable=not exists(path.with_name(f"{path.name}-wal"))
        ) as database:  # also where nothing may be written
            made = dict(database.execute("SELECT name, type FROM sqlite_master").fetchall())
            views = {name for name, kind in made.items() if kind == "view"}
            for register in sorted(view for view in views if view.lower() in REGISTERS):
                raise sqlite3.DatabaseError(f"{register} is a view, expected a table")
            if "gpkg_contents" not in made:
                return
            steps = count(1)
            database.set_progress_handler(lambda: next(steps) > MOST_STEPS, STEP)
            for (name,) in database.execute("SELECT table_name FROM gpkg_contents").fetchall():
                if name in views:
                    database.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()
    except (OSError, sqlite3.Error) as error:
        late = f"its layer {one_line(name)} is a view that takes too long, or has no end"
        reason = late if str(error) == "interrupted" else one_line(str(error))
        raise BadDataError(
            f"{one_line(path)}: is not a GeoPackage that can be read: {reason}; make it again"
        ) from error


def _flatgeobuf_crs(path: Path) -> CRS | None:
    import pyogrio

    with open_regular(path) as stream:
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


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))
