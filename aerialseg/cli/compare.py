"""`aerialseg compare`: two runs of predictions over the same scenes, score by score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aerialseg.evaluation.comparison import Comparison


def compare(
    context: typer.Context,
    run_a: Annotated[str, typer.Argument(help="Predicted masks of one run: a folder or file.", show_default=False)],
    run_b: Annotated[str, typer.Argument(help="Predicted masks of the other run.", show_default=False)],
    masks: Annotated[list[str], typer.Option("--masks", help="True masks, as for evaluate.", show_default=False)],
    mask_pattern: Annotated[
        str | None, typer.Option(help="How a mask's name is made from the prediction's, as '{stem}_label.tif'.")
    ] = None,
    mask_threshold: Annotated[
        int | None, typer.Option(help="For anti-aliased true masks: this value and above is building, as 128.")
    ] = None,
    allow_ungeoreferenced: Annotated[
        bool, typer.Option("--allow-ungeoreferenced", help="Compare pixel by pixel where there is no georeferencing.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page: comparison.html.", show_default=False)] = None,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Replace a file of other origin at --report.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: overall.iou.difference ...")] = False,
) -> None:
    """Compare two runs over the same scenes: differences with 95 % intervals, and the scenes each one wins.

    The intervals are over scenes drawn anew, the same for both runs. A difference whose interval holds 0 is undecided.

    \b
    Examples:
      aerialseg compare out-unet out-segformer --masks AerialImageDataset
      aerialseg compare a/ b/ --masks gt/ --report comparison.html
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.cli.evaluate import command_line
    from aerialseg.errors import UsageError
    from aerialseg.evaluation.comparison import common_pairs, compare_reports
    from aerialseg.evaluation.comparison_page import render_comparison
    from aerialseg.evaluation.pairs import pair_predictions
    from aerialseg.evaluation.report import check_report_path
    from aerialseg.evaluation.scores import EvaluateOptions, evaluate_pairs
    from aerialseg.files import write_text
    from aerialseg.geo.masks import MaskRule
    from aerialseg.geo.raster import Access

    options = EvaluateOptions(MaskRule(threshold=mask_threshold), Access(allow_ungeoreferenced), details=True)
    runs = (pair_predictions([run], masks, mask_pattern).pairs for run in (run_a, run_b))
    pairs_a, pairs_b, warnings = common_pairs(*runs)
    if report is not None:
        check_report_path(report, [*pairs_a, *pairs_b], overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite says how --report is made; give --report FILE.html too")
    with console_progress() as progress:
        found = [evaluate_pairs(pairs, options, progress) for pairs in (pairs_a, pairs_b)]
        compared = compare_reports(found[0], found[1], warnings)
        for warning in compared.warnings:
            progress.say(f"warning: {warning}")
    if report is not None:
        write_text(report, render_comparison(compared, (run_a, run_b), command_line(context)))
    print_json(compared.to_json()) if as_json else _print(compared)


def _print(compared: Comparison) -> None:
    from aerialseg.cli.console import print_table

    rows = []
    for found in compared.differences:
        interval = "-" if found.interval is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
        values = [*map(_number, (found.a, found.b)), _number(found.difference, "+.4f"), interval, found.verdict]
        rows.append([found.score, *values, str(found.better_a), str(found.better_b)])
    many = len(compared.a.results)
    title = f"{many} {'scene' if many == 1 else 'scenes'}; the difference is B - A"
    columns = ["", "A", "B", "B - A", "95 % of the draws", "better", "scenes A wins", "scenes B wins"]
    print_table(title, columns, rows)


def _number(value: float, form: str = ".4f") -> str:
    return "-" if value != value else format(value, form)
