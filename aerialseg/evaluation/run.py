"""One evaluation from files to files: scores, what there is to say against them, the page and the error maps.

Everything that could only fail after the counting is refused before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.errors import UsageError, one_line
from aerialseg.evaluation.error_maps import BUILDINGS, check_error_folder, error_path, write_error_maps
from aerialseg.evaluation.polygons import area_of_interest, score_polygons
from aerialseg.evaluation.report import check_claims, check_report_path, make_report
from aerialseg.evaluation.scores import EvaluateOptions, decide_rules, evaluate_pairs, look_at, pairs_within
from aerialseg.files import refuse_input_as_output, write_text
from aerialseg.geo.areas import read_area
from aerialseg.geo.digest import seen, what_changed
from aerialseg.geo.scenes import find_scenes
from aerialseg.geo.tiles.tileset import find_leaks
from aerialseg.geo.vector_files import split_layer
from aerialseg.geo.vectors import read_layer, read_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.evaluation.pairs import Pair
    from aerialseg.evaluation.results import EvaluationReport
    from aerialseg.progress import Progress


@dataclass(frozen=True, slots=True)
class Extras:
    """What is looked at and written beside the scores; None and empty leave it out."""

    polygons: Path | None = None
    """Predicted polygons, judged by the true ones."""
    min_area_m2: float = 0.0
    """Smaller polygons count neither as predicted nor as true."""
    trained_on: Path | None = None
    """The tiles of training: scenes on their ground are said."""
    report: Path | None = None
    errors: Path | None = None
    """The folder of the error maps."""
    scenes: tuple[str, ...] = ()
    """Shown behind the errors on the page."""
    overwrite: bool = False
    command: str = ""
    """The command line, for the page."""


def evaluate(
    pairs: Sequence[Pair], options: EvaluateOptions, extras: Extras, read: Sequence[Path], progress: Progress
) -> EvaluationReport:
    """Score the pairs, and write what was asked for; nothing that is `read` is written over.

    Raises UsageError for options that contradict each other, and what the parts of the work raise.
    """
    pairs = pairs_within(pairs, options, progress)
    _check(pairs, options, extras, read)
    looks = {**look_at(pairs, options), **seen([extras.polygons])}
    scenes = [(pair.name, pair.prediction) for pair in pairs]
    leaks = [] if extras.trained_on is None else find_leaks(extras.trained_on, scenes)
    drawn = None if extras.polygons is None else read_layer(extras.polygons, empty_ok=True)
    found = evaluate_pairs(pairs, options, progress)
    if drawn is not None:
        true = read_layers(pairs[0].vectors, where=options.where)
        area = None if options.labelled_area is None else read_layer(options.labelled_area)
        place = area_of_interest([p.prediction for p in pairs], area, read_area(options.area) if options.area else None)
        found = replace(found, polygons=score_polygons(drawn, true, *place, extras.min_area_m2))
        found = _with_warnings(found, drawn.warnings, progress)
    found = _with_warnings(found, [*leaks, *check_claims(pairs, found.overall.building_fraction)], progress)
    if extras.report is not None:
        page = make_report(found, pairs, options, extras.scenes, extras.command, progress)
        write_text(extras.report, page, apart=True)
    if extras.errors is not None:
        wrong = write_error_maps(extras.errors, pairs, decide_rules(pairs, options)[0], progress)
        missed, invented = wrong["missed"], wrong["invented"]
        progress.say(f"{missed:,} missed and {invented:,} invented buildings in {one_line(extras.errors)}")
    if (changed := what_changed(looks, "evaluated")) is not None:
        raise changed
    return found


def _check(pairs: Sequence[Pair], options: EvaluateOptions, extras: Extras, read: Sequence[Path]) -> None:
    """Refuse outputs that cannot be written or lie on what is read, and options that would do nothing."""
    written = extras.report is not None or extras.errors is not None
    if options.filtered is not None and (written or extras.polygons is not None):
        raise UsageError("--filtered scores do not compare, so there is no --report, --errors or --polygons of them")
    if extras.scenes and extras.report is None:
        raise UsageError("--scenes are shown by --report; give --report FILE.html too")
    if extras.overwrite and not written:
        raise UsageError("--overwrite is about --report and --errors; give one of them too")
    if not 0 <= extras.min_area_m2 < float("inf"):
        raise UsageError(f"--min-area-m2 {extras.min_area_m2:g}: give a number of 0 or more")
    if extras.min_area_m2 and extras.polygons is None:
        raise UsageError("--min-area-m2 is about --polygons; give them too")
    if extras.polygons is not None and not pairs[0].vectors:
        raise UsageError("--polygons are judged by true polygons: give vector files with --masks")
    outputs = [] if extras.report is None else [extras.report]
    if extras.errors is not None:
        outputs += [extras.errors / BUILDINGS, *(error_path(extras.errors, pair.name) for pair in pairs)]
    inputs = [
        *read,
        *(
            path
            for path in (extras.polygons, options.labelled_area, options.area.path if options.area else None)
            if path is not None
        ),
    ]
    inputs = [split_layer(path)[0] for path in inputs]
    refuse_input_as_output([*inputs, *(scene.image for scene in find_scenes(extras.scenes))], outputs)
    if extras.report is not None:
        check_report_path(extras.report, pairs, overwrite=extras.overwrite)
    if extras.errors is not None:
        check_error_folder(extras.errors, pairs, overwrite=extras.overwrite)


def _with_warnings(report: EvaluationReport, warnings: Sequence[str], progress: Progress) -> EvaluationReport:
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return replace(report, warnings=(*report.warnings, *warnings))
