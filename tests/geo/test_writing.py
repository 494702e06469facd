"""Writing: what was given comes back bit for bit and in its place, or the final name is not touched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from aerialseg.errors import BadDataError, OutputError, StorageError
from aerialseg.geo import writing
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.opening import create_raster, open_raster
from aerialseg.geo.writing import BandMeaning, write_cog, write_geotiff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UTM = CRS.from_epsg(26914)
NORTH_UP = Affine(0.29999999999997673, 0, 617100.0000001, 0, -0.30000000000009314, 3344400.1234)
TRANSFORMS = {
    "north up": NORTH_UP,
    "south up": Affine(0.3, 0, 6e5, 0, 0.3, 3e6),
    "mirrored": Affine(-0.3, 0, 6e5, 0, -0.3, 3e6),
    "rotated": Affine.translation(6e5, 3e6) @ Affine.rotation(31) @ Affine.scale(0.3, -0.37),
    "not square": Affine(0.3, 0, 6e5, 0, -0.7, 3e6),
}
LAMBERT_FEET = "+proj=lcc +lat_1=33 +lat_2=45 +lat_0=40 +lon_0=-97 +x_0=10 +y_0=20 +ellps=GRS80 +units=us-ft +no_defs"
BESSEL = "+proj=tmerc +lon_0=16.3333333 +y_0=-5000000 +ellps=bessel +towgs84=577,90,463,5.1,1.4,5.2,2.4 +units=m"
CRSS = [
    "EPSG:4326", "EPSG:3857", "EPSG:2277", "EPSG:2036", "EPSG:31256", "EPSG:5498", "EPSG:26914+5703", LAMBERT_FEET,
    BESSEL, 'LOCAL_CS["building site",UNIT["US survey foot",0.304800609601219]]',
]  # fmt: skip


def box_of(array: np.ndarray, transform: Affine = NORTH_UP, crs: CRS | None = UTM, **more: Any) -> GeoBox:
    return GeoBox(*array.shape[-2:], transform, crs, **more)


def cog(final: Path, mask: np.ndarray, box: GeoBox, rows: int = 100, layer: BandMeaning = BandMeaning(255)) -> Path:
    def strips() -> Iterator[np.ndarray]:
        for row in range(0, len(mask), rows):
            yield mask[row : row + rows]

    write_cog(final, box, strips, layer, tags={"AERIALSEG": '{"a": "ü"}'})
    return final


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    rows, cols = np.mgrid[:700, :900]
    values = ((rows // 37 + cols // 53) % 2).astype(np.uint8)
    values[:20] = 255
    return values


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (97, 61), (3, 31, 70), (5, 257, 300)])
def test_a_tile_comes_back_bit_for_bit(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).normal(100, 30, shape).astype(dtype)
    if dtype.startswith("float"):
        array[..., 0, 0] = np.nan
    path = tmp_path / "tile.tif"
    write_geotiff(path, array, box_of(array), tags={"KEY": "value é"}, compress="ZSTD")
    with rasterio.open(path) as written:
        assert np.array_equal(written.read().reshape(shape), array, equal_nan=dtype.startswith("float"))
        assert written.tags()["KEY"] == "value é"
        assert (written.dtypes[0], written.nodata) == (dtype, None)
    assert [p.name for p in tmp_path.iterdir()] == ["tile.tif"]


def test_the_validity_of_a_tile_is_kept_inside_it(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 50, 60), dtype=np.uint8)
    valid = np.ones((50, 60), dtype=bool)
    valid[5:9] = False
    write_geotiff(tmp_path / "part.tif", array, box_of(array), valid=valid)
    write_geotiff(tmp_path / "whole.tif", array, box_of(array), valid=np.ones_like(valid))
    with rasterio.open(tmp_path / "part.tif") as part:
        assert np.array_equal(part.dataset_mask() > 0, valid)
        assert np.array_equal(part.read(), array), "pixels under the mask are kept"
    assert inspect_scene(tmp_path / "part.tif").has_mask
    assert not inspect_scene(tmp_path / "whole.tif").has_mask
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_every_grid_is_written_with_the_same_six_numbers(tmp_path: Path, mask: np.ndarray, transform: Affine) -> None:
    box = box_of(mask, transform)
    write_geotiff(tmp_path / "tile.tif", mask, box)
    cog(tmp_path / "cog.tif", mask, box)
    for name in ("tile.tif", "cog.tif"):
        with rasterio.open(tmp_path / name) as written:
            assert tuple(written.transform) == tuple(transform)
            assert written.crs == UTM


@pytest.mark.parametrize("text", CRSS, ids=lambda text: text[:12])
def test_the_output_has_the_scenes_wkt(tmp_path: Path, text: str) -> None:
    pixels = np.ones((64, 64), np.uint8)
    scene = tmp_path / "scene.tif"
    with rasterio.open(
        scene, "w", driver="GTiff", height=64, width=64, count=1, dtype="uint8", crs=text, transform=NORTH_UP
    ) as target:
        target.write(pixels, 1)
    box = inspect_scene(scene).box
    write_geotiff(tmp_path / "tile.tif", pixels, box)
    cog(tmp_path / "cog.tif", pixels, box)
    for name in ("tile.tif", "cog.tif"):
        with rasterio.open(tmp_path / name) as written:
            assert written.crs.to_wkt(version="WKT2_2019") == box.crs.to_wkt(version="WKT2_2019")


def test_a_deprecated_crs_is_not_replaced_by_its_successor(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    box = inspect_scene(scene_file(tmp_path / "scene.tif", crs="EPSG:2036")).box
    assert box.crs.to_epsg() == 2036
    write_geotiff(tmp_path / "tile.tif", np.ones((128, 128), np.uint8), box)
    assert inspect_scene(tmp_path / "tile.tif").box.crs.to_epsg() == 2036


def test_a_crs_that_a_geotiff_cannot_hold_is_refused(tmp_path: Path, mask: np.ndarray) -> None:
    rotated_pole = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=30 +lon_0=10 +ellps=WGS84")
    with pytest.raises(BadDataError, match="cannot hold the scene's CRS"):
        write_geotiff(tmp_path / "tile.tif", mask, box_of(mask, crs=rotated_pole))
    with pytest.raises(BadDataError, match="cannot hold the scene's CRS"):
        cog(tmp_path / "cog.tif", mask, box_of(mask, crs=rotated_pole))
    assert not list(tmp_path.glob("[!.]*"))


@pytest.mark.parametrize("crs", [None, UTM])
def test_a_scene_without_transform_stays_without(tmp_path: Path, mask: np.ndarray, crs: CRS | None) -> None:
    box = box_of(mask, Affine.identity(), crs)
    cog(tmp_path / "cog.tif", mask, box)
    with open_raster(tmp_path / "cog.tif") as written:
        assert GeoBox.of(written) == box


def test_ground_control_points_are_carried_over(tmp_path: Path, mask: np.ndarray) -> None:
    points = (
        (0.0, 0.0, 6e5, 3e6, 0.0, "1", ""),
        (0.5, 900.0, 600270.25, 3e6, 0.0, "2", ""),
        (700.0, 0.0, 6e5, 2999790.0, 5.0, "3", ""),
    )
    box = box_of(mask, Affine.identity(), None, gcps=points, gcps_crs=UTM)
    write_geotiff(tmp_path / "tile.tif", mask, box)
    cog(tmp_path / "cog.tif", mask, box)
    for name in ("tile.tif", "cog.tif"):
        with open_raster(tmp_path / name) as written:
            assert GeoBox.of(written) == box


def test_a_mask_becomes_a_valid_cog_with_overviews_and_tags(tmp_path: Path, mask: np.ndarray) -> None:
    from rio_cogeo import cog_validate

    path = cog(tmp_path / "cog.tif", mask, box_of(mask))
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as written:
        assert np.array_equal(written.read(1), mask)
        assert written.nodata == 255
        assert written.overviews(1) == [2]
        assert written.tags()["AERIALSEG"] == '{"a": "ü"}'
        assert written.colorinterp[0].name == "gray"
        small = written.read(1, out_shape=(350, 450))
    assert set(np.unique(small)) <= {0, 1, 255}, "overviews of classes invent no values"
    assert [p.name for p in tmp_path.iterdir()] == ["cog.tif"]


def test_overviews_of_probabilities_are_averaged(tmp_path: Path) -> None:
    checkers = (np.indices((1024, 1024)).sum(axis=0) % 2 * 200).astype(np.uint8)
    path = cog(tmp_path / "cog.tif", checkers, box_of(checkers), layer=BandMeaning(255, "average"))
    with rasterio.open(path) as written:
        assert (written.read(1, out_shape=(512, 512)) == 100).all()


def test_a_measure_carries_its_scale(tmp_path: Path, mask: np.ndarray) -> None:
    path = cog(tmp_path / "cog.tif", mask, box_of(mask), layer=BandMeaning(255, "average", scale=1 / 254))
    with rasterio.open(path) as written:
        assert (written.scales, written.offsets) == ((1 / 254,), (0.0,))
    assert [p.name for p in tmp_path.iterdir()] == ["cog.tif"]


def test_strips_may_come_in_any_height_but_must_cover(tmp_path: Path, mask: np.ndarray) -> None:
    path = cog(tmp_path / "cog.tif", mask, box_of(mask), rows=13)
    with rasterio.open(path) as written:
        assert np.array_equal(written.read(1), mask)
    for given, complaint in ((mask[:600], "600 of 700 rows"), (np.vstack([mask, mask[:1]]), "does not fit")):
        with pytest.raises(ValueError, match=complaint):
            cog(tmp_path / "wrong.tif", given, box_of(mask))
    assert [p.name for p in tmp_path.iterdir()] == ["cog.tif"]


def test_a_failure_of_the_strips_is_the_one_that_is_raised(tmp_path: Path, mask: np.ndarray) -> None:
    def torn() -> Iterator[np.ndarray]:
        yield mask[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cog(tmp_path / "cog.tif", box_of(mask), torn, BandMeaning(255))
    assert list(tmp_path.iterdir()) == []


def zeroed(path: Path) -> None:
    """Make a file what a killed writer leaves: it opens, and reads as zeros."""
    with rasterio.open(path) as dataset:
        profile = dataset.profile
    with rasterio.open(path, "w", **profile):
        pass


def test_a_copy_that_reads_back_wrong_never_gets_the_name(
    tmp_path: Path, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = writing.rasterio.shutil.copy

    def broken_copy(source: Any, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        zeroed(target)

    final = tmp_path / "cog.tif"
    final.write_text("an older result")
    monkeypatch.setattr(writing.rasterio.shutil, "copy", broken_copy)
    with pytest.raises(StorageError, match=r"cog\.tif: writing failed"):
        cog(final, mask, box_of(mask))
    assert final.read_text() == "an older result"
    assert [p.name for p in tmp_path.iterdir()] == ["cog.tif"]


def test_row_13_large_rasters_become_bigtiff_before_they_grow(tmp_path: Path) -> None:
    for side, magic in ((1000, b"II*\0"), (70_000, b"II+\0")):
        path = tmp_path / f"{side}.tif"
        box = GeoBox(side, side, NORTH_UP, UTM)
        with create_raster(path, **writing._profile(box, np.dtype("uint8"), 1, "ZSTD", 512), sparse_ok=True):
            pass
        assert path.read_bytes()[:4] == magic


def test_an_output_that_cannot_be_created_is_an_output_error(tmp_path: Path, mask: np.ndarray) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, FileExistsError, NotADirectoryError)):
        write_geotiff(tmp_path / "file" / "tile.tif", mask, box_of(mask))


def test_an_array_of_another_size_than_its_grid_is_a_programmers_mistake(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write_geotiff(tmp_path / "tile.tif", mask[:-1], box_of(mask))


@pytest.mark.gdal
def test_gdalinfo_agrees_on_place_and_layout(tmp_path: Path, mask: np.ndarray) -> None:
    path = cog(tmp_path / "cog.tif", mask, box_of(mask, TRANSFORMS["rotated"]))
    report = json.loads(subprocess.run(["gdalinfo", "-json", path], capture_output=True, check=True).stdout)
    t = TRANSFORMS["rotated"]
    assert report["geoTransform"] == pytest.approx([t.c, t.a, t.b, t.f, t.d, t.e], rel=1e-15)
    assert report["size"] == [900, 700]
    assert 'ID["EPSG",26914]' in report["coordinateSystem"]["wkt"]
    assert report["bands"][0]["noDataValue"] == 255
    assert report["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
