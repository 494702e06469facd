"""What the network sees of one scene: the scene itself, the neighbours it continues into, and the grid it is run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aerialseg.geo.neighbours import Placed, find_groups
from aerialseg.geo.resampling import at_gsd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.raster import Source

GSD_TOLERANCE = 0.1
"""Share by which a scene's GSD may differ from the model's before it is resampled."""
REACH = 4096
"""Pixels from which a neighbour may matter, unless said otherwise: twice a window of 2048."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """One scene and its place on a lattice of windows; make it with `make_canvases` or `Canvas.alone`.

    A scene that is resampled is run alone: neighbours would have to be resampled with it, and the last digits of a
    resampled pixel depend on the rectangle that is resampled, so the promise of equal bytes could not be kept.
    """

    source: Source
    row: int
    """Where the scene's first row stands in its group; the lattice begins at the group's first pixel."""
    col: int
    height: int
    """Rows of the group, on the grid that is run."""
    width: int
    neighbours: tuple[Placed, ...] = ()
    """The other scenes of the group whose pixels can matter here."""
    gsd_m: float | None = None
    """The GSD at which the scene is run, when that is not its own."""
    reach: int = REACH
    """Pixels beyond the scene within which neighbours were looked for."""

    @classmethod
    def alone(cls, source: Source, gsd_m: float | None = None) -> Canvas:
        """Return the canvas of a scene by itself; `gsd_m` resamples it, whatever its own GSD is."""
        box = source.box if gsd_m is None else at_gsd(source.box, gsd_m)
        return cls(source, 0, 0, box.height, box.width, gsd_m=None if box is source.box else gsd_m)

    @property
    def halo(self) -> tuple[Path, ...]:
        """The neighbours whose pixels can reach this scene's output, in the group's order."""
        return tuple(neighbour.source.path for neighbour in self.neighbours)

    @property
    def box(self) -> GeoBox:
        """The grid of the pixels that the network sees of this scene."""
        return self.source.box if self.gsd_m is None else at_gsd(self.source.box, self.gsd_m)

    def describe(self) -> dict[str, Any]:
        """Return what, beside the files' bytes and the settings, decides the scene's pixels; for a done-key.

        How far the group goes on below and to the right counts up to `reach` only, so that a new scene far away
        changes nothing here; one above or to the left may move the lattice, and does change it.
        """
        box = self.source.box
        beyond = self.height - self.row - box.height, self.width - self.col - box.width
        return {
            "offset": [self.row, self.col],
            "beyond": None if self.gsd_m is not None else [min(extent, self.reach) for extent in beyond],
            "neighbours": [[n.row - self.row, n.col - self.col] for n in self.neighbours],
            "gsd_m": self.gsd_m,
        }


def make_canvases(
    sources: Sequence[Source], *, neighbours: bool, gsd_m: float | None, reach: int = REACH
) -> dict[Path, Canvas]:
    """Return the canvas of every scene, by its path.

    With `neighbours`, scenes that touch on one pixel grid (see `find_groups`) are one raster to the network. `gsd_m`
    is the GSD at which scenes that differ from it by more than 10 % are run, alone; None keeps every scene's own.
    `reach` is how far pixels can matter: twice the window's size, at least.
    """
    canvases = {}
    resampled = {source.path for source in sources if gsd_m is not None and _differs(source, gsd_m)}
    kept = [source for source in sources if source.path not in resampled]
    for group in find_groups(kept) if neighbours else []:
        for member in group.members:
            around = member.row - reach, member.col - reach, member.bottom + reach, member.right + reach
            others = [other for other in group.members if other is not member and other.overlap_with(*around)]
            canvases[member.source.path] = Canvas(
                member.source, member.row, member.col, group.height, group.width, tuple(others), reach=reach
            )
    for source in sources:
        if source.path not in canvases:
            canvases[source.path] = Canvas.alone(source, gsd_m if source.path in resampled else None)
    return {source.path: canvases[source.path] for source in sources}


def _differs(source: Source, gsd_m: float) -> bool:
    own = source.box.gsd_m
    return own is not None and abs(own / gsd_m - 1) > GSD_TOLERANCE
