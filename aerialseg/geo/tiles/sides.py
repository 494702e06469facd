"""Which tiles train and which validate: by scene, by blocks of ground, or by an area on the map; never by loose tiles.

Where the border runs through a scene, a tile of ground is left out between the sides, also across scenes that touch:
otherwise training would see the ground it is judged on. No pixels are read.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from rasterio.warp import transform as reproject_points

from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.geo.scenes import split_scenes
from aerialseg.geo.vectors import overlay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from affine import Affine
    from numpy.typing import NDArray
    from rasterio.crs import CRS
    from rasterio.windows import Window

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.tiles.grid import TileGrid
    from aerialseg.geo.vectors import Layer

    Polygons = NDArray[np.object_]

Side = Literal["train", "val", "gap"]
Sides = dict[str, list[Side]]
"""Scene name -> the side of each of its tiles, in the grid's order."""

VAL_SHARE = 0.2
"""Of the blocks."""
TOUCHING = 0.5
"""Pixels by which two windows may come too close: neighbouring scenes miss each other's grid by fractions."""


def choose_sides(
    scenes: Sequence[Scene], boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid], split: str, area: Layer | None
) -> Sides:
    """Return the side of every tile.

    `split` is "auto", "blocks=N", "0" (everything trains) or what `split_scenes` understands; "auto" cuts a single
    scene into blocks. With `area`, tiles that lie in it at least by half validate. Raises UsageError and BadDataError.
    """
    if area is not None:
        return with_gap(sides_by_area(boxes, grids, area), boxes, grids)
    blocks = re.fullmatch(r"blocks=([1-9]\d*)", split)
    if blocks is not None:
        return with_gap(sides_by_blocks(grids, int(blocks[1])), boxes, grids)
    if split in ("0", "0.0"):
        return {name: ["train"] * len(grid) for name, grid in grids.items()}
    if split == "auto" and len(scenes) == 1:
        return _sides_of_one_scene(boxes, grids)
    by_scene = split_scenes(scenes, split)
    return {name: [by_scene[name]] * len(grid) for name, grid in grids.items()}


def sides_by_blocks(grids: Mapping[str, TileGrid], blocks: int) -> Sides:
    """Cut every scene into blocks of `blocks` x `blocks` tiles and let about a fifth of all blocks validate.

    Which ones is drawn by a hash of the scene's name and the block's place, so it stays the same from run to run.
    """
    places = {
        name: [(name, row // blocks, col // blocks) for row, col in _places(grid)] for name, grid in grids.items()
    }
    drawn = sorted({place for tiles in places.values() for place in tiles}, key=_lot)
    if len(drawn) < 2:
        raise UsageError(f"--split blocks={blocks}: all tiles are one block; choose fewer, or a smaller --size")
    chosen = set(drawn[: max(1, round(VAL_SHARE * len(drawn)))])
    return {name: ["val" if place in chosen else "train" for place in tiles] for name, tiles in places.items()}


def sides_by_area(boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid], area: Layer) -> Sides:
    """Let the tiles validate whose core lies in the area at least by half; raises BadDataError when none does."""
    sides: Sides = {}
    for name, grid in grids.items():
        laid = overlay([area], boxes[name])
        sides[name] = ["val" if laid.share_of(tile.core) >= 0.5 else "train" for tile in grid]
    if not any("val" in tiles for tiles in sides.values()):
        raise BadDataError(f"{one_line(area.path)}: no tile lies in it by half or more; check its place, or the --size")
    return sides


def with_gap(sides: Sides, boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid]) -> Sides:
    """Take away the training tiles that come closer than a tile to a validation tile, of whatever scene."""
    outlines = {
        name: _outlines([tile.window for tile, side in zip(grid, sides[name], strict=True) if side == "val"])
        for name, grid in grids.items()
    }
    every_crs = {box.crs for box in boxes.values() if box.georeferenced}
    ground = {crs: shapely.STRtree(_on_ground(outlines, boxes, crs)) for crs in every_crs}
    result: Sides = {}
    for name, grid in grids.items():
        box, reach = boxes[name], grid.size - TOUCHING
        alone = not box.georeferenced
        near = _polygons(outlines[name]) if alone else _in_pixels(ground[box.crs], box, grid.size)
        ranges = (tile.window.toranges() for tile in grid)
        around = [shapely.box(c0 - reach, r0 - reach, c1 + reach, r1 + reach) for (r0, r1), (c0, c1) in ranges]
        close = set(shapely.STRtree(near).query(around, predicate="intersects")[0].tolist())
        result[name] = ["gap" if side == "train" and i in close else side for i, side in enumerate(sides[name])]
    return result


def _sides_of_one_scene(boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid]) -> Sides:
    """Cut one scene into about five blocks; where it is too small for a gap, all of it trains."""
    ((name, grid),) = grids.items()
    if len(grid) > 1:
        sides = with_gap(sides_by_blocks(grids, math.ceil(math.sqrt(len(grid) * VAL_SHARE))), boxes, grids)
        if "train" in sides[name]:
            return sides
    return {name: ["train"] * len(grid)}


def _places(grid: TileGrid) -> list[tuple[int, int]]:
    """Return (row, column) of every tile in the grid of tiles."""
    down, across = grid.shape
    return [(row, col) for row in range(down) for col in range(across)]


def _lot(place: tuple[str, int, int]) -> str:
    name, row, col = place
    return hashlib.sha256(f"{name}/{row}/{col}".encode()).hexdigest()


def _outlines(windows: Sequence[Window]) -> NDArray[np.float64]:
    """Return the corners of windows (tiles, 4, 2) in pixel coordinates."""
    ranges = [window.toranges() for window in windows]
    corners = [[(left, top), (right, top), (right, bottom), (left, bottom)] for (top, bottom), (left, right) in ranges]
    return np.array(corners, dtype=np.float64).reshape(-1, 4, 2)


def _on_ground(outlines: Mapping[str, NDArray[np.float64]], boxes: Mapping[str, GeoBox], crs: CRS) -> Polygons:
    """Return the outlines of all georeferenced scenes in `crs`."""
    grounds = []
    for name, box in boxes.items():
        if box.georeferenced and len(outlines[name]):
            points = _affine(box.transform, outlines[name].reshape(-1, 2))
            if box.crs != crs:
                points = np.array(reproject_points(box.crs, crs, *points.T.tolist())).T
            grounds.append(points.reshape(-1, 4, 2))
    return _polygons(np.concatenate([np.empty((0, 4, 2)), *grounds]))


def _in_pixels(ground: shapely.STRtree, box: GeoBox, reach: int) -> Polygons:
    """Return what lies within `reach` pixels of a scene, in its pixel coordinates."""
    frame = shapely.box(-reach, -reach, box.width + reach, box.height + reach)
    found = ground.geometries[ground.query(shapely.transform(frame, partial(_affine, box.transform)))]
    moved: Polygons = shapely.transform(found, partial(_affine, ~box.transform))
    return moved


def _polygons(corners: NDArray[np.float64]) -> Polygons:
    """Return polygons from (tiles, 4, 2), without those that have a corner at infinity."""
    polygons: Polygons = shapely.polygons(corners[np.isfinite(corners).all(axis=(1, 2))])
    return polygons


def _affine(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = points[:, 0], points[:, 1]
    return np.stack(
        [transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f], 1
    )
