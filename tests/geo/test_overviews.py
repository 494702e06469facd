"""Overviews of classes, against a count of every four pixels, GDAL's own mode, and what a COG shows of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.writing import BandMeaning, majority, with_overviews, write_cog

if TYPE_CHECKING:
    from pathlib import Path

NODATA = 255
UTM, NORTH_UP = CRS.from_epsg(26914), Affine(0.3, 0, 6e5, 0, -0.3, 3e6)


def drawn(height: int, width: int, values: tuple[int, ...] = (0, 1, 1, NODATA), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))


def plain_raster(path: Path, pixels: np.ndarray, **profile: Any) -> None:
    size = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=UTM, transform=NORTH_UP, **size, **profile) as target:
        target.write(pixels, 1)


def counted(four: list[int]) -> int:
    """Return the most common of four values, the first of equal ones, nodata only among its own."""
    known = [value for value in four if value != NODATA] or four
    most = max(Counter(known).values())
    return next(value for value in known if known.count(value) == most)


@pytest.mark.parametrize("shape", [(2, 2), (1, 1), (7, 10), (10, 7), (64, 33)])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, NODATA), (0, 1, 2, 3, NODATA)], ids=str)
def test_a_pixel_is_what_most_of_four_are(shape: tuple[int, int], values: tuple[int, ...]) -> None:
    for seed in range(5):
        pixels = drawn(*shape, values, seed)
        even = np.pad(pixels, ((0, shape[0] % 2), (0, shape[1] % 2)), mode="edge")
        rows, cols = (length // 2 for length in even.shape)
        expected = [
            [counted(even[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel().tolist()) for col in range(cols)]
            for row in range(rows)
        ]
        np.testing.assert_array_equal(majority(pixels, NODATA), expected)


def test_gdal_s_own_mode_agrees_where_one_value_has_the_most(tmp_path: Path) -> None:
    pixels = drawn(600, 400)
    path = tmp_path / "gdal.tif"
    plain_raster(path, pixels, nodata=NODATA)
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2], Resampling.mode)
    with rasterio.open(path, OVERVIEW_LEVEL=0) as overview:
        theirs = overview.read(1)
    four = np.stack([pixels[row::2, col::2] for row in (0, 1) for col in (0, 1)])
    votes = np.stack([(four == value).sum(0) for value in (0, 1)])
    clear = votes[0] != votes[1]
    np.testing.assert_array_equal(majority(pixels, NODATA)[clear], theirs[clear])
    assert clear.mean() > 0.5


@pytest.mark.parametrize("shape", [(513, 700), (2100, 1301), (40, 5000)])
def test_a_cog_shows_them_level_by_level(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.kron(drawn(-(-shape[0] // 5), -(-shape[1] // 5)), np.ones((5, 5), np.uint8))[: shape[0], : shape[1]]
    box = GeoBox(*shape, NORTH_UP, UTM)
    write_cog(tmp_path / "cog.tif", box, lambda: np.array_split(pixels, 9), BandMeaning(NODATA))
    level, expected = 0, pixels
    while max(expected.shape) > 512:
        expected = majority(expected, NODATA)
        with rasterio.open(tmp_path / "cog.tif", OVERVIEW_LEVEL=level) as overview:
            np.testing.assert_array_equal(overview.read(1), expected)
            assert (overview.nodata, overview.compression.name) == (255, "deflate")
        level += 1
    with rasterio.open(tmp_path / "cog.tif") as written:
        assert len(written.overviews(1)) == level
        np.testing.assert_array_equal(written.read(1), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["cog.tif"]


def test_what_lay_beside_the_raster_is_gone_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    plain_raster(path, drawn(90, 80))
    with pytest.raises(KeyError), with_overviews(path, NODATA, 20):
        assert len(list(tmp_path.iterdir())) == 4
        with open_raster(path, overviews=True) as opened:
            assert opened.overviews(1) == [2, 4, 8]
        with open_raster(path) as opened:
            assert opened.overviews(1) == []
        raise KeyError
    assert [found.name for found in tmp_path.iterdir()] == ["plain.tif"]
