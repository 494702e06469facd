"""What a canvas says of a scene: its halo, its key, and the grid it is run on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from aerialseg.geo.adjacency import find_groups
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import Source, inspect_scene
from aerialseg.geo.validity import ValidityRule
from aerialseg.prediction.lattice import ScenePlacement, place_scenes

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def row_of_scenes(tmp_path: Path, scene_file: Callable[..., Path]) -> list[Source]:
    """Four scenes side by side, 100 px wide, and one far away."""
    lefts = [616000 + 30 * index for index in range(4)] + [700000]
    return [
        inspect_scene(scene_file(tmp_path / f"{i}.tif", size=(80, 100), transform=(0.3, 0, left, 0, -0.3, 3347000)))
        for i, left in enumerate(lefts)
    ]


def test_the_halo_is_what_lies_within_reach(row_of_scenes: list[Source]) -> None:
    canvases = place_scenes(row_of_scenes, neighbours=True, gsd_m=None, reach=128)
    assert list(canvases) == [source.path for source in row_of_scenes]
    halos = [[path.stem for path in canvas.halo] for canvas in canvases.values()]
    assert halos == [["1", "2"], ["0", "2", "3"], ["0", "1", "3"], ["1", "2"], []]
    assert {(canvas.height, canvas.width) for canvas in list(canvases.values())[:4]} == {(80, 400)}
    alone = place_scenes(row_of_scenes, neighbours=False, gsd_m=None)
    assert all(canvas == ScenePlacement.alone(canvas.source) for canvas in alone.values())


@st.composite
def layouts(draw: st.DrawFn) -> list[Source]:
    """Scenes on one grid, in any order: bands of rows as high as drawn, cut in widths as drawn, some left out."""
    grid, sources = Affine(0.3, 0, 616000, 0, -0.3, 3347000), []
    row = 0
    for height in draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)):
        col = draw(st.integers(0, 5))
        for width in draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)):
            box = GeoBox(height, width, grid @ Affine.translation(col, row), CRS.from_epsg(26914))
            if draw(st.integers(0, 4)):
                path = Path(f"/scenes/{row}-{col}.tif")
                sources.append(Source(path, box, (1, 2, 3), "uint8", None, ValidityRule(), ()))
            col += width
        row += height
    return draw(st.permutations(sources))


@settings(deadline=None)
@given(layouts(), st.integers(1, 12), st.sampled_from([None, 0.6]))
def test_canvases_are_those_of_the_plain_definition(sources: list[Source], reach: int, gsd_m: float | None) -> None:
    canvases = place_scenes(sources, neighbours=True, gsd_m=gsd_m, reach=reach)
    assert list(canvases) == [source.path for source in sources]
    for group in find_groups(sources):
        for member in group.members:
            canvas = canvases[member.source.path]
            margin = math.ceil(reach * canvas.factor)
            around = member.row - margin, member.col - margin, member.bottom + margin, member.right + margin
            near = tuple(other for other in group.members if other is not member and other.overlap_with(*around))
            assert canvas.neighbours == near
            assert (canvas.row, canvas.col) == (member.row, member.col)
            assert (canvas.height, canvas.width) == (group.height, group.width)


def test_a_new_scene_changes_the_keys_of_those_it_can_reach_alone(row_of_scenes: list[Source]) -> None:
    few, many = (
        place_scenes(sources, neighbours=True, gsd_m=None, reach=128)
        for sources in (row_of_scenes[:3], row_of_scenes[:4])
    )
    changed = [few[s.path].describe() != many[s.path].describe() for s in row_of_scenes[:3]]
    assert changed == [False, True, True]
    assert json.loads(json.dumps(few[row_of_scenes[1].path].describe())) == few[row_of_scenes[1].path].describe()


def test_a_scene_without_neighbours_is_described_alike_with_and_without_looking_for_them(
    row_of_scenes: list[Source],
) -> None:
    last = row_of_scenes[-1]
    described = [
        place_scenes(row_of_scenes, neighbours=flag, gsd_m=None)[last.path].describe() for flag in (True, False)
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize(("gsd_m", "expected"), [(0.3, None), (0.32, None), (0.28, None), (0.6, 0.6), (0.15, 0.15)])
def test_a_scene_is_resampled_when_it_differs_by_more_than_a_tenth(
    row_of_scenes: list[Source], gsd_m: float, expected: float | None
) -> None:
    canvases = place_scenes(row_of_scenes, neighbours=True, gsd_m=gsd_m, reach=128)
    canvas = canvases[row_of_scenes[0].path]
    assert canvas.gsd_m == expected
    assert [path.stem for path in canvas.halo] == (
        ["1"] if expected == 0.15 else ["1", "2", "3"][: 3 if expected else 2]
    )
    if expected is not None:
        assert canvas.grid == (round(80 * 0.3 / gsd_m), round(400 * 0.3 / gsd_m))
        assert canvas.describe() != ScenePlacement.alone(canvas.source).describe()
        assert canvas.factor == pytest.approx(gsd_m / 0.3, rel=1e-3)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_without_a_place_keeps_its_pixels(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    from aerialseg.geo.inspection import Access

    path = scene_file(tmp_path / "x.tif", crs=None, transform=None)
    source = inspect_scene(path, access=Access(allow_ungeoreferenced=True))
    assert place_scenes([source], neighbours=True, gsd_m=0.3) == {path: ScenePlacement.alone(source)}
