"""Pairs of a prediction and its truth: found by name, checked to lie on one grid, opened and counted in strips.

`austin/austin3.tif` among the predictions belongs to `austin/austin3.tif` among the masks, whatever the suffix. Nothing
is resampled; a prediction on another grid is refused, never bent to fit. Strips are full-width rows from the top down,
few enough that their arrays stay in the processor's cache; memory does not grow with a scene's height. A pixel is
counted where both masks say something. What the counts are worth is not known here.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.counts import UNLABELLED, Confusion, ScoreHistogram
from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, folded, one_line
from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounter
from aerialseg.evaluation.objects import ObjectCounter
from aerialseg.evaluation.results import SceneScore
from aerialseg.files import is_folder, is_regular, resolved
from aerialseg.geo.geobox import GeoBox, check_same_grid
from aerialseg.geo.labels import find_labels, open_labels
from aerialseg.geo.masks import mask_box, read_mask
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.outputs import MEASURE_FOLDERS, PROBABILITY, is_of_another_run, left_out_note
from aerialseg.geo.scenes import Scene, case_note, find_scenes, pair_masks
from aerialseg.geo.vector_files import is_vector, split_layer
from aerialseg.geo.vectors import require_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from threading import Event

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.geo.inspection import Access
    from aerialseg.geo.labels import Labels
    from aerialseg.geo.masks import ResolvedRule

    Flags = NDArray[np.bool_]
    Both = tuple[Flags, Flags]
    """Building, and where the mask says something."""
    Read = Callable[[Window], Both]

STRIP_PIXELS = 2**20
"""Counted at a time: few enough that their ten arrays stay in the processor's cache."""
CACHED_BLOCKS = 2**22
"""Rows of blocks of so many pixels stay in GDAL's cache, of 64 MB, for four scenes at once."""
LARGEST_BLOCKS = 2**25
"""Rows of blocks with more pixels than this are not read whole: a file stored as one piece is cut."""


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
        return tuple(split_layer(path)[0] for path in (*known, *self.vectors) if path is not None)


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs in natural order, and the masks no prediction asked for."""

    pairs: tuple[Pair, ...]
    unused: tuple[str, ...] = ()
    """Names of masks without a prediction; they are left out of the score."""
    note: str | None = None
    """What is odd about the names."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the values of the masks mean, and what is counted."""

    prediction: ResolvedRule
    truth: ResolvedRule | None
    """None when no truth is a mask: see `labels`."""
    details: bool = False
    """Whether outlines, objects and probabilities are counted too, not pixels alone."""
    probabilities: bool = False
    """Whether probabilities are counted, if there are any, also without the other details."""
    filtered: int | None = None
    """Leave out square patches of this many pixels that hold no true building, as some papers do."""
    labels: Mapping[str, Labels] = field(default_factory=dict)
    """By the pair's name, where the truth is not simply a mask: polygons, or a labelled area."""
    rival: ResolvedRule | None = None
    """What the values of the pairs' rivals mean."""


@dataclass(frozen=True, slots=True, eq=False)
class PairStrip:
    """Full-width rows of a pair, the first at `row`; both masks are False where either has no data."""

    row: int
    building: Flags
    truth: Flags
    valid: Flags
    unpredicted: int
    """Pixels that are labelled and not predicted; `unpredicted_building` of them are true building."""
    unpredicted_building: int
    quanta: NDArray[np.uint8] | None
    """Probability as round(254 p), where there are probabilities."""
    hidden: int = 0
    """Pixels that both masks know and the rival does not: they are not valid."""


def pair_predictions(
    predictions: Sequence[str | Path],
    masks: Sequence[str | Path],
    pattern: str | None = None,
    layer: str | None = None,
) -> Pairing:
    """Pair predicted masks with true ones by relative stem, or by `pattern` ('{stem}_label.tif', '_sat:_mask').

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
    known = {resolved(scene.mask or scene.image): scene.name for scene in find_scenes(masks)}
    for scene in predicted:
        if resolved(scene.image) in known:
            raise UsageError(f"{one_line(scene.image)}: is among --masks too; a mask cannot be judged by itself")
    found = pair_masks(predicted, masks, pattern)
    pairs = tuple(_pair(scene, scene.image) for scene in found)
    used = {resolved(pair.truth) for pair in pairs}
    return Pairing(pairs, tuple(name for path, name in known.items() if path not in used), case_note(found, pattern))


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
        if not is_regular(prediction):
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
            # Polygons need a place whatever is allowed.
            box = mask_box(pair.prediction, replace(access, allow_ungeoreferenced=True) if pair.vectors else access)
            require_place(one_line(pair.prediction), box, pair.vectors)
            warning = None if truth is None else check_same_grid(truth, box, (pair.truth, pair.prediction))
            for other in filter(None, (pair.probability, pair.rival)):
                check_same_grid(box, mask_box(other, access), (pair.prediction, other))
        except AerialsegError as fault:
            faults.append(fault)
        else:
            warnings += [] if warning is None else [warning]
    return folded(warnings), faults


def _may_be_vectors(given: str | Path) -> bool:
    path = Path(given)
    return any(map(is_vector, path.iterdir())) if is_folder(path) else is_vector(path)


def _pair(scene: Scene, prediction: Path) -> Pair:
    if scene.mask is None:
        raise ValueError(f"scene {scene.name} has no mask")
    depth = scene.name.count("/") + 1
    above = prediction.absolute().parents
    beside = above[min(depth, len(above)) - 1] / PROBABILITY.folder / f"{scene.name}{prediction.suffix}"
    pair = Pair(scene.name, prediction, scene.mask, scene.city)
    if not is_regular(beside):
        return pair
    strange = is_of_another_run(beside, prediction)
    return replace(pair, left_out=beside) if strange else replace(pair, probability=beside)


def count_pair(pair: Pair, rules: Rules, stop: Event | None = None) -> SceneScore:
    """Count one pair whose grids agree; `stop`, once set, ends it with CancelledError."""
    with open_pair(pair, rules) as (box, strips):
        counter = PairCounter(box, details=rules.details)
        for strip in strips:
            if stop is not None and stop.is_set():
                raise CancelledError
            counter.add(strip)
    return counter.result(pair)


@contextmanager
def open_pair(pair: Pair, rules: Rules) -> Iterator[tuple[GeoBox, Iterator[PairStrip]]]:
    """Open a pair; yields its grid and its strips, top to bottom. Probabilities come with the details only."""
    with ExitStack() as files:
        predicted = files.enter_context(open_raster(pair.prediction))
        box, datasets = GeoBox.of(predicted), [predicted]
        labels = rules.labels.get(pair.name)
        read_truth: Read
        if labels is not None:
            read_truth = partial(_read_labels, files.enter_context(open_labels(labels, box, box)))
        elif rules.truth is not None:
            datasets.append(files.enter_context(open_raster(pair.truth)))
            read_truth = partial(read_mask, datasets[-1], rules.truth)
        else:
            raise ValueError(f"no rule says how the truth of {pair.name} is read")
        probability = None
        if (rules.details or rules.probabilities) and pair.probability is not None:
            probability = files.enter_context(open_raster(pair.probability))
            if probability.count != 1 or probability.dtypes[0] != "uint8":
                bands = f"{probability.count} bands of {probability.dtypes[0]}"
                raise BadDataError(
                    f"{one_line(pair.probability)}: {bands}, expected one band of uint8 as predict --probability writes"
                    " it; remove it or give the masks' folder without it"
                )
            datasets.append(probability)
        read_rival: Read | None = None
        if pair.rival is not None and rules.rival is not None:
            datasets.append(files.enter_context(open_raster(pair.rival)))
            read_rival = partial(read_mask, datasets[-1], rules.rival)
        if rules.filtered is not None:
            read_truth = partial(_read_filtered, read_truth, rules.filtered)
        blocks = [dataset.block_shapes[0][0] for dataset in datasets]
        # Whole rows of blocks where GDAL's cache may not hold them until the next window.
        large = (rows for rows in blocks if CACHED_BLOCKS < rows * box.width <= LARGEST_BLOCKS)
        chunks = _rows_of(box, max(large, default=1) if rules.filtered is None else rules.filtered)
        read = partial(read_mask, predicted, rules.prediction)
        yield box, _read_strips(chunks, read, read_truth, probability, read_rival)


def _read_strips(
    chunks: Iterable[Window],
    read_prediction: Read,
    read_truth: Read,
    probability: DatasetReader | None,
    read_rival: Read | None,
) -> Iterator[PairStrip]:
    """Read whole blocks, and yield few rows at a time."""
    for chunk in chunks:
        building, valid = read_prediction(chunk)
        truth, labelled = read_truth(chunk)
        hidden = None if read_rival is None else valid & labelled & ~read_rival(chunk)[1]
        quanta = None
        if probability is not None:
            with raster_errors(Path(probability.name)):
                quanta = probability.read(1, window=chunk)
        rows = max(1, STRIP_PIXELS // int(chunk.width))
        for top in range(0, len(building), rows):
            part = np.s_[top : top + rows]
            row, some = int(chunk.row_off) + top, None if quanta is None else quanta[part]
            unseen = None if hidden is None else hidden[part]
            yield _joined(row, (building[part], valid[part]), (truth[part], labelled[part]), some, unseen)


def _rows_of(box: GeoBox, least: int) -> Iterator[Window]:
    """Yield full-width windows of about STRIP_PIXELS, their heights multiples of `least`."""
    rows = max(1, STRIP_PIXELS // box.width // least) * least
    for row in range(0, box.height, rows):
        yield Window(0, row, box.width, min(rows, box.height - row))


def _joined(
    row: int, prediction: Both, true: Both, quanta: NDArray[np.uint8] | None, hidden: Flags | None
) -> PairStrip:
    """Return the strip of a prediction and its truth; `hidden` are pixels of both that the rival does not know."""
    (building, valid), (truth, labelled) = prediction, true
    unseen = 0 if hidden is None else int(np.count_nonzero(hidden))
    if not unseen and valid.all() and labelled.all():
        return PairStrip(row, building, truth, valid, 0, 0, quanta)
    missing = labelled & ~valid
    lost = int(np.count_nonzero(missing)), int(np.count_nonzero(missing & truth))
    known = valid & labelled if hidden is None else valid & labelled & ~hidden
    return PairStrip(row, building & known, truth & known, known, *lost, quanta, unseen)


def _read_labels(read: Callable[[Window], NDArray[np.uint8]], window: Window) -> Both:
    values = read(window)
    return values == 1, values != UNLABELLED


def _read_filtered(read: Read, size: int, window: Window) -> Both:
    """Read whole rows of patches, those without a building as unlabelled."""
    building, labelled = read(window)
    places = [np.arange(0, length, size) for length in building.shape]
    kept = np.add.reduceat(np.add.reduceat(building, places[0], axis=0, dtype=np.int64), places[1], axis=1) > 0
    rows, cols = (np.arange(length) // size for length in building.shape)
    return building, labelled & kept[rows][:, cols]


class PairCounter:
    """Adds up one scene's strips; a class because it is all state."""

    def __init__(self, box: GeoBox, *, details: bool) -> None:
        gsd_m = box.gsd_m
        self._confusion, self._pixels, self._lost, self._hidden = Confusion(), 0, (0, 0), 0
        self.boundary = BoundaryCounter() if details else None
        self.objects = ObjectCounter(box.width, None if gsd_m is None else gsd_m * gsd_m) if details else None
        self._histogram: ScoreHistogram | None = None

    def add(self, strip: PairStrip) -> None:
        """Count a strip's pixels, outlines, objects and probabilities."""
        self._confusion += Confusion.of(strip.building, strip.truth, strip.valid)
        self._pixels += strip.valid.size
        self._lost = self._lost[0] + strip.unpredicted, self._lost[1] + strip.unpredicted_building
        self._hidden += strip.hidden
        if self.boundary is not None:
            self.boundary.add(strip.building, strip.truth, strip.valid)
        if self.objects is not None:
            self.objects.add(strip.building, strip.truth, strip.valid)
        if strip.quanta is not None:
            known = None if strip.valid.all() else strip.valid
            self._histogram = (self._histogram or ScoreHistogram()).add(strip.quanta, strip.truth, known)

    def result(self, pair: Pair) -> SceneScore:
        """Return the sums."""
        outlines = None if self.boundary is None else self.boundary.finish()
        return SceneScore(
            pair.name,
            pair.city,
            self._confusion,
            self._pixels - self._confusion.pixels,
            None if outlines is None else tuple(outlines[distance] for distance in DISTANCES),
            None if self.objects is None else self.objects.finish(),
            self._histogram,
            *self._lost,
            self._hidden,
        )
