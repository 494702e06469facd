"""One file of buildings over many masks: whole across scenes, as GDAL draws them, the same bytes every time."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes
from rasterio.warp import transform
from told import Told

from aerialseg.errors import BadDataError, OutputError, UsageError
from aerialseg.geo.dates import DateOptions
from aerialseg.geo.opening import without_warnings
from aerialseg.geo.polygons import trace
from aerialseg.geo.polygons.polygonize import MaskLayer, PolygonOptions, check_mask, polygonize_masks, write_buildings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRID = Affine(0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)
QUARTERS = ((0, 0, 17, 25), (0, 25, 17, 60), (17, 0, 40, 31), (17, 31, 40, 60))
FORMATS = (".gpkg", ".fgb", ".geojson", ".parquet")


@pytest.fixture
def thin_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few rows at a time, so that buildings cross strips."""
    monkeypatch.setattr(trace, "STRIP_PIXELS", 1)
    monkeypatch.setattr(trace, "STRIP_ROWS", (4, 8))


def noise(seed: int, density: float, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < density


def numbers(grid: Affine, left: float = 0, top: float = 0) -> tuple[float, ...]:
    """Return the six numbers of a grid whose first pixel is at (top, left) of `grid`."""
    a, b, c, d, e, f = tuple(grid)[:6]
    return a, b, c + a * left + b * top, d, e, f + d * left + e * top


def cut(
    scene_file: Callable[..., Path], folder: Path, mask: np.ndarray, pieces: Any = QUARTERS, **profile: Any
) -> list[MaskLayer]:
    """Write pieces (top, left, bottom, right) of a mask as files of their own."""
    layers = []
    for number, (top, left, bottom, right) in enumerate(pieces):
        grid = numbers(GRID, left, top)
        path = folder / f"s{number}.tif"
        scene_file(path, mask[top:bottom, left:right].astype(np.uint8), transform=grid, **profile)
        layers.append(MaskLayer(path.stem, path))
    return layers


def read(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **({"layer": "buildings"} if path.suffix == ".gpkg" else {}))


def by_rasterio(mask: np.ndarray, grid: Affine = GRID) -> list[shapely.Geometry]:
    with without_warnings():
        found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=grid)
        return [shapely.geometry.shape(shape) for shape, _ in found]


def burned(shapes_: Any, like: np.ndarray, grid: Affine = GRID) -> np.ndarray:
    with without_warnings():
        return rasterize(shapes_, out_shape=like.shape, transform=grid).astype(bool)


@pytest.mark.usefixtures("thin_strips")
@pytest.mark.parametrize("density", [0.3, 0.5, 0.65, 0.9])
def test_row_37_a_mask_cut_into_scenes_gives_the_buildings_of_the_whole(
    tmp_path: Path, scene_file: Callable[..., Path], density: float
) -> None:
    mask = noise(int(density * 100), density)
    report = write_buildings(cut(scene_file, tmp_path, mask), tmp_path / "b.gpkg")
    found, expected = read(tmp_path / "b.gpkg"), by_rasterio(mask)
    assert len(found) == len(expected) == report.kept
    assert found.is_valid.all()
    assert np.allclose(np.sort(found.area), np.sort([shape.area for shape in expected]), atol=1e-6)
    assert np.array_equal(burned(found.geometry, mask), mask)
    assert np.allclose(found.area_m2, found.area, atol=6e-4)


@pytest.mark.usefixtures("thin_strips")
def test_gaps_overlaps_and_corners_between_scenes(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    """Ground that nobody looked at separates, what overlaps is one, and a shared corner joins nothing."""
    mask = np.ones((40, 60), dtype=bool)
    pieces = ((0, 0, 20, 20), (5, 10, 30, 30), (0, 31, 8, 60), (30, 30, 40, 45), (30, 45, 40, 60), (38, 0, 40, 29))
    report = write_buildings(cut(scene_file, tmp_path, mask, pieces), tmp_path / "b.gpkg")
    seen = np.zeros_like(mask)
    for top, left, bottom, right in pieces:
        seen[top:bottom, left:right] = True
    found = read(tmp_path / "b.gpkg")
    assert report.kept == len(by_rasterio(seen)) == 4
    assert np.array_equal(burned(found.geometry, mask), seen)
    assert set(found.id) == {"s0:0:0", "s2:0:0", "s3:0:0", "s5:0:0"}


def test_scenes_off_each_others_pixels_or_in_other_crs_are_not_joined(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    ones = np.ones((10, 10), dtype=np.uint8)
    places = {"here": (GRID, "EPSG:26914"), "half": (Affine(*numbers(GRID, 9.6)), "EPSG:26914"),
              "other": (Affine(*numbers(GRID, -10)), "EPSG:26915")}  # fmt: skip
    layers = []
    for name, (grid, crs) in places.items():
        layers.append(MaskLayer(name, scene_file(tmp_path / f"{name}.tif", ones, transform=numbers(grid), crs=crs)))
    assert write_buildings(layers, tmp_path / "b.gpkg").kept == 3


def test_map_tiles_in_degrees_are_one_though_their_pixels_grow(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    """Twelve rows of tiles drift by a whole pixel from one grid, and by 0.013 pixels from tile to tile."""
    top, layers = 27.63, []
    for row in range(12):
        height = 1.3e-6 * (1 + 2.1e-4 * row)
        for col in range(2):
            grid = (1.35e-6, 0, 85.5 + col * 64 * 1.35e-6, 0, -height, top)
            path = scene_file(tmp_path / f"{row}-{col}.tif", np.ones((64, 64), np.uint8), crs=4326, transform=grid)
            layers.append(MaskLayer(path.stem, path))
        top -= 64 * height
    assert write_buildings(layers, tmp_path / "b.gpkg").kept == 1
    (shape,) = read(tmp_path / "b.gpkg").geometry
    assert shape.bounds == pytest.approx((85.5, top, 85.5 + 128 * 1.35e-6, 27.63), abs=2e-6)


@pytest.mark.usefixtures("thin_strips")
def test_ids_and_shapes_do_not_depend_on_other_scenes(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    mask = noise(1, 0.3)
    mask[:, 24:26] = False  # nothing reaches from the first into the second scene
    mask[16:18] = False
    layers = cut(scene_file, tmp_path, mask)
    write_buildings(layers, tmp_path / "all.gpkg")
    write_buildings(layers[1:2], tmp_path / "one.gpkg")
    together, alone = read(tmp_path / "all.gpkg").set_index("id"), read(tmp_path / "one.gpkg").set_index("id")
    assert len(alone) > 20
    assert together.index.is_unique
    same = together[together.scene == "s1"].loc[alone.index]
    assert len(same) == (together.scene == "s1").sum()
    assert [shape.wkb for shape in same.geometry] == [shape.wkb for shape in alone.geometry]
    name, row, col = alone.index[0].split(":")
    assert name == "s1"
    assert mask[int(row), 25 + int(col)]


def test_probability_is_the_mean_over_known_pixels(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    mask = noise(2, 0.5)
    quanta = np.random.default_rng(3).integers(0, 256, mask.shape).astype(np.uint8)
    layers = [
        MaskLayer(layer.name, layer.mask, scene_file(tmp_path / f"p{index}.tif", quanta[top:bottom, left:right],
                  transform=numbers(GRID, left, top), nodata=255 if index % 2 else None))
        for index, (layer, (top, left, bottom, right)) in enumerate(
            zip(cut(scene_file, tmp_path, mask), QUARTERS, strict=True))
    ]  # fmt: skip
    write_buildings(layers, tmp_path / "b.gpkg")
    found = read(tmp_path / "b.gpkg")
    assert found.probability.isna().any(), "a building of unknown pixels only"
    for shape, probability in zip(found.geometry, found.probability, strict=True):
        inside = burned([shape], mask) & (quanta != 255)
        expected = quanta[inside].mean() / 254 if inside.any() else np.nan
        assert probability == pytest.approx(expected, abs=6e-5, nan_ok=True)
    write_buildings([MaskLayer("s0", layers[0].mask)], tmp_path / "without.gpkg")
    assert read(tmp_path / "without.gpkg").probability.isna().all()


def test_a_probability_of_another_grid_or_type_is_refused(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    mask = scene_file(tmp_path / "m.tif", np.ones((8, 8), np.uint8))
    small = scene_file(tmp_path / "small.tif", np.ones((4, 8), np.uint8))
    real = scene_file(tmp_path / "real.tif", np.ones((8, 8), np.float32))
    for path, words in ((small, "cut both to one grid"), (real, "float32")):
        with pytest.raises(BadDataError, match=words):
            write_buildings([MaskLayer("m", mask, path)], tmp_path / "b.gpkg")


def test_255_is_building_unless_it_is_nodata(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[1:3, 1:3], values[5, 5] = 255, 255
    as_label = scene_file(tmp_path / "label.tif", values)
    values[5, 6] = 1
    as_ours = scene_file(tmp_path / "ours.tif", values, nodata=255)
    assert write_buildings([MaskLayer("label", as_label)], tmp_path / "a.gpkg").kept == 2
    assert write_buildings([MaskLayer("ours", as_ours)], tmp_path / "b.gpkg").kept == 1
    with pytest.raises(BadDataError, match=r"holds 1; write masks of 0, 1 and nodata"):
        write_buildings([MaskLayer("a", as_label), MaskLayer("b", as_ours)], tmp_path / "c.gpkg")


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, scene_file: Callable[..., Path], suffix: str) -> None:
    layers = cut(scene_file, tmp_path, noise(4, 0.4))
    first, second = (tmp_path / folder / f"b{suffix}" for folder in ("one", "two"))
    for target in (first, second):
        write_buildings(layers, target)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == [f"b{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_row_37_an_empty_result_is_an_empty_layer_with_its_columns(
    tmp_path: Path, scene_file: Callable[..., Path], suffix: str
) -> None:
    mask = scene_file(tmp_path / "m.tif", np.zeros((8, 8), np.uint8))
    report = write_buildings([MaskLayer("m", mask)], tmp_path / f"b{suffix}")
    assert report.kept == 0
    found = read(tmp_path / f"b{suffix}")
    assert len(found) == 0
    if suffix != ".geojson":  # which has no schema
        assert list(found.columns) == ["id", "scene", "area_m2", "probability", "taken", "taken_from", "geometry"]
        assert found.crs.to_epsg() == 26914
        assert found.area_m2.dtype == found.probability.dtype == np.float64


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_building_has_the_day_on_which_it_was_seen(
    tmp_path: Path, scene_file: Callable[..., Path], suffix: str
) -> None:
    layers = cut(scene_file, tmp_path, noise(5, 0.4))
    with rasterio.open(layers[0].mask, "r+") as dataset:
        dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2021-01-02 10:00:00")
    target = tmp_path / f"b{suffix}"
    write_buildings(layers, target)
    found = read(target)
    assert {(scene, str(day)[:10]) for scene, day in zip(found.scene, found.taken, strict=True) if scene == "s0"} == {
        ("s0", "2021-01-02")
    }
    assert found.taken[found.scene != "s0"].isna().all() and (found.scene != "s0").any()
    assert set(found.taken_from.dropna()) == {"metadata"}
    assert write_buildings(layers, target).done_before
    report = write_buildings(layers, target, PolygonOptions(dates=DateOptions.of(["2024-05-17"])))
    assert not report.done_before and {str(day)[:10] for day in read(target).taken} == {"2024-05-17"}
    if suffix == ".gpkg":
        with closing(sqlite3.connect(target)) as database:
            types = dict(database.execute("SELECT name, type FROM pragma_table_info('buildings')").fetchall())
        assert types["taken"] == "DATE"


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same_buildings(tmp_path: Path, scene_file: Callable[..., Path], suffix: str) -> None:
    mask = noise(5, 0.4)
    layers = cut(scene_file, tmp_path, mask)
    write_buildings(layers, tmp_path / "b.gpkg")
    write_buildings(layers, tmp_path / f"b{suffix}")
    expected, found = read(tmp_path / "b.gpkg").set_index("id"), read(tmp_path / f"b{suffix}").set_index("id")
    assert found.crs.to_epsg() == (4326 if suffix == ".geojson" else 26914)
    found = found.to_crs(26914).loc[expected.index]
    assert found.geometry.geom_equals_exact(expected.geometry, 1e-3).all()
    assert found[["scene", "area_m2"]].equals(expected[["scene", "area_m2"]])


def test_geojson_is_longitude_latitude_anticlockwise_text(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    south_up = (0.3, 0, 616000, 0, 0.3, 3347000)
    mask = np.pad(np.ones((5, 5), np.uint8), 1)
    mask[3, 3] = 0
    scene_file(tmp_path / "m.tif", mask, transform=south_up)
    write_buildings([MaskLayer('a "quoted" näme', tmp_path / "m.tif")], tmp_path / "b.geojson")
    document = json.loads((tmp_path / "b.geojson").read_text())
    (feature,) = document["features"]
    assert set(document) == {"type", "made_by", "features"}, "no crs member: RFC 7946"
    assert feature["properties"]["scene"] == 'a "quoted" näme'
    polygon = shapely.geometry.shape(feature["geometry"])
    assert polygon.exterior.is_ccw
    assert not polygon.interiors[0].is_ccw
    (lon,), (lat,) = transform("EPSG:26914", "EPSG:4326", [616000 + 3.5 * 0.3], [3347000 + 3.5 * 0.3])
    assert (polygon.centroid.x, polygon.centroid.y) == pytest.approx((lon, lat), abs=1e-7)


def test_a_building_on_the_180th_meridian_is_cut_in_two(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    (easting,), (northing,) = transform("EPSG:4326", "EPSG:32660", [180.0], [-17.0])
    grid = (1.0, 0, round(easting) - 10, 0, -1.0, round(northing) + 10)
    path = scene_file(tmp_path / "m.tif", np.ones((20, 20), np.uint8), crs="EPSG:32660", transform=grid)
    write_buildings([MaskLayer("m", path)], tmp_path / "b.geojson")
    (feature,) = json.loads((tmp_path / "b.geojson").read_text())["features"]
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.geom_type == "MultiPolygon"
    assert shape.is_valid
    assert {round(part.bounds[0] if part.centroid.x < 0 else part.bounds[2]) for part in shape.geoms} == {-180, 180}
    assert sum(part.exterior.is_ccw for part in shape.geoms) == 2
    assert shape.area == pytest.approx((20 / 111_000) ** 2 / np.cos(np.radians(17)), rel=0.01)


def test_a_rerun_does_nothing_and_any_change_is_noticed(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    layers, target = cut(scene_file, tmp_path, noise(6, 0.3)), tmp_path / "b.gpkg"
    first = write_buildings(layers, target)
    status = target.stat()
    again = write_buildings(layers, target)
    assert again.done_before
    assert "nothing to do" in again.line()
    assert target.stat().st_mtime_ns == status.st_mtime_ns
    assert not write_buildings(layers, target, overwrite=True).done_before
    larger = write_buildings(layers, target, PolygonOptions(min_area_m2=0.2))
    assert (larger.kept, larger.kept + larger.removed) == (len(read(target)), first.kept)
    cut(scene_file, tmp_path, noise(7, 0.3))
    assert not write_buildings(layers, target, PolygonOptions(min_area_m2=0.2)).done_before


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_strangers_file_stays(tmp_path: Path, scene_file: Callable[..., Path], suffix: str) -> None:
    layers, target = cut(scene_file, tmp_path, noise(6, 0.3)), tmp_path / f"b{suffix}"
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_buildings(layers, target)
    assert target.read_bytes() == b"mine"
    assert write_buildings(layers, target, overwrite=True).kept
    assert write_buildings(layers, target).done_before


def test_each_crs_gets_a_layer_or_all_are_brought_to_one(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    layers = cut(scene_file, tmp_path / "a", noise(8, 0.3), QUARTERS[:1])
    layers += [MaskLayer("b", cut(scene_file, tmp_path / "b", noise(9, 0.3), QUARTERS[:1], crs="EPSG:32632")[0].mask)]
    report = write_buildings(layers, tmp_path / "b.gpkg")
    assert report.layers == ("buildings_epsg_26914", "buildings_epsg_32632")
    parts = [geopandas.read_file(tmp_path / "b.gpkg", layer=layer) for layer in report.layers]
    assert [part.crs.to_epsg() for part in parts] == [26914, 32632]
    assert sum(map(len, parts)) == report.kept
    for suffix in (".fgb", ".parquet"):
        with pytest.raises(UsageError, match="2 CRSs and this format has one layer; give --crs"):
            write_buildings(layers, tmp_path / f"b{suffix}")
        one = write_buildings(layers, tmp_path / f"b{suffix}", PolygonOptions(crs="EPSG:3035"))
        assert one.layers == ("buildings",)
        found = read(tmp_path / f"b{suffix}")
        assert found.crs.to_epsg() == 3035
        assert len(found) == report.kept
    assert write_buildings(layers, tmp_path / "b.geojson").kept == report.kept
    with pytest.raises(UsageError, match="GeoJSON is always in WGS 84"):
        write_buildings(layers, tmp_path / "b.geojson", PolygonOptions(crs="EPSG:3035"))
    with pytest.raises(UsageError, match="is not a CRS"):
        write_buildings(layers, tmp_path / "c.gpkg", PolygonOptions(crs="EPSG:none"))


def test_a_geopackage_is_of_version_1_3_and_brings_its_style(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    write_buildings(cut(scene_file, tmp_path, noise(8, 0.3)), tmp_path / "b.gpkg")
    with closing(sqlite3.connect(tmp_path / "b.gpkg")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
        styles = database.execute("SELECT f_table_name, useAsDefault FROM layer_styles").fetchall()
    assert styles == [("buildings", 1)]


def test_parquet_without_pyarrow_says_how_to_get_it(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = cut(scene_file, tmp_path, noise(8, 0.3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"aerialseg\[parquet\]"):
        write_buildings(layers, tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"\.shp is not one of"):
        write_buildings(layers, tmp_path / "b.shp")
    for suffix in (".gpkg", ".fgb", ".geojson"):
        assert write_buildings(layers, tmp_path / f"b{suffix}").kept, "only parquet needs it"


def test_masks_and_probabilities_are_found_by_name(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    """A folder that predict wrote is taken as it is: what lies in probability/ is no mask."""
    mask = np.pad(np.ones((4, 4), np.uint8), 2)
    for name in ("x", "sub/y"):
        scene_file(tmp_path / "out" / f"{name}.tif", mask)
        scene_file(tmp_path / "out/probability" / f"{name}.tif", mask * 200, nodata=255)
    polygonize_masks([tmp_path / "out"], tmp_path / "b.gpkg", probability=tmp_path / "out/probability")
    found = read(tmp_path / "b.gpkg")
    assert set(found.scene) <= {"x", "sub/y"}
    assert found.probability.tolist() == [pytest.approx(200 / 254, abs=1e-4)] * len(found)
    polygonize_masks([tmp_path / "out/x.tif"], tmp_path / "c.gpkg", probability=tmp_path / "out/probability/x.tif")
    assert read(tmp_path / "c.gpkg").probability.notna().all()


def test_what_predict_measured_is_no_mask_and_a_folders_name_says_nothing(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    mask = np.pad(np.ones((4, 4), np.uint8), 2)
    scene_file(tmp_path / "out/x.tif", mask, nodata=255)
    for folder in ("disagreement", "agreement", "probability"):
        path = scene_file(tmp_path / "out" / folder / "x.tif", mask * 200, nodata=255)
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = (1 / 254,)
            dataset.update_tags(AERIALSEG_KEY="0")
    assert polygonize_masks([tmp_path / "out"], tmp_path / "a.gpkg").kept == 1
    scene_file(tmp_path / "pp/probability/x.tif", mask)
    assert polygonize_masks([tmp_path / "pp"], tmp_path / "b.gpkg").kept == 1


def test_a_probability_of_another_run_is_left_out_and_said(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    mask = np.pad(np.ones((4, 4), np.uint8), 2)
    for name in ("x", "y"):
        for place, values in (("out", mask), ("out/probability", mask * 200)):
            path = scene_file(tmp_path / place / f"{name}.tif", values, nodata=255)
            with rasterio.open(path, "r+") as dataset:
                dataset.update_tags(AERIALSEG_KEY="old" if (place, name) == ("out/probability", "y") else "new")
                dataset.scales = (1 / 254 if place != "out" else 1,)
    told = Told()
    for name, masks, probability in (("b", "out", "out/probability"), ("c", "out/y.tif", "out/probability/y.tif")):
        target = tmp_path / f"{name}.gpkg"
        polygonize_masks([tmp_path / masks], target, progress=told, probability=tmp_path / probability)
        found = read(target)
        assert list(found.probability.isna()) == [scene == "y" for scene in found.scene]
    assert len(told.lines) == 2
    for line in told.lines:
        assert "probability/y.tif: made with another model or options than its mask, and left out" in line


def test_the_limit_on_pixels_is_the_one_given(tmp_path: Path) -> None:
    shape = {"count": 1, "height": 100_001, "width": 100_001, "dtype": "uint8", "nodata": 255, "crs": "EPSG:26914"}
    with rasterio.open(tmp_path / "m.tif", "w", tiled=True, SPARSE_OK=True, BIGTIFF="YES", transform=GRID, **shape):
        pass
    with pytest.raises(BadDataError, match=r"100001x100001 is 1e\+10 pixels, more than 1e\+10"):
        check_mask(MaskLayer("m", tmp_path / "m.tif"))
    assert check_mask(MaskLayer("m", tmp_path / "m.tif"), 2e10).box.height == 100_001


GRIDS = {
    "north-up": GRID,
    "rotated": Affine(0.25, 0.16, 616000, 0.16, -0.25, 3347000),
    "south-up": Affine(0.3, 0, 616000, 0, 0.3, 3347000),
    "non-square": Affine(0.3, 0, 616000, 0, -0.7, 3347000),
    "mirrored": Affine(-0.3, 0, 616000, 0, -0.3, 3347000),
}


@pytest.mark.gdal
@pytest.mark.parametrize("name", GRIDS)
def test_gdal_polygonize_draws_the_same(tmp_path: Path, scene_file: Callable[..., Path], name: str) -> None:
    mask = noise(10, 0.55, (150, 170))
    path = scene_file(tmp_path / "m.tif", mask.astype(np.uint8), transform=numbers(GRIDS[name]))
    write_buildings([MaskLayer("m", path)], tmp_path / "ours.gpkg")
    ours = read(tmp_path / "ours.gpkg")
    theirs = gdal_polygonize(path, tmp_path / "theirs.gpkg")
    assert len(ours) == len(theirs)
    assert ours.is_valid.all()
    assert ours.exterior.is_ccw.all()
    assert np.allclose(np.sort(ours.area), np.sort(theirs.area), atol=1e-6)
    nearest = theirs.sindex.nearest(ours.representative_point(), return_all=False)[1]
    pairs = ours.geometry.to_numpy(), theirs.geometry.to_numpy()[nearest]
    assert shapely.area(shapely.symmetric_difference(*pairs)).max() < 1e-6
    assert np.array_equal(burned(ours.geometry, mask, GRIDS[name]), mask)


def gdal_polygonize(mask: Path, target: Path) -> geopandas.GeoDataFrame:
    tool = shutil.which("gdal_polygonize.py")
    assert tool is not None, "install gdal-bin and python3-gdal"
    subprocess.run(["/usr/bin/python3", tool, "-q", str(mask), str(target)], check=True, env={"PATH": "/usr/bin"})
    found = geopandas.read_file(target)
    found = found[found.DN > 0].reset_index(drop=True)
    return found.set_geometry(found.make_valid())
