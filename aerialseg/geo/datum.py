"""How exact the way from one CRS to another is at a place: said when it costs more than a pixel and need not.

Between datums PROJ chooses among operations by accuracy; the best of them need grids, files that most installations
lack, and without one a place may be off by metres.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.exceptions import ProjError
from pyproj.transformer import TransformerGroup

from aerialseg.errors import one_line

if TYPE_CHECKING:
    from aerialseg.geo.geobox import GeoBox


SAME_DEGREES = 1e-9
"""A tenth of a millimetre."""


@lru_cache(maxsize=64)
def transformer_between(source: str, target: str) -> Transformer:
    """Return the way from one CRS to another, both as WKT; raises ProjError where there is none."""
    return Transformer.from_crs(CRS.from_wkt(source), CRS.from_wkt(target), always_xy=True)


def datum_note(name: str, box: GeoBox, other: CRS, *, towards: bool = False) -> str | None:
    """Say that `name` is moved between `other` and the CRS of `box` by metres too far for want of a grid.

    It comes from `other`, or goes `towards` it. None where the way is good to a pixel, where no grid would make it
    better, or where nothing is known.
    """
    if not box.georeferenced or box.crs is None or box.gsd_m is None:
        return None
    own, theirs = box.crs.to_wkt(), other.to_wkt()
    source, target = (own, theirs) if towards else (theirs, own)
    x, y = box.transform @ (box.width / 2, box.height / 2)
    try:
        way = transformer_between(source, target)
        place = (x, y) if towards else way.transform(x, y, direction="INVERSE")
        way.transform(*place)
        used = way.get_last_used_operation()
        lon, lat = transformer_between(own, CRS.from_epsg(4326).to_wkt()).transform(x, y)
    except ProjError:
        return None
    if not (math.isfinite(lon) and math.isfinite(lat)):
        return None
    accuracy = used.accuracy if used.accuracy is not None and used.accuracy >= 0 else math.inf
    better = [found for found in _wanting(source, target, math.floor(lon), math.floor(lat)) if found[0] < accuracy]
    if accuracy <= box.gsd_m or not better:
        return None
    metres, grid = min(better)
    exact = (
        f"good to {accuracy:g} m = {accuracy / box.gsd_m:.3g} px" if math.isfinite(accuracy) else "of unknown accuracy"
    )
    if taken := _taken_for(source, target, (lon, lat)):
        return f"{name}: {taken}, {exact} ({metres:g} m with the grid that pyproj sync --file {grid} fetches)"
    return (
        f"{name}: moved by '{one_line(used.description)}', {exact}; with the grid {grid}, which is not installed, it"
        f" would be good to {metres:g} m: pyproj sync --file {grid}, or bring both into one CRS where it is installed"
    )


def _taken_for(source: str, target: str, place: tuple[float, float]) -> str | None:
    """Say that degrees of one datum are taken for those of the other, if they are at a place (longitude, latitude)."""
    systems = [CRS.from_wkt(wkt).geodetic_crs for wkt in (source, target)]
    if systems[0] is None or systems[1] is None:
        return None
    way = transformer_between(systems[0].to_wkt(), systems[1].to_wkt())
    if max(abs(a - b) for a, b in zip(way.transform(*place), place, strict=True)) > SAME_DEGREES:
        return None
    return f"{one_line(systems[0].name)} is taken for {one_line(systems[1].name)}"


@lru_cache(maxsize=64)
def _wanting(source: str, target: str, lon: int, lat: int) -> tuple[tuple[float, str], ...]:
    """Return accuracy in metres and grid of the operations around a degree that want a grid."""
    around = AreaOfInterest(max(lon, -180), max(lat, -90), min(lon + 1, 180), min(lat + 1, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are such
        group = TransformerGroup(CRS.from_wkt(source), CRS.from_wkt(target), always_xy=True, area_of_interest=around)
    return tuple(
        (found.accuracy, ", ".join(grid.short_name for grid in found.grids if not grid.available))
        for found in group.unavailable_operations
        if found.accuracy is not None and found.accuracy >= 0 and not all(grid.available for grid in found.grids)
    )
