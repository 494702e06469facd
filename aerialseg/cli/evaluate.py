"""`aerialseg evaluate`: scores of predicted masks against true ones, and the tables that show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli import options

if TYPE_CHECKING:
    from aerialseg.evaluation.polygons import PolygonScores
    from aerialseg.evaluation.results import Counts, EvaluationReport
    from aerialseg.progress import Progress

COLUMNS = {
    "iou": "iou",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
    "mcc": "mcc",
    "boundary_iou_3px": "bound. iou 3px",
    "boundary_f1_3px": "bound. f1 3px",
    "object_f1": "object f1",
    "building_fraction": "building",
}
"""What the table shows of the scores; JSON has them all."""
SIZE_LABELS = ("below 50 m2", "50 to 200 m2", "above 200 m2", "size unknown")


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        list[str], typer.Argument(help="Predicted masks: files, folders or globs.", show_default=False)
    ],
    masks: options.Masks,
    mask_pattern: options.MaskPattern = None,
    building_values: options.BuildingValues = None,
    building_colour: options.BuildingColour = None,
    ignore_values: options.IgnoreValues = None,
    mask_threshold: options.MaskThreshold = None,
    where: options.Where = None,
    layer: options.Layer = None,
    labelled_area: options.LabelledArea = None,
    area: options.Area = None,
    area_where: options.AreaWhere = None,
    allow_ungeoreferenced: options.AllowUngeoreferenced = False,
    max_pixels: options.MaxPixels = 1e10,
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
    min_area_m2: Annotated[
        float, typer.Option("--min-area-m2", help="Leave smaller polygons out of --polygons, true and predicted alike.")
    ] = 0.0,
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
    """Score predicted masks by true ones.

    Pixels (IoU, accuracy, F1, MCC ...), outlines, and buildings found and invented are judged.

    Counts are pooled per scene, per city (austin in austin3) and overall and divided once, as the Inria benchmark does
    it. Masks pair with predictions by name and must lie on the same grid. Nodata is not counted. Outlines are compared
    within 3 and 5 pixels; buildings match one to one at IoU 0.5; intervals are 95 % over scenes drawn anew.

    \b
    Examples:
      aerialseg evaluate out --masks AerialImageDataset
      aerialseg evaluate out --masks truth/ --mask-pattern '{stem}_label.tif' --json
      aerialseg evaluate out/austin1.tif --masks gt/austin1.tif
      aerialseg evaluate out --masks AerialImageDataset --report report.html --scenes AerialImageDataset/train/images
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.evaluation import run
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.scores import EvaluateOptions
    from aerialseg.geo.inspection import Access

    rule = options.mask_rule(building_values, ignore_values, mask_threshold, building_colour)
    access = Access(allow_ungeoreferenced, max_pixels)
    chosen = EvaluateOptions(
        rule, access, not pixels_only, where, labelled_area, filtered, options.area_of(area, area_where)
    )
    extras = run.Extras(
        polygons,
        min_area_m2,
        trained_on,
        report,
        errors,
        tuple(scenes or ()),
        overwrite=overwrite,
        command=options.command_line(context),
    )
    pairing = pair_predictions(predictions, masks, mask_pattern, layer)
    with console_progress() as progress:
        if pairing.note is not None:
            progress.say(pairing.note)
        _say_unused(pairing.unused, progress)
        found = run.evaluate(pairing.pairs, chosen, extras, [Path(given) for given in masks], progress)
    print_json(found.to_json() | {"unused_masks": list(pairing.unused)}) if as_json else print_scores(found)


def _say_unused(names: tuple[str, ...], progress: Progress, most: int = 5) -> None:
    from aerialseg.errors import one_line

    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        named = ", ".join(map(one_line, names[:most])) + more
        progress.say(f"{len(names)} of the masks have no prediction and do not count: {named}")


def print_scores(report: EvaluationReport) -> None:
    """Print scenes, cities and overall, buildings by size, intervals, and polygons."""
    from aerialseg.cli.console import number, print_table
    from aerialseg.counts import SCORES
    from aerialseg.errors import one_line
    from aerialseg.evaluation.results import FEW

    everything = report.everything
    columns = {name: name for name in (*SCORES, "building_fraction")} if everything.objects is None else COLUMNS
    scenes = {result.name: result.counts for result in report.results}
    groups = [("scene", scenes), ("city", report.by_city), ("", {"overall": everything})]
    rows = []
    for kind, members in groups:
        for name, counts in members.items():
            scores = counts.scores()
            rows.append([one_line(f"{kind} {name}".strip()), *(number(scores[column]) for column in columns)])
    many = len(report.results)
    filtered = "FILTERED, not comparable: " if any(line.startswith("filtered: ") for line in report.warnings) else ""
    title = f"{filtered}{many} {'scene' if many == 1 else 'scenes'}, pooled over {report.overall.pixels:,} pixels"
    if report.uncounted_share:
        title += f"; {report.uncounted_share:.2%} of all pixels are nodata and not counted"
    print_table(title, ["", *columns.values()], rows)
    if everything.objects is not None:
        print_table(
            "Buildings by size", ["", "true", "found", "recall", "predicted", "precision", "f1"], _by_size(everything)
        )
    if intervals := report.intervals():
        shown = {name: label for name, label in columns.items() if name in intervals}
        low, high = ([f"{intervals[name][end]:.4f}" for name in shown] for end in (0, 1))
        title = f"Overall, 95 % of the time with {many} scenes drawn anew from these"
        title += "; so few make it too narrow" if many < FEW else ""
        print_table(title, ["", *shown.values()], [["from", *low], ["to", *high]])
    if report.polygons is not None:
        _print_polygons(report.polygons)


def _print_polygons(drawn: PolygonScores) -> None:
    from aerialseg.cli.console import number, print_table

    columns = ["true", "predicted", "matched", "f1", "iou", "C-IoU", "PoLiS", "max tangent angle", "vertex ratio"]
    values = (drawn.f1, drawn.iou, drawn.c_iou)
    counts = [f"{count:,}" for count in (drawn.true, drawn.predicted, drawn.matched)]
    metres, angle = number(drawn.polis_m, ".2f", " m"), number(drawn.max_tangent_angle_deg, ".1f", " deg")
    row = [*counts, *map(number, values), metres, angle, number(drawn.vertex_ratio, ".2f")]
    left_out = (drawn.true_left_out, drawn.predicted_left_out)
    note = (
        "; {:,} true and {:,} predicted ones lie not wholly on known ground".format(*left_out) if any(left_out) else ""
    )
    print_table(f"Polygons, matched one to one at IoU 0.5{note}", columns, [row])


def _by_size(counts: Counts) -> list[list[str]]:
    from aerialseg.cli.console import number
    from aerialseg.evaluation.objects import SIZES, ObjectCounts

    objects = counts.objects or ObjectCounts()
    rows = []
    for index, (size, meaning) in enumerate(zip(SIZES, SIZE_LABELS, strict=True)):
        part = objects.of_size(index)
        true, predicted = part.true[index], part.predicted[index]
        if size != "unsized" or true or predicted:
            rows.append([meaning, f"{true:,}", f"{part.found[index]:,}", number(part.recall), f"{predicted:,}",
                         number(part.precision), number(part.f1)])  # fmt: skip
    found = [f"{sum(objects.true):,}", f"{sum(objects.found):,}", number(objects.recall)]
    return [*rows, ["all", *found, f"{sum(objects.predicted):,}", number(objects.precision), number(objects.f1)]]
