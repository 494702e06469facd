"""Error rasters against whole arrays, wrong buildings against scipy's labels, and what other programs see."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]
    Hashes = Callable[[Path], dict[str, str]]

GRID = {
    "a/austin1": (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0),
    "austin2": (0.3, 0.05, 617000.0, 0.05, -0.3, 3347000.0),
}


def draw(seed: int, size: tuple[int, int] = (130, 160)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros((2, *size), np.uint8)
    for _ in range(40):
        row, col, height, width = (*rng.integers(0, size), *rng.integers(3, 14, 2))
        truth[row : row + height, col : col + width] = 1
        if rng.random() < 0.7:
            prediction[row : row + height, col + 1 : col + width + 1] = 1
    prediction[(rng.random(size) < 0.003)] ^= 1
    truth[60:64, 20:60] = truth[60:80, 20:24] = 1  # an L, missed
    prediction[60:80, 20:61] = 0
    prediction[:7] = 255
    return prediction, truth


@pytest.fixture
def dataset(tmp_path: Path, mask_file: Write) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    arrays = {}
    for seed, (name, grid) in enumerate(GRID.items()):
        arrays[name] = draw(seed)
        mask_file(tmp_path / f"out/{name}.tif", arrays[name][0], nodata=255, transform=grid)
        mask_file(tmp_path / f"gt/{name}.tif", arrays[name][1] * 255, transform=grid)
    return arrays


def evaluate(run: Run, folder: Path, *more: object) -> tuple[int, str]:
    code, _, err = run("evaluate", folder / "out", "--masks", folder / "gt", "--errors", folder / "errors", *more)
    return code, err


def wrong_objects(prediction: np.ndarray, truth: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Masks of the missed and of the invented objects, by scipy and every pair's IoU."""
    valid = prediction != 255
    cross = ndimage.generate_binary_structure(2, 1)
    beside = ndimage.binary_dilation(~valid, cross)
    sides = []
    for mask in (truth == 1, prediction == 1):
        labels, count = ndimage.label(mask & valid, cross)
        sides.append([labels == n + 1 for n in range(count)])
    found = {}
    for kind, (side, other) in {"missed": sides, "invented": sides[::-1]}.items():
        alone = [o for o in side if not any(2 * (o & p).sum() >= (o | p).sum() for p in other)]
        found[kind] = [o for o in alone if not (o & beside).any()]
    return found


def test_rasters_and_buildings_equal_whole_arrays(
    tmp_path: Path, dataset: dict[str, tuple[np.ndarray, np.ndarray]], run: Run, tree_hashes: Hashes
) -> None:
    code, err = evaluate(run, tmp_path)
    assert code == 0, err
    for name, (prediction, truth) in dataset.items():
        expected = np.select([prediction == 255, (truth == 1) & (prediction == 1), truth == 1, prediction == 1],
                             [255, 1, 2, 3], 0)  # fmt: skip
        with (
            rasterio.open(tmp_path / f"errors/{name}.tif") as raster,
            rasterio.open(tmp_path / f"gt/{name}.tif") as mask,
        ):
            assert np.array_equal(raster.read(1), expected)
            assert (raster.transform, raster.crs, raster.nodata) == (mask.transform, mask.crs, 255)
            grid = raster.transform
        for kind, objects in wrong_objects(prediction, truth).items():
            layer = gpd.read_file(tmp_path / "errors/errors.gpkg", layer=kind)
            rows = layer[layer.scene == name]
            assert len(rows) == len(objects) > 0
            assert sorted(rows.area_m2) == pytest.approx(sorted(o.sum() * abs(grid.determinant) for o in objects))
            drawn = rasterio.features.rasterize(rows.geometry, out_shape=truth.shape, transform=grid, dtype=np.uint8)
            assert np.array_equal(drawn == 1, np.logical_or.reduce(objects))
            assert shapely.area(rows.geometry.values).sum() == pytest.approx(rows.area_m2.sum())
    before = tree_hashes(tmp_path / "errors")
    assert evaluate(run, tmp_path)[0] == 0
    assert tree_hashes(tmp_path / "errors") == before
    assert not [path for path in before if ".aerialseg-" in path and "lock" not in path]


def test_scenes_of_two_crs_meet_in_longitude_and_latitude(tmp_path: Path, mask_file: Write, run: Run) -> None:
    for name, crs in (("a", "EPSG:26914"), ("b", "EPSG:32614")):
        prediction, truth = draw(5)
        mask_file(tmp_path / f"out/{name}.tif", prediction, nodata=255, crs=crs)
        mask_file(tmp_path / f"gt/{name}.tif", truth, crs=crs)
    assert evaluate(run, tmp_path)[0] == 0
    layer = gpd.read_file(tmp_path / "errors/errors.gpkg", layer="missed")
    assert layer.crs.to_epsg() == 4326
    west, south, east, north = layer.total_bounds
    assert -98 < west < east < -97
    assert 30 < south < north < 31


def test_nothing_wrong_leaves_empty_layers(tmp_path: Path, mask_file: Write, run: Run) -> None:
    for side in ("out", "gt"):
        mask_file(tmp_path / side / "x.tif", np.eye(40, dtype=np.uint8))
    assert evaluate(run, tmp_path)[0] == 0
    assert len(gpd.read_file(tmp_path / "errors/errors.gpkg", layer="invented")) == 0


def test_strangers_files_and_inputs_are_left_alone(
    tmp_path: Path, dataset: dict[str, tuple[np.ndarray, np.ndarray]], run: Run, mask_file: Write, tree_hashes: Hashes
) -> None:
    mask_file(tmp_path / "errors/austin2.tif")
    before = tree_hashes(tmp_path)
    code, err = evaluate(run, tmp_path)
    assert code == 73
    assert "austin2.tif: exists" in err
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--errors", tmp_path / "out", "-f")
    assert code == 2
    assert {k: v for k, v in tree_hashes(tmp_path).items() if "lock" not in k} == before
    assert evaluate(run, tmp_path, "-f")[0] == 0
    assert evaluate(run, tmp_path)[0] == 0


@pytest.mark.gdal
def test_gdal_sees_four_named_classes(
    tmp_path: Path, dataset: dict[str, tuple[np.ndarray, np.ndarray]], run: Run
) -> None:
    assert shutil.which("gdalinfo")
    assert evaluate(run, tmp_path)[0] == 0
    shown = subprocess.run(["gdalinfo", tmp_path / "errors/austin2.tif"], capture_output=True, text=True, check=True)
    for text in ("0: background, rightly", "1: found", "2: missed", "3: invented", "LAYOUT=COG", "NoData Value=255"):
        assert text in shown.stdout
    shown = subprocess.run(
        ["ogrinfo", "-so", tmp_path / "errors/errors.gpkg"], capture_output=True, text=True, check=True
    )
    assert "missed (Polygon)" in shown.stdout
