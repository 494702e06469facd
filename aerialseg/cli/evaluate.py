"""`aerialseg evaluate`: scores of predicted masks against true ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.truth import (
    AllowUngeoreferenced,
    BuildingValues,
    IgnoreValues,
    LabelledArea,
    MaskPattern,
    Masks,
    MaskThreshold,
    MaxPixels,
    Where,
)

if TYPE_CHECKING:
    from aerialseg.progress import Progress


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        list[str], typer.Argument(help="Predicted masks: files, folders or globs.", show_default=False)
    ],
    masks: Masks,
    mask_pattern: MaskPattern = None,
    building_values: BuildingValues = None,
    ignore_values: IgnoreValues = None,
    mask_threshold: MaskThreshold = None,
    where: Where = None,
    labelled_area: LabelledArea = None,
    allow_ungeoreferenced: AllowUngeoreferenced = False,
    max_pixels: MaxPixels = 1e10,
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
    from aerialseg.cli.command_line import command_line
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.cli.score_tables import print_scores
    from aerialseg.cli.truth import mask_rule
    from aerialseg.evaluation import run
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.scores import EvaluateOptions
    from aerialseg.geo.inspection import Access

    rule, access = mask_rule(building_values, ignore_values, mask_threshold), Access(allow_ungeoreferenced, max_pixels)
    options = EvaluateOptions(rule, access, not pixels_only, where, labelled_area, filtered)
    extras = run.Extras(
        polygons, trained_on, report, errors, tuple(scenes or ()), overwrite=overwrite, command=command_line(context)
    )
    pairing = pair_predictions(predictions, masks, mask_pattern)
    with console_progress() as progress:
        _say_unused(pairing.unused, progress)
        found = run.evaluate(pairing.pairs, options, extras, [Path(given) for given in masks], progress)
    print_json(found.to_json() | {"unused_masks": list(pairing.unused)}) if as_json else print_scores(found)


def _say_unused(names: tuple[str, ...], progress: Progress, most: int = 5) -> None:
    from aerialseg.errors import one_line

    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        named = ", ".join(map(one_line, names[:most])) + more
        progress.say(f"{len(names)} of the masks have no prediction and do not count: {named}")
