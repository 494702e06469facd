"""The tile grid: properties that hold for every raster and tile size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.geo.windows import Tile, TileGrid

grids = st.builds(
    TileGrid,
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    overlap=st.floats(0, 0.95),
)
CAREFULLY = settings(max_examples=80, deadline=None)


def pixels(window: object) -> tuple[slice, slice]:
    return window.toslices()  # type: ignore[attr-defined]


@CAREFULLY
@given(grids)
def test_cores_partition_the_raster(grid: TileGrid) -> None:
    owners = np.zeros((grid.height, grid.width), dtype=int)
    for tile in grid:
        owners[pixels(tile.core)] += 1
    assert (owners == 1).all()


@CAREFULLY
@given(grids)
def test_every_core_is_inside_its_window_and_not_empty(grid: TileGrid) -> None:
    for tile in grid:
        assert tile.core.height >= 1 and tile.core.width >= 1
        for core, window in zip(tile.core.toranges(), tile.window.toranges(), strict=True):
            assert window[0] <= core[0] and core[1] <= window[1]


@CAREFULLY
@given(grids)
def test_windows_are_all_of_one_size_and_run_over_the_edge_only_when_the_raster_is_smaller(grid: TileGrid) -> None:
    for tile in grid:
        assert tile.window.height == tile.window.width == grid.size
        for (start, stop), length in zip(tile.window.toranges(), (grid.height, grid.width), strict=True):
            assert start >= 0
            assert stop <= length if length >= grid.size else start == 0


@CAREFULLY
@given(grids)
def test_length_shape_and_iteration_agree(grid: TileGrid) -> None:
    tiles = list(grid)
    down, across = grid.shape
    assert len(grid) == len(tiles) == down * across
    offsets = [(tile.window.row_off, tile.window.col_off) for tile in tiles]
    assert offsets == sorted(set(offsets)), "row by row, no window twice"


@CAREFULLY
@given(grids)
def test_neighbours_stand_a_step_apart_except_the_last(grid: TileGrid) -> None:
    rows = sorted({tile.window.row_off for tile in grid})
    assert rows[:-1] == list(range(0, grid.step * (len(rows) - 1), grid.step))
    assert len(rows) < 2 or 0 < rows[-1] - rows[-2] <= grid.step


def test_a_scene_of_inria_has_25_tiles_of_1024() -> None:
    tiles = list(TileGrid(5000, 5000, 1024))
    assert len(tiles) == 25
    assert [tile.window.col_off for tile in tiles[:5]] == [0, 1024, 2048, 3072, 3976]
    assert [tile.core.width for tile in tiles[:5]] == [1024, 1024, 1024, 964, 964]


def test_a_raster_smaller_than_a_tile_has_one_tile_that_owns_all_of_it() -> None:
    (tile,) = TileGrid(31, 7, 64)
    assert isinstance(tile, Tile)
    assert tile.window.toranges() == ((0, 64), (0, 64))
    assert tile.core.toranges() == ((0, 31), (0, 7))


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"), [(0, 5, 5, 0), (5, 5, 0, 0), (5, 5, 5, 1.0), (5, 5, 5, -0.1)]
)
def test_a_senseless_grid_is_refused(height: int, width: int, size: int, overlap: float) -> None:
    with pytest.raises(ValueError, match=r"positive|overlap"):
        TileGrid(height, width, size, overlap)
