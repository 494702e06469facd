"""Which prediction is judged by which true mask, and whether the two lie on one grid.

Names decide: `austin/austin3.tif` among the predictions belongs to `austin/austin3.tif` among the masks, whatever the
suffix. Nothing is resampled; a prediction on another grid is refused, never bent to fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.errors import AerialsegError, NoInputError, UsageError, one_line
from aerialseg.geo.labels import find_labels, mask_box
from aerialseg.geo.outputs import MEASURE_FOLDERS, PROBABILITY, is_of_another_run, left_out_note
from aerialseg.geo.scenes import Scene, check_same_grid, find_scenes, pair_masks
from aerialseg.geo.vector_files import is_vector, split_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.inspection import Access


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted mask and the true one."""

    name: str
    prediction: Path
    truth: Path
    city: str | None = None
    probability: Path | None = None
    """What `predict --probability` wrote beside the prediction, if it did."""
    left_out: Path | None = None
    """What lies there of another run of `predict`, in its stead."""
    vectors: tuple[Path, ...] = ()
    """The vector files whose polygons are the truth; `truth` is then the first of them."""
    rival: Path | None = None
    """Another run's prediction of the scene: ground on which it has no data is not counted either."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read for it, and may therefore not be written over."""
        known = (self.prediction, self.truth, self.probability, self.rival)
        return (*(path for path in known if path is not None), *(split_layer(path)[0] for path in self.vectors))


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs in natural order, and the masks no prediction asked for."""

    pairs: tuple[Pair, ...]
    unused: tuple[str, ...] = ()
    """Names of masks without a prediction; they are left out of the score."""


def pair_predictions(
    predictions: Sequence[str | Path],
    masks: Sequence[str | Path],
    pattern: str | None = None,
    layer: str | None = None,
) -> Pairing:
    """Pair predicted masks with true ones by relative stem, or by `pattern` ('{stem}_label.tif').

    Both are files, folders or globs; masks may be an Inria root, which stands for its true masks, or vector files,
    whose polygons, in `layer` where there are several, are the truth of every prediction they lie on. One file on each
    side makes a pair whatever the names. Raises NoInputError when a side is empty, BadDataError for predictions without
    a mask, and UsageError when a prediction is itself the mask.
    """
    predicted = [scene for scene in find_scenes(predictions) if not is_measure(scene.name)]
    if not predicted:
        raise NoInputError(f"{one_line(predictions[0])}: no predicted masks here; give the folder `predict -o` wrote")
    vectors: tuple[Path, ...] = ()
    if layer is not None or any(map(_may_be_vectors, masks)):
        vectors = find_labels(predicted, masks, pattern, layer=layer)[1]
    if vectors:
        by_ground = (_pair(replace(scene, mask=vectors[0]), scene.image) for scene in predicted)
        return Pairing(tuple(replace(pair, vectors=vectors) for pair in by_ground))
    known = {(scene.mask or scene.image).resolve(): scene.name for scene in find_scenes(masks)}
    for scene in predicted:
        if scene.image.resolve() in known:
            raise UsageError(f"{one_line(scene.image)}: is among --masks too; a mask cannot be judged by itself")
    pairs = tuple(_pair(scene, scene.image) for scene in pair_masks(predicted, masks, pattern))
    used = {pair.truth.resolve() for pair in pairs}
    return Pairing(pairs, tuple(name for path, name in known.items() if path not in used))


def is_measure(name: str) -> bool:
    """Return whether a raster of this name, a path below a folder of predictions, is a measure and not a mask."""
    return not MEASURE_FOLDERS.isdisjoint(name.split("/")[:-1])


def pair_scenes(
    scenes: Sequence[Scene], predictions: Path | None = None, vectors: tuple[Path, ...] = ()
) -> tuple[Pair, ...]:
    """Pair the masks of `scenes`, or the polygons of `vectors`, with what `predict` wrote: `predictions`/NAME.tif.

    Before there are predictions the scenes themselves stand for them: they lie on the same grids. Raises NoInputError
    for a scene without a prediction or without a mask.
    """
    pairs = []
    for scene in scenes:
        known = replace(scene, mask=vectors[0]) if vectors else scene
        if known.mask is None:
            raise NoInputError(f"{one_line(scene.image)}: has no mask to judge its prediction by")
        prediction = scene.image if predictions is None else predictions / f"{scene.name}.tif"
        if not prediction.is_file():
            raise NoInputError(f"{one_line(prediction)}: no such file; predict the scene first")
        pairs.append(replace(_pair(known, prediction), vectors=vectors))
    return tuple(pairs)


def check_pairs(pairs: Sequence[Pair], access: Access) -> tuple[list[str], list[AerialsegError]]:
    """Compare the grids of every pair from the files' headers; return warnings and faults, each naming its files.

    Up to half a pixel of shift is a warning; `access` says how large a mask may be and whether it needs a place.
    """
    left_out = [pair.left_out for pair in pairs if pair.left_out is not None]
    warnings = [left_out_note(left_out)] if left_out else []
    faults: list[AerialsegError] = []
    for pair in pairs:
        try:
            truth = None if pair.vectors else mask_box(pair.truth, access)
            box = mask_box(pair.prediction, access)
            warning = None if truth is None else check_same_grid(truth, box, (pair.truth, pair.prediction))
            for other in filter(None, (pair.probability, pair.rival)):
                check_same_grid(box, mask_box(other, access), (pair.prediction, other))
        except AerialsegError as fault:
            faults.append(fault)
        else:
            warnings += [] if warning is None else [warning]
    return warnings, faults


def _may_be_vectors(given: str | Path) -> bool:
    path = Path(given)
    return any(map(is_vector, path.iterdir())) if path.is_dir() else is_vector(path)


def _pair(scene: Scene, prediction: Path) -> Pair:
    if scene.mask is None:
        raise ValueError(f"scene {scene.name} has no mask")
    depth = scene.name.count("/") + 1
    above = prediction.absolute().parents
    beside = above[min(depth, len(above)) - 1] / PROBABILITY.folder / f"{scene.name}{prediction.suffix}"
    pair = Pair(scene.name, prediction, scene.mask, scene.city)
    if not beside.is_file():
        return pair
    strange = is_of_another_run(beside, prediction)
    return replace(pair, left_out=beside) if strange else replace(pair, probability=beside)
