"""Masks that are pieces of one raster: on one pixel grid, overlapping or side by side.

Only headers are read here; `strips` reads the pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.scenes import check_same_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.crs import CRS

SAME_GRID_PX = 0.02
"""Corners of two rasters may miss each other's pixels by this much: transforms are stored in decimals."""
MAX_PIXELS = 1e10
"""A larger file is more likely a header that lies; reading its zeros would take hours."""


@dataclass(frozen=True, slots=True)
class PlacedMask:
    """A mask and where its first pixel lies on the grid of its patchwork."""

    name: str
    mask: Path
    probability: Path | None
    box: GeoBox
    row: int = 0
    col: int = 0

    @property
    def bottom(self) -> int:
        """The row below its last."""
        return self.row + self.box.height

    @property
    def right(self) -> int:
        """The column right of its last."""
        return self.col + self.box.width


@dataclass(frozen=True, slots=True)
class MaskMosaic:
    """Pieces that hang together, in the order given."""

    pieces: tuple[PlacedMask, ...]

    @property
    def crs(self) -> CRS:
        """The CRS that all pieces share."""
        return self.pieces[0].box.crs

    @property
    def width(self) -> int:
        """Columns from the first of any piece to the last of any."""
        return max(piece.right for piece in self.pieces)


def piece_of(name: str, mask: Path, probability: Path | None, max_pixels: float = MAX_PIXELS) -> PlacedMask:
    """Return a mask as a piece of its own; raises BadDataError when it, or its probability, has no usable place."""
    with open_raster(mask) as dataset:
        box = GeoBox.of(dataset)
    shown = one_line(mask)
    if not box.georeferenced:
        raise BadDataError(
            f"{shown}: has no CRS and transform, so polygons have no place: gdal_translate -a_srs EPSG:... -a_ullr ..."
        )
    if box.height * box.width > max_pixels:
        raise BadDataError(
            f"{shown}: {box.height}x{box.width} is {box.height * box.width:.3g} pixels, more than {max_pixels:g}; if it"
            " is really that large, cut it with gdal_translate -srcwin and give the parts: buildings stay whole"
        )
    if not box.usable:
        raise BadDataError(f"{shown}: its transform gives pixels no place or no area: gdal_translate -a_ullr ...")
    if probability is not None:
        _check_probability(probability, mask, box)
    return PlacedMask(name, mask, probability, box)


def group_masks(pieces: Sequence[PlacedMask]) -> tuple[MaskMosaic, ...]:
    """Return the pieces in groups that overlap or share a side (a corner is not enough), by their first members.

    Two pieces lie on one grid when each other's pixels do. Chains of them may drift, as map tiles in degrees do, whose
    pixels grow towards the equator: a piece's place is counted from its neighbour, not from the whole group's origin.
    """
    systems: dict[str, list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        systems["" if piece.box.crs is None else piece.box.crs.to_wkt()].append(index)
    groups = [group for members in systems.values() for group in _touching(pieces, members)]
    return tuple(_patchwork(pieces, group) for group in sorted(groups, key=min))


def _check_probability(path: Path, mask: Path, box: GeoBox) -> None:
    with open_raster(path) as dataset:
        check_same_grid(box, GeoBox.of(dataset), (mask, path))
        if dataset.dtypes[0] != "uint8":
            raise BadDataError(
                f"{one_line(path)}: has {dataset.dtypes[0]} values; expected probabilities as uint8, 0 to 254, 255"
                " nodata, as aerialseg predict --probability writes them"
            )


def _touching(pieces: Sequence[PlacedMask], members: Sequence[int]) -> list[dict[int, tuple[int, int]]]:
    """Return the members in groups that hang together, each with its row and column from the group's first."""
    boxes = [pieces[member].box for member in members]
    places = np.array([(box.transform.f, box.transform.c) for box in boxes])
    sizes = np.array([(box.height, box.width) for box in boxes])
    alone = np.ones(len(members), dtype=np.bool_)
    groups = []
    for first in range(len(members)):
        if not alone[first]:
            continue
        alone[first] = False
        found, waiting = {first: (0, 0)}, [first]
        while waiting:
            here = waiting.pop(0)
            for other in np.flatnonzero(alone & _beside(boxes[here], places - places[here], sizes)).tolist():
                row, col, miss = _offset(boxes[here], boxes[other])
                if miss <= SAME_GRID_PX:
                    found[other] = found[here][0] + row, found[here][1] + col
                    alone[other] = False
                    waiting.append(other)
        groups.append({members[index]: place for index, place in sorted(found.items())})
    return groups


def _beside(here: GeoBox, moves: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rasters, `moves` (y, x) away from this one, overlap it or share a side."""
    offsets = moves @ _pixels_per_unit(here).T
    own = np.array([here.height, here.width])
    shared = np.minimum(own, offsets + sizes) - np.maximum(0, offsets)
    beside: NDArray[np.bool_] = (shared.min(axis=1) > -0.5) & (shared.max(axis=1) > 0.5)
    return beside


def _offset(grid: GeoBox, box: GeoBox) -> tuple[int, int, float]:
    """Return where a raster begins on a grid, in whole rows and columns, and by how many pixels it misses that."""
    t, move = box.transform, np.array([box.transform.f - grid.transform.f, box.transform.c - grid.transform.c])
    corners = np.array([(0, 0), (0, box.width), (box.height, 0), (box.height, box.width)], dtype=np.float64)
    ground = corners @ np.array([[t.e, t.d], [t.b, t.a]]).T + move
    offsets = ground @ _pixels_per_unit(grid).T - corners
    whole = np.rint(offsets[0])
    return int(whole[0]), int(whole[1]), float(np.abs(offsets - whole).max())


def _pixels_per_unit(box: GeoBox) -> NDArray[np.float64]:
    """Return the matrix from (y, x) on the ground to (rows, cols)."""
    t = box.transform
    inverse: NDArray[np.float64] = np.linalg.inv(np.array([[t.e, t.d], [t.b, t.a]]))
    return inverse


def _patchwork(pieces: Sequence[PlacedMask], places: Mapping[int, tuple[int, int]]) -> MaskMosaic:
    top, left = (min(parts) for parts in zip(*places.values(), strict=True))
    moved = (replace(pieces[index], row=row - top, col=col - left) for index, (row, col) in places.items())
    return MaskMosaic(tuple(moved))
