"""`aerialseg evaluate`: scores of predicted masks against true ones."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aerialseg.evaluation.pairs import Pair
    from aerialseg.evaluation.polygons import PolygonScores
    from aerialseg.evaluation.results import EvaluationReport
    from aerialseg.progress import Progress


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        list[str], typer.Argument(help="Predicted masks: files, folders or globs.", show_default=False)
    ],
    masks: Annotated[
        list[str],
        typer.Option(
            "--masks",
            help="True masks: a folder, a quoted glob, an Inria root, a file, or vector files; may be repeated.",
            show_default=False,
        ),
    ],
    mask_pattern: Annotated[
        str | None, typer.Option(help="How a mask's name is made from the prediction's, as '{stem}_label.tif'.")
    ] = None,
    building_values: Annotated[
        str | None, typer.Option(help="Values of the true masks that mean building, as 1,6; others are background.")
    ] = None,
    ignore_values: Annotated[
        str | None, typer.Option(help="Values of the true masks that mean unlabelled ground; not counted.")
    ] = None,
    mask_threshold: Annotated[
        int | None, typer.Option(help="For anti-aliased true masks: this value and above is building, as 128.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Which polygons of true vector files are buildings, as \"kind = 'house'\".")
    ] = None,
    labelled_area: Annotated[
        Path | None, typer.Option(help="Polygons of the ground that was labelled; outside nothing is counted.")
    ] = None,
    allow_ungeoreferenced: Annotated[
        bool, typer.Option("--allow-ungeoreferenced", help="Compare pixel by pixel where there is no georeferencing.")
    ] = False,
    max_pixels: Annotated[
        float, typer.Option(help="Refuse masks with more pixels than this.", show_default="1e10")
    ] = 1e10,
    pixels_only: Annotated[
        bool, typer.Option("--pixels-only", help="Leave out outlines, objects and probabilities; takes less time.")
    ] = False,
    filtered: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Leave out patches of PX pixels without a true building; does not compare.",
            show_default=False,
        ),
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(help="The tiles of training: say which scenes lie on their ground.", show_default=False),
    ] = None,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="Predicted polygons, judged by those of --masks: PoLiS, angles, corners.", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page with scores, pictures and curves: report.html.", show_default=False),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write rasters of found, missed and invented, and errors.gpkg, for QGIS.",
            show_default=False,
        ),
    ] = None,
    scenes: Annotated[
        list[str] | None,
        typer.Option(help="The scenes, to be shown behind the errors of --report.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Replace files of other origin at --report and --errors.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: overall.iou, cities.NAME.iou, scenes.NAME.iou ...")
    ] = False,
) -> None:
    """Score predicted masks: pixels (IoU, accuracy, F1, MCC ...), outlines, and buildings found and invented.

    Counts are pooled per scene, per city (austin in austin3) and overall, as the Inria benchmark does it; nothing is
    averaged. Masks pair with predictions by name and must lie on the same grid. Nodata is not counted. Outlines are
    compared within 3 and 5 pixels; buildings match one to one at IoU 0.5; intervals are 95 % over scenes drawn anew.

    \b
    Examples:
      aerialseg evaluate out --masks AerialImageDataset
      aerialseg evaluate out --masks truth/ --mask-pattern '{stem}_label.tif' --json
      aerialseg evaluate out/austin1.tif --masks gt/austin1.tif
      aerialseg evaluate out --masks AerialImageDataset --report report.html --scenes AerialImageDataset/train/images
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.cli.score_tables import print_polygons, print_scores
    from aerialseg.errors import one_line
    from aerialseg.evaluation.error_maps import write_error_maps
    from aerialseg.evaluation.leaks import find_leaks
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.report import PageOptions, write_report
    from aerialseg.evaluation.scores import EvaluateOptions, decide_rules, evaluate_pairs
    from aerialseg.geo.masks import MaskRule
    from aerialseg.geo.raster import Access

    values, ignored = _values("--building-values", building_values), _values("--ignore-values", ignore_values)
    rule, access = MaskRule(values, ignored or (), mask_threshold), Access(allow_ungeoreferenced, max_pixels)
    options = EvaluateOptions(rule, access, not pixels_only, where, labelled_area, filtered)
    pairing = pair_predictions(predictions, masks, mask_pattern)
    read = [path for path in (polygons, labelled_area, *map(Path, masks)) if path is not None]
    _refuse_inputs(read, scenes, pairing.pairs, report, errors)
    _check_outputs(pairing.pairs, report, errors, scenes, overwrite=overwrite, filtered=filtered)
    drawn = None if polygons is None else _score_polygons(polygons, pairing.pairs, where)
    with console_progress() as progress:
        _say_unused(pairing.unused, progress)
        leaks = [] if trained_on is None else find_leaks(trained_on, pairing.pairs)
        found = _with_doubts(evaluate_pairs(pairing.pairs, options, progress), pairing.pairs, leaks, progress)
        if report is not None:
            page = PageOptions(options, tuple(scenes or ()), command_line(context))
            write_report(report, found, pairing.pairs, page, progress)
        if errors is not None:
            wrong = write_error_maps(errors, pairing.pairs, decide_rules(pairing.pairs, options)[0], progress)
            missed, invented = wrong["missed"], wrong["invented"]
            progress.say(f"{missed:,} missed and {invented:,} invented buildings in {one_line(errors)}")
    if as_json:
        more = {} if drawn is None else {"polygons": drawn.to_json()}
        print_json(found.to_json() | {"unused_masks": list(pairing.unused)} | more)
        return
    print_scores(found)
    if drawn is not None:
        print_polygons(drawn)


def command_line(context: typer.Context) -> str:
    """Return the command as a shell takes it, with what was given and differs from the defaults."""
    words = ["aerialseg", context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value in (None, False, parameter.default) or parameter.name == "as_json":
            continue
        values = value if isinstance(value, list | tuple) else [value]
        option = max(parameter.opts, key=len)
        if parameter.param_type_name == "argument":
            words += map(str, values)
        elif value is True:
            words.append(option)
        else:
            words += [word for each in values for word in (option, str(each))]
    return shlex.join(words)


def _refuse_inputs(
    read: list[Path], scenes: list[str] | None, pairs: tuple[Pair, ...], report: Path | None, errors: Path | None
) -> None:
    """Raise UsageError when the page or an error map would stand where something lies that is read."""
    from aerialseg.evaluation.error_maps import BUILDINGS, error_path
    from aerialseg.files import refuse_input_as_output
    from aerialseg.geo.scenes import find_scenes

    outputs = [] if report is None else [report]
    if errors is not None:
        outputs += [errors / BUILDINGS, *(error_path(errors, pair.name) for pair in pairs)]
    refuse_input_as_output([*read, *(scene.image for scene in find_scenes(scenes or ()))], outputs)


def _check_outputs(
    pairs: tuple[Pair, ...],
    report: Path | None,
    errors: Path | None,
    scenes: list[str] | None,
    *,
    overwrite: bool,
    filtered: int | None,
) -> None:
    """Refuse what could only fail after the counting, and options that would do nothing."""
    from aerialseg.errors import UsageError

    if filtered is not None and (report is not None or errors is not None):
        raise UsageError("--filtered scores do not compare, so there is no --report or --errors of them")
    if scenes and report is None:
        raise UsageError("--scenes are shown by --report; give --report FILE.html too")
    if overwrite and report is None and errors is None:
        raise UsageError("--overwrite is about --report and --errors; give one of them too")
    if report is not None:
        from aerialseg.evaluation.report import check_report_path

        check_report_path(report, pairs, overwrite=overwrite)
    if errors is not None:
        from aerialseg.evaluation.error_maps import check_error_folder

        check_error_folder(errors, pairs, overwrite=overwrite)


def _with_doubts(
    report: EvaluationReport, pairs: tuple[Pair, ...], leaks: list[str], progress: Progress
) -> EvaluationReport:
    """Add what the model's card and its training tiles say against the scores."""
    from dataclasses import replace

    from aerialseg.evaluation.report import check_claims

    doubts = [*leaks, *check_claims(pairs, report.overall.building_fraction)]
    for doubt in doubts:
        progress.say(f"warning: {doubt}")
    return replace(report, warnings=(*report.warnings, *doubts))


def _score_polygons(path: Path, pairs: tuple[Pair, ...], where: str | None) -> PolygonScores:
    from aerialseg.errors import UsageError
    from aerialseg.evaluation.polygons import score_polygons
    from aerialseg.geo.vectors import read_layer

    if len(pairs[0].vectors) != 1:
        raise UsageError("--polygons are judged by true polygons: give one vector file with --masks")
    return score_polygons(read_layer(path), read_layer(pairs[0].vectors[0], where=where))


def _say_unused(names: tuple[str, ...], progress: Progress, most: int = 5) -> None:
    from aerialseg.errors import one_line

    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        named = ", ".join(map(one_line, names[:most])) + more
        progress.say(f"{len(names)} of the masks have no prediction and do not count: {named}")


def _values(option: str, given: str | None) -> tuple[int, ...] | None:
    from aerialseg.errors import UsageError, one_line

    if given is None:
        return None
    try:
        return tuple(int(value) for value in given.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(given)}: give whole numbers with commas between, as 1,6") from error
