"""From what the user points at to one file of building polygons: finding masks and probabilities, and the lock.

Building polygons from masks: one file over many scenes, each building whole, whatever it crosses.

Two pixels are of one building when they share a side, within a mask or across masks that touch on one pixel grid; a
shared corner is not enough. Polygons follow the pixels' edges as gdal_polygonize.py draws them, holes included, and are
then filtered, simplified and regularised where asked for. Nothing here runs a network.
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

from aerialseg.errors import BadDataError, NoInputError, OutputError, UsageError, one_line
from aerialseg.files import TEMPORARY, locked, prepare_output_folder, refuse_foreign, refuse_input_as_output, staged
from aerialseg.geo.digest import content_digest
from aerialseg.geo.labels import decide_rule
from aerialseg.geo.outputs import is_of_another_run, kind_of, left_out_note
from aerialseg.geo.polygons.formats import SUFFIXES, create_buildings, read_mark, require_writer
from aerialseg.geo.polygons.patchwork import MAX_PIXELS, group_masks, piece_of
from aerialseg.geo.polygons.shape import MetricFrame, ShapeCounts, Shaping, footprints
from aerialseg.geo.polygons.trace import Tracer, read_corners
from aerialseg.geo.qgis.edits import is_edited, is_open_elsewhere, seal_buildings
from aerialseg.geo.scenes import find_scenes, pair_by_name
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aerialseg.geo.labels import ResolvedRule
    from aerialseg.geo.polygons.formats import BuildingFile
    from aerialseg.geo.polygons.patchwork import MaskMosaic
    from aerialseg.geo.polygons.trace import Corners
    from aerialseg.progress import Progress

LAYER = "buildings"
FORMAT = 2
"""Counted up when equal masks and options give other bytes than before."""
WGS84 = "OGC:CRS84"


def polygonize_masks(
    masks: Sequence[str | Path],
    target: Path,
    options: PolygonOptions | None = None,
    progress: Progress | None = None,
    *,
    probability: Path | None = None,
    overwrite: bool = False,
) -> BuildingsReport:
    """Write the buildings of the masks that files, folders and globs stand for; see `write_buildings`.

    Of a data set root its true masks are taken. `probability` is a folder, or for a single mask a file; rasters pair
    by name. Raises what `write_buildings` raises, NoInputError when no mask or no probability is found, and OutputError
    when another run writes in the target's folder.
    """
    progress = progress or Silent()
    require_writer(target)
    layers = find_layers(masks, probability)
    without = [layer.name for layer in layers if layer.probability is None]
    if probability is not None and without:
        progress.say(f"{len(without)} masks have no probability raster by their name, such as {one_line(without[0])}")
    layers = _of_one_run(layers, progress)
    prepare_output_folder(target.parent)
    with locked(target.parent):
        _sweep(target.parent)
        return write_buildings(layers, target, options, progress, overwrite=overwrite)


def find_layers(masks: Sequence[str | Path], probability: Path | None = None) -> tuple[MaskLayer, ...]:
    """Return the masks in natural order, with their probabilities where there are any.

    What `predict` measured, wherever it lies, is no mask.
    """
    scenes = [scene for scene in find_scenes(masks) if kind_of(scene.mask or scene.image) != "measure"]
    candidates = () if probability is None else find_scenes([probability])
    taken = {candidate.image.resolve() for candidate in candidates}
    scenes = [scene for scene in scenes if scene.image.resolve() not in taken]
    if not scenes:
        raise NoInputError(f"{one_line(masks[0])}: no masks here; give the folder that predict -o wrote")
    found = pair_by_name(scenes, candidates, None)
    if len(scenes) == len(candidates) == 1:
        found = {scenes[0].name: candidates[0].image}
    if probability is not None and not found:
        raise NoInputError(f"{one_line(probability)}: holds no raster that is named like one of the masks")
    return tuple(MaskLayer(scene.name, scene.mask or scene.image, found.get(scene.name)) for scene in scenes)


def _of_one_run(layers: Sequence[MaskLayer], progress: Progress) -> tuple[MaskLayer, ...]:
    """Return the layers without the probabilities that another run of `predict` left, and say so."""
    kept: list[MaskLayer] = []
    left_out: list[Path] = []
    for layer in layers:
        if layer.probability is not None and is_of_another_run(layer.probability, layer.mask):
            left_out.append(layer.probability)
            layer = replace(layer, probability=None)
        kept.append(layer)
    if left_out:
        progress.say(left_out_note(left_out))
    return tuple(kept)


def _sweep(folder: Path) -> None:
    """Remove what killed runs of this command left in the folder, and nothing else: the lock is held."""
    for suffix in SUFFIXES:
        for path in folder.glob(f"{TEMPORARY}*{suffix}*"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class MaskLayer:
    """A scene's mask, and the probabilities it was made from."""

    name: str
    """The scene's; unique among the layers."""
    mask: Path
    probability: Path | None = None


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """What becomes of the outlines; the defaults leave them along the pixels' edges, in each scene's CRS."""

    min_area_m2: float = 0.0
    """Smaller buildings are left out, measured before anything else is done to them."""
    crs: str | None = None
    """What all are reprojected to."""
    simplify_m: float = 0.0
    regularise: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--min-area-m2", self.min_area_m2), ("--simplify", self.simplify_m)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} {value:g}: give a number of 0 or more")


@dataclass(frozen=True, slots=True)
class BuildingsReport:
    """What was written."""

    target: Path
    layers: tuple[str, ...] = ()
    kept: int = 0
    removed: int = 0
    """Buildings smaller than --min-area-m2."""
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
        parts = [f"{self.kept:,} buildings"]
        parts += [f"{self.removed:,} smaller than asked for left out"] if self.removed else []
        parts += (
            [f"{self.unregularised:,} could not be regularised and stay as they were"] if self.unregularised else []
        )
        parts += [f"layers {', '.join(self.layers)}"] if len(self.layers) > 1 else []
        return f"{name}: {'; '.join(parts)}"


def write_buildings(
    layers: Sequence[MaskLayer],
    target: Path,
    options: PolygonOptions | None = None,
    progress: Progress | None = None,
    *,
    max_pixels: float = MAX_PIXELS,
    overwrite: bool = False,
) -> BuildingsReport:
    """Write the buildings of all masks to `target`, whose suffix says how: .gpkg, .fgb, .geojson or .parquet.

    Attributes: `id` (scene:row:column of the first pixel, the same whatever other scenes there are), `scene` (where
    that pixel lies), `area_m2` (of the polygon as written, measured in the scene's CRS before any reprojection to
    --crs; --min-area-m2 looks at the area before simplifying), `probability` (mean over the pixels, 0 to 1, or null).
    Order: by patches of touching scenes as given, from the top down. A GeoPackage has one layer for each CRS, GeoJSON
    is in WGS 84. A file made from the same contents and options is left alone, and so is one that was edited since or
    that another program has open; `overwrite` replaces it unless it is open. Memory: 500 MB for 20000x20000 pixels with
    100,000 buildings. The caller holds the folder's lock.

    Raises UsageError (several CRSs in a format with one layer; a target that is a mask), BadDataError (a mask that has
    no place, more than `max_pixels`, or values that say neither building nor not), NoInputError, OutputError,
    StorageError and Stopped.
    """
    options, progress = options or PolygonOptions(), progress or Silent()
    require_writer(target)
    crs = _target_crs(target, options)
    mark = _mark_of_older(layers, target, overwrite=overwrite)
    patches = group_masks([piece_of(layer.name, layer.mask, layer.probability, max_pixels) for layer in layers])
    names = _layer_names(patches, target, crs)
    digest = _digest(layers, target, options)
    if mark == digest and not overwrite:
        return BuildingsReport(target, done_before=True)
    if not overwrite and (reason := _reason_to_stay(target, overwrite=overwrite)) is not None:
        return BuildingsReport(target, stays=reason)
    rule = _rule_of(layers, progress)
    shaping, tally = Shaping(options.min_area_m2, options.simplify_m, options.regularise, crs), ShapeCounts()
    with staged(target) as temporary, _cleared(temporary):
        file = create_buildings(temporary, target, digest)
        _write(file, patches, names, (rule, shaping, tally), progress)
        seal_buildings(temporary)
        _require_replaceable(target, overwrite=overwrite)
    return BuildingsReport(target, tuple(dict.fromkeys(names)), tally.kept, tally.removed, tally.unregularised)


def _mark_of_older(layers: Sequence[MaskLayer], target: Path, *, overwrite: bool) -> str | None:
    """Return what an older file at the target was made from; raises where it may not be replaced."""
    if not layers:
        raise NoInputError("no mask given")
    inputs = [path for layer in layers for path in (layer.mask, layer.probability) if path is not None]
    refuse_input_as_output(inputs, [target])
    mark = read_mark(target)
    refuse_foreign(target, ours=mark is not None, overwrite=overwrite)
    if overwrite:
        _require_replaceable(target, overwrite=overwrite)
    return mark


def _rule_of(layers: Sequence[MaskLayer], progress: Progress) -> ResolvedRule:
    """Decide what the masks' values mean, and say what is odd about them."""
    with _own_advice():
        rule = decide_rule([layer.mask for layer in layers])
    for warning in rule.warnings:
        progress.say(warning)
    return rule


def _write(
    file: BuildingFile,
    patches: Sequence[MaskMosaic],
    names: Sequence[str],
    how: tuple[ResolvedRule, Shaping, ShapeCounts],
    progress: Progress,
) -> None:
    """Trace and write patch after patch, the patches of one layer together."""
    rule, shaping, tally = how
    pixels = sum(piece.box.height * piece.box.width for patch in patches for piece in patch.pieces)
    progress.start("polygons", pixels / 1e6, "Mpx")
    for layer in dict.fromkeys(names):
        own = [patch for patch, name in zip(patches, names, strict=True) if name == layer]
        file.begin_layer(layer, shaping.crs or CRS.from_wkt(own[0].crs.to_wkt()))
        for patch in own:
            grounds = {piece.name: MetricFrame.of(piece.box) for piece in patch.pieces}
            tracer = Tracer()
            for corners, read in _strict(read_corners(patch, rule)):
                for part in footprints(tracer.add(corners), patch, grounds, shaping, tally):
                    file.add(part)
                    progress.advance(0)
                progress.advance(read / 1e6, one_line(patch.pieces[0].name))
    file.finish()
    progress.finish()


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


def _layer_names(patches: Sequence[MaskMosaic], target: Path, crs: CRS | None) -> list[str]:
    """Return the layer of each patch: one for all, or one for each CRS, named after it."""
    found = list(dict.fromkeys(patch.crs.to_wkt() for patch in patches))
    if crs is not None or len(found) == 1:
        return [LAYER] * len(patches)
    if target.suffix.lower() != ".gpkg":
        raise UsageError(
            f"{one_line(target)}: the masks are in {len(found)} CRSs and this format has one layer; give --crs"
            " EPSG:..., or write .gpkg, which gets a layer for each"
        )
    names: dict[str, str] = {}
    for number, wkt in enumerate(found, 1):
        authority = CRS.from_wkt(wkt).to_authority()
        name = f"{LAYER}_{number}" if authority is None else f"{LAYER}_{'_'.join(authority).lower()}"
        names[wkt] = name if name not in names.values() else f"{name}_{number}"
    return [names[patch.crs.to_wkt()] for patch in patches]


def _digest(layers: Sequence[MaskLayer], target: Path, options: PolygonOptions) -> str:
    """Return a SHA-256 over all that decides the file's content."""
    contents = [
        (layer.name, content_digest(layer.mask), layer.probability and content_digest(layer.probability))
        for layer in layers
    ]
    described = {"format": FORMAT, "suffix": target.suffix.lower(), "options": asdict(options), "layers": contents}
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
    if not overwrite and is_edited(target):
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


def _strict(items: Iterator[tuple[Corners, int]]) -> Iterator[tuple[Corners, int]]:
    with _own_advice():
        yield from items


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
