"""From masks to one file of building polygons, each building whole, whatever masks it crosses.

Two pixels are of one building when they share a side, within a mask or across masks that touch on one pixel grid; a
shared corner is not enough. Polygons follow the pixels' edges as gdal_polygonize.py draws them, holes included, and are
then filtered, simplified and regularised where asked for. Masks and their probabilities are found and checked here, and
the lock is held; how outlines are traced, shaped and written is other modules' business. Nothing here runs a network.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pyproj import CRS
from pyproj.exceptions import CRSError

from aerialseg.counts import NODATA
from aerialseg.errors import BadDataError, NoInputError, OutputError, UsageError, counted, folded, one_line
from aerialseg.files import (
    TEMPORARY,
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    require_space,
    resolved,
    staged,
)
from aerialseg.geo.adjacency import connect_grids
from aerialseg.geo.areas import read_area
from aerialseg.geo.dates import NO_DATES, DateOptions, note_of_tiff, read_dates, when_taken
from aerialseg.geo.datum import datum_note
from aerialseg.geo.digest import content_digest, seen, what_changed
from aerialseg.geo.geobox import GeoBox, by_horizontal, check_same_grid, heights_notes
from aerialseg.geo.geopackage import is_open_elsewhere
from aerialseg.geo.masks import ResolvedRule, decide_rule
from aerialseg.geo.opening import open_raster
from aerialseg.geo.outputs import is_of_another_run, kind_of, left_out_note
from aerialseg.geo.ownership import check_overwrite, embed_digest_in, mark_of, owner_of
from aerialseg.geo.polygons.formats import SUFFIXES, create_buildings, polygon_bytes, require_writer
from aerialseg.geo.polygons.shape import MetricFrame, Overlaps, ShapeCounts, Shaping, footprints, gather
from aerialseg.geo.polygons.trace import PlacedMask, Tracer, read_corners
from aerialseg.geo.scenes import find_scenes, pair_by_name
from aerialseg.geo.vectors import datum_notes, places
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.areas import Area, AreaOptions
    from aerialseg.geo.dates import DatePolygons, Taken
    from aerialseg.geo.polygons.formats import BuildingFile
    from aerialseg.geo.polygons.shape import Footprints
    from aerialseg.progress import Progress

    Mosaic = tuple[PlacedMask, ...]

LAYER = "buildings"
FORMAT = 2
"""Counted up when equal masks and options give other bytes than before."""
WGS84 = "OGC:CRS84"
GRID_TOLERANCE = 0.02
"""Pixels by which two masks' corners may miss each other's grid: transforms are stored in decimals."""
MAX_PIXELS = 1e10
"""A larger file is more likely a header that lies; reading its zeros would take hours."""


@dataclass(frozen=True, slots=True)
class MaskLayer:
    """A scene's mask, and the probabilities it was made from."""

    name: str
    """The scene's; unique among the layers."""
    mask: Path
    probability: Path | None = None
    image: Path | None = None
    """The scene itself, where it is at hand: its header and its STAC item say when it was taken."""
    threshold: int | None = None
    """Where the mask is quantised probabilities: this value and above is building."""


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """What becomes of the outlines; the defaults leave them along the pixels' edges, in each scene's CRS.

    `simplify_m` is in metres; `crs` is what pyproj understands. Raises UsageError for a number below 0.

    Example:
        >>> aerialseg.PolygonOptions(min_area_m2=10, regularise=True)
        PolygonOptions(min_area_m2=10, crs=None, simplify_m=0.0, regularise=True, ...)
    """

    min_area_m2: float | None = 0.0
    """Smaller buildings are left out, measured before anything else is done to them. None: the larger of 4 m2 and nine
    pixels, and smaller holes are closed, too."""
    crs: str | None = None
    """What all are reprojected to."""
    simplify_m: float = 0.0
    regularise: bool = False
    dates: DateOptions = NO_DATES
    """What is known of when the scenes were taken."""
    area: AreaOptions | None = None
    """Only buildings of this ground, after they were traced."""

    def __post_init__(self) -> None:
        for name, value in (("--min-area-m2", self.min_area_m2), ("--simplify", self.simplify_m)):
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} {value:g}: give a number of 0 or more")


@dataclass(frozen=True, slots=True)
class BuildingsReport:
    """What was written."""

    target: Path
    layers: tuple[str, ...] = ()
    kept: int = 0
    removed: int = 0
    """Buildings smaller than --min-area-m2."""
    floors_m2: tuple[float, ...] = ()
    """What that was, by size; several where it follows pixels of several sizes."""
    unregularised: int = 0
    """Buildings left as they were, because the regulariser would have lost or bent them."""
    done_before: bool = False
    """The file had been made from the same masks and options, and was left alone; nothing was counted."""
    stays: str | None = None
    """Why the older file was left alone although masks or options are others now; nothing was counted."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {**asdict(self), "target": str(self.target), "layers": list(self.layers)}

    def line(self) -> str:
        """Return the report in one line."""
        name = one_line(self.target)
        if self.done_before:
            return f"{name}: made from the same masks and options before; nothing to do"
        if self.stays is not None:
            return f"{name}: {self.stays}"
        first = counted(self.kept, "building")
        if self.removed:
            floor = " to ".join(f"{value:.3g}" for value in sorted({self.floors_m2[0], self.floors_m2[-1]}))
            first += f", {self.removed:,} smaller than {floor} m2 left out (--min-area-m2 0 keeps them)"
        parts = [first]
        parts += (
            [f"{self.unregularised:,} could not be regularised and stay as they were"] if self.unregularised else []
        )
        parts += [f"layers {', '.join(self.layers)}"] if len(self.layers) > 1 else []
        return f"{name}: {'; '.join(parts)}"


def polygonize_masks(
    masks: Sequence[str | Path],
    target: Path,
    options: PolygonOptions | None = None,
    progress: Progress = Silent(),
    *,
    probability: Path | None = None,
    overwrite: bool = False,
) -> BuildingsReport:
    """Write the buildings of the masks that files, folders and globs stand for; see `write_buildings`.

    Of a data set root its true masks are taken. `probability` is a folder, or for a single mask a file; rasters pair
    by name. Raises what `write_buildings` raises, NoInputError when no mask or no probability is found, and OutputError
    when another run writes in the target's folder.
    """
    require_writer(target)
    layers = find_layers(masks, probability)
    without = [layer.name for layer in layers if layer.probability is None]
    if probability is not None and without:
        progress.say(f"{len(without)} masks have no probability raster by their name, such as {one_line(without[0])}")
    others = {
        layer.name: layer.probability
        for layer in layers
        if layer.probability is not None and is_of_another_run(layer.probability, layer.mask)
    }
    if others:
        progress.say(left_out_note(list(others.values())))
        layers = tuple(replace(layer, probability=None) if layer.name in others else layer for layer in layers)
    prepare_output_folder(target.parent)
    with locked(target.parent):
        for suffix in SUFFIXES:  # what killed runs of this command left, and nothing else
            for path in target.parent.glob(f"{TEMPORARY}*{suffix}*"):
                path.unlink(missing_ok=True)
        return write_buildings(layers, target, options, progress, overwrite=overwrite)


def find_layers(masks: Sequence[str | Path], probability: Path | None = None) -> tuple[MaskLayer, ...]:
    """Return the masks in natural order, with their probabilities where there are any.

    What `predict` measured, wherever it lies, is no mask.
    """
    scenes = [scene for scene in find_scenes(masks) if kind_of(scene.mask or scene.image) != "measure"]
    candidates = () if probability is None else find_scenes([probability])
    taken = {resolved(candidate.image) for candidate in candidates}
    scenes = [scene for scene in scenes if resolved(scene.image) not in taken]
    if not scenes:
        raise NoInputError(f"{one_line(masks[0])}: no masks here; give the folder that predict -o wrote")
    found = pair_by_name(scenes, candidates, None)
    if len(scenes) == len(candidates) == 1:
        found = {scenes[0].name: candidates[0].image}
    if probability is not None and not found:
        raise NoInputError(f"{one_line(probability)}: holds no raster that is named like one of the masks")
    return tuple(MaskLayer(scene.name, scene.mask or scene.image, found.get(scene.name)) for scene in scenes)


def write_buildings(
    layers: Sequence[MaskLayer],
    target: Path,
    options: PolygonOptions | None = None,
    progress: Progress = Silent(),
    *,
    max_pixels: float = MAX_PIXELS,
    overwrite: bool = False,
) -> BuildingsReport:
    """Write the buildings of all masks to `target`, whose suffix says how: .gpkg, .fgb, .geojson or .parquet.

    Attributes: `id` (scene:row:column of the first pixel, the same whatever other scenes there are), `scene` (where
    that pixel lies), `area_m2` (of the polygon as written, measured in the scene's CRS before any reprojection to
    --crs; --min-area-m2 looks at the area before simplifying), `probability` (mean over the pixels, 0 to 1, or null),
    `taken` (the day on which the ground was seen, or null) and `taken_from`; with an area `inside`, the share of the
    outline that lies in it.
    Order: by mosaics of touching scenes as given, from the top down. A GeoPackage has one layer for each CRS, GeoJSON
    is in WGS 84. A file made from the same contents and options is left alone, and so is one that was edited since or
    that another program has open; `overwrite` replaces it unless it is open. Memory: 500 MB for 20000x20000 pixels with
    100,000 buildings. The caller holds the folder's lock.

    Raises UsageError (several CRSs in a format with one layer; a target that is a mask), BadDataError (a mask that has
    no place, more than `max_pixels`, or values that say neither building nor not), NoInputError, OutputError,
    StorageError and Stopped.
    """
    options = options or PolygonOptions()
    require_writer(target)
    crs = _target_crs(target, options)
    mark = _mark_of_older(layers, target, overwrite=overwrite)
    looks = seen(path for layer in layers for path in (layer.mask, layer.probability))
    dates = read_dates(options.dates)
    mosaics = group_masks([check_mask(layer, max_pixels, options.dates) for layer in layers])
    tables = _by_layer(mosaics, target, crs)
    area = _area_over(options.area, [mask for mosaic in mosaics for mask in mosaic])
    digest = _digest(layers, target, options, [mask.taken for mosaic in mosaics for mask in mosaic], dates, area)
    if mark == digest and not overwrite:
        return BuildingsReport(target, done_before=True)
    if not overwrite and (reason := _reason_to_stay(target, overwrite=overwrite)) is not None:
        return BuildingsReport(target, stays=reason)
    pixels = sum(mask.box.height * mask.box.width for mosaic in mosaics for mask in mosaic)
    require_space(target.parent, polygon_bytes(target.suffix.lower(), pixels))
    with _own_advice():
        rule = _rule_of(layers)
    dated = note_of_tiff(mask.taken for mosaic in mosaics for mask in mosaic)
    heights = heights_notes([(one_line(mask.mask), mask.crs) for mosaic in mosaics for mask in mosaic])
    notes = (*heights, *_datum_notes(mosaics, crs, area), *([dated] if dated else []))
    for warning in (*rule.warnings, *notes):
        progress.say(warning)
    shaping = Shaping(options.min_area_m2, options.simplify_m, options.regularise, crs, dates, area)
    counts = ShapeCounts()
    with staged(target) as temporary, _cleared(temporary):
        file = create_buildings(temporary, target, digest, inside=area is not None)
        _write(file, tables, rule, shaping, counts, progress)
        if (changed := what_changed(looks, "traced")) is not None:
            raise changed
        embed_digest_in(temporary)
        _require_replaceable(target, overwrite=overwrite)
    return BuildingsReport(
        target, tuple(tables), counts.kept, counts.removed, tuple(sorted(counts.floors_m2)), counts.unregularised
    )


def check_mask(layer: MaskLayer, max_pixels: float = MAX_PIXELS, dates: DateOptions = NO_DATES) -> PlacedMask:
    """Return a mask on its own grid; raises BadDataError when it, or its probability, has no usable place or type.

    Only headers are read.
    """
    with open_raster(layer.mask) as dataset:
        box = GeoBox.of(dataset)
    shown = one_line(layer.mask)
    if not box.georeferenced:
        raise BadDataError(
            f"{shown}: has no CRS and transform, so polygons have no place: gdal_translate -a_srs EPSG:... -a_ullr ..."
        )
    if box.height * box.width > max_pixels:
        raise BadDataError(
            f"{shown}: {box.height}x{box.width} is {box.height * box.width:.3g} pixels, more than {max_pixels:g}; if it"
            " is really that large, cut it with gdal_translate -srcwin and give the parts: buildings stay whole"
        )
    box.require_usable(shown)
    if layer.probability is not None:
        with open_raster(layer.probability) as dataset:
            check_same_grid(box, GeoBox.of(dataset), (layer.mask, layer.probability))
            if dataset.dtypes[0] != "uint8":
                raise BadDataError(
                    f"{one_line(layer.probability)}: has {dataset.dtypes[0]} values; expected probabilities as uint8, 0"
                    " to 254, 255 nodata, as aerialseg predict --probability writes them"
                )
    taken = when_taken(layer.image or layer.mask, layer.name, dates)
    return PlacedMask(layer.name, layer.mask, layer.probability, box, taken=taken)


def group_masks(masks: Sequence[PlacedMask]) -> list[Mosaic]:
    """Return the masks in mosaics that overlap or share a side (a corner is not enough), by their first members."""
    mosaics: dict[int, Mosaic] = {}
    for members in by_horizontal(placed.crs for placed in masks):
        boxes = [masks[index].box for index in members]
        for found in connect_grids(boxes, GRID_TOLERANCE, corners=False, overlaps=True)[0]:
            own = sorted((members[index], place) for index, place in found.items())
            mosaics[own[0][0]] = tuple(replace(masks[index], row=row, col=col) for index, (row, col) in own)
    return [mosaics[first] for first in sorted(mosaics)]


def _mark_of_older(layers: Sequence[MaskLayer], target: Path, *, overwrite: bool) -> str | None:
    """Return what an older file at the target was made from; raises where it may not be replaced."""
    if not layers:
        raise NoInputError("no mask given")
    inputs = [path for layer in layers for path in (layer.mask, layer.probability) if path is not None]
    refuse_input_as_output(inputs, [target])
    check_overwrite(target, "buildings", overwrite=overwrite)
    if overwrite:
        _require_replaceable(target, overwrite=overwrite)
    return mark_of(target, "buildings")


def _area_over(options: AreaOptions | None, masks: Sequence[PlacedMask]) -> Area | None:
    """Return the area that is asked for; raises NoInputError when it meets none of the masks."""
    if options is None:
        return None
    area = read_area(options)
    if not any(area.on(one_line(mask.mask), mask.box).met for mask in masks):
        where = places([area.layer], [mask.box for mask in masks], "masks")
        raise NoInputError(f"--area {area.layer.name}: meets no mask: {where}")
    return area


def _rule_of(layers: Sequence[MaskLayer]) -> ResolvedRule:
    """Return what the masks' values mean."""
    thresholds = {layer.threshold for layer in layers}
    if thresholds == {None}:
        return decide_rule([layer.mask for layer in layers])
    (threshold,) = thresholds
    return ResolvedRule((), (NODATA,), threshold)


def _write(
    file: BuildingFile,
    tables: Mapping[str, Sequence[Mosaic]],
    rule: ResolvedRule,
    shaping: Shaping,
    counts: ShapeCounts,
    progress: Progress,
) -> None:
    """Trace and write mosaic after mosaic, table after table."""
    pixels = sum(
        mask.box.height * mask.box.width for mosaics in tables.values() for mosaic in mosaics for mask in mosaic
    )
    progress.start("polygons", pixels / 1e6, "Mpx")
    for name, mosaics in tables.items():
        file.begin_layer(name, shaping.crs or CRS.from_wkt(mosaics[0][0].crs.to_wkt()))
        overlaps = Overlaps(mosaics, shaping.crs)
        for chunk in gather(_trace(mosaics, rule, shaping, counts, overlaps, progress)):
            file.add(chunk)
        if (note := overlaps.note()) is not None:
            progress.say(f"warning: {note}")
    file.finish()
    progress.finish()


def _trace(
    mosaics: Sequence[Mosaic],
    rule: ResolvedRule,
    shaping: Shaping,
    counts: ShapeCounts,
    overlaps: Overlaps,
    progress: Progress,
) -> Iterator[Footprints]:
    for number, mosaic in enumerate(mosaics):
        frames = {mask.name: MetricFrame.of(mask.box) for mask in mosaic}
        tracer = Tracer()
        with _own_advice():
            for corners, read in read_corners(mosaic, rule):
                for part in footprints(tracer.add(corners), mosaic, frames, shaping, counts):
                    overlaps.add(number, part.shapes)
                    yield part
                    progress.advance(0)
                progress.advance(read / 1e6, one_line(mosaic[0].name))


def _target_crs(target: Path, options: PolygonOptions) -> CRS | None:
    """Return the CRS everything is reprojected to; None where each scene keeps its own."""
    try:
        given = None if options.crs is None else CRS.from_user_input(options.crs)
    except CRSError as error:
        raise UsageError(f"--crs {one_line(str(options.crs))}: is not a CRS; give one such as EPSG:25832") from error
    if target.suffix.lower() != ".geojson":
        return given
    if given is not None and not given.equals(CRS.from_epsg(4326), ignore_axis_order=True):
        raise UsageError(
            f"--crs {one_line(str(options.crs))}: GeoJSON is always in WGS 84; leave it out, or write .gpkg"
        )
    return CRS.from_user_input(WGS84)


def _datum_notes(mosaics: Sequence[Mosaic], crs: CRS | None, area: Area | None) -> list[str]:
    """Say of each CRS of the masks whose way to `crs`, or from the area's, is worse than a pixel for want of a grid."""
    boxes = {
        mask.crs.to_wkt(): (one_line(mask.mask), mask.box) for mosaic in reversed(mosaics) for mask in mosaic[::-1]
    }
    notes = [datum_note(name, box, crs, towards=True) for name, box in boxes.values()] if crs is not None else []
    if area is not None:
        notes += [*area.layer.warnings, *datum_notes([area.layer], [box for _, box in boxes.values()])]
    return folded(note for note in notes if note is not None)


def _by_layer(mosaics: Sequence[Mosaic], target: Path, crs: CRS | None) -> dict[str, list[Mosaic]]:
    """Return table -> mosaics: one for all, or one for each CRS, named after it."""
    systems = by_horizontal(mosaic[0].crs for mosaic in mosaics)
    if crs is not None or len(systems) == 1:
        return {LAYER: list(mosaics)}
    if target.suffix.lower() != ".gpkg":
        raise UsageError(
            f"{one_line(target)}: the masks are in {len(systems)} CRSs and this format has one layer; give --crs"
            " EPSG:..., or write .gpkg, which gets a layer for each"
        )
    tables: dict[str, list[Mosaic]] = {}
    for number, members in enumerate(systems, 1):
        authority = CRS.from_wkt(mosaics[members[0]][0].crs.to_wkt()).to_authority()
        name = f"{LAYER}_{number}" if authority is None else f"{LAYER}_{'_'.join(authority).lower()}"
        tables[name if name not in tables else f"{name}_{number}"] = [mosaics[member] for member in members]
    return tables


def _digest(
    layers: Sequence[MaskLayer],
    target: Path,
    options: PolygonOptions,
    taken: Sequence[Taken],
    dates: DatePolygons | None,
    area: Area | None,
) -> str:
    """Return a SHA-256 over all that decides the file's content; of options on dates, what they lead to counts."""
    contents = [
        (layer.name, content_digest(layer.mask), layer.probability and content_digest(layer.probability))
        for layer in layers
    ]
    days = None if dates is None else (dates.digest, dates.layer.chosen, dates.days.astype(str).tolist())
    described = {
        "format": FORMAT,
        "suffix": target.suffix.lower(),
        "options": {name: value for name, value in asdict(options).items() if name not in ("dates", "area")},
        "layers": contents,
    }
    if days is not None or any(each.day is not None for each in taken):
        described["taken"] = [(str(each.day), each.origin) for each in taken], days
    if area is not None:
        described["area"] = area.digest, area.keep
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@contextmanager
def _cleared(temporary: Path) -> Iterator[None]:
    """Remove what GDAL and SQLite put beside a temporary file; their names begin like its own."""
    try:
        yield
    finally:
        for path in temporary.parent.glob(f"{temporary.stem}[._-]*"):
            if path != temporary:
                path.unlink(missing_ok=True)


def _reason_to_stay(target: Path, *, overwrite: bool) -> str | None:
    """Return why an older file at the target may not be replaced, if there is one."""
    if not os.path.lexists(target):
        return None
    if not overwrite and owner_of(target, "buildings") != "ours":
        return "was changed since aerialseg wrote it and stays as it is; --overwrite or delete it to have it anew"
    # A new file beside the old one's pending changes would be mixed with them, and a deleted -wal takes edits with it.
    if is_open_elsewhere(target):
        return "is open in another program and stays as it is; close it there and run again"
    return None


def _require_replaceable(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError where an older file at the target may not be replaced; asked again when the new one is made."""
    reason = _reason_to_stay(target, overwrite=overwrite)
    if reason is not None:
        raise OutputError(f"{one_line(target)}: {reason}")


@contextmanager
def _own_advice() -> Iterator[None]:
    """Say what helps here where a mask's values are refused; other commands have options for them."""
    try:
        yield
    except BadDataError as error:
        text, advice, _ = str(error).partition("; say what they mean with")
        if not advice:
            raise
        raise BadDataError(f"{text}; write masks of 0, 1 and nodata, or of 0 and 255, and give those") from error
