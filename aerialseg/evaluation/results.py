"""What an evaluation counted, and the scores made of it: values that add up over scenes, divided once at the end.

What probabilities are worth (the score at every threshold, and whether 0.7 means building seven times in ten) comes
from a histogram of stored probability by truth, so that no probability is kept or read twice.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.counts import QUANTA, SCORES, Confusion, ScoreHistogram
from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounts
from aerialseg.evaluation.objects import SIZES, ObjectCounts
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aerialseg.evaluation.polygons import PolygonScores

Interval = tuple[float, float]
RESAMPLES = 2000
SEED = 0
FEW = 10
"""With fewer scenes than this the draws resemble each other too much, and intervals are too narrow; it is said."""
BINS = 15
"""As in Guo et al., "On calibration of modern neural networks" (https://arxiv.org/abs/1706.04599)."""
TEMPERATURES = (0.1, 10.0)
"""The temperatures among which the best is sought."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Everything that is counted in a scene, a city or all scenes."""

    confusion: Confusion = field(default_factory=Confusion)
    boundary: tuple[BoundaryCounts, ...] | None = None
    """In the order of DISTANCES; None when outlines were not looked at, and `objects` likewise."""
    objects: ObjectCounts | None = None

    def scores(self) -> dict[str, float]:
        """Return every score by name, nan where there was nothing to judge."""
        found = {name: float(getattr(self.confusion, name)) for name in (*SCORES, "building_fraction")}
        for distance, counts in zip(DISTANCES, self.boundary or (), strict=False):
            found |= {f"boundary_iou_{distance}px": counts.iou, f"boundary_f1_{distance}px": counts.f1}
        if self.objects is not None:
            found |= {f"object_{name}": getattr(self.objects, name) for name in ("precision", "recall", "f1")}
            for index, size in enumerate(SIZES[:3]):
                found[f"object_recall_{size}"] = self.objects.of_size(index).recall
                found[f"object_precision_{size}"] = self.objects.of_size(index).precision
                found[f"object_f1_{size}"] = self.objects.of_size(index).f1
        return found

    def numbers(self) -> list[int]:
        """Return all counts in a row."""
        boundary = [number for counts in self.boundary or () for number in astuple(counts)]
        objects = () if self.objects is None else astuple(self.objects)
        sizes = [number for part in objects[:4] for number in part]
        return [*astuple(self.confusion), *boundary, *sizes, *objects[4:]]

    def with_numbers(self, numbers: list[int]) -> Counts:
        """Return counts of the same kinds with other numbers, in the order of `numbers()`."""
        left = iter(numbers)
        confusion = Confusion(*islice(left, 4))
        boundary = None if self.boundary is None else tuple(BoundaryCounts(*islice(left, 6)) for _ in self.boundary)
        if self.objects is None:
            return Counts(confusion, boundary)
        true, found, predicted, right = (tuple(islice(left, len(SIZES))) for _ in range(4))
        return Counts(confusion, boundary, ObjectCounts(true, found, predicted, right, next(left)))

    def to_json(self) -> dict[str, Any]:
        """Return scores, None where undefined, and the counts behind them."""
        values: dict[str, Any] = to_values(self.scores())
        values |= {name: getattr(self.confusion, name) for name in ("tp", "fp", "fn", "tn")}
        if self.objects is not None:
            parts = {name: getattr(self.objects, name) for name in ("true", "found", "predicted", "right")}
            sizes = {name: dict(zip(SIZES, part, strict=True)) for name, part in parts.items()}
            values["objects"] = {**sizes, "cut_by_nodata": self.objects.cut}
        return values


def total(counts: Iterable[Counts]) -> Counts:
    """Pool counts of one kind; the sum of none is empty."""
    rows = list(counts)
    if not rows:
        return Counts()
    numbers = [row.numbers() for row in rows]
    return rows[0].with_numbers([sum(column) for column in zip(*numbers, strict=True)])


@dataclass(frozen=True, slots=True)
class SceneScore:
    """One scene's counts, and how many of its pixels were not counted."""

    name: str
    city: str | None
    confusion: Confusion
    uncounted: int
    """Pixels that are nodata in the prediction or in the truth."""
    boundary: tuple[BoundaryCounts, ...] | None = None
    objects: ObjectCounts | None = None
    histogram: ScoreHistogram | None = None
    """Probability by truth, of the counted pixels; None when the prediction came without probabilities."""
    unpredicted: int = 0
    """Labelled pixels on which the prediction has no data; `unpredicted_building` of them are true building."""
    unpredicted_building: int = 0
    hidden: int = 0
    """Pixels left out because the run that this one is compared with has no data there."""

    @property
    def counts(self) -> Counts:
        """The counts alone."""
        return Counts(self.confusion, self.boundary, self.objects)


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found; cities and overall are sums over scenes, never means.

    Example:
        >>> report = aerialseg.evaluate_scenes(aerialseg.find_scenes(["scenes"]), Path("out"))
        >>> sorted(report.by_city), 0 <= report.overall.iou <= 1
        (['austin', 'vienna'], True)
    """

    results: tuple[SceneScore, ...]
    warnings: tuple[str, ...] = ()
    polygons: PolygonScores | None = None
    """Of predicted polygons, when they were looked at."""

    @property
    def overall(self) -> Confusion:
        """All scenes' pixels, pooled."""
        return self.everything.confusion

    @property
    def everything(self) -> Counts:
        """All scenes' counts, pooled."""
        return total(result.counts for result in self.results)

    @property
    def by_city(self) -> dict[str, Counts]:
        """All counts by city; a scene whose name is not a city and a number belongs to none."""
        names = dict.fromkeys(result.city for result in self.results if result.city is not None)
        return {name: total(r.counts for r in self.results if r.city == name) for name in names}

    @property
    def histogram(self) -> ScoreHistogram | None:
        """Probability by truth over all scenes; None unless every scene has probabilities."""
        found = [result.histogram for result in self.results if result.histogram is not None]
        return sum(found, ScoreHistogram()) if found and len(found) == len(self.results) else None

    @property
    def uncounted_share(self) -> float:
        """Share of all pixels that is nodata in prediction or truth."""
        uncounted = sum(result.uncounted for result in self.results)
        return uncounted / max(1, uncounted + self.overall.pixels)

    def intervals(self) -> dict[str, Interval]:
        """Return a 95 % interval for every overall score: see `bootstrap_intervals`."""
        return bootstrap_intervals([result.counts for result in self.results])

    def to_json(self) -> dict[str, Any]:
        """Return plain values: overall.iou, cities.NAME.iou, scenes.NAME.iou and so on; None where undefined."""
        intervals = {name: list(interval) for name, interval in self.intervals().items()}
        overall = {"uncounted_share": self.uncounted_share, "intervals": intervals}
        probabilities = {} if self.histogram is None else {"probabilities": calibration_json(self.histogram)}
        return {
            "overall": self.everything.to_json() | overall,
            "cities": {name: counts.to_json() for name, counts in self.by_city.items()},
            "scenes": {r.name: r.counts.to_json() | {"uncounted": r.uncounted} for r in self.results},
            "warnings": list(self.warnings),
            **probabilities,
            **({} if self.polygons is None else {"polygons": self.polygons.to_json()}),
        }


def bootstrap_intervals(scenes: list[Counts], seed: int = SEED) -> dict[str, Interval]:
    """Return the 2.5 and 97.5 % points of each pooled score over scenes drawn with replacement (Efron 1979).

    It says how much the score would change with other scenes of the same kind. The draws are seeded. Nothing for fewer
    than two scenes, nor where `percentiles` has none.
    """
    return {} if len(scenes) < 2 else percentiles([counts.scores() for counts in resampled(scenes, seed)])


def percentiles(drawn: list[dict[str, float]]) -> dict[str, Interval]:
    """Return the 2.5 and 97.5 % points of each value over the draws; none of one that is undefined in one of twenty."""
    values = {name: np.array([draw[name] for draw in drawn]) for name in drawn[0]}
    return {
        name: (float(np.nanpercentile(row, 2.5)), float(np.nanpercentile(row, 97.5)))
        for name, row in values.items()
        if np.isnan(row).mean() < 0.05
    }


def resampled(scenes: list[Counts], seed: int = SEED) -> Iterable[Counts]:
    """Yield RESAMPLES pooled counts, each over as many scenes as there are, drawn with replacement."""
    table = np.array([counts.numbers() for counts in scenes], dtype=np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(scenes), (RESAMPLES, len(scenes)))
    for choice in drawn:
        yield scenes[0].with_numbers([int(number) for number in table[choice].sum(axis=0)])


@dataclass(frozen=True, slots=True)
class Bin:
    """Pixels whose probability of building lies in one of BINS equal ranges."""

    pixels: int
    probability: float
    """Their mean probability; nan without pixels, and `building` likewise."""
    building: float
    """The share of them that is building in truth."""


def reliability(histogram: ScoreHistogram) -> tuple[Bin, ...]:
    """Return the bins in order of probability; a calibrated model has equal probability and share in each."""
    quanta = np.arange(QUANTA + 1)
    place = np.minimum(quanta * BINS // QUANTA, BINS - 1)
    building, either = histogram.counts[1], histogram.counts.sum(axis=0)
    bins = []
    for index in range(BINS):
        inside = place == index
        pixels = int(either[inside].sum())
        expected, found = float((either * quanta)[inside].sum()) / QUANTA, int(building[inside].sum())
        bins.append(Bin(pixels, expected / pixels, found / pixels) if pixels else Bin(0, np.nan, np.nan))
    return tuple(bins)


def calibration_error(histogram: ScoreHistogram) -> float:
    """Return the expected calibration error: mean |probability - share of building| over pixels; nan without any.

    Most pixels are sure background in any scene and hardly add to it, so it is small beside that of whole images.
    """
    bins = [part for part in reliability(histogram) if part.pixels]
    pixels = sum(part.pixels for part in bins)
    return sum(part.pixels * abs(part.probability - part.building) for part in bins) / pixels if pixels else np.nan


def threshold_curve(histogram: ScoreHistogram) -> list[tuple[float, Confusion]]:
    """Return the counts at each threshold that a mask can be made with, 1/254 to 253/254."""
    return [(quantum / QUANTA, histogram.confusion(quantum / QUANTA)) for quantum in range(1, QUANTA)]


def log_loss(histogram: ScoreHistogram, temperature: float = 1.0) -> float:
    """Return the mean negative log likelihood, in nats a pixel, with the logits divided by `temperature`.

    A stored probability stands for its logit. What is stored as 0 or 254 lies within 0.2 % of 0 or 1 and how near is
    lost: the middle of that range, 0.1 %, is taken for all of it.
    """
    stored = np.arange(QUANTA + 1, dtype=np.float64)
    stored[0], stored[QUANTA] = 0.25, QUANTA - 0.25
    logits = np.log(stored / (QUANTA - stored)) / temperature
    background, building = histogram.counts
    total = float(histogram.counts.sum())
    loss = building @ np.logaddexp(0, -logits) + background @ np.logaddexp(0, logits)
    return float(loss) / total if total else np.nan


def fit_temperature(histogram: ScoreHistogram) -> float:
    """Return what logits should be divided by for the likeliest probabilities (Guo et al. 2017), within TEMPERATURES.

    The log loss is convex in the inverse temperature, so a golden-section search finds its only minimum. Probabilities
    of one window lie in the histogram, blended ones do not come from one logit: how good the result is shows when the
    scenes are predicted with it.
    """
    low, high = np.log(TEMPERATURES)
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(60):
        if log_loss(histogram, float(np.exp(left))) < log_loss(histogram, float(np.exp(right))):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return float(np.exp((low + high) / 2))


def at_limit(temperature: float) -> bool:
    """Return whether a fitted temperature lies at an end of TEMPERATURES: the best one lies outside, or nowhere."""
    low, high = TEMPERATURES
    return not low * 1.001 < temperature < high / 1.001


def calibration_json(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return plain values: error, log loss, reliability bins, the best threshold and the IoU there and at 0.5."""
    best, iou = histogram.best_threshold()
    values: dict[str, Any] = to_values(
        {
            "expected_calibration_error": calibration_error(histogram),
            "log_loss": log_loss(histogram),
            "reliability": [part for part in reliability(histogram) if part.pixels],
            "best_threshold": best,
            "iou_at_best_threshold": iou,
            "iou_at_half": histogram.confusion(0.5).iou,
        }
    )
    return values
