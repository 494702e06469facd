"""Resampling to another ground sample distance, against block means and GDAL's own warp of the whole scene."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from aerialseg.errors import UsageError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.resampling import at_gsd, resampled
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.build import tile_scenes
from aerialseg.geo.tiles.plan import TilingOptions
from aerialseg.geo.tiles.tileset import load_tileset

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Write = Callable[..., Path]

UTM = CRS.from_epsg(26914)
NORTH_UP = Affine(0.3, 0, 616000, 0, -0.3, 3347000)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 120, 180), dtype=np.uint8)
VALID = np.random.default_rng(1).random((120, 180)) > 0.2


def read(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rows, cols = window.toslices()
    assert rows.start >= 0 and cols.start >= 0 and rows.stop <= 120 and cols.stop <= 180, "read inside only"
    return PIXELS[:, rows, cols], VALID[rows, cols]


@pytest.mark.parametrize(
    "transform", [NORTH_UP, NORTH_UP @ Affine.rotation(30), Affine(0.3, 0, 616000, 0, 0.3, 3347000)]
)
def test_twice_the_distance_is_the_mean_of_four_valid_pixels(transform: Affine) -> None:
    source = GeoBox(120, 180, transform, UTM)
    target = at_gsd(source, 2 * source.gsd_m)
    assert (target.height, target.width) == (60, 90)
    assert target.gsd_m == pytest.approx(2 * source.gsd_m)
    pixels, valid = resampled(read, source, target)(Window(0, 0, 90, 60))
    share = VALID.reshape(60, 2, 90, 2).mean((1, 3))
    sums = np.where(VALID, PIXELS, 0).reshape(2, 60, 2, 90, 2).mean((2, 4))
    assert np.array_equal(valid, share >= 0.5)
    expected = np.where(share >= 0.5, sums / np.maximum(share, 0.01), 0)
    assert np.abs(pixels - expected).max() <= 0.51


@pytest.mark.parametrize("factor", [0.37, 0.8, 0.95, 1.3, 2.0, 3.7])
def test_windows_are_cut_from_one_resampled_scene(factor: float) -> None:
    source = GeoBox(120, 180, NORTH_UP, UTM)
    target = at_gsd(source, factor * source.gsd_m)
    reader = resampled(read, source, target)
    whole, valid = reader(Window(0, 0, target.width, target.height))
    for top, left in [(0, 0), (target.height // 3, target.width // 2), (target.height - 11, target.width - 17)]:
        part, part_valid = reader(Window(left, top, 17, 11))
        np.testing.assert_array_equal(part, whole[:, top : top + 11, left : left + 17])
        np.testing.assert_array_equal(part_valid, valid[top : top + 11, left : left + 17])


def test_a_flat_scene_stays_flat_at_any_distance() -> None:
    source = GeoBox(50, 70, NORTH_UP, UTM)
    for factor in (0.21, 0.5, 0.99, 1.01, 1.9, 5, 49):
        target = at_gsd(source, factor * source.gsd_m)

        def flat(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            shape = int(window.height), int(window.width)
            return np.full((1, *shape), 173, np.uint8), np.ones(shape, bool)

        pixels, valid = resampled(flat, source, target)(Window(0, 0, target.width, target.height))
        assert valid.all() and (pixels == 173).all(), factor


def test_the_grid_stays_when_the_distance_is_the_scenes_own() -> None:
    source = GeoBox(120, 180, NORTH_UP, UTM)
    assert at_gsd(source, source.gsd_m * 1.0005) is source
    assert at_gsd(source, source.gsd_m * 1.01) != source
    with pytest.raises(ValueError, match="no ground sample distance"):
        at_gsd(replace(source, crs=None), 1)


def test_tiles_at_another_distance_hold_image_and_mask_on_one_grid(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    labels = np.zeros((128, 256), np.uint8)
    labels[20:60, 30:120] = 255
    image = np.stack([labels // 3 + 10] * 3)
    scene = Scene("a", scene_file(tmp_path / "a.tif", image), mask_file(tmp_path / "m.tif", labels))
    tile_scenes([scene], tmp_path / "set", TilingOptions(size=64, split="0", gsd_m=0.6))
    tiles = load_tileset(tmp_path / "set")
    assert tiles.gsd_m == pytest.approx(0.6, rel=2e-3)
    assert len(tiles.tiles) == 2
    for tile in tiles.tiles:
        with rasterio.open(tiles.image_path(tile)) as found, rasterio.open(tiles.mask_path(tile)) as mask:
            assert found.transform == mask.transform and found.transform.a == pytest.approx(0.6, rel=2e-3)
            assert np.array_equal(found.read(1) > 50, mask.read(1) == 1)
    assert sum(tile.building for tile in tiles.tiles) / 2 == pytest.approx((labels > 0).mean(), abs=0.01)


def test_a_distance_that_would_blow_a_scene_up_is_refused_before_anything_is_planned(
    tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    scene = Scene("a", scene_file(tmp_path / "a.tif"), mask_file(tmp_path / "m.tif", np.zeros((128, 128), np.uint8)))
    with pytest.raises(UsageError, match=r"--gsd 1e-06: .*a\.tif would have .* more than --max-pixels"):
        tile_scenes([scene], tmp_path / "set", TilingOptions(size=64, split="0", gsd_m=1e-6))
    assert not (tmp_path / "set").exists()


@pytest.mark.gdal
@pytest.mark.parametrize(("factor", "method"), [(3, "average"), (0.5, "bilinear")])
def test_gdalwarp_makes_the_same_pixels(tmp_path: Path, scene_file: Write, factor: float, method: str) -> None:
    source = GeoBox(120, 180, NORTH_UP, UTM)
    target = at_gsd(source, factor * source.gsd_m)
    path, oracle = scene_file(tmp_path / "a.tif", PIXELS), tmp_path / "oracle.tif"
    west, south, east, north = map(str, target.bounds)
    size = [str(target.width), str(target.height)]
    subprocess.run(
        ["gdalwarp", "-q", "-r", method, "-te", west, south, east, north, "-ts", *size, path, oracle],
        check=True,
    )
    with rasterio.open(oracle) as dataset:
        expected = dataset.read().astype(int)
    found, _ = resampled(lambda window: (read(window)[0], np.ones(read(window)[1].shape, bool)), source, target)(
        Window(0, 0, target.width, target.height)
    )
    assert np.abs(found - expected).max() <= 1
