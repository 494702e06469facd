"""Where masks are wrong, for QGIS: a raster of four classes per scene, and missed and invented buildings as polygons.

The buildings are those that the object score counts: connected parts without a match at IoU 0.5, not cut by ground
without data. Their outlines follow the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
from aerialseg.evaluation.counting import Rules, open_pair
from aerialseg.evaluation.objects import ObjectCounter
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
from aerialseg.geo.writing import BandMeaning, write_cog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.evaluation.counting import PairStrip
    from aerialseg.evaluation.objects import Runs
    from aerialseg.evaluation.pairs import Pair
    from aerialseg.progress import Progress

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
BYTES = 0.3
"""Disk a pixel takes while its file is copied."""


@dataclass(slots=True)
class _Found:
    """Wrong buildings of one kind, gathered over scenes."""

    shapes: list[shapely.Geometry] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)
    areas_m2: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a scene's pixels lie; found once a scene, for asking costs more than drawing a building."""

    name: str
    stride: int
    transform: Affine
    pixel_m2: float
    way: Transformer | None
    """To the common CRS, where the scene has another."""

    @classmethod
    def of(cls, name: str, crs: CRS | None, box: GeoBox) -> _Place:
        own = None if box.crs is None else CRS.from_wkt(box.crs.to_wkt())
        another = crs is not None and own is not None and own != crs
        way = Transformer.from_crs(own, crs, always_xy=True) if another else None
        gsd_m = box.gsd_m
        return cls(name, box.width + 1, box.transform, np.nan if gsd_m is None else gsd_m * gsd_m, way)


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


def write_error_maps(folder: Path, pairs: Sequence[Pair], rules: Rules, progress: Progress) -> dict[str, int]:
    """Write DIR/NAME.tif with its style for every pair, and errors.gpkg; returns how many buildings of each kind.

    Memory grows with a scene's width and with the number of wrong buildings. Raises OutputError and StorageError.
    """
    found = {kind: _Found() for kind in KINDS}
    crs = _crs_of(pairs)
    with locked(folder):
        sweep(folder)
        progress.start("errors", len(pairs), "scene")
        for pair in pairs:
            _write_pair(error_path(folder, pair.name), pair, rules, partial(_Place.of, pair.name, crs), found, progress)
            progress.advance(1, note=one_line(pair.name))
        progress.finish()
        _write_buildings(folder / BUILDINGS, found, crs)
    return {kind: len(found[kind].shapes) for kind in KINDS}


def _crs_of(pairs: Sequence[Pair]) -> CRS | None:
    """Return the CRS that all scenes share, longitude and latitude when they differ, None when one has none."""
    boxes = []
    for pair in pairs:
        with open_raster(pair.prediction) as dataset:
            boxes.append(GeoBox.of(dataset))
    shared = common_crs(boxes)
    if shared is None or not all(box.georeferenced and box.crs for box in boxes):
        return None
    return CRS.from_wkt(shared.to_wkt())


def _write_pair(
    final: Path,
    pair: Pair,
    rules: Rules,
    place_of: Callable[[GeoBox], _Place],
    found: dict[str, _Found],
    progress: Progress,
) -> None:
    """Write one raster with its side files, and gather its wrong buildings."""
    with open_pair(pair, rules) as (box, strips):
        objects = ObjectCounter(box.width, None, partial(_gather, found, place_of(box)))
        for strip in strips:
            objects.add(strip.building, strip.truth, strip.valid)
            progress.advance(0)
        objects.finish()
    require_space(final.parent, int(BYTES * box.height * box.width))
    write_cog(final, box, partial(_read_classes, pair, rules, progress), BandMeaning(NODATA), tags={ERRORS_TAG: "1"})
    write_mask_sidecars(final, replace=True, classes=CLASSES, meaning="errors")


def _read_classes(pair: Pair, rules: Rules, progress: Progress) -> Iterator[NDArray[np.uint8]]:
    with open_pair(pair, rules) as (_, strips):
        for strip in strips:
            progress.advance(0)
            yield _classes(strip)


def _classes(strip: PairStrip) -> NDArray[np.uint8]:
    """Return found 1, missed 2, invented 3, nodata 255, and 0 where both masks see background."""
    values = strip.truth.view(np.uint8) * np.uint8(2) + strip.building.view(np.uint8) * np.uint8(3)
    values[values == 5] = 1
    values[~strip.valid] = NODATA
    return values


def _gather(found: dict[str, _Found], place: _Place, kind: str, runs: Runs) -> None:
    """Add a wrong building to the others, in the common CRS."""
    shape = _outline(runs, place.stride, place.transform)
    if place.way is not None:
        shape = shapely.transform(shape, place.way.transform, interleaved=False)
    found[kind].shapes.append(shape)
    found[kind].scenes.append(place.name)
    found[kind].areas_m2.append(int((runs.ends - runs.starts).sum()) * place.pixel_m2)


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


def _write_buildings(path: Path, found: dict[str, _Found], crs: CRS | None) -> None:
    """Write both layers; equal errors make equal bytes."""
    wkt = None if crs is None else crs.to_wkt()
    with staged(path) as temporary, writing_vectors(path):
        for kind in KINDS:
            outlines = shapely.to_wkb(np.array(found[kind].shapes, dtype=object))
            columns = {"scene": np.array(found[kind].scenes, dtype=object), "area_m2": np.array(found[kind].areas_m2)}
            write_table(temporary, kind, outlines, columns, wkt, ERRORS_TAG)
