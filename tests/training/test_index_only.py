"""`tile --index-only`: no pixels are written, and training packs from the scenes what the cut tiles would hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tiles import settings
from test_cache import opened
from told import Told

from aerialseg.errors import BadDataError, ConfigError, NoInputError, OutputError
from aerialseg.geo.tiles.tileset import TileSet, load_tileset
from aerialseg.models.package import load_model

CRS = "EPSG:26914"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, scene_file: Any, mask_file: Any) -> Path:
    """Three ragged scenes with holes of nodata, one of which is all of a tile; masks; buildings as polygons."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for number, size in enumerate([(150, 170), (40, 200), (130, 64)], 1):
        pixels = rng.integers(1, 256, (3, *size), dtype=np.uint8)
        pixels[:, : 64 if number == 1 else 20, :64] = 0
        grid = {"transform": (0.3, 0.0, 616000.0 + 100 * number, 0.0, -0.3, 3347000.0)}
        scene_file(folder / "images" / f"city{number}.tif", pixels, nodata=0, **grid)
        mask_file(folder / "masks" / f"city{number}.tif", size=size, **grid)
    boxes = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring(x, y, 9)]}}
        for x in range(616100, 616360, 14)
        for y in range(3346955, 3347000, 13)
    ]
    head = {"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": CRS}}}
    (folder / "buildings.geojson").write_text(json.dumps({**head, "features": boxes}))
    area = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Polygon", "coordinates": [ring(616110, 3346900, 245)]},
    }
    (folder / "area.geojson").write_text(json.dumps({**head, "features": [area]}))
    return folder


def ring(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y + 1], [x + side, y + side], [x, y + side - 1], [x, y]]


def tile(run: Any, scenes: Path, out: Path, *more: str) -> TileSet:
    words = ("--size", "64", "--split", "val=city3", *more)
    masks = () if "--masks" in more else ("--masks", scenes / "masks")
    code, _, err = run("tile", scenes / "images", *masks, "-o", out, *words)
    assert code == 0, err
    return load_tileset(out)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--gsd", "0.47", "--overlap", "0.25"),
        ("--bands", "3,1", "--keep-empty", "0.5"),
        ("--nodata", "7", "--bands", "2", "--alpha", "data"),
        ("--masks", "VECTORS", "--labelled-area", "AREA"),
        ("--masks", "VECTORS", "--gsd", "0.2"),
    ],
)
def test_a_set_without_pixels_trains_on_the_very_same_arrays(
    run: Any, scenes: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    named = {"VECTORS": str(scenes / "buildings.geojson"), "AREA": str(scenes / "area.geojson")}
    words = tuple(named.get(word, word) for word in more)
    cut, bare = (
        tile(run, scenes, tmp_path / "cut", *words),
        tile(run, scenes, tmp_path / "bare", "--index-only", *words),
    )
    assert sorted(path.name for path in bare.folder.iterdir() if not path.name.startswith(".")) == [
        "index.gpkg", "report.json", "tileset.json",
    ]  # fmt: skip
    assert (bare.tiles, bare.mean, bare.std, bare.gsd_m) == (cut.tiles, cut.mean, cut.std, cut.gsd_m)
    one, other = opened(cut.folder)[0], opened(bare.folder)[0]
    seen = set()
    for record in cut.tiles:
        theirs = one.square(record.name, 0, 0, 64)
        for a, b in zip(theirs, other.square(record.name, 0, 0, 64), strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)
        seen |= set(np.unique(theirs[1][theirs[2]]).tolist()) | (set() if theirs[2].all() else {"nodata"})
    assert seen == {0, 1, 255, "nodata"}


def test_it_is_made_once_found_finished_and_turns_into_a_cut_set_and_back(
    run: Any, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    tile(run, scenes, out, "--index-only")
    words = ("tile", scenes / "images", "--masks", scenes / "masks", "-o", out, "--size", 64, "--split", "val=city3")
    assert "nothing had changed" in run(*words, "--index-only")[2]
    assert "3 scenes cut" in run(*words)[2] and len(list((out / "images").iterdir())) == len(load_tileset(out).tiles)
    assert "3 scenes cut" in run(*words, "--index-only")[2] and not list((out / "images").iterdir())


def test_it_trains_and_obeys_an_edited_split(run: Any, scenes: Path, tmp_path: Path) -> None:
    import sqlite3

    weights = []
    for name, more in (("cut", ()), ("bare", ("--index-only",))):
        tiles = tile(run, scenes, tmp_path / name, *more)
        opened(tiles.folder)
        with sqlite3.connect(tiles.folder / "index.gpkg") as index:
            for row, split in ((0, "val"), (3, "")):
                index.create_function("ST_IsEmpty", 1, lambda _: 0)
                for trigger in index.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                    index.execute(f"DROP TRIGGER {trigger[0]}")
                index.execute("UPDATE tiles SET split = ? WHERE name = ?", (split, tiles.tiles[row].name))
        (tmp_path / "c.toml").write_text('[model]\narchitecture = "linknet"\nencoder = "tu-test_efficientnet"\n')
        words = ("-c", tmp_path / "c.toml", *settings("schedule.epochs=1"), "--device", "cpu")
        code, _, err = run("train", tiles.folder, "-o", tmp_path / f"run-{name}", *words)
        assert code == 0 and "packing" not in err, err
        weights.append(load_model(tmp_path / f"run-{name}")[0].state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.fixture
def moved(run: Any, scenes: Path, tmp_path: Path) -> TileSet:
    """A set and its scenes, moved together after it was made."""
    shutil.copytree(scenes, tmp_path / "a" / "scenes")
    tile(run, tmp_path / "a" / "scenes", tmp_path / "a" / "set", "--index-only")
    (tmp_path / "a").rename(tmp_path / "b")
    return load_tileset(tmp_path / "b" / "set")


def test_set_and_scenes_can_be_moved_together(moved: TileSet) -> None:
    assert opened(moved.folder)[0] is not None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", ["images/city2.tif", "masks/city1.tif"])
def test_a_missing_scene_or_mask_is_named(moved: TileSet, part: str, packed: bool) -> None:
    if packed:
        opened(moved.folder)
    (moved.folder.parent / "scenes" / part).unlink()
    with pytest.raises(NoInputError, match=f"{part}: missing"):
        opened(moved.folder)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("part", "named"), [("images/city2.tif", "city2"), ("masks/city1.tif", "city1")])
def test_a_changed_scene_or_mask_is_named_and_nothing_is_left(
    moved: TileSet, part: str, named: str, packed: bool
) -> None:
    import rasterio

    if packed:
        opened(moved.folder)
    with rasterio.open(moved.folder.parent / "scenes" / part, "r+") as target:
        values = target.read(1)
        values[30, 90] = 255 - values[30, 90]
        target.write(values, 1)
    with pytest.raises(BadDataError, match=f"images/{named}.tif: the scene or its labels have changed"):
        opened(moved.folder)
    assert [path.name for path in (moved.folder / "training-cache").iterdir()] == [".aerialseg-lock"]


def test_scenes_with_new_times_are_packed_anew(moved: TileSet) -> None:
    opened(moved.folder)
    (moved.folder.parent / "scenes" / "images" / "city1.tif").touch()
    assert "holds other tiles; packing" in opened(moved.folder)[1][0]


def test_a_mask_that_appears_beside_a_packed_scene_is_named_not_ignored(moved: TileSet) -> None:
    import rasterio

    opened(moved.folder)
    image = moved.folder.parent / "scenes" / "images" / "city2.tif"
    profile = {"driver": "GTiff", "height": 40, "width": 200, "count": 1, "dtype": "uint8", "crs": CRS}
    with rasterio.open(f"{image}.msk", "w", transform=rasterio.Affine.scale(0.3), **profile) as target:
        target.write(np.zeros((1, 40, 200), np.uint8))
    with pytest.raises(BadDataError, match=r"images/city2\.tif: the scene or its labels have changed"):
        opened(moved.folder)


def test_statistics_that_a_gis_leaves_beside_a_scene_pack_nothing_anew(moved: TileSet) -> None:
    opened(moved.folder)
    metadata = '<Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata>'
    text = f'<PAMDataset><PAMRasterBand band="1">{metadata}</PAMRasterBand></PAMDataset>'
    (moved.folder.parent / "scenes" / "images" / "city1.tif.aux.xml").write_text(text)
    assert opened(moved.folder)[1] == []


def test_the_same_scenes_in_another_place_are_read_from_there(run: Any, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "before")
    tile(run, tmp_path / "before", tmp_path / "set", "--index-only")
    (tmp_path / "before").rename(tmp_path / "after")
    assert opened(tile(run, tmp_path / "after", tmp_path / "set", "--index-only").folder)[0] is not None


def test_without_a_cache_there_is_nothing_to_read(moved: TileSet) -> None:
    from test_cache import SECTION

    with pytest.raises(ConfigError, match="made with --index-only"):
        opened(moved.folder, SECTION.model_copy(update={"cache": "off"}))
    (moved.folder / "training-cache").write_text("a stranger's")
    with pytest.raises(OutputError, match="training-cache"):
        opened(moved.folder, progress=Told())


def test_a_manifest_that_does_not_say_where_its_scenes_are_is_refused(moved: TileSet) -> None:
    from dataclasses import replace

    from aerialseg.geo.tiles.cut import plan_again

    for sources in (
        {},
        {**(moved.sources or {}), "scenes": [["city1", None, None]]},
        {**(moved.sources or {}), "masks": 3},
        {**(moved.sources or {}), "keep_empty": 7},
        {**(moved.sources or {}), "gsd_m": "fine"},
        {**(moved.sources or {}), "access": [False, "many"]},
    ):
        with pytest.raises(BadDataError, match="does not say what the tiles are read from"):
            plan_again(replace(moved, sources=sources))
