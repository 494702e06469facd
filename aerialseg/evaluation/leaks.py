"""Ground that a model was trained on and is judged on: found from the tiles' outlines, whatever files are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from aerialseg.errors import BadDataError, NoInputError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.tiles.tileset import INDEX, find_leak, read_splits
from aerialseg.geo.vectors import VectorLayer, overlay, read_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from aerialseg.evaluation.pairs import Pair

LEAST_SHARE = 1e-6
"""Of a tile or scene; tiles that only touch share an edge and, by rounding, a hair of ground."""


def find_leaks(tiles: Path, pairs: Sequence[Pair]) -> list[str]:
    """Return warnings: training tiles that overlap validation tiles, and scenes judged that overlap training tiles.

    `tiles` is a folder of tiles or its index.gpkg. Raises NoInputError when there is none, and BadDataError when it
    cannot be read or its tiles have no place on the ground.
    """
    index = tiles / INDEX if tiles.is_dir() else tiles
    if not index.is_file():
        raise NoInputError(f"{one_line(index)}: no such file; give a folder that aerialseg tile wrote")
    splits = set(read_splits(index).values())
    if "train" not in splits:
        raise BadDataError(f"{one_line(index)}: holds no training tile; give the tiles the model was trained on")
    train, leak = read_layer(index, where="split = 'train'"), find_leak(index)
    return ([] if leak is None else [leak]) + [line for pair in pairs for line in _under(index, train, pair)]


def _under(index: Path, train: VectorLayer, pair: Pair) -> list[str]:
    """Return a warning when a scene lies on the ground of training tiles; raises BadDataError when it has no place."""
    with open_raster(pair.prediction) as dataset:
        box = GeoBox.of(dataset)
    covered = _covered(overlay([train], box).shapes, box)
    if covered <= LEAST_SHARE:
        return []
    return [
        f"{one_line(pair.name)}: {covered:.1%} of it lies under training tiles of {one_line(index)}; its score says"
        " nothing of ground the model has never seen"
    ]


def _covered(shapes: NDArray[np.object_], box: GeoBox) -> float:
    frame = shapely.box(0, 0, box.width, box.height)
    return float(shapely.union_all(shapely.intersection(shapes, frame)).area / frame.area)
