"""Whether a file of buildings is as this program wrote it, and whether another program has it open.

A GeoPackage changes its bytes whenever a GIS looks at it, so what counts is what its tables say; of the other formats
every byte counts. The seal stands beside the mark (see `aerialseg.geo.outlines.buildings`).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from aerialseg.geo.qgis.sealed import BLANK, MARK, is_as_sealed, seal_file

if TYPE_CHECKING:
    from pathlib import Path

GPKG = ".gpkg"
PENDING = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database while it is open."""
HOUSEKEEPING = ("sqlite_", "rtree_")
REGISTERS = frozenset(
    f"gpkg_{name}" for name in ("contents", "ogr_contents", "extensions", "geometry_columns", "spatial_ref_sys")
)
"""Tables that programs keep up to date by themselves; a layer that somebody adds is a table of its own as well."""


def seal_buildings(path: Path) -> None:
    """Put the seal into a finished file, in the place that BLANK holds for it."""
    if path.suffix.lower() != GPKG:
        seal_file(path)
        return
    with closing(sqlite3.connect(path)) as database, database:
        query = "UPDATE gpkg_contents SET description = replace(description, ?, ?)"
        database.execute(query, (BLANK, _seal_of(database)))


def is_edited(path: Path) -> bool:
    """Return whether rows, attributes, layers or styles are not those that were written; unsealed files are edited."""
    try:
        if path.suffix.lower() != GPKG:
            return not is_as_sealed(path)
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            described = database.execute("SELECT description FROM gpkg_contents").fetchall()
            return _seal_of(database) not in "".join(text or "" for (text,) in described)
    except (OSError, sqlite3.Error, TypeError):
        return True


def is_open_elsewhere(path: Path) -> bool:
    """Return whether another program has a GeoPackage open; what a crashed one left beside it is brought in first."""
    pending = [path.with_name(path.name + suffix) for suffix in PENDING]
    if path.suffix.lower() != GPKG or not any(map(os.path.lexists, pending)):
        return False
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return True
    return any(map(os.path.lexists, pending))


def _seal_of(database: sqlite3.Connection) -> str:
    """Return the seal over all that is not housekeeping: names, columns and rows; 100,000 buildings take 0.6 s."""
    digest = hashlib.sha256()
    made = "SELECT name, sql, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    for name, sql, kind in database.execute(made).fetchall():
        if name in REGISTERS or name.startswith(HOUSEKEEPING):
            continue
        digest.update(repr((name, sql, kind)).encode())
        if kind == "table":
            quoted = name.replace('"', '""')
            for row in database.execute(f'SELECT * FROM "{quoted}" ORDER BY rowid'):
                digest.update(repr(row).encode())
    return MARK + digest.hexdigest()
