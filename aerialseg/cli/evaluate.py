"""`aerialseg evaluate`: scores of predicted masks against true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aerialseg.counts import Confusion
    from aerialseg.evaluation.scores import EvaluationReport
    from aerialseg.progress import Progress


def evaluate(
    predictions: Annotated[
        list[str], typer.Argument(help="Predicted masks: files, folders or globs.", show_default=False)
    ],
    masks: Annotated[
        list[str],
        typer.Option(
            "--masks",
            help="True masks: a folder, a quoted glob, an Inria root, or a file; may be repeated.",
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
    allow_ungeoreferenced: Annotated[
        bool, typer.Option("--allow-ungeoreferenced", help="Compare pixel by pixel where there is no georeferencing.")
    ] = False,
    max_pixels: Annotated[
        float, typer.Option(help="Refuse masks with more pixels than this.", show_default="1e10")
    ] = 1e10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: overall.iou, cities.NAME.iou, scenes.NAME.iou ...")
    ] = False,
) -> None:
    """Score predicted masks: IoU, accuracy, precision, recall, specificity, F1 (Dice) and MCC.

    Counts are pooled over pixels per scene, per city (austin in austin3) and overall, as the Inria benchmark does it;
    nothing is averaged. Masks pair with predictions by name and must lie on the same grid. Nodata is not counted.

    \b
    Examples:
      aerialseg evaluate out --masks AerialImageDataset
      aerialseg evaluate out --masks truth/ --mask-pattern '{stem}_label.tif' --json
      aerialseg evaluate out/austin1.tif --masks gt/austin1.tif
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.scores import evaluate_pairs
    from aerialseg.geo.masks import MaskRule
    from aerialseg.geo.raster import Access

    values, ignored = _values("--building-values", building_values), _values("--ignore-values", ignore_values)
    rule, access = MaskRule(values, ignored or (), mask_threshold), Access(allow_ungeoreferenced, max_pixels)
    pairing = pair_predictions(predictions, masks, mask_pattern)
    with console_progress() as progress:
        _say_unused(pairing.unused, progress)
        report = evaluate_pairs(pairing.pairs, rule=rule, access=access, progress=progress)
    if as_json:
        print_json(report.to_json() | {"unused_masks": list(pairing.unused)})
    else:
        _print(report)


def _print(report: EvaluationReport) -> None:
    from aerialseg.cli.console import print_table
    from aerialseg.counts import SCORES

    groups = [("scene", report.scenes), ("city", report.cities), ("", {"overall": report.overall})]
    rows = [_row(f"{group} {name}".strip(), counts) for group, members in groups for name, counts in members.items()]
    many = len(report.scenes)
    title = f"{many} {'scene' if many == 1 else 'scenes'}, pooled over {report.overall.pixels:,} pixels"
    if report.uncounted_share:
        title += f"; {report.uncounted_share:.2%} of all pixels are nodata and not counted"
    print_table(title, ["", *SCORES, "building"], rows)


def _row(name: str, counts: Confusion) -> list[str]:
    from aerialseg.counts import SCORES
    from aerialseg.errors import one_line

    scores = [getattr(counts, score) for score in (*SCORES, "building_fraction")]
    return [one_line(name), *("-" if score != score else f"{score:.4f}" for score in scores)]


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
