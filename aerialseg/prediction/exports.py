"""What is made of all scenes of a run together, so that they are found and look right: polygons, mosaics, STAC, a QGIS
project.

Everything here follows from the rasters' headers, the scenes and the model card; pixels are not read. The same entries
give the same bytes, files that are right already are not touched, and what a user has changed stays.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aerialseg.counts import QUANTA, quantum_of
from aerialseg.errors import AerialsegError, one_line
from aerialseg.files import exists, is_regular, refuse_input_as_output, remove, resolved
from aerialseg.geo.dates import ground_taken, note_of_tiff, read_dates, when_taken
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.geopackage import feature_tables
from aerialseg.geo.opening import open_raster
from aerialseg.geo.outputs import ITEMS, MASK, MEASURE_FOLDERS, PROBABILITY, STAC, UNCUT, kind_of
from aerialseg.geo.ownership import check_overwrite, owner_of, write_owned
from aerialseg.geo.polygons.polygonize import MaskLayer, write_buildings
from aerialseg.geo.project import MapGroup, MapLayer, compose_project
from aerialseg.geo.scenes import MOSAIC
from aerialseg.geo.styles import building_renderer, mask_pipe, probability_pipe, scene_pipe, write_probability_sidecar
from aerialseg.geo.vrt import Kind, Mosaic, MosaicPart, compose_mosaics, mosaic_names, mosaic_sources
from aerialseg.prediction.stac import Sheet, describe
from aerialseg.values import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from aerialseg.geo.dates import DatePolygons
    from aerialseg.prediction.checks import Run
    from aerialseg.prediction.options import PredictOptions
    from aerialseg.prediction.report import SceneResult
    from aerialseg.progress import Progress

BUILDINGS = "buildings.gpkg"
PROJECT = "project.qgz"
SINGLY = 8
"""Up to this many scenes have a layer each for mask and probability; more are shown by their mosaics."""
OVER_SCENES = 0.5
"""How opaque masks are in the project, where a roof should be seen below its mask."""


def check_products(options: PredictOptions, out: Path, inputs: Collection[Path], boxes: Iterable[GeoBox] = ()) -> None:
    """Raise before the work begins what `make_products` would raise after it; a shard makes none.

    `inputs` are the model and the scenes, `boxes` the scenes' grids once they are known. Raises UsageError, too, where
    an input stands in the way, be it a mosaic of the scenes.
    """
    read_dates(options.dates)
    if options.shard is None:
        paths = collection_paths(out, boxes, probability=PROBABILITY in options.outputs)
        refuse_input_as_output([*inputs, *(path for path in paths if _shows(path, inputs))], paths)
        check_collection(paths, overwrite=options.overwrite)
        if options.polygons:
            check_overwrite(out / BUILDINGS, "buildings", overwrite=options.overwrite)


def make_products(run: Run, results: Sequence[SceneResult]) -> dict[str, Any]:
    """Write what the run's finished scenes make together, and return what the report says of it.

    Files that are up to date are left alone. Raises what `write_buildings` and `write_collection` raise, and Stopped.
    """
    finished = [result for result in results if result.status in ("done", "skipped")]
    if run.options.shard is not None or not finished:
        return {}
    run.progress.advance(0)
    made: dict[str, Any] = {}
    placed = [result for result in finished if run.options.polygons and _has_place(run, result)]
    buildings = run.out / BUILDINGS if placed else None
    if buildings is not None:
        layers = [_traced(run, result) for result in placed]
        written = write_buildings(
            layers,
            buildings,
            replace(run.options.shaping, dates=run.options.dates, area=run.options.area),
            run.progress,
            max_pixels=run.options.access.max_pixels,
            overwrite=run.options.overwrite,
        )
        run.progress.say(written.line())
        made["buildings"] = written.to_json()
    return {**made, "collection": [str(path) for path in write_collection(run, finished, buildings)]}


def _traced(run: Run, result: SceneResult) -> MaskLayer:
    """Return what a scene's buildings are drawn from: its mask, or with an area what was there before the cut."""
    if UNCUT.name in result.outputs:
        uncut = result.outputs[UNCUT.name]
        return MaskLayer(result.name, uncut, uncut, result.image, quantum_of(run.card.threshold))
    return MaskLayer(result.name, result.outputs[MASK.name], result.outputs.get(PROBABILITY.name), result.image)


def _shows(path: Path, images: Collection[Path]) -> bool:
    """Return whether a file is a user's mosaic of the scenes, which may be how they were given."""
    if path.suffix != MOSAIC or not exists(path):
        return False
    try:
        shown = {resolved(image) for image in mosaic_sources(path)}
    except AerialsegError:
        return False
    return any(resolved(image) in shown for image in images)


def _has_place(run: Run, result: SceneResult) -> bool:
    """Return whether a scene's mask lies on the ground; says so when its buildings cannot be drawn there."""
    with open_raster(result.outputs[MASK.name]) as mask:
        placed = GeoBox.of(mask).georeferenced
    if not placed:
        run.progress.say(f"warning: {one_line(result.image)}: is not georeferenced; its buildings are not drawn")
    return placed


def write_collection(run: Run, results: Sequence[SceneResult], buildings: Path | None) -> tuple[Path, ...]:
    """Write mosaic*.vrt, stac/ and project.qgz over the finished scenes, and return all that stand there now.

    What is left out of a mosaic, and what a user has changed and so stays, is said, a line each. Raises what
    `open_raster` raises, OutputError for a foreign file in the way unless the run overwrites, StorageError when the
    disk is full, and Stopped.
    """
    out, say, overwrite = run.out, run.progress.say, run.options.overwrite
    dates = read_dates(run.options.dates)
    sheets = [_sheet(result, run, dates) for result in results]
    note = note_of_tiff(sheet.taken for sheet in sheets)
    if note is not None and buildings is None:
        say(note)
    parts = [sheet.probability for sheet in sheets if sheet.probability is not None]
    boxes = [sheet.mask.box for sheet in sheets]
    check_collection(collection_paths(out, boxes, probability=bool(parts)), overwrite=overwrite)
    masks = write_mosaics(out, [sheet.mask for sheet in sheets], "mask", say, overwrite=overwrite)
    likely = write_mosaics(out / PROBABILITY.folder, parts, "probability", say, overwrite=overwrite)
    for path, scale in [(p.path, p.scale) for p in parts] + [(m.path, m.parts[0].scale) for m in likely]:
        write_probability_sidecar(path, scale)
    extras = {mosaic.path.stem: mosaic.path for mosaic in masks} | ({"buildings": buildings} if buildings else {})
    stac = describe(out / STAC, sheets, card=run.card, model_hash=run.model_hash, extras=extras)
    for path, content in stac.items():
        run.progress.advance(0)
        _write(path, content, say, overwrite=overwrite)
    for path in sorted(set((out / STAC / ITEMS).glob("*.json")).difference(stac)):
        if owner_of(path, "collection") == "ours" and not is_regular(_mask_in(path)):
            remove(path)
    _note_others(out, sheets, run.progress)
    groups = (
        MapGroup("", _polygons(buildings, say)),
        MapGroup("masks", _rasters("mask", sheets, masks)),
        MapGroup("probability", _rasters("probability", sheets, likely), visible=False),
        MapGroup("scenes", tuple(sheet.picture for sheet in sheets)),
    )
    _write(out / PROJECT, compose_project(out / PROJECT, groups, boxes, say), say, overwrite=overwrite)
    return *(mosaic.path for mosaic in (*masks, *likely)), *stac, out / PROJECT


def collection_paths(out: Path, boxes: Iterable[GeoBox] = (), *, probability: bool) -> tuple[Path, ...]:
    """Return where the files over all scenes may go, the mosaics first; `boxes` are the scenes' grids, once known."""
    names, folders = mosaic_names(boxes), (out, out / PROBABILITY.folder)[: 1 + probability]
    mosaics = [folder / name for folder in folders for name in names]
    return *mosaics, out / STAC / "collection.json", out / STAC / "model.json", out / PROJECT


def check_collection(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """Raise OutputError when a foreign file stands at one of the `collection_paths`.

    For a caller that wants to know before the work begins; `write_collection` asks again.
    """
    for path in paths:
        check_overwrite(path, "collection", overwrite=overwrite)


def write_mosaics(
    folder: Path, parts: Sequence[MosaicPart], kind: Kind, say: Callable[[str], None], *, overwrite: bool = False
) -> tuple[Mosaic, ...]:
    """Write a mosaic for each CRS into `folder`, and return them; those of ours that no longer apply are removed.

    `say` is told what is left out and why. Raises OutputError for a foreign file in the way, which `overwrite`
    replaces.
    """
    mosaics = compose_mosaics(folder, parts, kind, say)
    for stale in sorted(set(folder.glob("mosaic*.vrt")).difference(mosaic.path for mosaic in mosaics)):
        if owner_of(stale, "collection") == "ours":
            remove(stale)
    for mosaic in mosaics:
        _write(mosaic.path, mosaic.content, say, overwrite=overwrite)
    return mosaics


def _write(path: Path, content: bytes, say: Callable[[str], None], *, overwrite: bool) -> None:
    note = write_owned(path, content, overwrite=overwrite)
    if note is not None:
        say(note)


def _mask_in(item: Path) -> Path:
    """Return the mask that an item of ours describes."""
    try:
        href = read_json(item)["assets"]["mask"]["href"]
        return Path(os.path.normpath(item.parent / unquote(href)))
    except (OSError, ValueError, KeyError, TypeError):
        return item  # it names no mask and stays where it is


def _note_others(out: Path, sheets: Sequence[Sheet], progress: Progress) -> None:
    """Say that masks of earlier runs stand in `out` which are not among the sheets'."""
    known = {path.absolute() for sheet in sheets for path in (sheet.mask.path, sheet.scene)}
    others = []
    for place, folders, files in os.walk(out):
        measures = MEASURE_FOLDERS if Path(place) == out else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in measures)
        for path in (Path(place, name) for name in sorted(files) if name.endswith(".tif") and name[0] != "."):
            progress.advance(0)
            if path.absolute() not in known and kind_of(path) == "mask":
                others.append(path.relative_to(out).with_suffix("").as_posix())
    if others:
        counted = "1 mask of other scenes" if len(others) == 1 else f"{len(others)} masks of other scenes"
        verb = "is" if len(others) == 1 else "are"
        where = f"{verb} in neither the mosaics nor {PROJECT}"
        progress.say(f"{one_line(out)}: {counted}, such as {one_line(others[0])}, {where}")


def _sheet(result: SceneResult, run: Run, dates: DatePolygons | None) -> Sheet:
    """Return what the headers of a scene and of its outputs say."""
    run.progress.advance(0)
    taken = when_taken(result.image, result.name, run.options.dates)
    with open_raster(result.image) as dataset:
        box = GeoBox.of(dataset)
        picture = MapLayer(result.name, result.image, box.crs, scene_pipe(dataset))
    if run.options.dates.day is None and (ground := ground_taken(dates, box)).start is not None:
        taken = ground
    mask, probability = result.outputs[MASK.name], result.outputs.get(PROBABILITY.name)
    part = None if probability is None else MosaicPart.of(probability)
    return Sheet(result.name, result.image, MosaicPart.of(mask), part, box, taken, picture)


def _polygons(buildings: Path | None, say: Callable[[str], None]) -> tuple[MapLayer, ...]:
    """Return a layer for each table of building outlines."""
    if buildings is None:
        return ()
    if buildings.suffix.lower() == ".parquet":  # few builds of QGIS read it, and the others complain on every start
        say(f"{one_line(buildings)}: is not in project.qgz: not every QGIS reads GeoParquet")
        return ()
    style = building_renderer()
    return tuple(
        MapLayer(table or "buildings", buildings, crs, style, table, vector=True)
        for table, crs in feature_tables(buildings)
    )


def _rasters(kind: Kind, sheets: Sequence[Sheet], mosaics: Sequence[Mosaic]) -> tuple[MapLayer, ...]:
    """Return a layer for each mask or probability; of many scenes the mosaics, and what is not part of one."""
    many = len(sheets) > SINGLY
    shown = [
        MapLayer(f"{kind} {mosaic.path.stem}", mosaic.path, mosaic.parts[0].box.crs, _pipe(kind, mosaic.parts[0]))
        for mosaic in mosaics
        if many
    ]
    inside = {part.path for mosaic in mosaics for part in mosaic.parts} if many else set()
    for sheet in sheets:
        part = sheet.mask if kind == "mask" else sheet.probability
        if part is not None and part.path not in inside:
            shown.append(MapLayer(f"{sheet.name} {kind}", part.path, part.box.crs, _pipe(kind, part)))
    return tuple(shown)


def _pipe(kind: Kind, part: MosaicPart) -> str:
    return mask_pipe(OVER_SCENES) if kind == "mask" else probability_pipe(QUANTA * part.scale)
