"""One scene's pixels, outlines, objects and probabilities, counted in strips from the top down.

Strips are full-width rows, few enough that their arrays stay in the processor's cache; memory does not grow with a
scene's height. A pixel is counted where both masks say something.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.counts import UNLABELLED, Confusion, ScoreHistogram
from aerialseg.errors import BadDataError, one_line
from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounter
from aerialseg.evaluation.objects import ObjectCounter
from aerialseg.evaluation.results import SceneScore
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.labels import open_labels, read_mask
from aerialseg.geo.opening import open_raster, raster_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from threading import Event

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.evaluation.pairs import Pair
    from aerialseg.geo.labels import Labels, ResolvedRule

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
        chunks = _chunks(box, blocks) if rules.filtered is None else _rows_of(box, rules.filtered)
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


def _chunks(box: GeoBox, block_rows: Sequence[int]) -> Iterator[Window]:
    """Yield full-width windows: whole rows of blocks where GDAL's cache may not hold them until the next window."""
    least = max((rows for rows in block_rows if CACHED_BLOCKS < rows * box.width <= LARGEST_BLOCKS), default=1)
    return _rows_of(box, least)


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
