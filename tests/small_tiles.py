"""Small sets of tiles for the training tests, written without `aerialseg tile`: noisy ground, bright buildings.

And what else those tests share: settings of seconds, and a stop.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from aerialseg.geo.tiles.tileset import TileRecord, image_path, mask_path, write_manifest

NETWORK = {"architecture": "linknet", "encoder": "tu-test_efficientnet", "weights": "none"}
"""95 thousand weights, BatchNorm inside: seconds to train, a checkpoint of 2 MB."""
SETTINGS = (
    *(f"model.{key}={value}" for key, value in NETWORK.items()),
    "data.crop=64",
    "data.batch=4",
    "data.threads=2",
    "schedule.epochs=2",
    "schedule.steps_per_epoch=3",
    "run.precision=fp32",
)
"""Overrides that turn any configuration with [model] architecture and encoder into one of seconds."""


def settings(*more: str) -> list[str]:
    """Return --set and SETTINGS and `more` as the command line takes them."""
    return [word for override in (*SETTINGS, *more) for word in ("--set", override)]


def tiny_config(*more: str):
    """Return the configuration of SETTINGS and `more`."""
    from aerialseg.config import TrainConfig, _apply

    values: dict = {}
    for override in (*SETTINGS, *more):
        _apply(values, override)
    return TrainConfig.model_validate(values)


def write_tileset(folder: Path, *, train: int = 6, val: int = 2, size: int = 96, bands: int = 3, seed: int = 0) -> Path:
    """Write a set of `train` + `val` tiles of size x size; a quarter of the last tile of each side has no data.

    Four bands are said to come from 16-bit scenes, in another order.
    """
    rng = np.random.default_rng(seed)
    tiles = []
    for number in range(train + val):
        split = "train" if number < train else "val"
        pixels, mask = draw(rng, size, bands)
        if number in (train - 1, train + val - 1):
            mask[: size // 2, : size // 2] = 255
        write_pair(folder, f"city{number + 1}_0_0", pixels, mask)
        labelled = mask != 255
        building = float((mask == 1).sum() / labelled.sum())
        window = (0, 0, size, size)
        tiles.append(
            TileRecord(
                f"city{number + 1}_0_0", split, f"city{number + 1}", window, window, building, float(labelled.mean())
            )
        )
    sixteen_bit = {"bands": [4, 1, 2, 3], "scale": [0.0, 4000.0]} if bands == 4 else {"bands": None, "scale": None}
    body = {"size": size, "overlap": 0.0, **sixteen_bit, "mean": [95.0] * bands, "std": [45.0] * bands}
    write_manifest(folder, {**body, "gsd_m": 0.3, "building_fraction": 0.2}, tiles)
    write_splits(folder, {tile.name: tile.split for tile in tiles})
    return folder


def draw(rng: np.random.Generator, size: int, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy ground with a few brighter rectangles: pixels (bands, size, size) and their mask."""
    mask = np.zeros((size, size), np.uint8)
    for _ in range(4):
        row, col = rng.integers(0, size - 24, 2)
        height, width = rng.integers(12, 24, 2)
        mask[row : row + height, col : col + width] = 1
    pixels = rng.normal(80, 25, (bands, size, size)) + 60 * mask
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_pair(folder: Path, name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Write one tile's image, its nodata as an internal mask, and its mask."""
    for path in (image_path(folder, name), mask_path(folder, name)):
        path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"crs": "EPSG:26914", "transform": Affine(0.3, 0, 616000, 0, -0.3, 3347000), "driver": "GTiff"}
    size = {"height": mask.shape[0], "width": mask.shape[1], "dtype": "uint8"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        with rasterio.open(image_path(folder, name), "w", count=len(pixels), **size, **grid) as target:
            target.write(pixels)
            if (mask == 255).any():
                target.write_mask(np.where(mask == 255, 0, 255).astype(np.uint8))
        with rasterio.open(mask_path(folder, name), "w", count=1, nodata=255, **size, **grid) as target:
            target.write(mask, 1)


def write_splits(folder: Path, splits: dict[str, str]) -> None:
    """Write an index.gpkg that holds the split and nothing else."""
    (folder / "index.gpkg").unlink(missing_ok=True)
    with sqlite3.connect(folder / "index.gpkg") as connection:
        connection.execute("CREATE TABLE tiles (name TEXT, split TEXT)")
        connection.executemany("INSERT INTO tiles VALUES (?, ?)", splits.items())
    connection.close()
