"""Tiles against the scenes they were cut from: every pixel, every coordinate, every count."""

from __future__ import annotations

import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from told import Told

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo import vector_files
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.labels import find_labels
from aerialseg.geo.masks import MaskRule
from aerialseg.geo.scenes import Scene, find_scenes
from aerialseg.geo.tiles.build import TilingReport, tile_scenes
from aerialseg.geo.tiles.cut import check_unchanged, plan_again, source_files
from aerialseg.geo.tiles.plan import TilingOptions
from aerialseg.geo.tiles.tileset import INDEX, TileSet, load_tileset

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[..., Path]

SMALL = TilingOptions(size=64, split="0", threads=2)
AUSTIN = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)


def pair(
    folder: Path, name: str, scene_file: Write, mask_file: Write, size: tuple[int, int] = (100, 150), **profile: Any
) -> Scene:
    grid = {key: profile[key] for key in ("crs", "transform") if key in profile}
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        image = scene_file(folder / "images" / f"{name}.tif", size=size, seed=len(name), **profile)
        return Scene(name, image, mask_file(folder / "masks" / f"{name}.tif", size=size, **grid))


def write_polygons(path: Path, shapes: list[shapely.Polygon], crs: str = "EPSG:26914") -> Path:
    """Write polygons given in EPSG:26914 to a GeoPackage in `crs`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to = Transformer.from_crs("EPSG:26914", crs, always_xy=True).transform
    moved = shapely.transform(np.array(shapes), to, interleaved=False)
    pyogrio.raw.write(path, shapely.to_wkb(moved), [], [], driver="GPKG", crs=crs, geometry_type="Polygon")
    return path


def cut(scenes: list[Scene], out: Path, **changes: Any) -> TileSet:
    tile_scenes(scenes, out, replace(SMALL, **changes))
    return load_tileset(out)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.dataset_mask() != 0


@pytest.mark.parametrize("overlap", [0, 0.4])
@pytest.mark.parametrize(
    "transform", [AUSTIN, (0.3, 0, 616000, 0, 0.3, 3347000), tuple(Affine(*AUSTIN) @ Affine.rotation(20))[:6]]
)
def test_tiles_are_the_scene_pixel_by_pixel_on_its_ground(
    tmp_path: Path, scene_file: Write, mask_file: Write, overlap: float, transform: tuple[float, ...]
) -> None:
    scene = pair(tmp_path, "austin1", scene_file, mask_file, transform=transform)
    tiles = cut([scene], tmp_path / "set", overlap=overlap)
    pixels, labels = read(scene.image)[0], read(scene.mask)[0][0]
    assert len(tiles.tiles) == (6 if overlap == 0 else 8)
    for tile in tiles.tiles:
        row, col, height, width = tile.window
        for path, whole in ((tiles.image_path(tile), pixels), (tiles.mask_path(tile), labels[np.newaxis] // 255)):
            with rasterio.open(path) as dataset:
                assert np.array_equal(dataset.read(), whole[:, row : row + height, col : col + width])
                expected = Affine(*transform) @ Affine.translation(col, row)
                assert np.abs(np.array(dataset.transform) - expected).max() < 1e-9
                assert dataset.crs == CRS.from_epsg(26914)
                assert dataset.profile["compress"] == "zstd"
        assert tile.building == pytest.approx((labels[row : row + height, col : col + width] > 0).mean(), abs=1e-6)


def test_masks_declare_255_as_nodata_and_images_declare_nothing(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    tiles = cut([pair(tmp_path, "a", scene_file, mask_file)], tmp_path / "set")
    with (
        rasterio.open(tiles.mask_path(tiles.tiles[0])) as mask,
        rasterio.open(tiles.image_path(tiles.tiles[0])) as image,
    ):
        assert (mask.nodata, mask.dtypes, mask.count) == (255, ("uint8",), 1)
        assert (image.nodata, image.dtypes, image.count) == (None, ("uint8",) * 3, 3)


def test_tiles_are_no_larger_than_the_largest_scene_by_default(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    scenes = [pair(tmp_path, name, scene_file, mask_file, size) for name, size in (("a", (100, 150)), ("bb", (90, 80)))]
    tiles = cut(scenes, tmp_path / "out", size=None)
    assert (tiles.size, len(tiles.tiles)) == (150, 2)
    assert load_tileset(tmp_path / "out").size == 150
    tile_scenes(scenes, tmp_path / "index", replace(SMALL, size=None, index_only=True))
    assert load_tileset(tmp_path / "index").size == 150


@pytest.mark.parametrize("size", [(31, 70), (1, 1), (64, 20)])
def test_a_scene_smaller_than_a_tile_is_reflected_and_not_labelled_beyond(
    tmp_path: Path, scene_file: Write, mask_file: Write, size: tuple[int, int]
) -> None:
    scene = pair(tmp_path, "a", scene_file, mask_file, size=size)
    tiles = cut([scene], tmp_path / "set")
    pixels, labels = read(scene.image)[0], read(scene.mask)[0][0]
    inside = (slice(0, min(64, size[0])), slice(0, min(64, size[1])))
    image, mask = read(tiles.image_path(tiles.tiles[0]))[0], read(tiles.mask_path(tiles.tiles[0]))[0][0]
    assert image.shape[1:] == mask.shape == (64, 64)
    assert np.array_equal(image[:, *inside], pixels[:, *inside])
    overhang = [(0, 0), (0, 64 - min(64, size[0])), (0, 64 - min(64, size[1]))]
    assert np.array_equal(image, np.pad(pixels[:, *inside], overhang, mode="reflect"))
    assert np.array_equal(mask[inside], labels[inside] // 255)
    mask[inside] = 255
    assert (mask == 255).all()
    assert sum(tile.core[2] * tile.core[3] for tile in tiles.tiles) == size[0] * size[1]


@pytest.mark.parametrize("overlap", [0, 0.3])
def test_mean_deviation_and_classes_are_those_of_the_training_pixels_counted_once(
    tmp_path: Path, scene_file: Write, mask_file: Write, overlap: float
) -> None:
    scenes = [pair(tmp_path, name, scene_file, mask_file) for name in ("austin1", "austin12", "austin123")]
    tiles = cut(scenes, tmp_path / "set", split="val=austin12", overlap=overlap)
    train = np.concatenate([read(scene.image)[0].reshape(3, -1) for scene in (scenes[0], scenes[2])], axis=1).astype(
        float
    )
    assert tiles.mean == pytest.approx(train.mean(axis=1), abs=1e-6)
    assert tiles.std == pytest.approx(train.std(axis=1), abs=1e-6)
    share = np.mean([read(scene.mask)[0].mean() / 255 for scene in (scenes[0], scenes[2])])
    assert tiles.building_fraction == pytest.approx(share, abs=1e-9)
    assert {tile.scene for tile in tiles.of_split("val")} == {"austin12"}
    assert tiles.gsd_m == pytest.approx(0.3, rel=1e-3)


def test_masked_pixels_are_unlabelled_and_their_values_leave_no_trace(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (3, 64, 128), dtype=np.uint8)
    pixels[:, 10:30, 20:90] = 0
    clean = Scene(
        "a", scene_file(tmp_path / "a.tif", pixels, nodata=0), mask_file(tmp_path / "mask.tif", size=(64, 128))
    )
    tiles = cut([clean], tmp_path / "set")
    hole = np.zeros((64, 128), bool)
    hole[10:30, 20:90] = True
    for tile in tiles.tiles:
        part = hole[:, tile.window[1] : tile.window[1] + 64]
        image, valid = read(tiles.image_path(tile))
        mask = read(tiles.mask_path(tile))[0][0]
        assert np.array_equal(valid, ~part)
        assert np.array_equal(mask == 255, part)
        assert (image[:, part] == 0).all()
        assert tile.valid == pytest.approx(1 - part.mean(), abs=1e-6)
    assert tiles.mean == pytest.approx(pixels[:, ~hole].mean(axis=1), abs=1e-6)

    band = np.where(hole, 0, 255).astype(np.uint8)
    dirty = np.concatenate([np.where(hole, np.uint8(77), pixels), band[np.newaxis]])
    alpha = scene_file(tmp_path / "alpha.tif", dirty, photometric="RGB", alpha="yes")
    other = cut([replace(clean, image=alpha)], tmp_path / "other")
    for tile in tiles.tiles:
        assert np.array_equal(read(tiles.image_path(tile))[0], read(other.image_path(tile))[0])
    assert (other.mean, other.std) == (tiles.mean, tiles.std)


def test_tiles_without_data_or_labels_are_left_out_and_counted(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    pixels = np.full((3, 64, 256), 9, np.uint8)
    pixels[:, :, :64] = 0
    labels = np.zeros((64, 256), np.uint8)
    labels[:, 64:128] = 99
    labels[:, 130:140] = 255
    scene = Scene(
        "a", scene_file(tmp_path / "a.tif", pixels, nodata=0), mask_file(tmp_path / "m.tif", labels, nodata=99)
    )
    report = tile_scenes([scene], tmp_path / "set", SMALL)
    assert [tile.window[1] for tile in load_tileset(tmp_path / "set").tiles] == [128, 192]
    assert report.left_out == {"nodata": 1, "unlabelled": 1, "thinned": 0, "gap": 0}


def test_keep_empty_thins_training_tiles_without_buildings_only(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    labels = np.zeros((64, 64 * 24), np.uint8)
    labels[20:30, : 64 * 8] = 1
    masks = [mask_file(tmp_path / f"m{i}.tif", labels) for i in range(2)]
    scenes = [Scene(f"s{i}", scene_file(tmp_path / f"s{i}.tif", size=labels.shape, seed=i), masks[i]) for i in range(2)]
    kept = {}
    for share in (0, 0.25, 1):
        tiles = cut(scenes, tmp_path / str(share), split="val=s1", keep_empty=share)
        assert len(tiles.of_split("val")) == 24
        assert sum(tile.building > 0 for tile in tiles.of_split("train")) == 8
        kept[share] = {tile.name for tile in tiles.of_split("train") if tile.building == 0}
    assert not kept[0] and len(kept[1]) == 16 and kept[0.25] < kept[1]
    assert 1 <= len(kept[0.25]) <= 9


def test_sixteen_bits_and_chosen_bands_become_scaled_bytes(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scene = pair(tmp_path, "a", scene_file, mask_file, bands=4, dtype="uint16")
    tiles = cut([scene], tmp_path / "set", bands=BandRule((4, 1), (0, 2047)))
    expected = np.clip(np.rint(read(scene.image)[0][[3, 0]].astype(float) * 255 / 2047), 0, 255)
    for tile in tiles.tiles:
        row, col, height, width = tile.window
        image = read(tiles.image_path(tile))[0].astype(int)
        assert np.abs(image - expected[:, row : row + height, col : col + width]).max() <= 1
    assert (tiles.bands, tiles.scale, len(tiles.mean)) == ((4, 1), (0, 2047), 2)


def test_scenes_with_other_bands_are_set_aside(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scenes = [pair(tmp_path, "a", scene_file, mask_file), pair(tmp_path, "b", scene_file, mask_file, bands=1)]
    report = tile_scenes(scenes, tmp_path / "set", SMALL)
    assert "b.tif: has 1 bands, the scenes before it 3" in str(report.failures["b"])
    assert {tile.scene for tile in load_tileset(tmp_path / "set").tiles} == {"a"}


@pytest.mark.parametrize(("values", "rule"), [
    ((0, 1, 1), MaskRule()), ((0, 255, 255), MaskRule()), ((3, 7, 7), MaskRule(building_values=(7,))),
    ((0, 200, 130), MaskRule(threshold=128)),
])  # fmt: skip
def test_mask_values_mean_what_the_rule_says(
    tmp_path: Path, scene_file: Write, mask_file: Write, values: tuple[int, ...], rule: MaskRule
) -> None:
    labels = np.full((64, 64), values[0], np.uint8)
    labels[5:20, 5:20], labels[30:40, 30:40] = values[1:]
    scene = Scene("a", scene_file(tmp_path / "a.tif", size=(64, 64)), mask_file(tmp_path / "m.tif", labels))
    tiles = cut([scene], tmp_path / "set", masks=rule)
    assert np.array_equal(read(tiles.mask_path(tiles.tiles[0]))[0][0], labels != values[0])


def test_ignored_values_and_ground_outside_the_labelled_area_are_unlabelled(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    labels = np.zeros((64, 128), np.uint8)
    labels[5:20, 5:60], labels[30:40, 30:100] = 1, 9
    scene = Scene("a", scene_file(tmp_path / "a.tif", size=(64, 128)), mask_file(tmp_path / "m.tif", labels))
    area = write_polygons(
        tmp_path / "area.gpkg", [shapely.box(616000, 3347000 - 50 * 0.3, 616000 + 110 * 0.3, 3347000)]
    )
    tiles = cut([scene], tmp_path / "set", masks=MaskRule(ignore_values=(9,)), labelled_area=area)
    expected = np.where(labels == 9, 255, labels)
    expected[50:], expected[:, 110:] = 255, 255
    found = np.concatenate([read(tiles.mask_path(tile))[0][0] for tile in tiles.tiles], axis=1)
    assert np.array_equal(found, expected)


def test_polygons_and_a_mask_burned_from_them_give_the_same_tiles(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    rng = np.random.default_rng(5)
    corners = np.array([616000, 3347000]) + rng.uniform(-5, 45, (20, 3, 2)) * (1, -1)
    polygons = [shapely.Polygon(corner) for corner in corners]
    rows, cols = np.mgrid[:100, :150] + 0.5
    labels = shapely.contains_xy(shapely.union_all(polygons), 616000 + 0.3 * cols, 3347000 - 0.3 * rows).astype(
        np.uint8
    )
    scene = Scene("a", scene_file(tmp_path / "a.tif", size=(100, 150)), mask_file(tmp_path / "m.tif", labels))
    by_mask = cut([scene], tmp_path / "by_mask")
    vector = write_polygons(tmp_path / "labels.gpkg", polygons, "EPSG:32614")
    by_vector = cut([replace(scene, mask=None)], tmp_path / "by_vector", vectors=(vector,))
    different = sum(
        np.count_nonzero(read(by_mask.mask_path(tile))[0] != read(by_vector.mask_path(tile))[0])
        for tile in by_mask.tiles
    )
    assert labels.mean() > 0.1 and different <= 3


def test_the_share_of_ground_outside_the_labels_is_said(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scene = Scene("a", scene_file(tmp_path / "a.tif", size=(100, 100)))
    half = shapely.box(616000, 3347000 - 30, 616015, 3347000)
    vector = write_polygons(tmp_path / "labels.gpkg", [half])
    said = Told()
    tile_scenes([scene], tmp_path / "set", replace(SMALL, vectors=(vector,)), said)
    assert any("labels cover part of the ground only: 50% of it lies outside" in line for line in said.lines)
    told = Told()
    tile_scenes([scene], tmp_path / "other", replace(SMALL, vectors=(vector,), labelled_area=vector), told)
    assert not any("outside" in line for line in told.lines)
    far = write_polygons(tmp_path / "far.gpkg", [shapely.box(0, 3000000, 9, 3000009)])
    degrees = (r"longitude -104\.\d+ to .*, scenes at", r"longitude -97\.\d+ to -97\.\d+, latitude 30\.\d+ to 30\.\d+")
    places = "polygons lie at " + " ".join(degrees)
    with pytest.raises(BadDataError, match=rf"far\.gpkg: no polygon near any scene: {places}; check the CRS"):
        tile_scenes([scene], tmp_path / "none", replace(SMALL, vectors=(far,)))


def test_many_label_files_are_read_and_named_once(
    tmp_path: Path, scene_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes, files, read_files = [], [], []
    for n in range(4):
        left = 616000 + 64 * 0.3 * n
        image = scene_file(tmp_path / f"{n}.tif", size=(64, 64), transform=(0.3, 0, left, 0, -0.3, 3347000))
        scenes.append(Scene(str(n), image))
        shapes = [] if n == 2 else [shapely.box(left + 3, 3346990, left + 9, 3346997)]
        files.append(write_polygons(tmp_path / f"lab/{n}.gpkg", shapes))
    digest = vector_files.content_digest
    monkeypatch.setattr(vector_files, "content_digest", lambda path: read_files.append(path) or digest(path))
    said = Told()
    tile_scenes(scenes, tmp_path / "set", replace(SMALL, vectors=tuple(files)), said)
    assert read_files == files
    tiles = load_tileset(tmp_path / "set")
    counted = {tile.scene: np.count_nonzero(read(tiles.mask_path(tile))[0] == 1) for tile in tiles.tiles}
    assert counted["2"] == 0 and min(counted[name] for name in "013") > 400
    (empty,) = [line for line in said.lines if "empty" in line]
    assert empty == f"1 of 4 label files is empty: {files[2]}"
    (outside,) = [line for line in said.lines if "outside" in line]
    assert outside.startswith(f"4 label files ({files[0]} ...): labels cover part of the ground only")


def test_a_set_knows_the_layer_that_it_was_labelled_by(tmp_path: Path, scene_file: Write) -> None:
    scene, file = Scene("a", scene_file(tmp_path / "a.tif", size=(64, 64))), tmp_path / "town.gpkg"
    for name, top in (("houses", 0), ("sheds", 5)):
        shape = shapely.box(616003, 3346985 + top, 616009, 3346990 + top)
        pyogrio.raw.write(
            file, shapely.to_wkb([shape]), [], [], layer=name, append=file.exists(), driver="GPKG", crs="EPSG:26914",
            geometry_type="Polygon",
        )  # fmt: skip
    found = {}
    for name in ("houses", "sheds"):
        vectors = find_labels((scene,), [file], layer=name)[1]
        tiles = cut([scene], tmp_path / "set", vectors=vectors, index_only=True)
        assert source_files(tiles) == {"a": (scene.image, file)}
        (job,) = plan_again(tiles)
        check_unchanged(tiles, job)
        found[name] = job.labels.polygons.shapes[0].bounds
    assert found["houses"] != found["sheds"]
    with pytest.raises(UsageError, match="--layer houses: chooses a layer of vector files, but --masks names none"):
        find_labels((scene,), [], layer="houses")


def test_scenes_without_georeferencing_are_cut_when_allowed(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    scene = pair(tmp_path, "a", scene_file, mask_file, crs=None, transform=None)
    with pytest.raises(BadDataError, match="--allow-ungeoreferenced"):
        cut([scene], tmp_path / "set")
    tiles = cut([scene], tmp_path / "set", access=Access(allow_ungeoreferenced=True))
    assert tiles.gsd_m is None and len(tiles.tiles) == 6
    with pytest.raises(BadDataError, match="--gsd"):
        cut([scene], tmp_path / "set", access=Access(allow_ungeoreferenced=True), gsd_m=0.5)


def test_names_are_flat_unique_and_never_too_long(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    root = tmp_path / "in"
    names = ["a/x", "b/x", "-lead", "ä #%'\"$ b", "new\nline", "z" * 240]
    for name in names:
        pair(root, name, scene_file, mask_file, size=(64, 64))
    scenes, _ = find_labels(find_scenes([root / "images"]), [root / "masks"])
    assert sorted(scene.name for scene in scenes) == sorted(names)
    tiles = cut(list(scenes), tmp_path / "set")
    by_scene = {tile.scene: tile.name for tile in tiles.tiles}
    assert by_scene["a/x"] == "a__x_00000_00000" and by_scene["-lead"] == "-lead_00000_00000"
    assert len(set(by_scene.values())) == 6 and by_scene.keys() == set(names)
    assert len(f"{by_scene['z' * 240]}.tif".encode()) < 255 and "\n" not in "".join(by_scene.values())
    for tile in tiles.tiles:
        scene = next(scene for scene in scenes if scene.name == tile.scene)
        assert np.array_equal(read(tiles.image_path(tile))[0], read(scene.image)[0])


def test_scenes_whose_tiles_would_share_names_are_refused(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scenes = [pair(tmp_path, name, scene_file, mask_file) for name in ("a/x", "a__x")]
    with pytest.raises(UsageError, match="a/x and a__x"):
        cut(scenes, tmp_path / "set")


def test_labels_are_found_among_files_folders_and_globs(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scene = pair(tmp_path, "a", scene_file, mask_file)
    vector = (
        write_polygons(tmp_path / "v" / "labels.gpkg", [shapely.box(616000, 3346990, 616010, 3347000)])
        if (tmp_path / "v").mkdir() is None
        else None
    )
    bare = (replace(scene, mask=None),)
    for given in (vector, tmp_path / "v", str(tmp_path / "v" / "*.gpkg")):
        assert find_labels(bare, [given]) == (bare, (vector,))
    for given in (scene.mask, tmp_path / "masks", str(tmp_path / "masks" / "*.tif")):
        assert find_labels(bare, [given]) == ((scene,), ())
    (tmp_path / "masks" / "about.json").write_text("{}")
    assert find_labels(bare, [tmp_path / "masks"]) == ((scene,), ()), "a folder with rasters is one of masks"
    assert find_labels((scene,), []) == ((scene,), ())
    assert find_labels(bare, []) == ((scene,), ()), "masks beside the scenes' folder are found"
    apart = (replace(bare[0], image=tmp_path / "far" / "off" / "a.tif"),)
    with pytest.raises(BadDataError, match="no mask"):
        find_labels(apart, [])
    with pytest.raises(UsageError, match="one kind"):
        find_labels(bare, [vector, scene.mask])
    with pytest.raises(UsageError, match="needs --masks"):
        find_labels((scene,), [], "{stem}_x")


@pytest.mark.parametrize("change", [{"size": 8}, {"overlap": 1.0}, {"keep_empty": 1.5}, {"gsd_m": 0.0}, {"threads": 0},
                                    {"where": "a > 1"}, {"val_area": Path("x.gpkg"), "split": "inria"}])  # fmt: skip
def test_senseless_options_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        TilingOptions(**change)


def test_an_empty_training_set_is_an_error(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scene = Scene(
        "a",
        scene_file(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8), nodata=0),
        mask_file(tmp_path / "m.tif", size=(64, 64)),
    )
    with pytest.raises(BadDataError, match=r"no training tile is left \(1 nodata\)"):
        cut([scene], tmp_path / "set")
    with pytest.raises(BadDataError, match="no finished set"):
        load_tileset(tmp_path / "set")


def test_the_report_counts_what_is_there(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scenes = [pair(tmp_path, name, scene_file, mask_file) for name in ("austin1", "austin6")]
    report = tile_scenes(scenes, tmp_path / "set", replace(SMALL, split="inria"))
    assert isinstance(report, TilingReport)
    body = report.to_json()
    assert body["scenes"] == {"train": 1, "val": 1} and body["tiles"] == {"train": 6, "val": 6}
    assert body["mpx"] == pytest.approx(2 * 100 * 150 / 1e6) and body["mpx_per_s"] > 0
    rows = (
        sqlite3.connect(tmp_path / "set" / INDEX).execute("SELECT split, count(*) FROM tiles GROUP BY split").fetchall()
    )
    assert dict(rows) == {"train": 6, "val": 6}


def test_tiles_of_the_gap_are_left_out_and_counted(tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    scene = pair(tmp_path, "mosaic", scene_file, mask_file, size=(384, 384))
    report = tile_scenes([scene], tmp_path / "set", replace(SMALL, split="blocks=2"))
    tiles = load_tileset(tmp_path / "set")
    assert report.tiles["val"] == len(tiles.of_split("val")) == 8, "two blocks of nine, 2 x 2 tiles each"
    assert report.left_out["gap"] > 0 and len(tiles.tiles) + report.left_out["gap"] == 36
    assert len(list((tmp_path / "set" / "images").iterdir())) == len(tiles.tiles)
    for val in tiles.of_split("val"):
        for train in tiles.of_split("train"):
            assert max(abs(val.window[axis] - train.window[axis]) for axis in (0, 1)) >= 128
