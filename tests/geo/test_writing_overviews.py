"""Overviews of classes, against a count of every four pixels, GDAL's own mode, and what a COG shows of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.features import rasterize

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.writing import ROWS, SHARE_BLOCK, BandMeaning, majority, same_share, with_overviews, write_cog

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
    with pytest.raises(KeyError), with_overviews(path, BandMeaning(NODATA), 20):
        assert len(list(tmp_path.iterdir())) == 4
        with open_raster(path, overviews=True) as opened:
            assert opened.overviews(1) == [2, 4, 8]
        with open_raster(path) as opened:
            assert opened.overviews(1) == []
        raise KeyError
    assert [found.name for found in tmp_path.iterdir()] == ["plain.tif"]


def sheds(side: int) -> np.ndarray:
    """Draw a town of turned sheds of 12 by 9 pixels, one in every 40 by 40."""
    rng, shapes = np.random.default_rng(3), []
    corners = np.array([[-6, -4.5], [6, -4.5], [6, 4.5], [-6, 4.5]])
    for row in range(20, side - 20, 40):
        for col in range(20, side - 20, 40):
            turn = rng.uniform(0, np.pi)
            turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            shapes.append(shapely.Polygon(np.add(turned, (col, row))))
    return rasterize(shapes, (side, side)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["sheds", "sheds beside nodata", "specks", "odd"])
def test_towns_keep_their_share_of_buildings_however_far_one_zooms_out(tmp_path: Path, kind: str) -> None:
    """By majority of four, a share of 0.066 became 0.050 at 1/8 and 0.015 at 1/16."""
    pixels = sheds(4200)
    if kind == "sheds beside nodata":
        pixels[:, 2100:] = NODATA
    elif kind == "specks":
        pixels = (np.random.default_rng(0).random((4100, 4100)) < 0.02).astype(np.uint8)
    elif kind == "odd":
        pixels = pixels[:4117, :4009]
    share = (pixels == 1).sum() / (pixels != NODATA).sum()
    box = GeoBox(*pixels.shape, NORTH_UP, UTM)
    for name in ("a.tif", "b.tif"):
        write_cog(tmp_path / name, box, lambda: np.array_split(pixels, 9), BandMeaning(NODATA, "share"))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    for level in range(4):
        with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=level) as overview:
            small = overview.read(1)
        assert set(np.unique(small)) <= {0, 1, NODATA}
        assert (small == 1).sum() / (small != NODATA).sum() == pytest.approx(share, rel=0.02), level


@pytest.mark.parametrize("values", [(0, 0, 0, 1), (0, *[1] * 400), (0, 1, NODATA), (0,), (1,), (NODATA,)], ids=len)
def test_every_block_of_an_overview_has_the_buildings_of_its_ground(values: tuple[int, ...]) -> None:
    """Against whole-array counts: a pixel is nodata where all four are, all 1 stays 1, all 0 stays 0 but in a tie."""
    pixels = drawn(256, 384, values)
    half, owed = same_share(pixels, NODATA)
    four = np.stack([pixels[row::2, col::2] for row in (0, 1) for col in (0, 1)])
    known = (four != NODATA).sum(0)
    np.testing.assert_array_equal(half == NODATA, known == 0)
    area = ((four == 1).sum(0) / np.maximum(known, 1)).reshape(16, SHARE_BLOCK, -1, SHARE_BLOCK).sum((1, 3)).ravel()
    found = (half == 1).reshape(16, SHARE_BLOCK, -1, SHARE_BLOCK).sum((1, 3)).ravel()
    assert np.abs(np.cumsum(found) - np.cumsum(area)).max() <= 0.5 + 1e-9
    assert owed / 12 == pytest.approx(area.sum() - found.sum())
    assert not half[(four == 0).sum(0) == 4].any() or values == (0, 1, NODATA)


def test_an_overview_of_shares_is_the_same_however_the_rows_are_handed_over() -> None:
    pixels = drawn(3 * ROWS, 200, (0, 0, 0, 1))
    whole, _ = same_share(pixels, NODATA)
    parts, owed = [], 0
    for strip in np.split(pixels, 3):
        half, owed = same_share(strip, NODATA, owed)
        parts.append(half)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
