"""Writing the report's page: which scenes are shown, what is known of the model, and where the file may go.

The report of an evaluation as one HTML page: nothing to load, nothing to run, light and dark, phone and desk.

Everything that comes from files or names is escaped; pictures and charts lie inside the page.

What a quoted pair of IoU and accuracy says about the ground it was taken on.

With tp, fp, fn and tn as shares of all pixels, accuracy leaves fp + fn = 1 - accuracy, and IoU then fixes
tp = IoU (fp + fn) / (1 - IoU). The true building share lies between tp and tp + fp + fn. Where it does not fit the
truth, the pair was taken on other pixels: with empty patches left out, for example.

What the report's page always says and how it looks: its style sheet, its legend, and what each number means.

Small charts as SVG text for a page that must show them without any script, in light and dark alike.

Colours come from the page's style sheet by class; coordinates are in a 100 x 100 square, y upwards in the data.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg import __version__
from aerialseg.errors import AerialsegError, one_line
from aerialseg.evaluation.pictures import FOUND, INVENTED, MISSED, UNKNOWN, draw_views
from aerialseg.evaluation.results import FEW, calibration_error, reliability, threshold_curve
from aerialseg.evaluation.scores import EvaluateOptions, decide_rules
from aerialseg.files import prepare_output_folder, refuse_input_as_output, sha256_of, write_text
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import PAGE_COMMENT, check_overwrite
from aerialseg.geo.scenes import check_same_grid, find_scenes
from aerialseg.models.package import ModelCard, read_card

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aerialseg.counts import Confusion, ScoreHistogram
    from aerialseg.evaluation.objects import ObjectCounts
    from aerialseg.evaluation.pairs import Pair
    from aerialseg.evaluation.pictures import Views
    from aerialseg.evaluation.polygons import PolygonScores
    from aerialseg.evaluation.results import Bin, Counts, EvaluationReport, Interval, SceneScore
    from aerialseg.progress import Progress

WORST, BEST = 3, 2
"""Scenes that are shown as pictures."""
SHA_SHOWN = 16
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
UNLIKE = 1.5
"""A share this many times outside the implied range is unlike it."""
STYLE = """
:root{--ink:#1c2024;--soft:#5d6670;--paper:#fbfbfa;--card:#fff;--line:#dfe2e5;--a:#0b62a8;--b:#b35900;--c:#0a7a5a}
@media (prefers-color-scheme:dark){:root{--ink:#e7e9eb;--soft:#a2abb4;--paper:#15181b;--card:#1e2226;--line:#343a40;
--a:#62b0f0;--b:#f0a04b;--c:#4ecda6}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.2rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.4rem 0 1rem}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p,li,dd,figcaption,footer{color:var(--soft)}
p,dd,figcaption{max-width:70ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.tile span,.tile small{display:block;color:var(--soft);font-size:.85rem}
.tile b{font-size:1.5rem;font-variant-numeric:tabular-nums}
.first{border-left:5px solid var(--a)}
.first b{font-size:2.2rem;line-height:1.2}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;white-space:normal;vertical-align:bottom}
tbody th,.card th,.bars th{text-align:left;font-weight:500}
.card td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.bars .wide{width:60%}
.bar{display:block;background:var(--line);border-radius:4px;overflow:hidden}
.bar i{display:block;height:.8rem;background:var(--a)}
.views{display:grid;gap:1.4rem}
figure{margin:0}
.views figure{display:grid;grid-template-columns:1fr 1fr;gap:.4rem;align-items:start;max-width:900px}
.views figcaption{grid-column:1/-1;font-size:.9rem;overflow-wrap:anywhere}
.views b{color:var(--ink)}
img{width:100%;height:auto;display:block;border-radius:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:1.2rem}
svg{width:100%;max-width:460px;background:var(--card);border:1px solid var(--line);border-radius:8px}
svg text{font-size:3.6px;fill:var(--soft)}
svg polyline{fill:none;stroke-width:.9}
svg .a{stroke:var(--a)}
svg circle.a{fill:var(--a);stroke:none}
svg .b{stroke:var(--b);stroke-dasharray:3 1.2}
svg .c{stroke:var(--c);stroke-dasharray:1 1}
svg .grid{stroke:var(--line);stroke-width:.3}
svg .guide,svg .mark{stroke:var(--soft);stroke-width:.5;stroke-dasharray:1.5 1.5}
.key::before{content:"";display:inline-block;width:1.6em;vertical-align:.25em;margin-right:.3em;border-top:3px solid}
.key.a::before{border-color:var(--a)}
.key.b::before{border-color:var(--b);border-top-style:dashed}
.key.c::before{border-color:var(--c);border-top-style:dotted}
.swatch{display:inline-block;width:.9em;height:.9em;border-radius:2px;border:1px solid var(--soft);vertical-align:-.1em}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.9rem}
dt{font-weight:600;margin-top:.6rem}
dd{margin:0}
summary{cursor:pointer;color:var(--soft);margin-bottom:.4rem}
footer{margin-top:2.5rem;font-size:.85rem}
@media(max-width:560px){.views figure{grid-template-columns:1fr}}
@media print{details>*{display:block}}
"""
MEANINGS = (
    (
        "iou",
        "IoU",
        "Pixels that are building in both masks over those that are in either, summed over all scenes before dividing,"
        " as the Inria benchmark does it. Quote this one, with the scenes it was taken on.",
    ),
    (
        "accuracy",
        "accuracy",
        "Share of pixels classified rightly. An empty mask already reaches one minus the building share, so quote it"
        " beside IoU, never alone.",
    ),
    (
        "precision",
        "precision, recall, F1",
        "Of predicted building pixels the share that is right, of true ones the share that was found, and their"
        " harmonic mean. For pixels F1 is 2 IoU / (1 + IoU) and says nothing new.",
    ),
    (
        "mcc",
        "MCC",
        "Correlation of the two masks, -1 to 1; 0 is guessing, whatever the building share. Use it to compare places"
        " with few and with many buildings.",
    ),
    (
        "boundary_iou_3px",
        "boundary IoU and F1",
        "IoU of the bands of 3 pixels inside the outlines; and of either outline's pixels the share that has the other"
        " outline within 3 pixels, as harmonic mean. They see what large roofs hide in IoU: straight walls and right"
        " corners.",
    ),
    (
        "object_f1",
        "building F1, buildings found",
        "Connected buildings, matched one to one where they share IoU 0.5 or more. Houses that touch in a mask count as"
        " one, so dense towns score lower for either mask's sake.",
    ),
    (
        "polygons",
        "PoLiS, tangent angle, C-IoU, vertex ratio",
        "Means over matched polygons: the distance of corners to the other outline, the worst angle between walls, IoU"
        " lowered by needless corners; the ratio is of all corners. They judge drawing, not finding: quote them with"
        " the F1 of the polygons.",
    ),
    (
        "probabilities",
        "reliability, thresholds",
        "How often what is called 0.7 is building, and what every threshold would have scored. Choose a threshold on"
        " scenes that are not scored with it: aerialseg calibrate does.",
    ),
    (
        "intervals",
        "intervals",
        "Scenes are drawn anew from those given, 2,000 times; in 95 % of the draws the score lies between the two"
        " numbers. They say what other scenes of the same kind would do to it, not what other cities would.",
    ),
)
"""A score the page must show for the entry to be shown, a heading, and two sentences."""
Points = list[tuple[float, float]]
LEFT, TOP, SIDE = 13.0, 3.0, 84.0


@dataclass(frozen=True, slots=True)
class PageOptions:
    """How the page is made."""

    scored: EvaluateOptions = field(default_factory=EvaluateOptions)
    """How the truth was read for the scores."""
    scenes: tuple[str | Path, ...] = ()
    """Files, folders or globs of the scenes to be shown behind the errors."""
    command: str = ""
    """The command line that makes the page again; empty leaves it out."""


def check_report_path(path: Path, pairs: Sequence[Pair], *, overwrite: bool) -> None:
    """Raise before any counting when the page cannot be written, or would replace an input or a foreign file."""
    refuse_input_as_output([file for pair in pairs for file in pair.files], [path])
    prepare_output_folder(path.parent)
    check_overwrite(path, "page", overwrite=overwrite)


def write_report(
    path: Path, report: EvaluationReport, pairs: Sequence[Pair], options: PageOptions, progress: Progress
) -> None:
    """Write the page, with pictures of the worst and the best scenes, over their pixels where they were given.

    Raises what `find_scenes` raises, OutputError and StorageError.
    """
    chosen = _choose(report)
    images = _match_scenes(pairs, options.scenes, progress) if options.scenes else {}
    rules, _ = decide_rules(pairs, replace(options.scored, details=False))
    by_name = {pair.name: pair for pair in pairs}
    views = {}
    progress.start("draw", len(chosen), "scene")
    for name in chosen:
        views[name] = draw_views(by_name[name], rules, images.get(name), options.scored.access, progress)
        progress.advance(1, note=one_line(name))
    progress.finish()
    content = PageContent(report, views, describe_model(pairs), options.command, over_scenes=bool(images))
    write_text(path, render_page(content))


def describe_model(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Return what the predictions say of the model that made them, as label -> value; empty when they say nothing."""
    first = next(iter(pairs))
    found = _of_report(first) or _of_tags(first.prediction)
    if "model file" not in found or "SHA-256" not in found:
        return found
    try:
        path = Path(found["model file"])
        if not path.is_file() or sha256_of(path)[:SHA_SHOWN] != found["SHA-256"]:
            return found
        return found | _of_card(read_card(path))
    except AerialsegError:
        return found


def check_claims(pairs: Sequence[Pair], truth_share: float) -> list[str]:
    """Return a warning when the scores in the model's own card were taken on ground unlike the truth's."""
    known = _of_report(pairs[0])
    try:
        path = Path(str(known.get("model file", "")))
        if path.is_file() and sha256_of(path)[:SHA_SHOWN] == known.get("SHA-256"):
            return compare_claim(str(path), read_card(path).scores, truth_share)
    except AerialsegError:
        return []
    return []


def _of_report(pair: Pair) -> dict[str, Any]:
    """Read what `predict` wrote into report.json beside the masks."""
    root = pair.prediction.absolute().parents[min(pair.name.count("/"), len(pair.prediction.absolute().parents) - 1)]
    try:
        written = json.loads((root / "report.json").read_text(encoding="utf-8"))
        if written["command"] != "predict":
            return {}
        model, settings = dict(written["model"]), dict(written["settings"])
        known = {"preset": model.get("preset"), "model file": model.get("path"),
                 "SHA-256": str(model.get("sha256"))[:SHA_SHOWN], "threshold": model.get("threshold"),
                 "temperature": model.get("temperature"), "trained at, m/px": model.get("gsd_m"),
                 "window, px": settings.get("window"), "overlap": settings.get("overlap"),
                 "arithmetic": settings.get("used_precision"), "device": settings.get("device"),
                 "written by": f"aerialseg {written['aerialseg']}"}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {label: value for label, value in known.items() if value is not None}


def _of_tags(prediction: Path) -> dict[str, Any]:
    """Read what a mask of ours says about itself."""
    with open_raster(prediction) as dataset:
        tags = dataset.tags()
    names = {"AERIALSEG_MODEL_SHA256": "SHA-256", "AERIALSEG_THRESHOLD": "threshold", "AERIALSEG_VERSION": "written by"}
    return {label: str(tags[name])[:SHA_SHOWN] for name, label in names.items() if name in tags}


def _of_card(card: ModelCard) -> dict[str, Any]:
    """Return what the model file itself adds."""
    scores = {
        f"{name} (in training)": f"{value:.4f}" for name, value in card.scores.items() if isinstance(value, float)
    }
    training = {f"training: {name}": _short(value) for name, value in card.training.items()}
    licence = {"licence of its weights": card.licence} if card.licence else {}
    return {"architecture": card.architecture, "encoder": card.encoder, "bands": card.bands, **licence, **scores,
            **training}  # fmt: skip


def _short(value: object, most: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def _choose(report: EvaluationReport) -> list[str]:
    """Return the names of the worst and the best scenes by IoU, the worst first; all when they are few.

    A scene without IoU, where neither mask has a building, is neither.
    """
    scored = [(result.confusion.iou, result.name) for result in report.results]
    names = [name for iou, name in sorted(scored, key=lambda item: item[0]) if iou == iou]
    return names if len(names) <= WORST + BEST else [*names[:WORST], *names[-BEST:]]


def _match_scenes(pairs: Sequence[Pair], given: Sequence[str | Path], progress: Progress) -> dict[str, Path]:
    """Return the scenes of the pairs by name, those that lie on the masks' grid; says which are missing."""
    found = {scene.name: scene.image for scene in find_scenes(given)}
    by_stem = {name.rpartition("/")[2]: path for name, path in found.items()}
    if len(found) == len(pairs) == 1:
        found[pairs[0].name] = next(iter(by_stem.values()))
    images, missing = {}, []
    for pair in pairs:
        path = found.get(pair.name) or by_stem.get(pair.name.rpartition("/")[2])
        try:
            if path is None:
                missing.append(one_line(pair.name))
                continue
            with open_raster(pair.prediction) as mask, open_raster(path) as scene:
                check_same_grid(GeoBox.of(mask), GeoBox.of(scene), (pair.prediction, path))
            images[pair.name] = path
        except AerialsegError as error:
            progress.say(f"warning: shown without its scene: {error}")
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        progress.say(f"warning: --scenes has no scene for {', '.join(missing[:5])}{more}; shown without")
    return images


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
        f'<!doctype html>\n{PAGE_COMMENT}\n<html lang="en"><head><meta charset="utf-8">'
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


def implied_building_share(iou: float, accuracy: float) -> tuple[float, float]:
    """Return the lowest and highest share of building that a pair of scores allows; raises ValueError for no pair."""
    if not (0 <= iou < 1 and 0 <= accuracy <= 1):
        raise ValueError(f"IoU {iou} and accuracy {accuracy} are no pair of scores")
    wrong = 1 - accuracy
    found = iou * wrong / (1 - iou)
    return found, min(1.0, found + wrong)


def compare_claim(source: str, scores: Mapping[str, object], truth_share: float) -> list[str]:
    """Return a warning when the IoU and accuracy in `scores` were taken on ground unlike the truth's."""
    iou, accuracy = scores.get("val_iou"), scores.get("val_accuracy")
    if not isinstance(iou, float) or not isinstance(accuracy, float) or not 0 <= iou < 1 or not 0 <= accuracy <= 1:
        return []
    low, high = implied_building_share(iou, accuracy)
    if truth_share != truth_share or low / UNLIKE <= truth_share <= high * UNLIKE:
        return []
    return [
        f"{one_line(source)}: its validation IoU {iou:.3f} and accuracy {accuracy:.3f} imply {low:.1%} to {high:.1%}"
        f" building, the truth here has {truth_share:.1%}: those scores were taken on other ground and do not compare"
    ]


def _swatch(colour: tuple[int, int, int], label: str) -> str:
    return f'<span class="swatch" style="background:rgb{colour}"></span> {label}'


LEGEND = ", ".join(
    (
        _swatch(FOUND, "found"),
        _swatch(MISSED, "missed"),
        _swatch(INVENTED, "invented"),
        _swatch(UNKNOWN, "not counted"),
    )
)


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Return the share of building against the probability; on the diagonal a model says what it means."""
    known = [(part.probability, part.building, part.pixels) for part in bins if part.pixels]
    pixels = sum(part[2] for part in known)
    dots = "".join(
        f'<circle class="a" cx="{_x(p):.2f}" cy="{_y(b):.2f}" r="{0.9 + 1.3 * (n / pixels) ** 0.25:.2f}">'
        f"<title>probability {p:.2f}: {b:.2f} of {n:,} pixels are building</title></circle>"
        for p, b, n in known
    )
    lines = _line([(0, 0), (1, 1)], "guide") + _line([(p, b) for p, b, _ in known], "a")
    return _chart("probability", "share that is building", lines + dots, "Reliability curve")


def threshold_chart(curve: Sequence[tuple[float, Confusion]], best: float) -> str:
    """Return IoU, precision and recall against the threshold, with a mark at the best one."""
    parts = []
    for name, kind in (("iou", "a"), ("precision", "b"), ("recall", "c")):
        points = [(threshold, getattr(counts, name)) for threshold, counts in curve]
        parts.append(_line([(x, y) for x, y in points if y == y], kind))
    mark = f'<line class="mark" x1="{_x(best):.2f}" x2="{_x(best):.2f}" y1="{_y(0):.2f}" y2="{_y(1):.2f}"/>'
    return _chart("threshold", "score", mark + "".join(parts), "IoU, precision and recall by threshold")


def versus_chart(points: Iterable[tuple[float, float, str]]) -> str:
    """Return one score of two runs against each other, a dot a scene; labels are HTML."""
    dots = "".join(
        f'<circle class="a" cx="{_x(a):.2f}" cy="{_y(b):.2f}" r="1.3"><title>{label}: {a:.3f}, {b:.3f}</title></circle>'
        for a, b, label in points
    )
    return _chart("IoU of A", "IoU of B", _line([(0, 0), (1, 1)], "guide") + dots, "IoU of both runs by scene")


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """Return a table of bars: label, a share of 0 to 1 (nan: no bar), and what to write behind it; plain HTML."""
    lines = []
    for label, share, text in rows:
        width = 0.0 if share != share else 100 * share
        bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
        lines.append(f'<tr><th scope="row">{label}</th><td class="wide">{bar}</td><td>{text}</td></tr>')
    return f'<table class="bars">{"".join(lines)}</table>'


def _chart(x_label: str, y_label: str, inside: str, title: str) -> str:
    ticks = "".join(
        f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(v):.2f}" y2="{_y(v):.2f}"/>'
        f'<line class="grid" x1="{_x(v):.2f}" x2="{_x(v):.2f}" y1="{_y(0)}" y2="{_y(1)}"/>'
        f'<text x="{LEFT - 1.5}" y="{_y(v) + 1.3:.2f}" text-anchor="end">{v:g}</text>'
        f'<text x="{_x(v):.2f}" y="{TOP + SIDE + 5}" text-anchor="middle">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    labels = (
        f'<text x="{LEFT + SIDE / 2}" y="98.5" text-anchor="middle">{x_label}</text>'
        f'<text transform="translate(3.2 {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    return f'<svg viewBox="0 0 100 100" role="img" aria-label="{title}">{ticks}{labels}{inside}</svg>'


def _line(points: Points, kind: str) -> str:
    path = " ".join(f"{_x(x):.2f},{_y(y):.2f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _x(value: float) -> float:
    return LEFT + SIDE * value


def _y(value: float) -> float:
    return TOP + SIDE * (1 - value)
