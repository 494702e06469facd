"""Building outlines with straight walls and right angles, by buildingregulariser; never at the price of a building.

The package works in metres and one building at a time here: its pool of processes costs more than it saves, and breaks
where `__main__` cannot be imported. What it drops, splits or bends out of shape stays as it was.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Shapes = NDArray[np.object_]

SMOOTHED_PX = 1.7
"""The stairs of a slanted wall are one pixel high; a tolerance of 0.5 m on 0.3 m pixels is the package's default."""
PARALLEL_PX = 3.3
"""Walls that run beside each other at less become one; the package's default on 0.3 m pixels is 1 m."""
SPECK_PX = 25
"""Smaller holes are gaps in a mask rather than courtyards: walls cannot be drawn around them, and they are closed."""
LEAST_IOU = 0.7
"""What has less in common with the raster's outline is no version of it: a square pixel cut to a triangle has 0.5."""
TOGETHER = 256


def regularise(shapes: Shapes, gsd_m: float) -> Iterator[tuple[Shapes, int]]:
    """Yield polygons in metres regularised, in order and a few at a time, and how many of them stayed as they were.

    `gsd_m` is the size of the pixels they were traced from. Holes of less than 25 pixels are closed.
    """
    for start in range(0, len(shapes), TOGETHER):
        before = shapes[start : start + TOGETHER]
        filled = _without_specks(before, SPECK_PX * gsd_m**2)
        after = _regularised(filled, gsd_m)
        good = _resemble(filled, after)
        yield np.where(good, after, before), int(np.count_nonzero(~good))


def _without_specks(shapes: Shapes, least_m2: float) -> Shapes:
    """Return the polygons without holes that are smaller."""
    filled = shapes.copy()
    for index in np.flatnonzero(shapely.get_num_interior_rings(shapes)):
        rings = shapely.get_rings(shapes[index])
        large = shapely.area(shapely.polygons(rings)) >= least_m2
        filled[index] = shapely.polygons(rings[0], holes=rings[1:][large[1:]])
    return filled


def _regularised(shapes: Shapes, gsd_m: float) -> Shapes:
    """Return what the package makes of each polygon; None where it fails or makes several of it."""
    try:
        found, index = _call(shapes, gsd_m)
    except Exception:  # whatever one odd polygon provokes must not cost the others
        if len(shapes) == 1:
            return np.array([None], dtype=object)
        middle = len(shapes) // 2
        return np.concatenate([_regularised(shapes[:middle], gsd_m), _regularised(shapes[middle:], gsd_m)])
    result = np.full(len(shapes), None, dtype=object)
    once = np.bincount(index, minlength=len(shapes)) == 1
    kept = once[index]
    result[index[kept]] = found[kept]
    return result


def _call(shapes: Shapes, gsd_m: float) -> tuple[Shapes, NDArray[np.int64]]:
    """Return the package's polygons, and of which input each of them is."""
    import geopandas
    from buildingregulariser import regularize_geodataframe

    frame = geopandas.GeoDataFrame({"building": np.arange(len(shapes))}, geometry=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = regularize_geodataframe(
            frame,
            simplify_tolerance=SMOOTHED_PX * gsd_m,
            parallel_threshold=PARALLEL_PX * gsd_m,
            allow_circles=False,
            num_cores=1,
        )
    return made.geometry.to_numpy(), made["building"].to_numpy()


def _resemble(before: Shapes, after: Shapes) -> NDArray[np.bool_]:
    """Return which pairs are valid polygons that have as many holes and lie about where they lay."""
    good: NDArray[np.bool_] = (shapely.get_type_id(after) == shapely.GeometryType.POLYGON) & shapely.is_valid(after)
    good &= shapely.get_num_interior_rings(after) == shapely.get_num_interior_rings(before)
    good &= np.isfinite(shapely.bounds(after)).all(axis=1)
    shared = np.zeros(len(before))
    shared[good] = shapely.area(shapely.intersection(before[good], after[good]))
    union = shapely.area(before) + np.nan_to_num(shapely.area(after)) - shared
    good &= shared >= LEAST_IOU * union
    return good
