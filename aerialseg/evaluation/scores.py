"""Scores of predicted building masks by the official Inria rule: counts per scene, pooled per city and overall.

Pairs are read in strips, several scenes at once; memory does not grow with a scene's area. A pixel is counted where
both masks say something: what is nodata in either is left out, and its share is reported.
"""

from __future__ import annotations

import os
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from aerialseg.counts import SCORES, Confusion, pooled
from aerialseg.errors import AerialsegError, one_line
from aerialseg.evaluation.pairs import Pair, check_pairs, pair_scenes
from aerialseg.geo.masks import MaskRule, ResolvedRule, block_windows, decide_rule, read_mask
from aerialseg.geo.raster import Access, open_raster
from aerialseg.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.geo.scenes import Scene

STRIP_PIXELS = 2**20
"""Pixels read at a time from a pair: few enough that their ten arrays are counted in the processor's cache."""
MAX_THREADS = 4
POLL_S = 0.5
"""How often a wait for a large scene looks whether the user wants to stop."""


@dataclass(frozen=True, slots=True)
class SceneScore:
    """One scene's counts, and how many of its pixels were not counted."""

    name: str
    city: str | None
    confusion: Confusion
    uncounted: int
    """Pixels that are nodata in the prediction or in the truth."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found; cities and overall are sums over scenes, never means."""

    results: tuple[SceneScore, ...]
    warnings: tuple[str, ...] = ()

    @property
    def overall(self) -> Confusion:
        """All scenes' counts, pooled."""
        return pooled(self.scenes.values())

    @property
    def scenes(self) -> dict[str, Confusion]:
        """Counts by scene name, in natural order."""
        return {result.name: result.confusion for result in self.results}

    @property
    def cities(self) -> dict[str, Confusion]:
        """Counts by city; a scene whose name is not a city and a number belongs to none."""
        cities: dict[str, Confusion] = {}
        for result in self.results:
            if result.city is not None:
                cities[result.city] = cities.get(result.city, Confusion()) + result.confusion
        return cities

    @property
    def uncounted_share(self) -> float:
        """Share of all pixels that is nodata in prediction or truth."""
        uncounted = sum(result.uncounted for result in self.results)
        return uncounted / max(1, uncounted + self.overall.pixels)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: overall.iou, cities.NAME.iou, scenes.NAME.iou and so on; None where undefined."""
        return {
            "overall": _plain(self.overall) | {"uncounted_share": self.uncounted_share},
            "cities": {name: _plain(counts) for name, counts in self.cities.items()},
            "scenes": {r.name: _plain(r.confusion) | {"uncounted": r.uncounted} for r in self.results},
            "warnings": list(self.warnings),
        }


def evaluate_scenes(
    scenes: Sequence[Scene],
    predictions: Path,
    *,
    rule: MaskRule | None = None,
    access: Access | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Score what `predict` wrote into the folder `predictions` for `scenes`, each with its mask."""
    return evaluate_pairs(pair_scenes(scenes, predictions), rule=rule, access=access, progress=progress)


def evaluate_pairs(
    pairs: Sequence[Pair],
    *,
    rule: MaskRule | None = None,
    access: Access | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Count every pair; `rule` is for the true masks, predictions hold 0 and 1, or 0 and 255.

    Grids are compared before anything is counted. A faulty pair does not stop the others, so that one run names all
    faults, but then there is no score: over the rest it would not be the score that was asked for. Raises the first
    fault in the pairs' order and says the others.
    """
    progress = progress or Silent()
    warnings, faults = check_pairs(pairs, access or Access())
    _raise_first(faults, progress)
    truth_rule = decide_rule([pair.truth for pair in pairs], rule)
    prediction_rule = decide_rule([pair.prediction for pair in pairs])
    warnings += [*truth_rule.warnings, *prediction_rule.warnings]
    for warning in warnings:
        progress.say(f"warning: {warning}")
    results = _count_all(pairs, prediction_rule, truth_rule, progress)
    return EvaluationReport(tuple(results), tuple(warnings))


def count_pair(
    pair: Pair, prediction_rule: ResolvedRule, truth_rule: ResolvedRule, stop: Event | None = None
) -> SceneScore:
    """Count one pair whose grids agree, strip by strip; `stop`, once set, ends it with CancelledError."""
    confusion, pixels = Confusion(), 0
    with open_raster(pair.prediction) as predicted, open_raster(pair.truth) as true:
        for window in block_windows(predicted, STRIP_PIXELS):
            if stop is not None and stop.is_set():
                raise CancelledError
            building, valid = read_mask(predicted, prediction_rule, window)
            truth, labelled = read_mask(true, truth_rule, window)
            valid &= labelled
            confusion += Confusion.of(building, truth, valid)
            pixels += valid.size
    return SceneScore(pair.name, pair.city, confusion, pixels - confusion.pixels)


def _count_all(
    pairs: Sequence[Pair], prediction_rule: ResolvedRule, truth_rule: ResolvedRule, progress: Progress
) -> list[SceneScore]:
    results: list[SceneScore] = []
    faults: list[AerialsegError] = []
    stop = Event()
    progress.start("evaluate", len(pairs), "scene")
    # Reading, comparing and counting all release the interpreter's lock; scenes share nothing but the rules.
    with ThreadPoolExecutor(min(MAX_THREADS, len(pairs), len(os.sched_getaffinity(0)))) as pool:
        futures = [pool.submit(count_pair, pair, prediction_rule, truth_rule, stop) for pair in pairs]
        try:
            for pair, future in zip(pairs, futures, strict=True):
                while not wait([future], timeout=POLL_S).done:
                    progress.advance(0)
                try:
                    results.append(future.result())
                except AerialsegError as fault:
                    faults.append(fault)
                progress.advance(1, note=one_line(pair.name))
        finally:
            stop.set()
    progress.finish()
    _raise_first(faults, progress)
    return results


def _raise_first(faults: Sequence[AerialsegError], progress: Progress) -> None:
    for fault in faults[1:]:
        progress.say(f"error: {fault}")
    if faults:
        raise faults[0]


def _plain(counts: Confusion) -> dict[str, float | int | None]:
    values: dict[str, float | int | None] = {}
    for name in (*SCORES, "building_fraction"):
        score = getattr(counts, name)
        values[name] = None if score != score else score
    return values | {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "tn": counts.tn}
