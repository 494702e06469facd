"""The split of tiles by blocks and by area: whole blocks, and always a tile of ground between the sides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.plan import Splits, assign_splits, split_by_area, split_by_blocks, with_gap
from aerialseg.geo.vectors import VectorLayer, read_layer
from aerialseg.geo.windows import TileGrid

if TYPE_CHECKING:
    from collections.abc import Mapping

UTM = CRS.from_epsg(26914)
NORTH_UP = Affine(0.3, 0, 616000, 0, -0.3, 3347000)


def box(height: int, width: int, row: float = 0, col: float = 0, transform: Affine = NORTH_UP) -> GeoBox:
    return GeoBox(height, width, transform @ Affine.translation(col, row), UTM)


def footprint(grid: GeoBox, window: object) -> shapely.Polygon:
    (top, bottom), (left, right) = window.toranges()  # type: ignore[attr-defined]
    return shapely.Polygon([grid.transform @ c for c in [(left, top), (right, top), (right, bottom), (left, bottom)]])


def closest(sides: Splits, boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid]) -> float:
    """Return the smallest distance on the ground between a training and a validation tile."""
    found: dict[str, list[shapely.Polygon]] = {"train": [], "val": [], "gap": []}
    for name, grid in grids.items():
        for tile, side in zip(grid, sides[name], strict=True):
            found[side].append(footprint(boxes[name], tile.window))
    train, val = (shapely.multipolygons(found[side]) if found[side] else None for side in ("train", "val"))
    return (
        float("inf")
        if train is None or val is None
        else float(shapely.distance(shapely.buffer(train, 0), shapely.buffer(val, 0)))
    )


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(40, 400), width=st.integers(40, 400), size=st.integers(16, 64), blocks=st.integers(1, 4),
    overlap=st.sampled_from([0, 0.25, 0.5]), angle=st.sampled_from([0, 30]),
)  # fmt: skip
def test_a_tile_of_ground_lies_between_the_sides(
    height: int, width: int, size: int, blocks: int, overlap: float, angle: float
) -> None:
    boxes = {"a": box(height, width, transform=NORTH_UP @ Affine.rotation(angle))}
    grids = {"a": TileGrid(height, width, size, overlap)}
    try:
        before = split_by_blocks(grids, blocks)
    except UsageError:
        return
    after = with_gap(before, boxes, grids)
    assert closest(after, boxes, grids) >= (size - 0.6) * 0.3
    assert [b == "val" for b in before["a"]] == [a == "val" for a in after["a"]], "validation stays whole"


def test_no_more_is_left_out_than_the_ring_around_validation() -> None:
    boxes, grids = {"a": box(640, 640)}, {"a": TileGrid(640, 640, 64)}
    inner = ["val" if 4 <= i // 10 <= 5 and 4 <= i % 10 <= 5 else "train" for i in range(100)]
    after = with_gap({"a": inner}, boxes, grids)["a"]
    assert (after.count("val"), after.count("gap"), after.count("train")) == (4, 12, 84)


@pytest.mark.parametrize("other_crs", [26914, 32615])
def test_the_gap_reaches_into_scenes_that_touch(other_crs: int) -> None:
    left, right = box(128, 256), box(128, 256, col=256)
    if other_crs != 26914:  # the same ground in the neighbouring zone, turned a little
        crs = CRS.from_epsg(other_crs)
        move = Transformer.from_crs(26914, other_crs, always_xy=True).transform
        (x0, y0), (x1, y1), (x2, y2) = (move(*(right.transform @ c)) for c in [(0, 0), (256, 0), (0, 128)])
        turned = Affine((x1 - x0) / 256, (x2 - x0) / 128, x0, (y1 - y0) / 256, (y2 - y0) / 128, y0)
        right = GeoBox(128, 256, turned, crs)
    boxes = {"left": left, "right": right}
    grids = {name: TileGrid(128, 256, 64) for name in boxes}
    sides = with_gap(
        {"left": ["val" if i % 4 == 3 else "train" for i in range(8)], "right": ["train"] * 8}, boxes, grids
    )
    assert sides["left"] == ["train", "train", "gap", "val"] * 2
    assert sides["right"] == ["gap", "train", "train", "train"] * 2


def test_scenes_without_georeferencing_are_compared_with_themselves_only() -> None:
    nowhere = GeoBox(64, 256, Affine.identity(), None)
    boxes, grids = {"a": nowhere, "b": nowhere}, {name: TileGrid(64, 256, 64) for name in "ab"}
    sides = with_gap({"a": ["val", "train", "train", "train"], "b": ["train"] * 4}, boxes, grids)
    assert sides == {"a": ["val", "gap", "train", "train"], "b": ["train"] * 4}


def test_blocks_are_whole_and_drawn_the_same_every_time() -> None:
    grids = {"mosaic": TileGrid(64 * 12, 64 * 12, 64)}
    sides = split_by_blocks(grids, 3)
    tiles = np.array(sides["mosaic"]).reshape(4, 3, 4, 3)
    assert all(len(set(tiles[i, :, j].ravel())) == 1 for i in range(4) for j in range(4))
    assert (tiles[:, 0, :, 0] == "val").sum() == 3, "a fifth of 16 blocks"
    assert sides == split_by_blocks(grids, 3)
    assert sides["mosaic"] != split_by_blocks({"other": grids["mosaic"]}, 3)["other"]
    with pytest.raises(UsageError, match="blocks=12"):
        split_by_blocks(grids, 12)


def area(path: Path, *shapes: shapely.Polygon) -> VectorLayer:
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(shapes)), [], [], driver="GPKG", crs="EPSG:26914", geometry_type="Polygon"
    )
    return read_layer(path)


def test_tiles_in_the_area_by_half_validate(tmp_path: Path) -> None:
    boxes, grids = {"a": box(64, 64 * 8)}, {"a": TileGrid(64, 64 * 8, 64)}
    east_of = shapely.box(616000 + 0.3 * 64 * 4.4, 3340000, 616000 + 0.3 * 64 * 99, 3350000)
    inside = area(tmp_path / "east.gpkg", east_of)
    assert split_by_area(boxes, grids, inside)["a"] == ["train"] * 4 + ["val"] * 4
    scenes = [Scene("a", Path("a.tif"))]
    assert assign_splits(scenes, boxes, grids, "auto", inside)["a"] == ["train"] * 3 + ["gap"] + ["val"] * 4
    with pytest.raises(BadDataError, match=r"far\.gpkg: no tile lies in it"):
        split_by_area(boxes, grids, area(tmp_path / "far.gpkg", shapely.box(0, 0, 1, 1)))


def test_auto_cuts_a_single_scene_into_blocks_when_it_is_large_enough() -> None:
    scenes = [Scene("austin1", Path("a.tif"))]

    def auto(height: int, width: int) -> list[str]:
        return assign_splits(
            scenes, {"austin1": box(height, width)}, {"austin1": TileGrid(height, width, 64)}, "auto", None
        )["austin1"]

    large = auto(640, 640)
    assert {"train", "val", "gap"} == set(large) and 10 <= large.count("val") <= 30 and large.count("train") > 40
    assert set(auto(64, 64)) == set(auto(128, 128)) == {"train"}


def test_scenes_are_never_cut_by_the_other_splits() -> None:
    scenes = [Scene(f"austin{i}", Path("a.tif")) for i in (1, 6, 7, 8, 9)]
    boxes = {scene.name: box(128, 128) for scene in scenes}
    grids = {name: TileGrid(128, 128, 64) for name in boxes}
    for split in ("auto", "inria", "val=austin7", "0.4"):
        sides = assign_splits(scenes, boxes, grids, split, None)
        assert all(len(set(tiles)) == 1 for tiles in sides.values()), split
        assert {tiles[0] for tiles in sides.values()} == {"train", "val"}
    assert assign_splits(scenes, boxes, grids, "inria", None)["austin1"] == ["val"] * 4
    assert {side for tiles in assign_splits(scenes, boxes, grids, "0", None).values() for side in tiles} == {"train"}
    for split in ("blocks=0", "blocks=x", "nonsense"):
        with pytest.raises(UsageError, match="--split"):
            assign_splits(scenes, boxes, grids, split, None)
