"""What an evaluation counted, and the scores made of it: values that add up over scenes, divided once at the end."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.counts import SCORES, Confusion, ScoreHistogram
from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounts
from aerialseg.evaluation.objects import SIZES, ObjectCounts
from aerialseg.evaluation.probability import calibration_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aerialseg.evaluation.polygons import PolygonScores

Interval = tuple[float, float]
RESAMPLES = 2000
SEED = 0
FEW = 10
"""With fewer scenes than this the draws resemble each other too much, and intervals are too narrow; it is said."""


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

        def take(count: int) -> list[int]:
            return [next(left) for _ in range(count)]

        confusion = Confusion(*take(4))
        boundary = None if self.boundary is None else tuple(BoundaryCounts(*take(6)) for _ in self.boundary)
        if self.objects is None:
            return Counts(confusion, boundary)
        true, found, predicted, right = [(a, b, c, d) for a, b, c, d in (take(4) for _ in range(4))]
        return Counts(confusion, boundary, ObjectCounts(true, found, predicted, right, *take(1)))

    def to_json(self) -> dict[str, Any]:
        """Return scores, None where undefined, and the counts behind them."""
        values: dict[str, Any] = {name: None if score != score else score for name, score in self.scores().items()}
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
    """What an evaluation found; cities and overall are sums over scenes, never means."""

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
    than two scenes, nor for a score that is undefined in one draw of twenty.
    """
    if len(scenes) < 2:
        return {}
    found = [counts.scores() for counts in resampled(scenes, seed)]
    values = {name: np.array([scores[name] for scores in found]) for name in found[0]}
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
