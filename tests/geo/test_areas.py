"""Areas on a raster's grid: rectangles in degrees, borders that two areas share, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from aerialseg.errors import UsageError
from aerialseg.geo.areas import AreaOptions, Keep, read_area
from aerialseg.geo.geobox import GeoBox

if TYPE_CHECKING:
    from pathlib import Path

LEFT, TOP = 616000.0, 3347000.0
BOX = GeoBox(200, 300, Affine(0.3, 0, LEFT, 0, -0.3, TOP), CRS.from_epsg(26914))


def write(path: Path, west: float, east: float) -> str:
    """Write a rectangle from one column of the grid to another."""
    ground = shapely.box(LEFT + 0.3 * west, TOP - 90, LEFT + 0.3 * east, TOP + 30)
    gpd.GeoDataFrame(geometry=[ground], crs="EPSG:26914").to_file(path)
    return str(path)


def squares(*cols: float) -> np.ndarray:
    """Return buildings of 10 x 10 pixels around columns of the grid."""
    return np.array([shapely.box(LEFT + 0.3 * (x - 5), TOP - 15, LEFT + 0.3 * (x + 5), TOP - 12) for x in cols])


def test_a_point_on_a_shared_border_lies_in_one_of_both(tmp_path: Path) -> None:
    files = write(tmp_path / "west.gpkg", -100, 150), write(tmp_path / "east.gpkg", 150, 400)
    halves = replace(BOX, transform=Affine(0.5, 0, LEFT, 0, -0.5, TOP))  # on which 45 m are 90 pixels to the last bit
    middle = shapely.box(LEFT + 44, TOP - 15, LEFT + 46, TOP - 12)
    shapes = np.array([*squares(100), middle, *squares(152, 200)])
    kept = [read_area(AreaOptions(file, keep="inside")).shares(shapes, halves)[1] for file in files]
    assert np.add(*map(np.ndarray.astype, kept, [int, int])).tolist() == [1, 1, 1, 1]
    assert kept[0].tolist()[::3] == [True, False]


@pytest.mark.parametrize(("keep", "expected"), [("touching", [True, True, False]), ("inside", [True, False, False])])
def test_shares_are_of_the_whole_building(tmp_path: Path, keep: Keep, expected: list[bool]) -> None:
    area = read_area(AreaOptions(write(tmp_path / "a.gpkg", 0, 150), keep=keep))
    share, kept = area.shares(squares(100, 153, 155), BOX)
    assert share == pytest.approx([1, 0.2, 0], abs=1e-6)
    assert kept.tolist() == expected


def test_what_is_cut_keeps_its_place(tmp_path: Path) -> None:
    area = read_area(AreaOptions(write(tmp_path / "a.gpkg", 0, 150), keep="clip"))
    shapes = squares(100, 153, 155)
    which, pieces = area.clip(shapes[:2], BOX)
    assert which.tolist() == [0, 1]
    assert pieces[0].equals(shapes[0])
    assert pieces[1].bounds == pytest.approx((LEFT + 0.3 * 148, TOP - 15, LEFT + 0.3 * 150, TOP - 12))


def test_the_margin_is_in_metres_whatever_the_raster_counts_in() -> None:
    degrees = GeoBox(400, 400, Affine(1e-5, 0, 13.0, 0, -1e-5, 60.0), CRS.from_epsg(4326))
    ground = read_area(AreaOptions("13.0015,59.9975,13.0025,59.9985", margin_m=22.3)).on("x", degrees)
    inner, near = (part.burn(Window(0, 0, 400, 400)) for part in (ground.inner, ground.near))
    assert (np.flatnonzero(inner.any(0))[[0, -1]].tolist(), inner.sum()) == ([150, 249], 10000)
    assert np.flatnonzero(near.any(0))[[0, -1]] == pytest.approx([110, 289], abs=1)  # 0.558 m a pixel
    assert np.flatnonzero(near.any(1))[[0, -1]] == pytest.approx([130, 269], abs=1)  # 1.114 m


@pytest.mark.parametrize("text", ["3,2,1,4", "1,2,1,4", "nan,2,3,4", "1,2,3,95"])
def test_a_rectangle_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="give W,S,E,N in degrees"):
        AreaOptions(text)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="--area-margin -1"):
        AreaOptions("a.gpkg", margin_m=-1)
    with pytest.raises(UsageError, match="--area-where chooses polygons of a file"):
        AreaOptions("1,2,3,4", where="x = 1")
