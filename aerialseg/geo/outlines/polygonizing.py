"""From what the user points at to one file of building polygons: finding masks and probabilities, and the lock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aerialseg.errors import NoInputError, one_line
from aerialseg.files import TEMPORARY, locked, prepare_output_folder
from aerialseg.geo.measures import is_of_another_run, kind_of, left_out_note
from aerialseg.geo.outlines.buildings import SUFFIXES, require_writer
from aerialseg.geo.outlines.polygons import MaskLayer, write_buildings
from aerialseg.geo.pairing import pair_by_name
from aerialseg.geo.scenes import find_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.geo.outlines.polygons import BuildingsReport, PolygonOptions
    from aerialseg.progress import Progress


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
