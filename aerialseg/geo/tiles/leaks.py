"""Validation tiles on the ground of training tiles: found from the index's outlines, whatever files are called.

A scene may be in a set twice under two names, two scenes may overlap, a split may have been edited. Then a network is
validated on what it has learned by heart.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import shapely

from aerialseg.errors import one_line
from aerialseg.geo.tiles.index import LAYER, read_splits

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LEAST_SHARE = 1e-3
"""Of a tile. Tiles that only touch share a hair of ground: by rounding, or because edges bend between two CRSs."""


def find_leak(index: Path) -> str | None:
    """Return a line that says which validation tiles of a set's `index.gpkg` overlap training tiles; None when none do.

    Tiles without an outline have no place on the ground and are left out. Raises BadDataError when the index cannot be
    read.
    """
    splits = read_splits(index)
    names, scenes, shapes = _read_outlines(index)
    sides = np.array([splits.get(name, "") for name in names])
    val, train = (np.flatnonzero((sides == side) & ~shapely.is_missing(shapes)) for side in ("val", "train"))
    i, j = shapely.STRtree(shapes[train]).query(shapes[val], predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[val[i]], shapes[train[j]]))
    much = shared > LEAST_SHARE * shapely.area(shapes[val[i]])
    if not much.any():
        return None
    i, j, shared = i[much], j[much], shared[much]
    most = int(np.argmax(shared))
    one, other = scenes[val[i[most]]], scenes[train[j[most]]]
    place = f"within scene {one_line(one)}" if one == other else f"scene {one_line(one)} on scene {one_line(other)}"
    return (
        f"{one_line(index)}: {len(np.unique(i)):,} of {len(val):,} validation tiles lie on the ground of training tiles"
        f" ({place}, for example), so validation scores flatter; change the split there, or tile again with a gap"
        " (--split blocks=...)"
    )


def _read_outlines(index: Path) -> tuple[list[str], list[str], NDArray[np.object_]]:
    """Return every row's tile, scene and outline; nothing when the file has no outlines."""
    import pyogrio.errors
    from pyogrio.raw import read

    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # about a database that has none
            meta, _, outlines, columns = read(index, layer=LAYER, columns=["name", "scene"])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return [], [], np.empty(0, dtype=object)
    if outlines is None or list(meta["fields"]) != ["name", "scene"]:
        return [], [], np.empty(0, dtype=object)
    shapes = shapely.make_valid(shapely.from_wkb(outlines, on_invalid="ignore"))
    return list(columns[0]), list(columns[1]), shapes
