"""The tables of `evaluate`: scores by scene, city and overall, buildings by size, intervals, polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aerialseg.evaluation.polygons import PolygonScores
    from aerialseg.evaluation.results import Counts, EvaluationReport

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


def _print_polygons(drawn: PolygonScores) -> None:
    from aerialseg.cli.console import print_table

    columns = ["true", "predicted", "matched", "f1", "iou", "C-IoU", "PoLiS", "max tangent angle", "vertex ratio"]
    values = (drawn.f1, drawn.iou, drawn.c_iou)
    counts = [f"{count:,}" for count in (drawn.true, drawn.predicted, drawn.matched)]
    metres, angle = _number(drawn.polis_m, ".2f", " m"), _number(drawn.max_tangent_angle_deg, ".1f", " deg")
    row = [*counts, *map(_number, values), metres, angle, _number(drawn.vertex_ratio, ".2f")]
    left_out = (drawn.true_left_out, drawn.predicted_left_out)
    note = (
        "; {:,} true and {:,} predicted ones lie not wholly on known ground".format(*left_out) if any(left_out) else ""
    )
    print_table(f"Polygons, matched one to one at IoU 0.5{note}", columns, [row])


def print_scores(report: EvaluationReport) -> None:
    """Print scenes, cities and overall, buildings by size, intervals, and polygons."""
    from aerialseg.cli.console import print_table
    from aerialseg.counts import SCORES
    from aerialseg.evaluation.results import FEW

    everything = report.everything
    columns = {name: name for name in (*SCORES, "building_fraction")} if everything.objects is None else COLUMNS
    scenes = {result.name: result.counts for result in report.results}
    groups = [("scene", scenes), ("city", report.by_city), ("", {"overall": everything})]
    rows = [
        _row(f"{kind} {name}".strip(), counts, columns) for kind, members in groups for name, counts in members.items()
    ]
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


def _row(name: str, counts: Counts, columns: dict[str, str]) -> list[str]:
    from aerialseg.errors import one_line

    scores = counts.scores()
    return [one_line(name), *(_number(scores[column]) for column in columns)]


def _by_size(counts: Counts) -> list[list[str]]:
    from aerialseg.evaluation.objects import SIZES, ObjectCounts

    objects = counts.objects or ObjectCounts()
    rows = []
    for index, (size, meaning) in enumerate(zip(SIZES, SIZE_LABELS, strict=True)):
        part = objects.of_size(index)
        true, predicted = part.true[index], part.predicted[index]
        if size != "unsized" or true or predicted:
            rows.append([meaning, f"{true:,}", f"{part.found[index]:,}", _number(part.recall), f"{predicted:,}",
                         _number(part.precision), _number(part.f1)])  # fmt: skip
    found = [f"{sum(objects.true):,}", f"{sum(objects.found):,}", _number(objects.recall)]
    return [*rows, ["all", *found, f"{sum(objects.predicted):,}", _number(objects.precision), _number(objects.f1)]]


def _number(score: float, form: str = ".4f", unit: str = "") -> str:
    return "-" if score != score else f"{score:{form}}{unit}"
