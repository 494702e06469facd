"""Which rasters lie side by side on one pixel grid, and where each then stands: neighbours are found, groups flooded.

What counts as lying together is the caller's to say: `predict` takes scenes that share an edge or a corner and nothing
else, `polygonize` takes masks that overlap or share a side. Integers and grids only; no file is opened.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from aerialseg.geo.geobox import GeoBox, by_horizontal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aerialseg.geo.inspection import Source

    Place = tuple[int, int]
    """The row and column of a raster's first pixel on another's grid."""

SCENE_TOLERANCE = 0.01
"""Pixels by which two scenes' corners may miss each other's grid: transforms are written with finite digits."""


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

    Linked are scenes of one CRS, heights aside, that are read alike (bands, type, scale) and share an edge or a corner
    on one pixel grid: the corners of one lie on whole pixels of the other, to a hundredth. So map tiles in degrees are
    linked, though each row of them has pixels of its own height. Where scenes overlap, those of one folder are taken to
    belong together (folders are often years), and one that overlaps another there stays alone, for nobody can say whose
    pixels are meant; so does a scene without a place on the ground.
    """
    alike: dict[object, list[Source]] = defaultdict(list)
    placed = [index for index, source in enumerate(sources) if source.box.georeferenced and source.box.usable]
    systems = by_horizontal(sources[index].box.crs for index in placed)
    numbers = {placed[place]: number for number, places in enumerate(systems) for place in places}
    for index, source in enumerate(sources):
        kind = numbers.get(index), source.bands, source.dtype, source.scale
        alike[kind if index in numbers else index].append(source)
    return [group for members in alike.values() for group in _group_alike(members)]


def connect_grids(
    boxes: Sequence[GeoBox], tolerance: float, *, corners: bool, overlaps: bool
) -> tuple[list[dict[int, Place]], set[int]]:
    """Return usable grids of one CRS in groups, {index: place from the group's top-left}, and which overlap another.

    Linked are grids whose corners lie on whole pixels of each other, to `tolerance` pixels, and that share a side; with
    `corners` also those that share one corner only. Grids that overlap are linked, too, with `overlaps`; without it
    they stay alone. Chains may drift, as map tiles in degrees do, whose pixels grow towards the equator: a place is
    counted from the neighbour through which a grid was reached, not from the whole group's origin.
    """
    around, overlapping = _neighbours(boxes, tolerance, corners=corners)
    alone = set() if overlaps else overlapping
    placed: set[int] = set()
    groups = []
    for first in range(len(boxes)):
        if first in placed:
            continue
        places, waiting = {first: (0, 0)}, deque([first])
        while waiting:
            here = waiting.popleft()
            for other, (row, col) in around[here].items() if here not in alone else ():
                if other not in places and other not in alone:
                    places[other] = places[here][0] + row, places[here][1] + col
                    waiting.append(other)
        placed |= places.keys()
        top, left = (min(place[axis] for place in places.values()) for axis in range(2))
        groups.append({index: (row - top, col - left) for index, (row, col) in places.items()})
    return groups, overlapping


def _group_alike(sources: Sequence[Source]) -> list[Group]:
    """Group scenes that are read alike by touching."""
    connected, overlapping = connect_grids(
        [source.box for source in sources], SCENE_TOLERANCE, corners=True, overlaps=False
    )
    folders: dict[Path, list[Source]] = defaultdict(list)
    for source in sources:
        folders[source.path.absolute().parent].append(source)
    if overlapping and len(folders) > 1:
        return [group for members in folders.values() for group in _group_alike(members)]
    groups = []
    for places in connected:
        members = [Placed(sources[index], row, col) for index, (row, col) in places.items()]
        groups.append(Group(tuple(sorted(members, key=lambda member: (member.row, member.col)))))
    return groups


def _neighbours(boxes: Sequence[GeoBox], tolerance: float, *, corners: bool) -> tuple[list[dict[int, Place]], set[int]]:
    """Return for every grid the places of those that overlap or touch it, and which grids overlap another."""
    around: list[dict[int, Place]] = [{} for _ in boxes]
    overlapping: set[int] = set()
    west, south, east, north = np.array([_reach(box) for box in boxes]).reshape(-1, 4).T
    for one, own in enumerate(boxes):
        near = (west <= east[one]) & (east >= west[one]) & (south <= north[one]) & (north >= south[one])
        # Measured on the grid of the one that comes first, so that two grids think the same of each other.
        for other in (np.flatnonzero(near[one + 1 :]) + one + 1).tolist():
            box = boxes[other]
            row, col = map(round, own.offset_to(box))
            moved = GeoBox(box.height, box.width, own.transform @ Affine.translation(col, row), box.crs)
            if moved.largest_shift(box) > tolerance:
                continue
            rows = min(row + box.height, own.height) - max(row, 0)
            cols = min(col + box.width, own.width) - max(col, 0)
            if min(rows, cols) > 0:
                overlapping |= {one, other}
            if min(rows, cols) >= 0 and (corners or max(rows, cols) > 0):
                around[one][other], around[other][one] = (row, col), (-row, -col)
    return around, overlapping


def _reach(box: GeoBox) -> tuple[float, float, float, float]:
    """Return the bounds of a grid and a pixel more on each side."""
    t, (west, south, east, north) = box.transform, box.bounds
    across, down = abs(t.a) + abs(t.b), abs(t.d) + abs(t.e)
    return west - across, south - down, east + across, north + down
