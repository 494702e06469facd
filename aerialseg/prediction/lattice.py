"""What the network sees of one scene, which windows that needs, and which rows are finished after which of them.

A scene is placed in the group of those it continues into, on the grid that is run. Rows and columns of the lattice of
windows are counted from the group's top-left; a scene needs those windows that hold one of its pixels, or of the pixels
still to be done when a run goes on at row `skip`. Arithmetic alone: no pixel is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.geo.adjacency import Group, Placed, find_groups
from aerialseg.geo.geobox import gsd_differs
from aerialseg.geo.resampling import NEGLIGIBLE
from aerialseg.geo.windows import Axis, reflected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.geo.areas import Ground
    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.inspection import Source

CHUNK_ROWS = 128
"""Rows in which a resampled scene's result is brought back to its own grid."""
REACH = 4096
"""Pixels from which a neighbour may matter, unless said otherwise: twice a window of 2048."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """The windows over a scene, row by row, as part of those over its group."""

    rows: Axis
    """The axis of the whole group."""
    cols: Axis
    down: range
    """Which of the group's window rows are needed."""
    across: range
    top: int
    """The scene's pixels that are to be done, on the grid that is run: rows [top, bottom), columns [left, right)."""
    bottom: int
    left: int
    right: int

    @classmethod
    def of(
        cls, placement: ScenePlacement, size: int, overlap: float, skip: int = 0, stop: int | None = None
    ) -> Lattice:
        """Return the windows that hold a pixel that the scene's rows [skip, stop) are made of."""
        rows, cols = (Axis.overlapping(length, size, overlap) for length in placement.grid)
        box = placement.source.box
        stop = box.height if stop is None else min(stop, box.height)
        across = _needed(Regrid.cols_of(placement), placement.col, 0, box.width)
        if skip >= stop:
            return cls(rows, cols, range(0), cols.touching(*across), 0, 0, *across)
        down = _needed(Regrid.rows_of(placement), placement.row, skip, stop)
        return cls(rows, cols, rows.touching(*down), cols.touching(*across), *down, *across)

    @property
    def size(self) -> int:
        """The height and width of a window."""
        return self.rows.size

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.down) * len(self.across)

    @property
    def group_count(self) -> int:
        """How many windows the whole group has: what a batch is bounded by, so that all its scenes have equal ones."""
        return self.rows.count * self.cols.count

    @property
    def first_col(self) -> int:
        """The group's column at which the first window begins."""
        return self.across.start * self.cols.step

    @property
    def padded(self) -> int:
        """Columns from the first window's first to the last one's last."""
        return (len(self.across) - 1) * self.cols.step + self.size

    def starts(self) -> list[int]:
        """Return where each window column begins, from `first_col`."""
        return [index * self.cols.step for index in range(len(self.across))]

    def finished(self, index: int) -> tuple[int, int]:
        """Return [start, stop) of the scene's rows, counted in the group, that are final after window row `index`.

        Empty when the windows that are done lie above the rows asked for.
        """
        start, stop = self.rows.finished(index)
        start = max(start, self.top)
        return start, max(start, min(stop, self.bottom))


@dataclass(frozen=True, slots=True)
class Regrid:
    """Where the pixels of a scene's own axis lie between the pixel centres of the grid it was run on."""

    lower: NDArray[np.int64]
    """The model's pixel at or before each of the scene's pixels; at the edges the outermost one."""
    upper: NDArray[np.int64]
    share: NDArray[np.float32]
    """How much of the upper one is taken."""

    @classmethod
    def between(cls, start: int, stop: int, factor: float, model_length: int) -> Regrid:
        """Return the positions of a group's pixels [start, stop), of which `factor` make one that is run."""
        places = np.clip((np.arange(start, stop) + 0.5) / factor - 0.5, 0, model_length - 1)
        lower = np.floor(places).astype(np.int64)
        upper = np.minimum(lower + 1, model_length - 1)
        return cls(lower, upper, (places - lower).astype(np.float32))

    @classmethod
    def rows_of(cls, placement: ScenePlacement) -> Regrid | None:
        """Return the positions of the scene's rows; None when it is run as it is."""
        stop = placement.row + placement.source.box.height
        return None if placement.factor == 1 else cls.between(placement.row, stop, placement.factor, placement.grid[0])

    @classmethod
    def cols_of(cls, placement: ScenePlacement) -> Regrid | None:
        """Return the positions of the scene's columns; None when it is run as it is."""
        stop = placement.col + placement.source.box.width
        return None if placement.factor == 1 else cls.between(placement.col, stop, placement.factor, placement.grid[1])


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which strips of the scene's own grid leave after which row of windows; the reader and the writer both ask."""

    lattice: Lattice
    skip: int
    offset: int
    """The scene's first row in its group."""
    rows: Regrid | None
    """Where the scene's rows lie on the grid that is run, when that is another one."""

    @classmethod
    def of(cls, placement: ScenePlacement, lattice: Lattice, skip: int = 0) -> Schedule:
        """Return the schedule of a run that begins at row `skip`."""
        return cls(lattice, skip, placement.row, Regrid.rows_of(placement))

    def strips(self, index: int) -> Iterator[tuple[int, int]]:
        """Yield [start, stop) of the scene's rows that leave after window row `index`, top to bottom."""
        if self.rows is None:
            start, stop = (row - self.offset for row in self.lattice.finished(index))
            if start < stop:
                yield start, stop
            return
        begin, end = self.lattice.rows.finished(index)
        first, last = (int(np.searchsorted(self.rows.upper, row)) for row in (begin, end))
        for start in range(first, last, CHUNK_ROWS):
            if start >= self.skip:
                yield start, min(start + CHUNK_ROWS, last)


def _needed(regrid: Regrid | None, offset: int, start: int, stop: int) -> tuple[int, int]:
    """Return [first, last) of the group's pixels that are run for pixels [start, stop) of a scene's axis."""
    if regrid is None:
        return offset + start, offset + stop
    return int(regrid.lower[start]), int(regrid.upper[stop - 1]) + 1


def mirrored(length: int, stop: int) -> NDArray[np.intp]:
    """Return the pixels that padding from `length` up to `stop` repeats; none when the axis is long enough."""
    return reflected(length, max(length, stop), length)


@dataclass(frozen=True, slots=True)
class ScenePlacement:
    """One scene and its place on a lattice of windows; make it with `place_scenes` or `ScenePlacement.alone`.

    A group that is resampled is resampled as one raster, so its scenes still are pieces of it to the last byte.
    """

    source: Source
    row: int
    """Where the scene's first row stands in its group; the lattice begins at the group's first pixel."""
    col: int
    height: int
    """Rows of the group, in the scene's own pixels."""
    width: int
    neighbours: tuple[Placed, ...] = ()
    """The other scenes of the group whose pixels can matter here."""
    gsd_m: float | None = None
    """The GSD at which the scene is run, when that is not its own."""
    factor: float = 1.0
    """How many of the scene's pixels one of the grid that is run is long."""
    reach: int = REACH
    """Pixels of the grid that is run, beyond the scene, within which neighbours were looked for."""
    ground: Ground | None = field(default=None, compare=False)
    """The part of the scene that is asked for; None for all of it."""

    @classmethod
    def alone(cls, source: Source, gsd_m: float | None = None) -> ScenePlacement:
        """Return the placement of a scene by itself; `gsd_m` resamples it, whatever its own GSD is."""
        factor = 1.0 if gsd_m is None else _factor(source.box, gsd_m)
        chosen = None if factor == 1 else gsd_m
        return cls(source, 0, 0, source.box.height, source.box.width, gsd_m=chosen, factor=factor)

    @property
    def halo(self) -> tuple[Path, ...]:
        """The neighbours whose pixels can reach this scene's output, in the group's order."""
        return tuple(neighbour.source.path for neighbour in self.neighbours)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the group, on the grid that is run."""
        return max(1, round(self.height / self.factor)), max(1, round(self.width / self.factor))

    def describe(self) -> dict[str, Any]:
        """Return what, beside the files' bytes and the settings, decides the scene's pixels; for a done-key.

        How far the group goes on below and to the right counts up to the reach only, so that a new scene far away
        changes nothing here; one above or to the left may move the lattice, and does change it.
        """
        box, reach = self.source.box, ceil(self.reach * self.factor)
        beyond = self.height - self.row - box.height, self.width - self.col - box.width
        sources = self.source, *(placed.source for placed in self.neighbours)
        validity = [source.validity.settings() for source in sources]
        return {
            "offset": [self.row, self.col],
            "beyond": [min(extent, reach) for extent in beyond],
            "neighbours": [[n.row - self.row, n.col - self.col] for n in self.neighbours],
            "factor": self.factor,
            **({"validity": validity} if any(validity) else {}),
        }


def place_scenes(
    sources: Sequence[Source], *, neighbours: bool, gsd_m: float | None, reach: int = REACH
) -> dict[Path, ScenePlacement]:
    """Return the placement of every scene, by its path.

    With `neighbours`, scenes that touch on one pixel grid (see `find_groups`) are one raster to the network. `gsd_m`
    is the GSD at which scenes, or groups, that differ from it by more than 10 % are run; None keeps every scene's own.
    `reach` is how far pixels of the grid that is run can matter: twice the window's size, at least.
    """
    singles = [Group((Placed(source, 0, 0),)) for source in sources]
    placements = {}
    for group in find_groups(sources) if neighbours else singles:
        wanted = gsd_m if gsd_differs(group.box.gsd_m, gsd_m) else None
        factor = 1.0 if wanted is None else _factor(group.box, wanted)
        height, width = group.height, group.width
        near = group.within(ceil(reach * factor))
        for member, others in zip(group.members, near, strict=True):
            place = member.source, member.row, member.col, height, width
            placements[member.source.path] = ScenePlacement(*place, others, wanted, factor, reach)
    return {source.path: placements[source.path] for source in sources}


def _factor(box: GeoBox, gsd_m: float) -> float:
    """Return the factor to nine digits: a scene's grid and its group's may differ in the last ones."""
    if box.gsd_m is None:
        raise ValueError("a grid without a place on the ground has no ground sample distance")
    factor = gsd_m / box.gsd_m
    return 1.0 if abs(factor - 1) < NEGLIGIBLE else float(f"{factor:.9g}")
