"""Reading: windows, value scaling and validity, against numpy and plain rasterio as oracles."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from aerialseg.geo.inspection import Access, BandRule, inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.geo.inspection import Source

ANYWHERE = Access(allow_ungeoreferenced=True)


def whole(source: Source) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(source.path) as dataset:
        return read_window(dataset, source, Window(0, 0, dataset.width, dataset.height))


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16}, {"interleave": "band"}])
def test_windows_hold_the_pixels_rasterio_reads(tmp_path: Path, scene_file: Callable[..., Path], layout: dict) -> None:
    path = scene_file(tmp_path / "a.tif", size=(97, 61), bands=4, seed=3, **layout)
    with rasterio.open(path) as plain:
        expected = plain.read((3, 1))
    source = inspect_scene(path, BandRule(bands=(3, 1)))
    random = np.random.default_rng(0)
    with open_raster(path) as dataset:
        for _ in range(20):
            row, col = random.integers(0, 97), random.integers(0, 61)
            height, width = random.integers(1, 98 - row), random.integers(1, 62 - col)
            pixels, valid = read_window(dataset, source, Window(col, row, width, height))
            assert np.array_equal(pixels, expected[:, row : row + height, col : col + width])
            assert pixels.dtype == np.uint8
            assert valid.shape == (height, width)
            assert valid.all()


def test_a_window_outside_the_raster_is_a_programmers_mistake(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    source = inspect_scene(scene_file(tmp_path / "a.tif", size=(64, 64)))
    with open_raster(source.path) as dataset:
        for window in (Window(-1, 0, 8, 8), Window(0, 60, 8, 8), Window(60, 0, 8, 8)):
            with pytest.raises(ValueError, match="outside"):
                read_window(dataset, source, window)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("uint16", (0, 2047)), ("uint16", (100, 3000)), ("int16", (-500, 500)), ("float32", (0, 1)), ("float64", (-1, 3)),
     ("uint8", (10, 200)), ("int32", (0, 4000))],
)  # fmt: skip
def test_scale_maps_its_ends_to_0_and_255(
    tmp_path: Path, scene_file: Callable[..., Path], dtype: str, scale: tuple[float, float]
) -> None:
    lo, hi = scale
    span = hi - lo
    values = np.random.default_rng(0).uniform(
        max(0, lo - span) if dtype[0] == "u" else lo - span, hi + span / 4, (3, 40, 50)
    )
    if dtype == "uint8":
        values = values.clip(0, 255)
    values = values.astype(dtype)
    values[:, 0, 0], values[:, 0, 1] = np.array(scale).astype(dtype)
    pixels, valid = whole(inspect_scene(scene_file(tmp_path / "a.tif", values), BandRule(scale=scale)))
    exact = (values.astype(np.float64) - lo) / span * 255
    assert pixels[0, 0, 0] == 0
    assert pixels[0, 0, 1] == 255
    assert np.abs(pixels - exact.clip(0, 255)).max() <= 0.5 + 1e-3
    assert valid.all()


def test_non_finite_values_are_invalid_and_never_reach_the_pixels(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    values = np.full((3, 32, 32), 0.5, dtype=np.float32)
    values[1, 3, 4], values[0, 5, 6], values[2, 7, 8] = np.nan, np.inf, -np.inf
    pixels, valid = whole(inspect_scene(scene_file(tmp_path / "a.tif", values), BandRule(scale=(0, 1))))
    assert pixels[:, 3, 4].tolist() == [128, 0, 128]
    assert np.argwhere(~valid).tolist() == [[3, 4], [5, 6], [7, 8]]


def test_a_band_that_is_not_chosen_cannot_invalidate(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    values = np.full((4, 32, 32), 0.5, dtype=np.float32)
    values[3] = np.nan
    source = inspect_scene(scene_file(tmp_path / "a.tif", values), BandRule(bands=(1, 2, 3), scale=(0, 1)))
    assert whole(source)[1].all()


def marked_scene(folder: Path, kind: str, scene_file: Callable[..., Path]) -> tuple[Path, np.ndarray]:
    """Write a scene that marks an area as invalid in one of the ways GDAL knows; returns it and what is valid."""
    valid = np.ones((48, 64), dtype=bool)
    valid[10:20, 30:50] = False
    pixels = np.random.default_rng(1).integers(1, 256, (3, 48, 64), dtype=np.uint8)
    pixels[:, ~valid] = 0
    path = folder / "scene.tif"
    if kind == "nodata":
        return scene_file(path, pixels, nodata=0), valid
    if kind == "alpha":
        return scene_file(path, np.concatenate([pixels, valid[np.newaxis] * np.uint8(255)]), alpha="YES"), valid
    scene_file(path, pixels)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES" if kind == "internal" else "NO"),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(valid)
    assert path.with_name("scene.tif.msk").exists() == (kind == "external")
    return path, valid


@pytest.mark.parametrize("kind", ["nodata", "alpha", "internal", "external"])
def test_every_way_to_mark_invalid_pixels_is_understood(
    tmp_path: Path, scene_file: Callable[..., Path], kind: str
) -> None:
    path, expected = marked_scene(tmp_path, kind, scene_file)
    source = inspect_scene(path)
    pixels, valid = whole(source)
    assert source.has_mask
    assert source.bands == (1, 2, 3)
    assert np.array_equal(valid, expected)
    assert pixels.shape == (3, 48, 64)


def test_a_mask_file_beside_a_png_is_understood(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path, expected = marked_scene(tmp_path, "external", scene_file)
    pixels, _ = whole(inspect_scene(path))
    png = scene_file(tmp_path / "scene.png", pixels, driver="PNG")
    shutil.move(f"{path}.msk", f"{png}.msk")
    assert np.array_equal(whole(inspect_scene(png))[1], expected)


def test_an_alpha_band_read_as_data_marks_nothing(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path, _ = marked_scene(tmp_path, "alpha", scene_file)
    source = inspect_scene(path, BandRule(bands=(1, 2, 4)))
    assert not source.has_mask
    assert whole(source)[1].all()


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG"])
def test_side_files_place_pictures_on_the_ground(tmp_path: Path, scene_file: Callable[..., Path], driver: str) -> None:
    """A tile server's JPEG named .tif with .aux.xml is common; so are PNG and JPEG 2000 exports."""
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (3, 48, 64))
    options = {"quality": 100, "reversible": True} if driver == "JP2OpenJPEG" else {}
    path = scene_file(tmp_path / "a.tif", smooth, driver=driver, **options)
    source = inspect_scene(path)
    assert source.box.georeferenced
    assert source.box.crs.to_epsg() == 26914
    assert source.box.gsd_m == pytest.approx(0.3)
    assert np.abs(whole(source)[0].astype(int) - smooth).max() <= 4


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_world_file_without_crs_is_read_when_permitted(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.png", driver="PNG", crs=None, transform=None)
    path.with_suffix(".pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    box = inspect_scene(path, access=ANYWHERE).box
    assert box.transform == Affine(0.5, 0, 1000, 0, -0.5, 2000)
    assert box.crs is None


def test_a_source_can_be_sent_to_another_process(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    source = inspect_scene(scene_file(tmp_path / "a.tif"))
    assert pickle.loads(pickle.dumps(source)) == source


def test_datasets_may_be_closed_in_any_order(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.tif")
    first, second = open_raster(path), open_raster(path)
    first.__enter__()
    dataset = second.__enter__()
    first.__exit__(None, None, None)
    assert dataset.read(1).shape == (128, 128)
    second.__exit__(None, None, None)


def test_threads_read_with_handles_of_their_own(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    paths = [scene_file(tmp_path / f"{seed}.tif", size=(200, 300), seed=seed, compress="deflate") for seed in range(4)]
    expected = [whole(inspect_scene(path))[0] for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda path: whole(inspect_scene(path))[0], paths * 4)
            assert all(np.array_equal(one, other) for one, other in zip(found, expected * 4, strict=True))


def test_colour_tags_survive_the_guarded_opening(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.tif", bands=4, photometric="RGB", alpha="NO")
    with open_raster(path) as dataset:
        assert dataset.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
