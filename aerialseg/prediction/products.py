"""What is made of all scenes of a run together, once they are predicted: polygons, mosaics, STAC, a QGIS project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, UsageError, one_line
from aerialseg.files import refuse_foreign, refuse_input_as_output
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.polygons.formats import read_mark
from aerialseg.geo.polygons.polygonize import MaskLayer, write_buildings
from aerialseg.geo.scenes import MOSAIC
from aerialseg.geo.vrt import mosaic_sources
from aerialseg.prediction.collection import Entry, collection_paths, refuse_strangers, write_collection

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from aerialseg.prediction.options import PredictOptions
    from aerialseg.prediction.report import SceneResult
    from aerialseg.prediction.work import Run

BUILDINGS = "buildings.gpkg"


def check_products(options: PredictOptions, out: Path, inputs: Collection[Path], boxes: Iterable[GeoBox] = ()) -> None:
    """Raise before the work begins what `make_products` would raise after it; a shard makes none.

    `inputs` are the model and the scenes, `boxes` the scenes' grids once they are known. Raises UsageError, too, where
    an input stands in the way, be it a mosaic of the scenes.
    """
    if options.shard is None:
        paths = collection_paths(out, boxes, probability="probability" in options.measures)
        refuse_input_as_output([*inputs, *(path for path in paths if _shows(path, inputs))], paths)
        refuse_strangers(paths, overwrite=options.overwrite)
        if options.polygons:
            target = out / BUILDINGS
            refuse_foreign(target, ours=read_mark(target) is not None, overwrite=options.overwrite)
    elif options.polygons:
        raise UsageError("--polygons --shard: the parts know nothing of each other; run once more without --shard")


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
        layers = [MaskLayer(r.name, r.outputs["mask"], r.outputs.get("probability")) for r in placed]
        written = write_buildings(
            layers,
            buildings,
            run.options.shaping,
            run.progress,
            max_pixels=run.options.access.max_pixels,
            overwrite=run.options.overwrite,
        )
        run.progress.say(written.line())
        made["buildings"] = written.to_json()
    files = write_collection(
        run.out,
        [Entry(r.name, r.image, r.outputs["mask"], r.outputs.get("probability")) for r in finished],
        card=run.card,
        model_hash=run.model_hash,
        buildings=buildings,
        progress=run.progress,
        overwrite=run.options.overwrite,
    )
    return {**made, "collection": [str(path) for path in files]}


def _shows(path: Path, images: Collection[Path]) -> bool:
    """Return whether a file is a user's mosaic of the scenes, which may be how they were given."""
    if path.suffix != MOSAIC or not path.exists():
        return False
    try:
        shown = {image.resolve() for image in mosaic_sources(path)}
    except AerialsegError:
        return False
    return any(image.resolve() in shown for image in images)


def _has_place(run: Run, result: SceneResult) -> bool:
    """Return whether a scene's mask lies on the ground; says so when its buildings cannot be drawn there."""
    with open_raster(result.outputs["mask"]) as mask:
        placed = GeoBox.of(mask).georeferenced
    if not placed:
        run.progress.say(f"warning: {one_line(result.image)}: is not georeferenced; its buildings are not drawn")
    return placed
