"""Which scenes are pieces of one raster, on grids made by hand; no file is written."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy.ndimage import label

from aerialseg.geo.adjacency import find_groups
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import Source
from aerialseg.geo.validity import ValidityRule

NORTH_UP = Affine(0.3, 0, 616000, 0, -0.3, 3347000)
GRIDS = {
    "north up": NORTH_UP,
    "south up": Affine(0.3, 0, 616000, 0, 0.3, 3347000),
    "rotated": Affine(0.2, 0.1, 616000, 0.1, -0.2, 3347000),
    "degrees": Affine(3.1e-6, 0, 16.123456789, 0, -3.1e-6, 48.987654321),
}


def source(
    name: str, row: float, col: float, height: int = 100, width: int = 100, grid: Affine = NORTH_UP, **changes: Any
) -> Source:
    crs = CRS.from_epsg(changes.pop("epsg", 4326 if abs(grid.a) < 1e-3 else 26914))
    box = GeoBox(height, width, grid @ Affine.translation(col, row), crs)
    values = {"bands": (1, 2, 3), "dtype": "uint8", "scale": None, "validity": ValidityRule()}
    return Source(Path("/scenes") / name, box, warnings=(), **{**values, **changes})


def names(sources: list[Source]) -> list[list[str]]:
    return sorted(sorted(member.source.path.name for member in group.members) for group in find_groups(sources))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_an_edge_or_a_corner_makes_neighbours_on_any_grid(grid: Affine) -> None:
    pieces = [
        source("a", 0, 0, grid=grid), source("b", 0, 100, 60, 70, grid=grid), source("c", 100, 170, grid=grid),
        source("d", 60, 170, 40, 30, grid=grid), source("far", 400, 0, grid=grid),
    ]  # fmt: skip
    assert names(pieces) == [["a", "b", "c", "d"], ["far"]]
    group = next(group for group in find_groups(pieces) if len(group.members) == 4)
    assert [(m.source.path.name, m.row, m.col) for m in group.members] == [
        ("a", 0, 0), ("b", 0, 100), ("d", 60, 170), ("c", 100, 170),
    ]  # fmt: skip
    assert (group.height, group.width) == (200, 270)


def test_the_origin_is_the_group_s_top_left_though_no_scene_lies_there() -> None:
    (group,) = find_groups([source("a", 10, 150), source("b", 110, 50)])
    assert [(m.row, m.col) for m in group.members] == [(0, 100), (100, 0)]


OTHERS: dict[str, dict[str, Any]] = {
    "half a pixel off": {"col": 100.5},
    "a gap of one pixel": {"col": 101},
    "another pixel size": {"grid": NORTH_UP @ Affine.scale(1.01)},
    "rotated": {"grid": NORTH_UP @ Affine.rotation(1)},
    "another CRS": {"epsg": 26915},
    "another type": {"dtype": "uint16"},
    "other bands": {"bands": (3, 2, 1)},
    "another scale": {"scale": (0.0, 100.0)},
}


@pytest.mark.parametrize("difference", OTHERS)
def test_what_is_not_one_raster_is_not_linked(difference: str) -> None:
    changes = {"col": 100, **OTHERS[difference]}
    assert len(find_groups([source("a", 0, 0), source("b", 0, changes.pop("col"), **changes)])) == 2


def in_folder(folder: str, scene: Source) -> Source:
    return Source(Path(folder, scene.path.name), *(getattr(scene, name) for name in Source.__slots__[1:]))


def test_folders_divide_scenes_only_where_scenes_overlap() -> None:
    year, next_year = (
        [in_folder(f"/{folder}", source(name, 0, col)) for name, col in (("a", 0), ("b", 100))]
        for folder in ("2020", "2021")
    )
    assert [len(group.members) for group in find_groups([year[0], next_year[1]])] == [2]
    assert [len(group.members) for group in find_groups([*year, *next_year])] == [2, 2]


def test_a_hundredth_of_a_pixel_is_rounding() -> None:
    assert len(find_groups([source("a", 0, 0), source("b", 1e-4, 99.9999)])) == 1


def tile(row: int, col: int) -> Source:
    """A map tile of zoom 19, in degrees: the taller in degrees, the nearer to the equator."""
    north, south = (
        math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * edge / 2**19)))) for edge in (220241 + row, 220242 + row)
    )
    step = 360 / 2**19 / 512
    grid = Affine(step, 0, -180 + (386690 + col) * 512 * step, 0, (south - north) / 512, north)
    return source(f"{row}-{col}", 0, 0, 512, 512, grid=grid, epsg=4326)


def test_map_tiles_in_degrees_are_neighbours_though_no_two_rows_have_pixels_of_one_height() -> None:
    tiles = [tile(row, col) for row in range(40) for col in range(3)]
    assert len({piece.box.transform.e for piece in tiles}) == 40
    (group,) = find_groups(tiles)
    assert [(m.row, m.col) for m in group.members] == [(512 * row, 512 * col) for row in range(40) for col in range(3)]


def test_thousands_of_scenes_are_grouped_in_seconds() -> None:
    pieces = [source(f"{row}-{col}", row * 100, col * 100) for row in range(30) for col in range(30)]
    began = time.perf_counter()
    (group,) = find_groups(pieces)
    assert len(group.members) == 30 * 30
    assert time.perf_counter() - began < 20


def test_scenes_that_overlap_stay_alone_and_the_rest_does_not_reach_through_them() -> None:
    pieces = [source("a", 0, 0), source("b", 0, 100), source("b2", 0, 130), source("c", 0, 230), source("d", 100, 0)]
    assert names(pieces) == [["a", "d"], ["b"], ["b2"], ["c"]]


def test_scenes_without_a_place_stay_alone() -> None:
    box = GeoBox(10, 10, Affine.identity(), None)
    nowhere = [Source(Path(f"/s/{i}"), box, (1,), "uint8", None, ValidityRule(), ()) for i in range(3)]
    assert len(find_groups(nowhere)) == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True, min_size=1, max_size=20), st.randoms())
def test_groups_are_the_connected_cells_of_a_board(cells: list[tuple[int, int]], random: Any) -> None:
    board = np.zeros((7, 7), bool)
    board[tuple(np.transpose(cells))] = True
    labels, count = label(board, np.ones((3, 3)))
    pieces = [source(f"{row}-{col}", row * 100, col * 100) for row, col in cells]
    random.shuffle(pieces)
    expected = sorted(
        sorted(f"{row}-{col}" for row, col in cells if labels[row, col] == number) for number in range(1, count + 1)
    )
    assert names(pieces) == expected


def test_one_crs_in_other_words_is_one_crs() -> None:
    """As a file written by another program has it: equal to rasterio, other text."""
    first, second = source("a", 0, 0), source("b", 0, 100)
    text = first.box.crs.to_wkt().replace("NAD83 / UTM zone 14N", "NAD_1983_UTM_Zone_14N", 1)
    reworded = CRS.from_wkt(text)
    assert reworded == first.box.crs and reworded.to_wkt() != first.box.crs.to_wkt()
    other = replace(second, box=replace(second.box, crs=reworded))
    assert names([first, other]) == [["a", "b"]]
