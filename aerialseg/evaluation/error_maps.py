"""Where masks are wrong, for QGIS: a raster of four classes per scene, and missed and invented buildings as polygons.

The buildings are those that the object score counts: connected parts without a match at IoU 0.5, not cut by ground
without data. Their outlines follow the pixels.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import rasterio.features
import shapely
import shapely.affinity
import shapely.geometry
from affine import Affine
from pyproj import CRS, Transformer

from aerialseg.counts import NODATA
from aerialseg.drawing import FOUND, INVENTED, MISSED
from aerialseg.errors import UsageError, one_line
from aerialseg.evaluation.objects import ObjectCounter
from aerialseg.evaluation.pairs import Rules, open_pair
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    require_space,
    staged,
    sweep,
)
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.geopackage import write_table, writing_vectors
from aerialseg.geo.opening import open_raster, without_warnings
from aerialseg.geo.ownership import ERRORS_TAG, check_overwrite
from aerialseg.geo.styles import MaskClass, write_mask_sidecars
from aerialseg.geo.tiles.tileset import common_crs
from aerialseg.geo.writing import COG_BYTES, PLAIN_BYTES, BandMeaning, write_cog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.evaluation.objects import Runs
    from aerialseg.evaluation.pairs import Pair, PairStrip
    from aerialseg.progress import Progress

    _Building = tuple[shapely.Geometry, str, float]
    """Its outline, its scene, and its area in square metres."""

BUILDINGS = "errors.gpkg"
KINDS = ("missed", "invented")
CLASSES = (
    MaskClass(0, "background, rightly", (0, 0, 0, 0)),
    MaskClass(1, "found", (*FOUND, 255)),
    MaskClass(2, "missed", (*MISSED, 255)),
    MaskClass(3, "invented", (*INVENTED, 255)),
)
"""In the colours of the report's pictures."""
LARGEST_DRAWN = 2**26
"""Pixels of the rectangle around an object; a larger one is drawn as that rectangle."""
OUTLINE_BYTES = 0.05
"""Disk that errors.gpkg takes for a pixel, if a tenth of a map's outlines are wrong."""


def error_path(folder: Path, name: str) -> Path:
    """Return where a scene's error raster goes; raises UsageError for a name that would leave the folder."""
    relative = PurePosixPath(f"{name}.tif")
    if relative.is_absolute() or ".." in relative.parts:
        raise UsageError(f"{one_line(name)}: a scene's name must be a relative path without ..")
    return folder / relative


def check_error_folder(folder: Path, pairs: Sequence[Pair], *, overwrite: bool) -> None:
    """Raise before any counting when the files cannot be written, or would replace inputs or foreign files."""
    inputs = [path for pair in pairs for path in pair.files]
    outputs = [error_path(folder, pair.name) for pair in pairs]
    refuse_input_as_output(inputs, [*outputs, folder / BUILDINGS])
    for parent in sorted({folder, *(path.parent for path in outputs)}):
        prepare_output_folder(parent)
    for path in outputs:
        for file in (path, path.with_suffix(".qml"), path.with_name(f"{path.name}.aux.xml")):
            check_overwrite(file, "error map", overwrite=overwrite, marked=path)
    check_overwrite(folder / BUILDINGS, "error buildings", overwrite=overwrite)
    pixels = [box.height * box.width for box in _boxes(pairs)]
    require_space(folder, (COG_BYTES + OUTLINE_BYTES) * sum(pixels) + (PLAIN_BYTES + COG_BYTES) * max(pixels))


def write_error_maps(folder: Path, pairs: Sequence[Pair], rules: Rules, progress: Progress) -> dict[str, int]:
    """Write DIR/NAME.tif with its style for every pair, and errors.gpkg; returns how many buildings of each kind.

    Memory grows with a scene's width and with the number of wrong buildings. Raises OutputError and StorageError.
    """
    found: dict[str, list[_Building]] = {kind: [] for kind in KINDS}
    crs = _crs_of(pairs)
    with locked(folder):
        sweep(folder)
        progress.start("errors", len(pairs), "scene")
        for pair in pairs:
            final = error_path(folder, pair.name)
            with open_pair(pair, rules) as (box, strips):
                _find_buildings(pair.name, box, strips, crs, found, progress)
            rows = partial(_read_classes, pair, rules, progress)
            write_cog(final, box, rows, BandMeaning(NODATA), tags={ERRORS_TAG: "1"})
            write_mask_sidecars(final, replace=True, classes=CLASSES, meaning="errors")
            progress.advance(1, note=one_line(pair.name))
        progress.finish()
        with staged(folder / BUILDINGS) as temporary, writing_vectors(folder / BUILDINGS):
            for kind, buildings in found.items():  # equal errors make equal bytes
                shapes, scenes, areas_m2 = zip(*buildings, strict=True) if buildings else ((), (), ())
                columns = {"scene": np.array(scenes, dtype=object), "area_m2": np.array(areas_m2, dtype=np.float64)}
                outlines = shapely.to_wkb(np.array(shapes, dtype=object))
                write_table(temporary, kind, outlines, columns, None if crs is None else crs.to_wkt(), ERRORS_TAG)
    return {kind: len(buildings) for kind, buildings in found.items()}


def _boxes(pairs: Sequence[Pair]) -> list[GeoBox]:
    boxes = []
    for pair in pairs:
        with open_raster(pair.prediction) as dataset:
            boxes.append(GeoBox.of(dataset))
    return boxes


def _crs_of(pairs: Sequence[Pair]) -> CRS | None:
    """Return the CRS that all scenes share, longitude and latitude when they differ, None when one has none."""
    boxes = _boxes(pairs)
    shared = common_crs(boxes)
    if shared is None or not all(box.georeferenced and box.crs for box in boxes):
        return None
    return CRS.from_wkt(shared.to_wkt())


def _find_buildings(
    scene: str,
    box: GeoBox,
    strips: Iterable[PairStrip],
    crs: CRS | None,
    found: dict[str, list[_Building]],
    progress: Progress,
) -> None:
    """Add a scene's wrong buildings to those `found`, by kind, in the common CRS."""
    own = None if box.crs is None else CRS.from_wkt(box.crs.to_wkt())
    another = crs is not None and own is not None and own != crs
    way = Transformer.from_crs(own, crs, always_xy=True) if another else None
    pixel_m2 = math.nan if box.gsd_m is None else box.gsd_m * box.gsd_m

    def gather(kind: str, runs: Runs) -> None:
        shape = _outline(runs, box.width + 1, box.transform)
        if way is not None:
            shape = shapely.transform(shape, way.transform, interleaved=False)
        found[kind].append((shape, scene, int((runs.ends - runs.starts).sum()) * pixel_m2))

    objects = ObjectCounter(box.width, None, gather)
    for strip in strips:
        objects.add(strip.building, strip.truth, strip.valid)
        progress.advance(0)
    objects.finish()


def _read_classes(pair: Pair, rules: Rules, progress: Progress) -> Iterator[NDArray[np.uint8]]:
    """Yield strips of found 1, missed 2, invented 3, nodata 255, and 0 where both masks see background."""
    with open_pair(pair, rules) as (_, strips):
        for strip in strips:
            progress.advance(0)
            values = strip.truth.view(np.uint8) * np.uint8(2) + strip.building.view(np.uint8) * np.uint8(3)
            values[values == 5] = 1
            values[~strip.valid] = NODATA
            yield values


def _outline(runs: Runs, stride: int, transform: Affine) -> shapely.Geometry:
    """Return the polygon around an object's pixels, in the scene's CRS."""
    rows, left = np.divmod(runs.starts, stride)
    right = runs.ends - rows * stride
    top, west, height, width = rows[0], left.min(), int(rows[-1] - rows[0] + 1), int(right.max() - left.min())
    if height * width > LARGEST_DRAWN:
        shape = shapely.box(0, 0, width, height)
    else:
        drawn = np.zeros((height, width + 1), dtype=np.int8)
        np.add.at(drawn, (rows - top, left - west), 1)
        np.add.at(drawn, (rows - top, right - west), -1)
        mask = np.cumsum(drawn, axis=1, dtype=np.int8)[:, :width].astype(np.uint8)
        with without_warnings():
            shape = shapely.geometry.shape(next(rasterio.features.shapes(mask, mask.view(np.bool_), connectivity=4))[0])
    t = transform @ Affine.translation(int(west), int(top))
    return shapely.affinity.affine_transform(shape, (t.a, t.b, t.d, t.e, t.c, t.f))
