"""A scene run at another GSD, against the same thing done to whole arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from known_networks import Neighbourhood, PixelRule, certain, plain, reference, standardised
from rasterio.enums import Resampling
from rasterio.warp import reproject

from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.lattice import ScenePlacement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRIDS: dict[str, dict[str, Any]] = {
    "metres": {"transform": (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)},
    "feet": {"crs": "EPSG:2277", "transform": (1.0, 0.0, 3100000.0, 0.0, -1.0, 10080000.0)},
    "degrees": {"crs": "EPSG:4326", "transform": (3e-6, 0.0, 16.0, 0.0, -3e-6, 48.0)},
    "south-up": {"transform": (0.3, 0.0, 616000.0, 0.0, 0.3, 3347000.0)},
    "rotated": {"transform": (0.24, 0.18, 616000.0, 0.18, -0.24, 3347000.0)},
    "turned": {"transform": (0.0, 0.3, 616000.0, 0.3, 0.0, 3347000.0)},
}


def resampled_whole(path: Path, shape: tuple[int, int], factor: float) -> np.ndarray:
    """The whole scene at another pixel size, in one call."""
    with rasterio.open(path) as dataset:
        pixels = dataset.read().astype(np.float32)
        target = dataset.transform @ Affine.scale(factor)
        how = Resampling.average if factor > 1 else Resampling.bilinear
        found = np.zeros((len(pixels), *shape), np.float32)
        places = {"src_transform": dataset.transform, "dst_transform": target}
        reproject(pixels, found, src_crs=dataset.crs, dst_crs=dataset.crs, resampling=how, **places)
    return np.rint(found).astype(np.uint8)


def brought_back(probability: np.ndarray, shape: tuple[int, ...], factor: float) -> np.ndarray:
    """Between pixel centres, rows and then columns, the outermost value beyond the last centre."""
    rows, cols = ((np.arange(length) + 0.5) / factor - 0.5 for length in shape)
    down = np.stack([np.interp(rows, np.arange(len(probability)), column) for column in probability.T], axis=1)
    return np.stack([np.interp(cols, np.arange(down.shape[1]), row) for row in down])


@pytest.mark.parametrize("factor", [2.0, 1.31, 0.5, 0.71])
@pytest.mark.parametrize("grid", GRIDS)
def test_probabilities_come_back_between_pixel_centres(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray], grid: str, factor: float
) -> None:
    smooth = np.cumsum(np.random.default_rng(3).integers(-9, 10, (3, 150, 130)), axis=2) + 128
    pixels = np.clip(smooth, 1, 255).astype(np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels, **GRIDS[grid])
    source = inspect_scene(path)
    canvas = ScenePlacement.alone(source, source.box.gsd_m * factor)
    assert canvas.grid == (round(150 / factor), round(130 / factor))
    segmenter = standardised(Neighbourhood())
    seen = resampled_whole(path, canvas.grid, factor)
    expected = 254 * brought_back(reference(seen, segmenter, 64, 0.25), (150, 130), factor)
    found = stream(path, segmenter, canvas=canvas)
    assert found.std() > 20
    off = np.abs(found - expected)
    assert np.mean(off > 0.6) < 0.002, off.max()  # a pixel whose mean lies on a half may be rounded either way
    assert off.max() < 12


def test_validity_is_the_scene_s_own(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    pixels = np.random.default_rng(3).integers(1, 256, (3, 150, 130), dtype=np.uint8)
    pixels[:, 40:75, 33:90] = 0
    pixels[:, 110, 100] = 0
    source = inspect_scene(scene_file(tmp_path / "scene.tif", pixels, nodata=0))
    values = pixels.astype(np.float32)
    values[:, (pixels == 0).all(0)] = np.nan
    floats = inspect_scene(scene_file(tmp_path / "float.tif", values), rule_of(0, 255))
    for factor in (2.0, 0.5):
        for seen, rule in ((source, None), (floats, rule_of(0, 255))):
            canvas = ScenePlacement.alone(seen, seen.box.gsd_m * factor)
            found = stream(seen.path, plain(PixelRule()), canvas=canvas, rule=rule)
            np.testing.assert_array_equal(found == 255, (pixels == 0).all(0))


def rule_of(lo: float, hi: float) -> Any:
    from aerialseg.geo.inspection import BandRule

    return BandRule(scale=(lo, hi))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (31, 70)], ids=str)
@pytest.mark.parametrize("factor", [7.0, 0.3])
def test_the_smallest_scenes_and_flat_ones_come_back_exactly(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray], size: Any, factor: float
) -> None:
    for value in (100, 200):
        pixels = np.full((3, *size), value, np.uint8)
        source = inspect_scene(scene_file(tmp_path / f"{value}.tif", pixels))
        found = stream(source.path, plain(PixelRule()), canvas=ScenePlacement.alone(source, source.box.gsd_m * factor))
        np.testing.assert_array_equal(found, certain(pixels))


def test_a_network_of_its_own_gsd_sees_the_pixels_it_would_see_in_a_resampled_file(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    """Blocks of 2 x 2 equal pixels are the coarser pixels exactly, so each block's middle holds its answer."""
    coarse = np.random.default_rng(3).integers(0, 256, (3, 70, 60), dtype=np.uint8)
    source = inspect_scene(scene_file(tmp_path / "scene.tif", coarse.repeat(2, 1).repeat(2, 2)))
    found = stream(source.path, plain(PixelRule()), canvas=ScenePlacement.alone(source, 0.6))
    answer = certain(coarse) / 254
    np.testing.assert_array_equal(found, np.rint(254 * brought_back(answer, (140, 120), 2)))
