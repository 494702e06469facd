"""From a mask's outlines to footprints on the ground, with what is said about each: id, scene, area, probability.

The order of things: polygons along the pixels' edges, whole across scenes; then small ones are left out; then they are
simplified, regularised, and brought to the CRS asked for. Nothing after the first step loses a building.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from aerialseg.counts import QUANTA
from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.outlines.regularising import regularise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from pyproj import CRS

    from aerialseg.geo.outlines.ground import Ground
    from aerialseg.geo.outlines.patchwork import Patchwork, Piece
    from aerialseg.geo.outlines.tracing import Outlines

    Shapes = NDArray[np.object_]

MOST_CHANGE = 0.3
"""What simplifying would change by a larger share of its area stays as it is."""
CHUNK = 20_000
"""Footprints that files hold back before they write them."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is done to outlines."""

    min_area_m2: float = 0.0
    simplify_m: float = 0.0
    regularise: bool = False
    crs: CRS | None = None
    """The CRS they are written in; None: their own."""

    @property
    def changes(self) -> bool:
        """Whether polygons leave the pixels' edges."""
        return self.regularise or self.simplify_m > 0


@dataclass(frozen=True, slots=True, eq=False)
class Footprints:
    """Buildings as they are written, arrays of one length."""

    id: NDArray[np.object_]
    scene: NDArray[np.object_]
    area_m2: NDArray[np.float64]
    probability: NDArray[np.float64]
    """NaN where it is not known."""
    shapes: Shapes

    def __len__(self) -> int:
        return len(self.id)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What a file has beside geometry, by column."""
        return {"id": self.id, "scene": self.scene, "area_m2": self.area_m2, "probability": self.probability}


@dataclass(slots=True)
class Tally:
    """What was done, counted on the way."""

    kept: int = 0
    removed: int = 0
    """Smaller than asked for."""
    unregularised: int = 0
    """Left along the pixels' edges, because the regulariser made something else of them."""


def join_footprints(parts: Sequence[Footprints]) -> Footprints:
    """Return the footprints of all parts, in their order; of none, empty columns of the right types."""
    empty = {"area_m2": np.empty(0), "probability": np.empty(0)}
    nothing = np.empty(0, dtype=object)
    names = [field.name for field in fields(Footprints)]
    return Footprints(
        *(np.concatenate([empty.get(name, nothing), *(getattr(part, name) for part in parts)]) for name in names)
    )


def footprints(
    outlines: Outlines, patchwork: Patchwork, grounds: Mapping[str, Ground], shaping: Shaping, tally: Tally
) -> Iterator[Footprints]:
    """Yield the footprints of a patchwork's outlines, a few at a time, and count them in `tally`.

    `grounds` holds each piece's by name. A building belongs to the first piece that holds its first pixel, and its
    coordinates are counted on that one's grid. `area_m2` is that of the outline as it is written, measured in the
    scene's CRS. Raises BadDataError where the CRS asked for cannot be reached.
    """
    owner = _owners(outlines, patchwork.pieces)
    shapes = _polygons(outlines, patchwork.pieces, owner)
    known = np.where(outlines.sums[1] > 0, outlines.sums[1], np.nan)
    probability = np.round(outlines.sums[0] / known / QUANTA, 4)
    for number in np.unique(owner).tolist():
        piece = patchwork.pieces[number]
        ground, own = grounds[piece.name], np.flatnonzero(owner == number)
        areas = ground.area_m2(shapes[own])
        large = areas >= shaping.min_area_m2
        tally.removed += int(np.count_nonzero(~large))
        own, areas, start = own[large], areas[large], 0
        for changed, failed in _shaped(shapes[own], ground, piece.box.gsd_m, shaping):
            part = slice(start, start + len(changed))
            start += len(changed)
            tally.unregularised += failed
            tally.kept += len(changed)
            first = outlines.first[own[part]] - (piece.row, piece.col)
            yield Footprints(
                np.array([f"{piece.name}:{row}:{col}" for row, col in first.tolist()], dtype=object),
                np.full(len(changed), piece.name, dtype=object),
                np.round(ground.area_m2(changed) if shaping.changes else areas[part], 3),
                probability[own[part]],
                _finished(changed, ground, piece, shaping),
            )


def _owners(outlines: Outlines, pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """Return the index of the first piece that holds each building's first pixel."""
    owner = np.full(len(outlines), -1, dtype=np.int64)
    row, col = outlines.first[:, 0], outlines.first[:, 1]
    for index, piece in enumerate(pieces):
        inside = (row >= piece.row) & (row < piece.bottom) & (col >= piece.col) & (col < piece.right)
        owner[inside & (owner < 0)] = index
    return owner


def _polygons(outlines: Outlines, pieces: Sequence[Piece], owner: NDArray[np.int64]) -> Shapes:
    """Return polygons along the pixels' edges, in the CRS of the pieces."""
    if not len(outlines):
        return np.empty(0, dtype=object)
    of_point = np.repeat(owner[outlines.building], outlines.rings)
    origin = np.array([(piece.row, piece.col) for piece in pieces])
    row, col = (outlines.points - origin[of_point]).T
    a, b, c, d, e, f = np.array([tuple(piece.box.transform)[:6] for piece in pieces])[of_point].T
    points = np.stack([c + a * col + b * row, f + d * col + e * row], axis=1)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(outlines.rings)), outlines.rings))
    polygons: Shapes = shapely.polygons(rings, indices=outlines.building)
    return polygons


def _shaped(shapes: Shapes, ground: Ground, gsd_m: float | None, shaping: Shaping) -> Iterator[tuple[Shapes, int]]:
    """Yield the polygons simplified and regularised, in order, and how many could not be regularised."""
    if not shaping.changes:
        yield shapes, 0
        return
    metric, back = shapely.transform(shapes, ground.to_metres()), ground.from_metres()
    if shaping.simplify_m:
        simpler = shapely.simplify(metric, shaping.simplify_m, preserve_topology=True)
        change = np.abs(shapely.area(simpler) / shapely.area(metric) - 1)  # half where a pixel became a triangle
        metric = np.where(shapely.is_valid(simpler) & (change <= MOST_CHANGE), simpler, metric)
    if not shaping.regularise:
        yield shapely.transform(metric, back), 0
        return
    for part, failed in regularise(metric, gsd_m or 1.0):
        yield shapely.transform(part, back), failed


def _finished(shapes: Shapes, ground: Ground, piece: Piece, shaping: Shaping) -> Shapes:
    """Return the polygons in the CRS asked for, valid, their outer rings anticlockwise."""
    if shaping.crs is not None:
        shapes = shapely.transform(shapes, ground.to_crs(shaping.crs))
        if not np.isfinite(shapely.bounds(shapes)).all():
            raise BadDataError(
                f"{one_line(piece.mask)}: has buildings without a place in {one_line(shaping.crs.name)}; choose"
                " another --crs"
            )
    broken = np.flatnonzero(~shapely.is_valid(shapes))
    if len(broken):
        shapes = shapes.copy()
        shapes[broken] = [_largest_part(shape) for shape in shapely.make_valid(shapes[broken])]
    clockwise = ~shapely.is_ccw(shapely.get_exterior_ring(shapes))
    return np.where(clockwise, shapely.reverse(shapes), shapes) if clockwise.any() else shapes


def _largest_part(shape: shapely.Geometry) -> shapely.Polygon:
    """Return the polygon of a repaired one that has nearly all of its area; the rest are slivers of rounding."""
    parts = shapely.get_parts(shapely.get_parts(shape))
    return max(parts, key=lambda part: part.area)
