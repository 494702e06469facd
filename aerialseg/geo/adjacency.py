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
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.geo.inspection import Source

GRID_TOLERANCE = 0.01
"""Pixels by which two neighbours' corners may miss each other's grid: transforms are written with finite digits."""


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

    def within(self, margin: int) -> Iterator[tuple[Placed, ...]]:
        """Yield, for every member, the others with a pixel inside the rectangle `margin` pixels around it, in order."""
        places = [(member.row, member.col, member.bottom, member.right) for member in self.members]
        top, left, bottom, right = np.array(places).T
        for index, (row, col, below, beside) in enumerate(places):
            near = (top < below + margin) & (bottom > row - margin) & (left < beside + margin) & (right > col - margin)
            near[index] = False
            yield tuple(self.members[other] for other in np.flatnonzero(near).tolist())


def find_groups(sources: Sequence[Source]) -> list[Group]:
    """Return every scene in exactly one group, those that touch each other in one.

    Linked are scenes of one CRS that are read alike (bands, type, scale) and share an edge or a corner on one pixel
    grid: the corners of one lie on whole pixels of the other, to a hundredth. So map tiles in degrees are linked,
    though each row of them has pixels of its own height. Where scenes overlap, those of one folder are taken to belong
    together (folders are often years), and one that overlaps another there stays alone, for nobody can say whose
    pixels are meant; so does a scene without a place on the ground.
    """
    alike: dict[object, list[Source]] = defaultdict(list)
    for index, source in enumerate(sources):
        alike[_kind_of(source) if source.box.georeferenced and source.box.usable else index].append(source)
    return [group for members in alike.values() for group in _connected(members)]


def _kind_of(source: Source) -> object:
    """Return what scenes must share to be pieces of one raster, but for their grids."""
    crs = source.box.crs.to_wkt() if source.box.crs is not None else ""
    return crs, source.bands, source.dtype, source.scale


def _connected(sources: Sequence[Source]) -> list[Group]:
    """Group the scenes by touching; each is placed from the neighbour through which it was reached."""
    bounds = np.array([_reach(source.box) for source in sources])
    around = [_touching(sources, index, bounds) for index in range(len(sources))]
    overlapping = {index for index, (_, overlaps) in enumerate(around) if overlaps}
    folders: dict[Path, list[Source]] = defaultdict(list)
    for source in sources:
        folders[source.path.absolute().parent].append(source)
    if overlapping and len(folders) > 1:
        return [group for members in folders.values() for group in _connected(members)]
    placed: set[int] = set()
    groups = []
    for index in range(len(sources)):
        if index in placed:
            continue
        places, waiting = {index: (0, 0)}, [index]
        while waiting:
            here = waiting.pop()
            for other, (row, col) in around[here][0].items() if here not in overlapping else ():
                if other not in places and other not in overlapping:
                    places[other] = places[here][0] + row, places[here][1] + col
                    waiting.append(other)
        placed |= places.keys()
        top, left = (min(place[axis] for place in places.values()) for axis in range(2))
        members = [Placed(sources[one], row - top, col - left) for one, (row, col) in places.items()]
        groups.append(Group(tuple(sorted(members, key=lambda member: (member.row, member.col)))))
    return groups


def _reach(box: GeoBox) -> tuple[float, float, float, float]:
    """Return the bounds of a scene and a pixel more on each side."""
    t, (west, south, east, north) = box.transform, box.bounds
    across, down = abs(t.a) + abs(t.b), abs(t.d) + abs(t.e)
    return west - across, south - down, east + across, north + down


def _touching(
    sources: Sequence[Source], index: int, bounds: NDArray[np.float64]
) -> tuple[dict[int, tuple[int, int]], bool]:
    """Return the (row, col) of the scenes that share an edge or a corner with scene `index`, and if any overlaps it."""
    west, south, east, north = bounds.T
    near = (west <= east[index]) & (east >= west[index]) & (south <= north[index]) & (north >= south[index])
    own = sources[index].box
    found, overlaps = {}, False
    for other in np.flatnonzero(near).tolist():
        box = sources[other].box
        # Measured on the grid of the one that comes first, so that two scenes think the same of each other.
        place = _place(own, box) if index < other else _place(box, own)
        if other == index or place is None:
            continue
        row, col = place if index < other else (-place[0], -place[1])
        gap = max(max(row, 0) - min(row + box.height, own.height), max(col, 0) - min(col + box.width, own.width))
        overlaps |= gap < 0
        if gap == 0:
            found[other] = row, col
    return found, overlaps


def _place(box: GeoBox, other: GeoBox) -> tuple[int, int] | None:
    """Return where, in (rows, cols), the first pixel of `other` stands on the grid of `box`; None when beside it."""
    offset = box.offset_to(other)
    row, col = map(round, offset)
    moved = box.transform @ Affine.translation(col, row)
    if GeoBox(other.height, other.width, moved, box.crs).largest_shift(other) > GRID_TOLERANCE:
        return None
    return row, col
