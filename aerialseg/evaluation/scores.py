"""Scores of predicted building masks by the official Inria rule: counts per scene, pooled per city and overall.

Pairs are checked first and then counted, several scenes at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING

from aerialseg.counts import ScoreHistogram
from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, counted, one_line
from aerialseg.evaluation.pairs import Pair, Rules, check_pairs, count_pair, pair_scenes
from aerialseg.evaluation.results import EvaluationReport, SceneScore
from aerialseg.files import usable_processors
from aerialseg.geo.areas import AreaOptions, read_area
from aerialseg.geo.digest import seen, what_changed
from aerialseg.geo.inspection import Access
from aerialseg.geo.labels import Labels, LabelSource
from aerialseg.geo.masks import MaskRule, ResolvedRule, decide_rule, mask_box
from aerialseg.geo.scenes import Scene
from aerialseg.geo.vector_files import split_layer
from aerialseg.geo.vectors import datum_notes, places, read_layer, read_layers, require_place
from aerialseg.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "EvaluateOptions",
    "EvaluationReport",
    "SceneScore",
    "count_probabilities",
    "evaluate_pairs",
    "evaluate_scenes",
]

MAX_THREADS = 4
POLL_S = 0.5
"""How often a wait for a large scene looks whether the user wants to stop."""
UNPREDICTED_SAID = 0.01
"""Of the labelled ground; true buildings without a prediction are always said."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What the truth's files mean, what is permitted, and what is counted; raises UsageError for a contradiction.

    Example:
        >>> aerialseg.EvaluateOptions(details=True).details
        True
    """

    rule: MaskRule = field(default_factory=MaskRule)
    """For true masks; predictions hold 0 and 1, or 0 and 255."""
    access: Access = field(default_factory=Access)
    details: bool = False
    """Whether outlines, objects and probabilities are counted too."""
    where: str | None = None
    """An SQL condition: which polygons of a vector truth are buildings."""
    labelled_area: Path | None = None
    """A vector file: ground outside its polygons was not labelled and is not counted."""
    filtered: int | None = None
    """Leave out patches of this many pixels without a true building: flatters, and does not compare."""

    area: AreaOptions | None = None
    """The only ground that is counted."""

    def __post_init__(self) -> None:
        if self.filtered is not None and self.filtered < 1:
            raise UsageError(f"--filtered {self.filtered}: give the side of a patch in pixels, such as 512")
        if self.filtered is not None and self.details:
            raise UsageError("--filtered gives pixel scores only; add --pixels-only")


def evaluate_scenes(
    scenes: Sequence[Scene],
    predictions: Path,
    options: EvaluateOptions | None = None,
    progress: Progress = Silent(),
) -> EvaluationReport:
    """Score what `predict` wrote into the folder `predictions` for `scenes`, each with its mask.

    Pixels are counted by the official rule of the Inria data set and summed before anything is divided; ground without
    data in prediction or truth is not counted. Raises NoInputError for a scene without a prediction or a mask,
    BadDataError when the two do not lie on one grid, UsageError, and what `progress` raises.

    Example:
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> report = aerialseg.evaluate_scenes(scenes, Path("out"))
        >>> report.overall.pixels
        131072
    """
    return evaluate_pairs(pair_scenes(scenes, predictions), options, progress)


def evaluate_pairs(
    pairs: Sequence[Pair], options: EvaluateOptions | None = None, progress: Progress = Silent()
) -> EvaluationReport:
    """Count every pair.

    Grids are compared before anything is counted. A faulty pair does not stop the others, so that one run names all
    faults, but then there is no score: over the rest it would not be the score that was asked for. Raises the first
    fault in the pairs' order and says the others.
    """
    options = options or EvaluateOptions()
    pairs = pairs_within(pairs, options, progress)
    looks = look_at(pairs, options)
    warnings, faults = check_pairs(pairs, options.access)
    _raise_first(faults, progress)
    rules, doubts = decide_rules(pairs, options)
    for warning in (*warnings, *doubts):
        progress.say(f"warning: {warning}")
    results = _count_all(pairs, rules, looks, progress)
    missing = [line for result in results for line in _what_was_not_counted(result)]
    counts = [result.confusion for result in results]
    if any(count.pixels for count in counts) and not any(count.tp + count.fn for count in counts):
        missing.append("no counted pixel is true building; check the true masks' values, or the polygons")
    for warning in missing:
        progress.say(f"warning: {warning}")
    return EvaluationReport(tuple(results), (*warnings, *doubts, *missing))


def look_at(pairs: Sequence[Pair], options: EvaluateOptions) -> dict[Path, str]:
    """Return what all files that are read look like from outside; see `what_changed`."""
    given = options.labelled_area, None if options.area is None else options.area.path
    areas = [split_layer(path)[0] for path in given if path is not None]
    return seen([*(path for pair in pairs for path in pair.files), *areas])


def pairs_within(pairs: Sequence[Pair], options: EvaluateOptions, progress: Progress) -> Sequence[Pair]:
    """Return the pairs that the area asked for meets; how many others there are is said.

    Raises NoInputError when there is none, and what reading the area and the predictions' headers raises.
    """
    if options.area is None:
        return pairs
    area = read_area(options.area)
    boxes = [mask_box(pair.prediction, options.access) for pair in pairs]
    met = [p for p, box in zip(pairs, boxes, strict=True) if area.on(one_line(p.prediction), box).met]
    if not met:
        raise NoInputError(
            f"--area {area.layer.name}: meets no prediction: {places([area.layer], boxes, 'predictions')}"
        )
    if len(met) < len(pairs):
        progress.say(f"{counted(len(pairs) - len(met), 'scene')} left out: outside --area {area.layer.name}")
    return met


def decide_rules(pairs: Sequence[Pair], options: EvaluateOptions) -> tuple[Rules, tuple[str, ...]]:
    """Return how predictions and truths are read, and warnings; raises what reading the truth's files raises."""
    prediction = decide_rule([pair.prediction for pair in pairs])
    rival = decide_rule([pair.rival for pair in pairs if pair.rival is not None])
    truth, labels, doubts = read_truth(pairs, options)
    warnings = [*doubts, *prediction.warnings]
    if options.filtered is not None:
        warnings.append(
            f"filtered: patches of {options.filtered} px without a true building are left out; such scores are higher"
            " and do not compare with those of whole scenes"
        )
    return Rules(prediction, truth, options.details, False, options.filtered, labels, rival), tuple(warnings)


def check_truth(pairs: Sequence[Pair], options: EvaluateOptions, progress: Progress) -> None:
    """Compare all grids and read what the truth's files mean, and say what is odd; raises the first fault."""
    warnings, faults = check_pairs(pairs, options.access)
    _raise_first(faults, progress)
    for warning in (*warnings, *read_truth(pairs, options)[2]):
        progress.say(f"warning: {warning}")


def read_truth(
    pairs: Sequence[Pair], options: EvaluateOptions
) -> tuple[ResolvedRule | None, dict[str, Labels], list[str]]:
    """Return the rule of true masks or None, labels by name where the truth is more than a mask, and warnings."""
    layers = read_layers(pairs[0].vectors, where=options.where)
    if layers and options.rule != MaskRule():
        raise UsageError(
            "--building-values, --building-colour, --ignore-values and --mask-threshold are for masks; polygons take"
            " --where"
        )
    if options.where is not None and not layers:
        raise UsageError("--where chooses polygons, and the true masks are rasters; leave it out")
    truth = None if layers else decide_rule([pair.truth for pair in pairs], options.rule)
    area = None if options.labelled_area is None else read_layer(options.labelled_area)
    warnings = list(truth.warnings if truth else ())
    labels: dict[str, Labels] = {}
    if layers or area is not None:
        source = LabelSource(layers, options.where, truth, area)
        boxes = {pair.name: mask_box(pair.prediction, options.access) for pair in pairs}
        every = (*layers, *((area,) if area else ()))
        for pair in pairs:
            require_place(
                one_line(pair.prediction), boxes[pair.name], [path for layer in every for path in layer.paths]
            )
        labels = {
            pair.name: source.of(Scene(pair.name, pair.prediction, pair.truth), boxes[pair.name]) for pair in pairs
        }
        warnings += [line for layer in every for line in layer.warnings] + datum_notes(every, boxes.values())
        warnings += source.coverage_notes(labels, boxes)
    if options.area is not None:
        ground = read_area(options.area)
        every_box = [mask_box(pair.prediction, options.access) for pair in pairs]
        warnings += [*ground.layer.warnings, *datum_notes([ground.layer], every_box)]
        warnings.append(f"area: only the ground of {ground.layer.name} is counted")
        for pair in pairs:
            found = labels.get(pair.name) or Labels(pair.truth, truth, None, None)
            within = ground.on(one_line(pair.prediction), mask_box(pair.prediction, options.access))
            labels[pair.name] = replace(found, area=within.shared(found.area))
    return truth, labels, warnings


def count_probabilities(pairs: Sequence[Pair], options: EvaluateOptions, progress: Progress) -> ScoreHistogram:
    """Return the pixels of all pairs by truth and probability; raises BadDataError for a pair without probabilities."""
    for pair in pairs:
        if pair.probability is None:
            raise BadDataError(f"{one_line(pair.prediction)}: has no probability raster beside it")
    looks = look_at(pairs, options)
    rules, _ = decide_rules(pairs, options)
    results = _count_all(pairs, replace(rules, probabilities=True), looks, progress)
    return sum((result.histogram for result in results if result.histogram is not None), ScoreHistogram())


def _what_was_not_counted(result: SceneScore) -> list[str]:
    """Return a warning for a scene without a counted pixel, or with labelled ground that was not predicted."""
    name, counted = one_line(result.name), result.confusion.pixels
    if not counted:
        return [f"{name}: nothing was counted: no pixel is known both to the prediction and to the mask"]
    share = result.unpredicted / (counted + result.unpredicted)
    if not result.unpredicted_building and share < UNPREDICTED_SAID:
        return []
    return [
        f"{name}: the prediction has no data on {share:.2%} of the labelled ground, {result.unpredicted_building:,} of"
        " these pixels true building; they are not counted, so the score says nothing of them"
    ]


def _count_all(pairs: Sequence[Pair], rules: Rules, looks: Mapping[Path, str], progress: Progress) -> list[SceneScore]:
    results: list[SceneScore] = []
    faults: list[AerialsegError] = []
    stop = Event()
    progress.start("evaluate", len(pairs), "scene")
    # Reading, comparing and counting all release the interpreter's lock; scenes share nothing but the rules.
    with ThreadPoolExecutor(min(MAX_THREADS, len(pairs), usable_processors())) as pool:
        futures = [pool.submit(count_pair, pair, rules, stop) for pair in pairs]
        try:
            for pair, future in zip(pairs, futures, strict=True):
                while not wait([future], timeout=POLL_S).done:
                    progress.advance(0)
                try:
                    results.append(future.result())
                except AerialsegError as fault:
                    faults.append(what_changed({path: looks[path] for path in pair.files}, "evaluated") or fault)
                progress.advance(1, note=one_line(pair.name))
        finally:
            stop.set()
    progress.finish()
    changed = None if faults else what_changed(looks, "evaluated")
    _raise_first(faults if changed is None else [changed], progress)
    return results


def _raise_first(faults: Sequence[AerialsegError], progress: Progress) -> None:
    for fault in faults[1:]:
        progress.say(f"error: {fault}")
    if faults:
        raise faults[0]
