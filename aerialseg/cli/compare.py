"""`aerialseg compare`: two runs of predictions over the same scenes, score by score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli import options

if TYPE_CHECKING:
    from aerialseg.evaluation.comparison import Comparison


def compare(
    context: typer.Context,
    run_a: Annotated[str, typer.Argument(help="Predicted masks of one run: a folder or file.", show_default=False)],
    run_b: Annotated[str, typer.Argument(help="Predicted masks of the other run.", show_default=False)],
    masks: options.Masks,
    mask_pattern: options.MaskPattern = None,
    building_values: options.BuildingValues = None,
    building_colour: options.BuildingColour = None,
    ignore_values: options.IgnoreValues = None,
    mask_threshold: options.MaskThreshold = None,
    where: options.Where = None,
    layer: options.Layer = None,
    labelled_area: options.LabelledArea = None,
    allow_ungeoreferenced: options.AllowUngeoreferenced = False,
    max_pixels: options.MaxPixels = 1e10,
    report: Annotated[Path | None, typer.Option(help="Write a page: comparison.html.", show_default=False)] = None,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Replace a file of other origin at --report.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: overall.iou.difference ...")] = False,
) -> None:
    """Compare two runs of predict over the same scenes.

    Differences come with 95 % intervals, and the scenes that each run wins are named.

    Only ground on which both have data is judged. The intervals are over scenes drawn anew, the same for both runs. A
    difference whose interval holds 0 is undecided.

    \b
    Examples:
      aerialseg compare out-unet out-segformer --masks AerialImageDataset
      aerialseg compare a/ b/ --masks gt/ --report comparison.html
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.evaluation.comparison import check_comparison, compare_runs, render_comparison
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.scores import EvaluateOptions
    from aerialseg.files import write_text
    from aerialseg.geo.inspection import Access

    rule = options.mask_rule(building_values, ignore_values, mask_threshold, building_colour)
    access = Access(allow_ungeoreferenced, max_pixels)
    chosen = EvaluateOptions(rule, access, details=True, where=where, labelled_area=labelled_area)
    pairings = [pair_predictions([run], masks, mask_pattern, layer) for run in (run_a, run_b)]
    a, b = (pairing.pairs for pairing in pairings)
    read = [Path(given) for given in masks] + ([] if labelled_area is None else [labelled_area])
    check_comparison(report, [*a, *b], read, overwrite=overwrite)
    with console_progress() as progress:
        for note in dict.fromkeys(pairing.note for pairing in pairings if pairing.note is not None):
            progress.say(note)
        compared = compare_runs(a, b, chosen, progress)
    if report is not None:
        write_text(report, render_comparison(compared, (run_a, run_b), options.command_line(context)), apart=True)
    print_json(compared.to_json()) if as_json else _print(compared)


def _print(compared: Comparison) -> None:
    from aerialseg.cli.console import number, print_table

    rows = []
    for found in compared.differences:
        interval = "-" if found.interval is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
        values = [*map(number, (found.a, found.b)), number(found.difference, "+.4f"), interval, found.verdict]
        rows.append([found.score, *values, str(found.better_a), str(found.better_b)])
    many = len(compared.a.results)
    title = f"{many} {'scene' if many == 1 else 'scenes'}; the difference is B - A"
    columns = ["", "A", "B", "B - A", "95 % of the draws", "better", "scenes A wins", "scenes B wins"]
    print_table(title, columns, rows)
