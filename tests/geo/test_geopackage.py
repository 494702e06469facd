"""GeoPackages by sqlite3 and GDAL: what is written, what is read; what a user changes in a file of buildings stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import CRS

from aerialseg.errors import BadDataError, OutputError
from aerialseg.geo import geopackage
from aerialseg.geo.ownership import owner_of
from aerialseg.geo.polygons.polygonize import MaskLayer, write_buildings
from aerialseg.geo.vectors import read_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aerialseg.geo.polygons.polygonize import BuildingsReport

FORMATS = (".gpkg", ".fgb", ".geojson", ".parquet")


@pytest.fixture
def write(tmp_path: Path, scene_file: Callable[..., Path]) -> Callable[..., BuildingsReport]:
    """Write so many buildings to b.SUFFIX."""

    def of(count: int, suffix: str = ".gpkg", **options: bool) -> BuildingsReport:
        mask = np.zeros((8, 40), np.uint8)
        mask[2:6, 2 : 2 + 8 * count] = np.tile([1, 1, 1, 1, 0, 0, 0, 0], count)
        layer = MaskLayer("m", scene_file(tmp_path / "m.tif", mask))
        return write_buildings([layer], tmp_path / f"b{suffix}", **options)

    return of


def read(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **({"layer": "buildings"} if path.suffix == ".gpkg" else {}))


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a GeoPackage with stand-ins for the functions by which its triggers keep the spatial index."""
    with closing(sqlite3.connect(path)) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda blob: 0)
        yield database
        database.commit()


def a_row(path: Path) -> None:
    read(path).tail(1).to_file(path, layer="buildings", mode="a")


def no_row(path: Path) -> None:
    with connected(path) as database:
        database.execute("DELETE FROM buildings WHERE fid = 1")


def an_attribute(path: Path) -> None:
    with connected(path) as database:
        database.execute("UPDATE buildings SET scene = 'renamed by hand' WHERE fid = 2")


def a_shape(path: Path) -> None:
    with connected(path) as database:
        (blob,) = database.execute("SELECT geom FROM buildings WHERE fid = 1").fetchone()
        database.execute("UPDATE buildings SET geom = ? WHERE fid = 1", (blob[:-1] + bytes([blob[-1] ^ 1]),))


def a_layer(path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:26914")
    frame.to_file(path, layer="mine", driver="GPKG")


def a_style(path: Path) -> None:
    with connected(path) as database:
        database.execute("UPDATE layer_styles SET styleQML = '<qgis/>'")


@pytest.mark.parametrize("edit", [a_row, no_row, an_attribute, a_shape, a_layer, a_style])
def test_edits_in_a_geopackage_survive_a_rerun_on_other_masks(
    tmp_path: Path, write: Callable[..., BuildingsReport], edit: Callable[[Path], None]
) -> None:
    write(2)
    path = tmp_path / "b.gpkg"
    assert owner_of(path, "buildings") == "ours"
    edit(path)
    assert owner_of(path, "buildings") == "edited"
    before = path.read_bytes()
    report = write(3)
    assert path.read_bytes() == before
    assert report.stays is not None
    assert "was changed since aerialseg wrote it and stays" in report.line()
    assert "\n" not in report.line()
    assert (report.kept, report.done_before) == (0, False)
    assert write(3, overwrite=True).kept == 3
    assert owner_of(path, "buildings") == "ours"


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_untouched_file_is_made_anew(tmp_path: Path, write: Callable[..., BuildingsReport], suffix: str) -> None:
    assert write(2, suffix).kept == 2
    first = (tmp_path / f"b{suffix}").read_bytes()
    assert owner_of(tmp_path / f"b{suffix}", "buildings") == "ours"
    report = write(3, suffix)
    assert (report.kept, report.stays) == (3, None)
    assert len(read(tmp_path / f"b{suffix}")) == 3
    assert write(2, suffix).kept == 2
    assert (tmp_path / f"b{suffix}").read_bytes() == first, "equal masks make equal bytes, digest included"


@pytest.mark.parametrize("suffix", [".fgb", ".geojson", ".parquet"])
def test_in_the_other_formats_every_byte_counts(
    tmp_path: Path, write: Callable[..., BuildingsReport], suffix: str
) -> None:
    write(2, suffix)
    path = tmp_path / f"b{suffix}"
    content = path.read_bytes()
    place = content.index(b"m:2:2")
    path.write_bytes(content[:place] + b"mine!" + content[place + 5 :])
    assert "stays as it is" in write(3, suffix).line()
    assert b"mine!" in path.read_bytes()
    assert write(3, suffix, overwrite=True).kept == 3


def test_the_reading_of_a_gis_is_no_edit(tmp_path: Path, write: Callable[..., BuildingsReport]) -> None:
    write(2)
    with connected(tmp_path / "b.gpkg") as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("UPDATE gpkg_contents SET last_change = '2026-01-01T00:00:00.000Z'")
    assert write(3).kept == 3


def test_what_another_program_has_open_is_not_taken_from_it(
    tmp_path: Path, write: Callable[..., BuildingsReport]
) -> None:
    write(2)
    path, pending = tmp_path / "b.gpkg", tmp_path / "b.gpkg-wal"
    with connected(path) as viewer:
        viewer.execute("PRAGMA journal_mode = wal")
        viewer.execute("SELECT count(*) FROM buildings").fetchone()
        assert pending.exists()
        assert "is open in another program" in write(3).line()
        with pytest.raises(OutputError, match="is open in another program"):
            write(3, overwrite=True)
        assert pending.exists()
        viewer.execute("UPDATE buildings SET scene = 'x'")
        viewer.commit()
        assert "was changed" in write(3).line()
    assert set(read(path).scene) == {"x"}


def test_what_a_crashed_program_left_beside_the_file_is_an_edit_too(
    tmp_path: Path, write: Callable[..., BuildingsReport]
) -> None:
    write(2)
    path = tmp_path / "b.gpkg"
    with connected(path) as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("UPDATE buildings SET scene = 'x'")
        database.commit()
        for name in ("b.gpkg", "b.gpkg-wal"):
            shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
    for name in ("b.gpkg", "b.gpkg-wal"):
        (tmp_path / f"copy-{name}").replace(tmp_path / name)
    assert "was changed" in write(3).line()
    assert write(3, overwrite=True).kept == 3
    assert not list(tmp_path.glob("b.gpkg-*"))
    assert len(read(path)) == 3


def test_the_report_says_that_the_file_stays(tmp_path: Path, write: Callable[..., BuildingsReport]) -> None:
    write(2, ".geojson")
    (tmp_path / "b.geojson").write_text((tmp_path / "b.geojson").read_text() + "\n")
    found = json.loads(json.dumps(write(3, ".geojson").to_json()))
    assert "stays as it is" in found["stays"]


def two_tables(path: Path) -> Path:
    """Write polygons in two CRSs, rows in two goes, and one without an outline."""
    square = shapely.to_wkb(shapely.box(0, 0, 1, 1))
    with geopackage.writing_vectors(path):
        for table, code in (("b", 26914), ('a "quoted"', 32632)):
            crs = CRS.from_epsg(code).to_wkt()
            for outline in (square, None):
                outlines, columns = np.array([outline], dtype=object), {"n": np.array([7])}
                new = outline is not None
                geopackage.write_table(path, table, outlines, columns, crs, f"about {table}; " if new else None)
    return path


def test_tables_are_written_in_turns_and_say_who_they_are(tmp_path: Path) -> None:
    path = tmp_path / "t.gpkg"
    path.touch()
    two_tables(path)
    assert geopackage.count_rows(path) == 4
    found = geopackage.feature_tables(path)
    assert [(name, crs and crs.to_epsg()) for name, crs in found] == [('a "quoted"', 32632), ("b", 26914)]
    assert geopackage.read_descriptions(path) == 'about b; about a "quoted"; '
    frame = geopandas.read_file(path, layer="b")
    assert frame.n.tolist() == [7, 7]
    assert frame.geometry.isna().tolist() == [False, True]
    with closing(sqlite3.connect(path)) as database:
        dates = database.execute("SELECT DISTINCT last_change FROM gpkg_contents").fetchall()
    assert dates == [("2000-01-01T00:00:00.000Z",)]
    assert two_tables(tmp_path / "u.gpkg").read_bytes() == path.read_bytes()


def test_the_digest_is_over_names_columns_and_rows(tmp_path: Path) -> None:
    path = two_tables(tmp_path / "t.gpkg")
    before = geopackage.tables_digest(path)
    geopackage.replace_in_descriptions(path, "about", "on")
    assert geopackage.read_descriptions(path) == 'on b; on a "quoted"; '
    assert geopackage.tables_digest(path) == before
    expected = hashlib.sha256()
    with closing(sqlite3.connect(path)) as database:
        for name, sql, kind in database.execute("SELECT name, sql, type FROM sqlite_master ORDER BY name").fetchall():
            if kind == "table" and not name.startswith(("sqlite_", "rtree_")) and name not in geopackage.REGISTERS:
                expected.update(repr((name, sql, kind)).encode())
                rows = database.execute("SELECT * FROM " + '"{}"'.format(name.replace('"', '""')))
                expected.update("".join(map(repr, rows)).encode())
    assert before == expected.hexdigest()
    with connected(path) as database:
        database.execute("UPDATE b SET n = 8")
    assert geopackage.tables_digest(path) != before


def test_the_other_formats_have_one_layer_without_a_name(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:26914")
    frame.to_file(tmp_path / "b.fgb", driver="FlatGeobuf")
    assert [(name, crs.to_epsg()) for name, crs in geopackage.feature_tables(tmp_path / "b.fgb")] == [(None, 26914)]
    assert [crs.to_epsg() for _, crs in geopackage.feature_tables(tmp_path / "b.geojson")] == [4326]


@pytest.mark.parametrize(("suffix", "name"), [(".gpkg", "GeoPackage"), (".fgb", "FlatGeobuf")])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"b{suffix}"
    path.write_bytes(b"something else")
    with pytest.raises(BadDataError, match=f"is not a {name}"):
        geopackage.feature_tables(path)


def test_a_damaged_file_has_no_count_of_rows(tmp_path: Path) -> None:
    path = two_tables(tmp_path / "t.gpkg")
    path.write_bytes(path.read_bytes()[:-8192])
    with pytest.raises(sqlite3.Error):
        geopackage.count_rows(path)


LONG = "AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 20000) SELECT n FROM r"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"DROP TABLE gpkg_contents; CREATE VIEW gpkg_contents {LONG}", "gpkg_contents is a view, expected a table"),
        (f"DROP TABLE buildings; CREATE VIEW buildings {LONG}", "its layer buildings is a view that takes too long"),
        (
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE x (\n' WHERE name = 'buildings'",
            "malformed database schema",
        ),
    ],
)
def test_views_that_take_too_long_and_broken_schemas_are_refused(
    write: Callable[..., BuildingsReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    expected: str,
) -> None:
    monkeypatch.setattr(geopackage, "STEP", 1000)
    monkeypatch.setattr(geopackage, "MOST_STEPS", 20)
    write(2)
    read_layer(tmp_path / "b.gpkg")
    with closing(sqlite3.connect(tmp_path / "b.gpkg")) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.executescript(statement)
    with pytest.raises(BadDataError, match=expected) as caught:
        read_layer(tmp_path / "b.gpkg")
    assert "\n" not in str(caught.value)
    assert owner_of(tmp_path / "b.gpkg", "buildings") in ("edited", "foreign")


def test_a_view_with_an_end_is_a_layer(write: Callable[..., BuildingsReport], tmp_path: Path) -> None:
    write(2)
    with closing(sqlite3.connect(tmp_path / "b.gpkg")) as database:
        database.execute("CREATE VIEW some AS SELECT * FROM buildings")
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('some', 'features', 's')"
        )
        database.commit()
    geopackage.require_tables(tmp_path / "b.gpkg")
