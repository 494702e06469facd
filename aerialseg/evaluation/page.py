"""The report of an evaluation as one HTML page: nothing to load, nothing to run, light and dark, phone and desk.

Everything that comes from files or names is escaped; pictures and charts lie inside the page.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from aerialseg import __version__
from aerialseg.errors import one_line
from aerialseg.evaluation.charts import bars, reliability_chart, threshold_chart
from aerialseg.evaluation.probability import calibration_error, reliability, threshold_curve
from aerialseg.evaluation.results import FEW
from aerialseg.evaluation.style import LEGEND, MEANINGS, STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aerialseg.counts import ScoreHistogram
    from aerialseg.evaluation.objects import ObjectCounts
    from aerialseg.evaluation.pictures import Views
    from aerialseg.evaluation.polygons import PolygonScores
    from aerialseg.evaluation.results import Counts, EvaluationReport, Interval, SceneScore

OURS = "<!-- aerialseg evaluate: report -->"
"""The page's second line, by which a later run knows it may replace it."""
COLUMNS = {
    "iou": "IoU",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "mcc": "MCC",
    "boundary_iou_3px": "boundary IoU 3 px",
    "boundary_f1_3px": "boundary F1 3 px",
    "object_f1": "building F1",
    "building_fraction": "building share",
}
HEADLINE = ("accuracy", "boundary_iou_3px", "object_f1", "object_recall")
HEADLINE_LABELS = {**COLUMNS, "object_recall": "buildings found"}
FOLDED = 12
"""A table with more scenes than this is folded away."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a page shows beside the scores."""

    report: EvaluationReport
    views: Mapping[str, Views] = field(default_factory=dict)
    """Pictures by scene name, the worst scene first."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the model, as label -> value."""
    command: str = ""
    """The command line that makes the page again."""
    over_scenes: bool = False
    """Whether the pictures show the scenes behind the colours."""


def render_page(content: PageContent) -> str:
    """Return the whole page as HTML5; the same content gives the same bytes."""
    report = content.report
    everything, intervals = report.everything, report.intervals()
    shown = {"intervals": intervals, "polygons": report.polygons, "probabilities": report.histogram}
    more = [name for name, value in shown.items() if value]
    sections = (
        _headline(report, everything, intervals),
        _warnings(report.warnings),
        _cities(report),
        _pictures(content),
        _sizes(everything.objects),
        _polygons(report.polygons),
        _curves(report.histogram, content.model),
        _scenes(report.results),
        _card("The model", content.model),
        _meanings({*everything.scores(), *more}),
        _reproduce(content.command),
    )
    many = len(report.results)
    return frame(f"Building masks of {many} {'scene' if many == 1 else 'scenes'}, evaluated", "".join(sections))


def frame(title: str, body: str) -> str:
    """Return a whole page of ours around `body`, which is HTML as `title` is."""
    head = (
        f'<!doctype html>\n{OURS}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content='
        f'"light dark"><title>{title}</title><style>{STYLE}</style></head>'
    )
    footer = f"<footer>aerialseg {escape(__version__)}. This page holds everything it shows; it loads nothing.</footer>"
    return f"{head}\n<body><main><h1>{title}</h1>{body}{footer}</main></body></html>\n"


def number(value: float, digits: int = 4, sign: str = "") -> str:
    """Return a number as HTML, a dash where it is not defined; with the sign "+" also those above 0 have one."""
    return "&ndash;" if value != value else f"{value:{sign}.{digits}f}"


def escaped(value: object) -> str:
    """Return a value as HTML on one line, whatever it holds."""
    return escape(one_line(f"{value:.4g}" if isinstance(value, float) else str(value)))


def _headline(report: EvaluationReport, everything: Counts, intervals: Mapping[str, Interval]) -> str:
    scores = everything.scores()
    tiles = [_tile("building IoU, pooled", scores["iou"], intervals.get("iou"), "tile first")]
    tiles += [_tile(HEADLINE_LABELS[n], scores[n], intervals.get(n), "tile") for n in HEADLINE if n in scores]
    counted = f"{report.overall.pixels:,} pixels counted"
    left_out = f"; {report.uncounted_share:.2%} of all pixels are nodata and left out" if report.uncounted_share else ""
    note = ""
    if intervals:
        note = f" The small numbers are 95 % intervals over the {len(report.results)} scenes, drawn anew 2,000 times."
        note += " So few scenes make them too narrow." if len(report.results) < FEW else ""
    return f'<div class="tiles">{"".join(tiles)}</div><p>{counted}{left_out}.{note}</p>'


def _tile(label: str, score: float, interval: Interval | None, kind: str) -> str:
    small = "" if interval is None else f"<small>{interval[0]:.3f} to {interval[1]:.3f}</small>"
    return f'<div class="{kind}"><span>{label}</span><b>{number(score, 3)}</b>{small}</div>'


def _warnings(warnings: Iterable[str]) -> str:
    items = "".join(f"<li>{escaped(warning)}</li>" for warning in warnings)
    return f"<section><h2>Take note</h2><ul>{items}</ul></section>" if items else ""


def _cities(report: EvaluationReport) -> str:
    rows = [(name, counts) for name, counts in report.by_city.items()]
    title = "By city" if rows else "Overall"
    table = _table([*rows, ("overall", report.everything)])
    return f"<section><h2>{title}</h2>{table}</section>"


def _scenes(results: Iterable[SceneScore]) -> str:
    rows = [(result.name, result.counts) for result in results]
    folded = f"<details><summary>{len(rows)} in all</summary>{_table(rows)}</details>"
    return f"<section><h2>By scene</h2>{folded if len(rows) > FOLDED else _table(rows)}</section>"


def _table(rows: list[tuple[str, Counts]]) -> str:
    columns = {name: label for name, label in COLUMNS.items() if name in rows[-1][1].scores()}
    scored = [(name, counts.scores()) for name, counts in rows]
    return _grid(columns.values(), [(name, [number(scores[c]) for c in columns]) for name, scores in scored])


def _grid(columns: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    """Return a table that scrolls where it is too wide; columns and cells are HTML, the rows' names are not."""
    head = "".join(f'<th scope="col">{label}</th>' for label in columns)
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    inside = f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def _pictures(content: PageContent) -> str:
    if not content.views:
        return ""
    scores = {result.name: result.counts.scores() for result in content.report.results}
    figures = []
    for name, views in content.views.items():
        wrong = f"rows from {views.row:,}, columns from {views.col:,}: {views.errors:,} wrong pixels"
        figures.append(
            f"<figure><figcaption><b>{escaped(name)}</b> IoU {number(scores[name]['iou'], 3)}</figcaption>"
            f"{_image(views.overview, f'{name}, whole scene')}{_image(views.close_up, f'{name}, worst piece')}"
            f"<figcaption>close up: the worst piece, {wrong}</figcaption></figure>"
        )
    behind = "over the scene" if content.over_scenes else "without the scenes (<code>--scenes</code> shows them behind)"
    intro = f"<p>From the worst scene to the best, {behind}. {LEGEND}</p>"
    return f'<section><h2>Where it is wrong</h2>{intro}<div class="views">{"".join(figures)}</div></section>'


def _image(png: bytes, label: str) -> str:
    return f'<img alt="{escaped(label)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _sizes(objects: ObjectCounts | None) -> str:
    if objects is None or not sum(objects.true):
        return ""
    labels = ("below 50 m²", "50 to 200 m²", "above 200 m²", "size unknown")
    known = labels if objects.true[-1] + objects.predicted[-1] else labels[:-1]
    parts = [(label, objects.of_size(index)) for index, label in enumerate(known)]
    parts.append(("all", objects))
    rows = [(label, part.recall, f"{number(part.recall, 2)} of {sum(part.true):,}") for label, part in parts]
    numbers = [
        (label, [f"{sum(part.predicted):,}", *(number(value, 3) for value in (part.precision, part.recall, part.f1))])
        for label, part in parts
    ]
    table = _grid(("predicted", "precision", "recall", "F1"), numbers)
    invented = sum(objects.predicted) - sum(objects.right)
    note = f"<p>{invented:,} of {sum(objects.predicted):,} predicted buildings match no true one.</p>"
    return f"<section><h2>Buildings found, by size</h2>{bars(rows)}{note}{table}</section>"


def _polygons(found: PolygonScores | None) -> str:
    if found is None:
        return ""
    columns = ("true", "predicted", "matched", "F1", "IoU", "C-IoU", "PoLiS, m", "max tangent angle, °", "vertex ratio")
    counts = [f"{count:,}" for count in (found.true, found.predicted, found.matched)]
    shares = [number(value, 3) for value in (found.f1, found.iou, found.c_iou)]
    drawn = [number(found.polis_m, 2), number(found.max_tangent_angle_deg, 1), number(found.vertex_ratio, 2)]
    table = _grid(columns, [("polygons", [*counts, *shares, *drawn])])
    left_out = found.true_left_out, found.predicted_left_out
    note = "<p>{:,} true and {:,} predicted polygons do not lie wholly on known ground and are left out.</p>"
    return f"<section><h2>Polygons</h2>{table}{note.format(*left_out) if any(left_out) else ''}</section>"


def _curves(histogram: ScoreHistogram | None, model: Mapping[str, Any]) -> str:
    if histogram is None or not histogram.counts.sum():
        return ""
    best, iou = histogram.best_threshold()
    error = calibration_error(histogram)
    reliable = reliability_chart(reliability(histogram))
    curve = threshold_chart(threshold_curve(histogram), best)
    used = f" The masks were made at {escaped(model['threshold'])}." if "threshold" in model else ""
    keys = '<span class="key a">IoU</span> <span class="key b">precision</span> <span class="key c">recall</span>'
    return (
        '<section><h2>Probabilities</h2><div class="charts">'
        f"<figure>{reliable}<figcaption>Expected calibration error {error:.4f}. Above the diagonal there is more"
        " building than the model says, below it less.</figcaption></figure>"
        f"<figure>{curve}<figcaption>{keys}<br>Best threshold {best:.3f}, IoU {number(iou, 3)}; chosen on these very"
        f" scenes it flatters.{used}</figcaption></figure></div></section>"
    )


def _card(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escaped(key)}</th><td>{escaped(value)}</td></tr>' for key, value in values.items()
    )
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table class="card">{rows}</table></div></section>'
        if rows
        else ""
    )


def _meanings(known: set[str]) -> str:
    items = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for key, label, text in MEANINGS if key in known)
    return f"<section><h2>What the numbers mean</h2><dl>{items}</dl></section>"


def _reproduce(command: str) -> str:
    if not command:
        return ""
    return f"<section><h2>How to reproduce</h2><pre>{escaped(command)}</pre></section>"
