"""What every score is made of: pixel counts, and histograms of probability by truth.

Training, evaluation and calibration all count with these two values, add them up over tiles, scenes or cities, and
divide once at the end. A mean of ratios is never taken here; the Inria benchmark's overall row is a ratio of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

BUILDING, UNLABELLED = 1, 255
"""What masks of tiles and of scenes hold for building and for ground that nobody labelled; 0 is background."""
QUANTA, NODATA = 254, 255
"""A probability p is stored as round(QUANTA * p); NODATA is what masks and measures hold where there is no ground."""
GSD_RANGE = (1e-4, 1e4)
"""Metres per pixel that a set of tiles or a model can have, from a microscope's to a weather satellite's."""

SCORES = ("iou", "accuracy", "precision", "recall", "specificity", "f1", "mcc")
"""The scores of a Confusion, by attribute name, in the order in which tables show them."""


def quantum_of(threshold: float) -> int:
    """Return the smallest stored probability that counts as building at `threshold` (ties to even, as numpy rounds)."""
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"a threshold lies between 0 and 1, this is {threshold}")
    return round(QUANTA * threshold)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Pixels counted by prediction and truth; building is the positive class.

    A score whose denominator is zero is nan, never 0 or 1: no pixel was there to judge. An empty scene therefore
    neither helps nor hurts a pooled score. The counts are Python integers, so nothing overflows.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(
        cls, prediction: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
    ) -> Confusion:
        """Count boolean arrays of one shape (True is building); pixels where `valid` is False are left out."""
        arrays = (prediction, truth) if valid is None else (prediction, truth, valid)
        if any(a.dtype != np.bool_ or a.shape != prediction.shape for a in arrays):
            raise ValueError(
                "boolean arrays of one shape are needed: " + ", ".join(f"{a.dtype}{a.shape}" for a in arrays)
            )
        counted = prediction.size
        if valid is not None:
            counted = int(np.count_nonzero(valid))
            if counted < prediction.size:
                prediction, truth = prediction & valid, truth & valid
        tp = int(np.count_nonzero(prediction & truth))
        fp = int(np.count_nonzero(prediction)) - tp
        fn = int(np.count_nonzero(truth)) - tp
        return cls(tp, fp, fn, counted - tp - fp - fn)

    def __add__(self, other: Confusion) -> Confusion:
        """Pool two counts."""
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """Pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def iou(self) -> float:
        """Intersection over union of building (Jaccard); nan where neither side has a building pixel."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        """Share of pixels classified rightly."""
        return _ratio(self.tp + self.tn, self.pixels)

    @property
    def precision(self) -> float:
        """Share of predicted building that is building."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of true building that was found."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of true background left as background."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; the Dice coefficient, 2 IoU / (1 + IoU)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient, -1 to 1; nan when prediction or truth holds one class only."""
        margins = (self.tp + self.fp, self.tp + self.fn, self.tn + self.fp, self.tn + self.fn)
        if not all(margins):
            return math.nan
        # Integers to the end: the product of four margins of a 180-scene set has 37 digits.
        return (self.tp * self.tn - self.fp * self.fn) / math.sqrt(math.prod(margins))

    @property
    def building_fraction(self) -> float:
        """Share of counted pixels that are building in truth."""
        return _ratio(self.tp + self.fn, self.pixels)


def pooled(counts: Iterable[Confusion]) -> Confusion:
    """Add counts up; the sum of none is empty."""
    return sum(counts, Confusion())


def _no_counts() -> NDArray[np.int64]:
    return np.zeros((2, QUANTA + 1), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistogram:
    """Valid pixels by truth (row 0 background, row 1 building) and stored probability 0..254: int64[2, 255].

    Four kilobytes say what every threshold would have scored, so no probability needs to be kept.
    """

    counts: NDArray[np.int64] = field(default_factory=_no_counts)

    def __post_init__(self) -> None:
        if self.counts.shape != (2, QUANTA + 1) or self.counts.dtype != np.int64:
            raise ValueError(f"int64[2, {QUANTA + 1}] expected, got {self.counts.dtype}{list(self.counts.shape)}")

    def add(
        self, probability: NDArray[np.uint8], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
    ) -> ScoreHistogram:
        """Count pixels into this histogram, in place, and return it.

        `probability` holds round(254 p) as uint8; 255 means nodata and is not counted, nor is a pixel that is not
        `valid`. The arrays have one shape, whatever it is.
        """
        if probability.dtype != np.uint8 or truth.dtype != np.bool_ or truth.shape != probability.shape:
            raise ValueError("uint8 probabilities and boolean truth of one shape are needed")
        if valid is not None:
            if valid.shape != probability.shape:
                raise ValueError(f"valid has shape {valid.shape}, probability {probability.shape}")
            probability, truth = probability[valid], truth[valid]
        building = np.bincount(probability[truth], minlength=256)
        either = np.bincount(probability.ravel(), minlength=256)
        self.counts[1] += building[: QUANTA + 1]
        self.counts[0] += (either - building)[: QUANTA + 1]
        return self

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Pool two histograms into a new one."""
        return ScoreHistogram(self.counts + other.counts)

    def confusion(self, threshold: float) -> Confusion:
        """Return the counts at `threshold`: building where the stored value is at least round(254 threshold)."""
        quantum = quantum_of(threshold)
        (tn, fn), (fp, tp) = self.counts[:, :quantum].sum(axis=1), self.counts[:, quantum:].sum(axis=1)
        return Confusion(tp=int(tp), fp=int(fp), fn=int(fn), tn=int(tn))

    def best_threshold(self) -> tuple[float, float]:
        """Return the threshold with the highest pooled IoU, and that IoU.

        Thresholds from 1/254 to 253/254 are tried, so it is never 0 or 1. Of equal ones the nearest to 0.5 is taken,
        and 0.5 itself when no threshold finds a building pixel.
        """
        above = self.counts[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)
        false_positives, true_positives = above[:, 1:QUANTA]
        union = false_positives + float(self.counts[1].sum())
        iou = np.divide(true_positives, union, out=np.zeros_like(union), where=union > 0)
        quanta = np.arange(1, QUANTA)
        tied = quanta[iou == iou.max()] if iou.max() > 0 else np.array([QUANTA // 2])
        threshold = float(tied[np.argmin(np.abs(tied - QUANTA // 2))]) / QUANTA
        return threshold, self.confusion(threshold).iou


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
