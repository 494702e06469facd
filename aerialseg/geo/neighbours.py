"""Which scenes are pieces of one raster: they share an edge or a corner on one pixel grid, and nothing else.

Integers and grids only; no file is opened. Scenes are looked at as `inspect_scene` described them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from aerialseg.geo.geobox import GeoBox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.raster import Source

GRID_TOLERANCE = 0.01
"""Pixels by which two grids may miss each other and still be one: transforms are written with finite digits."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A scene and the row and column at which its first pixel stands in its group."""

    source: Source
    row: int
    col: int

    @property
    def bottom(self) -> int:
        """The row below its last one."""
        return self.row + self.source.box.height

    @property
    def right(self) -> int:
        """The column beside its last one."""
        return self.col + self.source.box.width

    def overlap_with(self, top: int, left: int, bottom: int, right: int) -> tuple[int, int, int, int] | None:
        """Return the part (top, left, bottom, right) of a rectangle of the group that the scene covers, if any."""
        top, left = max(top, self.row), max(left, self.col)
        bottom, right = min(bottom, self.bottom), min(right, self.right)
        return (top, left, bottom, right) if top < bottom and left < right else None


@dataclass(frozen=True, slots=True)
class Group:
    """Scenes that together are one raster, whose origin is the top-left of the rectangle around them."""

    members: tuple[Placed, ...]

    @property
    def height(self) -> int:
        """Rows of the rectangle around the members."""
        return max(member.bottom for member in self.members)

    @property
    def width(self) -> int:
        """Columns of the rectangle around the members."""
        return max(member.right for member in self.members)

    @property
    def box(self) -> GeoBox:
        """The grid of the rectangle around the members."""
        first = self.members[0]
        own = first.source.box
        if len(self.members) == 1:
            return own
        transform = own.transform @ Affine.translation(-first.col, -first.row)
        return GeoBox(self.height, self.width, transform, own.crs)


def find_groups(sources: Sequence[Source]) -> list[Group]:
    """Return every scene in exactly one group, those that touch each other in one.

    Linked are scenes of one folder that share an edge or a corner on one pixel grid (CRS, pixel size, rotation, and
    origins a whole number of pixels apart) and are read alike (bands, type, scale). A scene that overlaps another one
    of its grid stays alone, for nobody can say whose pixels are meant; so does one without a place on the ground.
    """
    alike: dict[object, list[Source]] = defaultdict(list)
    for index, source in enumerate(sources):
        alike[_grid_of(source) if source.box.georeferenced and source.box.usable else index].append(source)
    return [group for members in alike.values() for group in _connected(members)]


def _grid_of(source: Source) -> object:
    """Return what scenes must share to be pieces of one raster, but for whole-pixel shifts."""
    transform = source.box.transform
    sides = tuple(float(f"{number:.9g}") for number in (transform.a, transform.b, transform.d, transform.e))
    crs = source.box.crs.to_wkt() if source.box.crs is not None else ""
    return source.path.absolute().parent, crs, sides, source.bands, source.dtype, source.scale


def _connected(sources: Sequence[Source]) -> list[Group]:
    """Group the scenes of one pixel size by touching."""
    offsets = np.array([sources[0].box.offset_to(source.box) for source in sources])
    whole = np.rint(offsets).astype(np.int64)
    sizes = np.array([(source.box.height, source.box.width) for source in sources])
    spans = np.concatenate([whole, whole + sizes], axis=1)
    touching = [_touching(spans, offsets - whole, index) for index in range(len(sources))]
    overlapping = {index for index, (_, overlaps) in enumerate(touching) if overlaps}
    groups, seen = [], set()
    for index in range(len(sources)):
        if index in seen:
            continue
        found, waiting = {index}, [index]
        while waiting:
            here = waiting.pop()
            fresh = set() if here in overlapping else set(touching[here][0]) - overlapping - found
            found |= fresh
            waiting += fresh
        seen |= found
        members = sorted(found)
        top, left = spans[members, 0].min(), spans[members, 1].min()
        placed = (Placed(sources[one], int(spans[one, 0] - top), int(spans[one, 1] - left)) for one in members)
        groups.append(Group(tuple(sorted(placed, key=lambda member: (member.row, member.col)))))
    return groups


def _touching(spans: NDArray[np.int64], parts: NDArray[np.float64], index: int) -> tuple[list[int], bool]:
    """Return which scenes share an edge or a corner with scene `index`, and whether any overlaps it."""
    on_grid = (np.abs(parts - parts[index]) <= GRID_TOLERANCE).all(axis=1)
    gaps = np.maximum(spans[:, :2], spans[index, :2]) - np.minimum(spans[:, 2:], spans[index, 2:])
    on_grid[index] = False
    touches = on_grid & (gaps.max(axis=1) == 0)
    overlaps = on_grid & (gaps.max(axis=1) < 0)
    return np.flatnonzero(touches).tolist(), bool(overlaps.any())
