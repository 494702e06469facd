"""A set on disk: what is written comes back, the split is the index's, and damage is named."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from affine import Affine
from rasterio.crs import CRS
from small_tiles import write_splits, write_tileset

from aerialseg.errors import BadDataError, NoInputError, OutputError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.tiles.tileset import (
    INDEX,
    MANIFEST,
    TileRecord,
    image_path,
    load_tileset,
    mask_path,
    read_manifest,
    read_splits,
    read_tileset,
    write_index,
    write_manifest,
)

AUSTIN = GeoBox(200, 300, Affine(0.3, 0, 616000, 0, -0.3, 3347000), CRS.from_epsg(26914))
VIENNA = GeoBox(200, 300, Affine(0.3, 0, 1000, 0, -0.3, 341000), CRS.from_epsg(31256))
NOWHERE = GeoBox(200, 300, Affine.identity(), None)
BODY: dict[str, Any] = {
    "size": 64, "overlap": 0.25, "bands": [1, 2, 3], "scale": [0, 2047], "gsd_m": 0.3, "mean": [1.5, 2.0, 3.0],
    "std": [1.0, 1.0, 2.0], "building_fraction": 0.125, "scenes": [], "failed": {},
}  # fmt: skip


def tiles(scene: str = "austin1", count: int = 4) -> list[TileRecord]:
    windows = [(0, 64 * i, 64, 64) for i in range(count)]
    return [
        TileRecord(f"{scene}_00000_{64 * i:05d}", ("train", "val")[i % 2], scene, window, window, i / 8, 1.0)
        for i, window in enumerate(windows)
    ]


def write_set(folder: Path, records: list[TileRecord] | None = None, **boxes: GeoBox) -> Path:
    records = tiles() if records is None else records
    for record in records:
        for path in (image_path(folder, record.name), mask_path(folder, record.name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    write_index(folder / INDEX, records, boxes or {"austin1": AUSTIN})
    write_manifest(folder, BODY, records)
    return folder


def edit(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / INDEX)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')  # the R-tree's need functions that only GDAL has
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    found = load_tileset(write_set(tmp_path))
    assert found.tiles == tuple(tiles())
    assert (found.size, found.overlap, found.bands, found.scale) == (64, 0.25, (1, 2, 3), (0, 2047))
    assert (found.mean, found.std, found.gsd_m, found.building_fraction) == (
        (1.5, 2.0, 3.0),
        (1.0, 1.0, 2.0),
        0.3,
        0.125,
    )
    assert [tile.name for tile in found.of_split("val")] == ["austin1_00000_00064", "austin1_00000_00192"]
    assert found.image_path(found.tiles[0]) == tmp_path / "images" / "austin1_00000_00000.tif"


def test_the_split_is_what_the_index_says_now(tmp_path: Path) -> None:
    before = load_tileset(write_set(tmp_path))
    edit(tmp_path, "UPDATE tiles SET split = ' Train ' WHERE name = 'austin1_00000_00064'")
    after = load_tileset(tmp_path)
    assert [tile.split for tile in after.tiles] == ["train", "train", "train", "val"]
    assert after.digest != before.digest


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tiles SET split = NULL",
        "UPDATE tiles SET split = ''",
        "UPDATE tiles SET split = 'skip'",
        "DELETE FROM tiles",
    ],
)
def test_an_emptied_or_deleted_row_takes_the_tile_out_of_use(tmp_path: Path, change: str) -> None:
    edit(write_set(tmp_path), f"{change} WHERE fid = 2")
    assert [tile.name[-3:] for tile in load_tileset(tmp_path).tiles] == ["000", "128", "192"]


def test_a_misspelt_or_contradictory_split_is_refused(tmp_path: Path) -> None:
    edit(write_set(tmp_path), "UPDATE tiles SET split = 'tarin' WHERE fid = 2")
    with pytest.raises(
        BadDataError, match=r"index\.gpkg: split of tile austin1_00000_00064 is 'tarin'; expected train"
    ):
        load_tileset(tmp_path)
    edit(tmp_path, "UPDATE tiles SET split = 'train', name = 'austin1_00000_00192' WHERE fid = 2")
    with pytest.raises(BadDataError, match="both train and val"):
        load_tileset(tmp_path)


def test_an_unfinished_or_damaged_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no such folder"):
        load_tileset(tmp_path / "none")
    manifest = write_set(tmp_path) / MANIFEST
    good = manifest.read_text()
    for bad in (
        good[: len(good) // 2],
        "",
        "[]",
        good.replace('"size": 64', '"size": 65'),
        json.dumps({"format": "x"}),
        "[" * 200_000,
    ):
        manifest.write_text(bad)
        with pytest.raises(BadDataError, match=r"tileset\.json: damaged or edited"):
            load_tileset(tmp_path)
    manifest.unlink()
    with pytest.raises(BadDataError, match=r"no tileset\.json, so this is no finished set"):
        load_tileset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": "64"}, "size"),
        ({"size": 0}, "size"),
        ({"size": 10**9}, "size"),
        ({"overlap": 1.5}, "overlap"),
        ({"bands": 3}, "bands"),
        ({"bands": [1, 2]}, "bands"),
        ({"scale": [0]}, "scale"),
        ({"mean": "abc"}, "mean"),
        ({"mean": [1.5]}, "mean"),
        ({"std": [1.0, 0.0, 2.0]}, "std"),
        ({"gsd_m": "fine"}, "gsd_m"),
        ({"gsd_m": -1}, "gsd_m"),
        ({"gsd_m": 1e300}, "gsd_m"),
        ({"scale": [5, 5]}, "scale"),
        ({"bands": [0, 1, 2]}, "bands"),
        ({"building_fraction": 7.0}, "building_fraction"),
        ({"scenes": 5}, ""),
        ({"scenes": [{"name": "austin1"}]}, "digest"),
        ({"scenes": ["austin1"]}, ""),
        ({"failed": []}, "failed"),
        ({"left_out": {"nodata": "many"}}, "left_out"),
        ({"classes": {"train": 5}}, "classes"),
        ({"sources": 5}, "sources"),
    ],
)
def test_a_manifest_of_right_digest_and_wrong_values_is_refused_by_every_reader(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    """Row 47: whoever wrote it computed the digest as well."""
    write_manifest(write_set(tmp_path), {**BODY, **changes}, tiles())
    for read in (load_tileset, read_tileset):
        with pytest.raises(BadDataError, match=rf"tileset\.json: .*{field}.*run aerialseg tile again"):
            read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": (0, 0, 64)},
        {"window": (0, 0, 64, "64")},
        {"core": (0, 0, 64, 65)},
        {"core": (0, 0, 0, 64)},
        {"window": (0, 0, 2**40, 2**40)},
        {"valid": "much"},
        {"split": None},
        {"split": "test"},
        {"valid": 1e300},
        {"name": "a\0b"},
    ],
)
def test_a_tile_of_wrong_values_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    first, *others = tiles()
    write_manifest(write_set(tmp_path), BODY, [replace(first, **changes), *others])
    with pytest.raises(BadDataError, match=r"tileset\.json: .*run aerialseg tile again"):
        load_tileset(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    found = load_tileset(write_set(tmp_path))
    found.mask_path(found.tiles[2]).unlink()
    with pytest.raises(BadDataError, match=r"masks/austin1_00000_00128\.tif: missing; run the same"):
        load_tileset(tmp_path)
    edit(tmp_path, "DELETE FROM tiles WHERE fid = 3")
    assert len(load_tileset(tmp_path).tiles) == 3, "a tile out of use need not be there"
    (tmp_path / INDEX).write_bytes(b"not a database")
    with pytest.raises(BadDataError, match=r"index\.gpkg: cannot be read: .*not a database"):
        load_tileset(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(BadDataError, match=r"index\.gpkg: missing"):
        load_tileset(tmp_path)


def test_equal_sets_have_equal_bytes(tmp_path: Path) -> None:
    first = write_set(tmp_path / "a")
    time.sleep(1.1)  # GeoPackages carry a time of change, in seconds
    second = write_set(tmp_path / "b")
    for name in (INDEX, MANIFEST):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_index_is_readable_while_qgis_has_it_open(tmp_path: Path) -> None:
    connection = sqlite3.connect(write_set(tmp_path) / INDEX)
    connection.execute("PRAGMA journal_mode = WAL")  # as QGIS does
    connection.execute("BEGIN IMMEDIATE")
    assert len(read_splits(tmp_path / INDEX)) == 4
    connection.rollback()
    connection.close()


def test_an_index_that_another_program_has_open_is_not_taken_from_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(write_set(tmp_path) / INDEX)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    assert (tmp_path / f"{INDEX}-wal").stat().st_size > 0
    with pytest.raises(OutputError, match="open in another program"):
        write_set(tmp_path, tiles(count=3))
    with sqlite3.connect(tmp_path / INDEX) as fresh:
        assert fresh.execute("SELECT count(*) FROM sqlite_master WHERE name = 'notes'").fetchone() == (1,)
    fresh.close()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    write_set(tmp_path, tiles(count=3))
    assert len(read_splits(tmp_path / INDEX)) == 3
    assert not list(tmp_path.glob(f"{INDEX}-*"))


def outlines(path: Path) -> tuple[dict[str, Any], list[Any]]:
    import pyogrio
    import shapely

    meta, _, geometry, _ = pyogrio.raw.read(path, layer="tiles", columns=["name"])
    return meta, list(shapely.from_wkb(geometry))


def test_outlines_lie_on_the_ground_of_the_windows(tmp_path: Path) -> None:
    meta, shapes = outlines(write_set(tmp_path) / INDEX)
    assert meta["crs"] == "EPSG:26914"
    assert shapes[1].bounds == pytest.approx((616019.2, 3346980.8, 616038.4, 3347000))


def test_scenes_in_different_crs_share_longitude_and_latitude(tmp_path: Path) -> None:
    records = [*tiles("austin1", 2), *tiles("vienna1", 2), *tiles("town", 1)]
    boxes = {"austin1": AUSTIN, "vienna1": VIENNA, "town": NOWHERE}
    meta, shapes = outlines(write_set(tmp_path, records, **boxes) / INDEX)
    assert meta["crs"] == "EPSG:4326"
    assert (-98, 30) < (shapes[0].centroid.x, shapes[0].centroid.y) < (-97, 31)
    assert (16, 48) < (shapes[2].centroid.x, shapes[2].centroid.y) < (17, 49)
    assert shapes[4] is None, "no georeferencing, no outline"


def test_a_set_without_georeferencing_has_an_index_too(tmp_path: Path) -> None:
    records = [replace(tile, scene="town") for tile in tiles()]
    assert len(load_tileset(write_set(tmp_path, records, town=NOWHERE)).tiles) == 4


UNTYPED = "DROP TABLE tiles; CREATE TABLE tiles (name, split)"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE tiles SET split = '7'", "split of tile a is '7'; expected train, val or empty"),
        (
            f"{UNTYPED}; INSERT INTO tiles VALUES ('a', 7)",
            "of tile a is 7; expected",
        ),
        ("UPDATE tiles SET split = x'ff'", r"is b'\\xff'; expected"),
        (
            f"{UNTYPED}; INSERT INTO tiles VALUES (1, 'val')",
            "name of a tile is 1",
        ),
        ("UPDATE tiles SET split = CAST(x'ff' AS TEXT)", "cannot be read: Could not decode to UTF-8"),
        ("ALTER TABLE tiles RENAME COLUMN split TO side", "cannot be read: no such column: split"),
        ("DROP TABLE tiles", "cannot be read: tiles is missing"),
        (
            "DROP TABLE tiles; CREATE VIEW tiles AS SELECT 'a' AS name, 'train' AS split",
            "cannot be read: tiles is a view",
        ),
        (
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE tiles (\n' WHERE name = 'tiles'",
            "cannot be read: malformed database schema",
        ),
    ],
)
def test_an_index_of_wrong_types_or_a_broken_schema_is_refused_in_a_line(
    tmp_path: Path, statement: str, expected: str
) -> None:
    folder = write_tileset(tmp_path / "set", train=1, val=1)
    write_splits(folder, {"a": "train"})
    with closing(sqlite3.connect(folder / INDEX)) as database:
        database.executescript(statement)
    with pytest.raises(BadDataError, match=expected) as caught:
        load_tileset(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.gdal
def test_ogrinfo_lists_every_column_and_the_style(tmp_path: Path) -> None:
    command = ["ogrinfo", "-al", "-where", "name = 'austin1_00000_00064'", write_set(tmp_path) / INDEX, "tiles"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in (
        "split (String) = val",
        "col (Integer) = 64",
        "height (Integer) = 64",
        "building (Real) = 0.125",
        'ID["EPSG",26914]',
    ):
        assert line in shown
    layers = subprocess.run(["ogrinfo", tmp_path / INDEX], capture_output=True, text=True, check=True).stdout
    assert "layer_styles" in layers


@pytest.mark.parametrize("name", ["../elsewhere/a", "/etc/a", "..", ""])
def test_a_tile_outside_the_set_is_refused(tmp_path: Path, name: str) -> None:
    """Row 20: a manifest from elsewhere does not make training read any other file."""
    folder = write_tileset(tmp_path / "set")
    tiles = [replace(tile, name=name) for tile in load_tileset(folder).tiles[:1]]
    write_manifest(folder, read_manifest(folder) or {}, tiles)
    write_splits(folder, {name: "train"})
    with pytest.raises(BadDataError, match=r"tileset\.json: cannot be used: tile name "):
        load_tileset(folder)
