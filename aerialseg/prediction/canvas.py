"""What the network sees of one scene: the scene itself, the neighbours it continues into, and the grid it is run on."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from aerialseg.geo.adjacency import Group, Placed, find_groups
from aerialseg.geo.resampling import NEGLIGIBLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.inspection import Source

GSD_TOLERANCE = 0.1
"""Share by which a scene's GSD may differ from the model's before it is resampled."""
REACH = 4096
"""Pixels from which a neighbour may matter, unless said otherwise: twice a window of 2048."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """One scene and its place on a lattice of windows; make it with `make_canvases` or `Canvas.alone`.

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

    @classmethod
    def alone(cls, source: Source, gsd_m: float | None = None) -> Canvas:
        """Return the canvas of a scene by itself; `gsd_m` resamples it, whatever its own GSD is."""
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
        return {
            "offset": [self.row, self.col],
            "beyond": [min(extent, reach) for extent in beyond],
            "neighbours": [[n.row - self.row, n.col - self.col] for n in self.neighbours],
            "factor": self.factor,
        }


def make_canvases(
    sources: Sequence[Source], *, neighbours: bool, gsd_m: float | None, reach: int = REACH
) -> dict[Path, Canvas]:
    """Return the canvas of every scene, by its path.

    With `neighbours`, scenes that touch on one pixel grid (see `find_groups`) are one raster to the network. `gsd_m`
    is the GSD at which scenes, or groups, that differ from it by more than 10 % are run; None keeps every scene's own.
    `reach` is how far pixels of the grid that is run can matter: twice the window's size, at least.
    """
    singles = [Group((Placed(source, 0, 0),)) for source in sources]
    canvases = {}
    for group in find_groups(sources) if neighbours else singles:
        wanted = gsd_m if gsd_m is not None and _differs(group.box, gsd_m) else None
        factor = 1.0 if wanted is None else _factor(group.box, wanted)
        height, width = group.height, group.width
        near = group.within(ceil(reach * factor))
        for member, others in zip(group.members, near, strict=True):
            place = member.source, member.row, member.col, height, width
            canvases[member.source.path] = Canvas(*place, others, wanted, factor, reach)
    return {source.path: canvases[source.path] for source in sources}


def _differs(box: GeoBox, gsd_m: float) -> bool:
    return box.gsd_m is not None and abs(box.gsd_m / gsd_m - 1) > GSD_TOLERANCE


def _factor(box: GeoBox, gsd_m: float) -> float:
    """Return the factor to nine digits: a scene's grid and its group's may differ in the last ones."""
    if box.gsd_m is None:
        raise ValueError("a grid without a place on the ground has no ground sample distance")
    factor = gsd_m / box.gsd_m
    return 1.0 if abs(factor - 1) < NEGLIGIBLE else float(f"{factor:.9g}")
