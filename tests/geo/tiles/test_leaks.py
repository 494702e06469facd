"""Validation on training ground is found by place alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from affine import Affine
from rasterio.crs import CRS

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.tiles.tileset import TileRecord, find_leak, write_index

UTM = CRS.from_epsg(26914)


def box(left_m: float, *, turned: float = 0.0, crs: CRS | None = UTM) -> GeoBox:
    """Return the grid of a scene of 200 x 200 pixels of 0.5 m."""
    grid = Affine.translation(616000 + left_m, 3347000) @ Affine.rotation(turned) @ Affine.scale(0.5, -0.5)
    return GeoBox(200, 200, grid, crs)


def write(folder: Path, scenes: dict[str, tuple[str, GeoBox]]) -> Path:
    """Write the index of scenes, each with its side of the split, cut into four tiles of 100 x 100."""
    windows = [(row, col, 100, 100) for row in (0, 100) for col in (0, 100)]
    tiles = [
        TileRecord(f"{name}_{window[0]}_{window[1]}", side, name, window, window, 0.1, 1.0)
        for name, (side, _) in scenes.items()
        for window in windows
    ]
    write_index(folder / "index.gpkg", tiles, {name: box for name, (_, box) in scenes.items()})
    return folder / "index.gpkg"


def test_a_copy_under_another_name_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, {"a": ("train", box(0)), "other": ("train", box(900)), "copy": ("val", box(0))})
    leak = find_leak(index)
    assert leak is not None and "4 of 4 validation tiles" in leak and "scene copy on scene a, for example" in leak
    assert leak.endswith(
        "give tiles of one ground the same split there, or clear the split of some, which leaves them out"
    )


@pytest.mark.parametrize("turned", [0.0, 30.0])
def test_scenes_that_only_touch_are_no_leak(tmp_path: Path, turned: float) -> None:
    grid = box(0, turned=turned)
    beside = GeoBox(200, 200, grid.transform @ Affine.translation(200, 0), UTM)
    assert find_leak(write(tmp_path, {"a": ("train", grid), "b": ("val", beside)})) is None
    nearer = GeoBox(200, 200, grid.transform @ Affine.translation(199, 0), UTM)
    leak = find_leak(write(tmp_path, {"a": ("train", grid), "b": ("val", nearer)}))
    assert leak is not None and "2 of 4 validation tiles" in leak


def test_padding_is_no_ground(tmp_path: Path) -> None:
    """Tiles of 200 x 200 over scenes of 100 x 100 that touch: the pixels beyond the scenes are nobody's."""
    small = [GeoBox(100, 100, box(50.0 * place).transform, UTM) for place in range(2)]
    window = (0, 0, 200, 200)
    tiles = [TileRecord(f"{s}_0_0", s, s, window, (0, 0, 100, 100), 0.1, 1.0) for s in ("train", "val")]
    write_index(tmp_path / "index.gpkg", tiles, dict(zip(("train", "val"), small, strict=True)))
    assert find_leak(tmp_path / "index.gpkg") is None


def test_an_edited_split_within_a_scene_counts_as_it_stands_now(tmp_path: Path) -> None:
    index = write(tmp_path, {"a": ("train", box(0)), "b": ("val", box(0))})
    with sqlite3.connect(index) as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (trigger,) in triggers:  # of the spatial index, in a dialect that plain sqlite lacks
            database.execute(f'DROP TRIGGER "{trigger}"')
        database.execute("UPDATE tiles SET split = NULL WHERE scene = 'a'")
    assert find_leak(index) is None


def test_tiles_without_a_place_are_left_out(tmp_path: Path) -> None:
    placeless = GeoBox(200, 200, Affine.identity(), None)
    assert find_leak(write(tmp_path, {"a": ("train", placeless), "b": ("val", placeless)})) is None
    with sqlite3.connect(tmp_path / "plain.gpkg") as database:
        database.execute("CREATE TABLE tiles (name TEXT, split TEXT)")
        database.execute("INSERT INTO tiles VALUES ('a', 'train'), ('b', 'val')")
    assert find_leak(tmp_path / "plain.gpkg") is None


def test_two_crs_that_touch_are_no_leak_and_a_scene_in_another_crs_is(tmp_path: Path) -> None:
    from rasterio.warp import transform

    (x,), (y,) = transform(UTM, CRS.from_epsg(32615), [616000.0], [3347000.0])
    moved = GeoBox(200, 200, Affine.translation(x, y) @ Affine.scale(0.5, -0.5), CRS.from_epsg(32615))
    leak = find_leak(write(tmp_path, {"a": ("train", box(0)), "b": ("val", moved)}))
    assert leak is not None and "scene b on scene a" in leak
