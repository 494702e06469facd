"""The page of an evaluation, without its markup: scores, curves, pictures of what is wrong, and the model.

What the page shows is gathered here and set by the templates beside this module; everything lies inside the page, and
equal content gives equal bytes. Which scenes are shown, what is known of the model that made the masks, and whether its
own scores were taken on ground like this are decided here, too.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from rasterio.windows import Window

from aerialseg import __version__, drawing
from aerialseg.errors import AerialsegError, one_line
from aerialseg.evaluation.pairs import open_pair
from aerialseg.evaluation.results import FEW, calibration_error, reliability, threshold_curve
from aerialseg.evaluation.scores import EvaluateOptions, decide_rules
from aerialseg.files import is_regular, prepare_output_folder, refuse_input_as_output, require_space, sha256_of
from aerialseg.geo.geobox import GeoBox, check_same_grid
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import PAGE_COMMENT, check_overwrite
from aerialseg.geo.scenes import find_scenes
from aerialseg.models.package import ModelCard, read_card
from aerialseg.progress import Silent
from aerialseg.values import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from aerialseg.counts import ScoreHistogram
    from aerialseg.evaluation.pairs import Pair, PairStrip, Rules
    from aerialseg.evaluation.results import Counts, EvaluationReport
    from aerialseg.geo.inspection import Access
    from aerialseg.progress import Progress

    Grid = tuple[list[str], list[tuple[str, list[str]]]]
    """A table: its columns, and the name and the cells of each row."""

WORST, BEST = 3, 2
"""Scenes that are shown as pictures."""
PAGE_BYTES, SCENE_BYTES = 2_000_000, 2000
"""Disk that a page with its pictures takes at most, and a scene's lines in it."""
SHA_SHOWN = 16
MOST_TEXT = 200
"""Characters that are shown of a checksum, and of a fact of the training."""
TAG_LABELS = {
    "AERIALSEG_MODEL_SHA256": "SHA-256", "AERIALSEG_THRESHOLD": "threshold", "AERIALSEG_VERSION": "written by"
}  # fmt: skip
"""What a mask of ours says about itself, and what that is called on the page."""
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
OVERVIEW = 560
"""Pixels along the longer side of the whole scene's picture."""
CLOSE_UP = 400
"""Pixels along the sides of the piece that is shown as it is."""
COLOURS = 96
"""In a picture's palette: few, for the page holds all of them."""
SIZE_LABELS = ("below 50 m²", "50 to 200 m²", "above 200 m²", "size unknown")
UNLIKE = 1.5
"""A share this many times outside the implied range is unlike it."""
LEGEND = (
    (drawing.FOUND, "found"),
    (drawing.MISSED, "missed"),
    (drawing.INVENTED, "invented"),
    (drawing.UNKNOWN, "not counted"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Two PNG files, and where the close-up lies."""

    overview: bytes
    close_up: bytes
    row: int
    col: int
    errors: int
    """Wrong pixels in the close-up."""


def check_report_path(path: Path, pairs: Sequence[Pair], *, overwrite: bool) -> None:
    """Raise before any counting when the page cannot be written, or would replace an input or a foreign file."""
    refuse_input_as_output([file for pair in pairs for file in pair.files], [path])
    prepare_output_folder(path.parent)
    check_overwrite(path, "page", overwrite=overwrite)
    require_space(path.parent, PAGE_BYTES + SCENE_BYTES * len(pairs))


def make_report(
    report: EvaluationReport,
    pairs: Sequence[Pair],
    scored: EvaluateOptions,
    scenes: Sequence[str | Path],
    command: str,
    progress: Progress,
) -> str:
    """Return the page, with pictures of the worst and the best scenes.

    `scored` says how the truth was read for the scores; `scenes` are files, folders or globs of the scenes to be shown
    behind the errors; `command` is the command line that makes the page again, "" leaves it out. Raises what
    `find_scenes` raises.
    """
    chosen = _choose(report)
    images = _match_scenes(pairs, scenes, progress) if scenes else {}
    rules, _ = decide_rules(pairs, replace(scored, details=False))
    by_name = {pair.name: pair for pair in pairs}
    views = {}
    progress.start("draw", len(chosen), "scene")
    for name in chosen:
        views[name] = draw_views(by_name[name], rules, images.get(name), scored.access, progress)
        progress.advance(1, note=one_line(name))
    progress.finish()
    return render_page(report, views, describe_model(pairs), command, over_scenes=bool(images))


def describe_model(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Return what the predictions say of the model that made them, as label -> value; empty when they say nothing."""
    first = next(iter(pairs))
    found = _of_report(first)
    if not found:
        with open_raster(first.prediction) as dataset:
            tags = dataset.tags()
        found = {label: str(tags[name])[:SHA_SHOWN] for name, label in TAG_LABELS.items() if name in tags}
    card = _read_same_card(found)
    if card is None:
        return found
    scores = {
        f"{name} (in training)": f"{value:.4f}" for name, value in card.scores.items() if isinstance(value, float)
    }
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in card.training.items()}
    training = {
        f"training: {name}": text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."
        for name, text in words.items()
    }
    licence = {"licence of its weights": card.licence} if card.licence else {}
    network = {"architecture": card.architecture, "encoder": card.encoder, "bands": card.bands}
    return found | network | licence | scores | training


def check_claims(pairs: Sequence[Pair], truth_share: float) -> list[str]:
    """Return a warning when the scores in the model's own card were taken on ground unlike the truth's."""
    known = _of_report(pairs[0])
    card = _read_same_card(known)
    return [] if card is None else compare_claim(str(Path(known["model file"])), card.scores, truth_share)


def _read_same_card(known: Mapping[str, Any]) -> ModelCard | None:
    """Return the card of the model file in a description; None when that file is gone, another one now, or damaged."""
    path = Path(str(known.get("model file", "")))
    try:
        same = is_regular(path) and sha256_of(path)[:SHA_SHOWN] == known.get("SHA-256")
        return read_card(path) if same else None
    except AerialsegError:
        return None


def _of_report(pair: Pair) -> dict[str, Any]:
    """Read what `predict` wrote into report.json beside the masks."""
    root = pair.prediction.absolute().parents[min(pair.name.count("/"), len(pair.prediction.absolute().parents) - 1)]
    try:
        written = read_json(root / "report.json")
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


def draw_views(
    pair: Pair, rules: Rules, scene: Path | None, access: Access | None = None, progress: Progress = Silent()
) -> Views:
    """Draw a pair, over its scene where that is given and can be shown: all of it small, the worst piece as it is.

    Memory does not grow with the scene's area. `progress` is only asked whether to stop.
    """
    with open_pair(pair, rules) as (box, strips):
        size = box.height, box.width
        cell = max(1, -(-max(size) // OVERVIEW))
        whole = Window(0, 0, box.width, box.height)
        small = drawing.sum_errors(_fates(strips, whole, progress), cell, size)
    height, width = (min(CLOSE_UP, length) for length in size)
    row, col = _worst(small, height, width, size)
    window = Window(col, row, width, height)
    with open_pair(pair, rules) as (_, strips):
        large = drawing.sum_errors(_fates(strips, window, progress), 1, (height, width))
    pictures = []
    for part, cells in ((whole, small), (window, large)):
        brightness = None if scene is None else drawing.read_brightness(scene, part, cells.cell, access)
        pictures.append(drawing.draw_errors(cells, brightness))
    drawing.mark_rectangle(pictures[0], row // cell, col // cell, (row + height) // cell, (col + width) // cell)
    overview, close_up = (drawing.encode_png(picture, COLOURS) for picture in pictures)
    return Views(overview, close_up, row, col, int(large.kinds[1:].sum()))


def _fates(strips: Iterable[PairStrip], window: Window, progress: Progress) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield the strips' parts in the window: the first row, and where pixels are found, missed, invented and known."""
    (top, bottom), (left, right) = window.toranges()
    for strip in strips:
        progress.advance(0)
        if strip.row >= bottom:
            return
        inside = np.s_[max(0, top - strip.row) : max(0, bottom - strip.row), left:right]
        building, truth, valid = (mask[inside] for mask in (strip.building, strip.truth, strip.valid))
        if len(building):
            row = max(strip.row, top) - top
            yield row, np.stack([truth & building, truth & ~building, building & ~truth, valid])


def _worst(small: drawing.ErrorCells, height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return where a window of height x width pixels holds the most wrong pixels, on a lattice of cells."""
    wrong = np.pad(small.kinds[1:].sum(axis=0).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    down, across = max(1, height // small.cell), max(1, width // small.cell)
    found = wrong[down:, across:] - wrong[:-down, across:] - wrong[down:, :-across] + wrong[:-down, :-across]
    row, col = np.unravel_index(int(found.argmax()), found.shape)
    return min(int(row) * small.cell, size[0] - height), min(int(col) * small.cell, size[1] - width)


def render_page(
    report: EvaluationReport,
    views: Mapping[str, Views] | None = None,
    model: Mapping[str, Any] | None = None,
    command: str = "",
    *,
    over_scenes: bool = False,
) -> str:
    """Return the whole page as HTML5; the same content gives the same bytes.

    `views` are pictures by scene name, the worst scene first, with `over_scenes` over their pixels; `model` is what is
    known of the model, as label -> value; `command` is the command line that makes the page again, "" leaves it out.
    """
    many = len(report.results)
    everything, intervals = report.everything, report.intervals()
    scores, by_name = everything.scores(), {result.name: result for result in report.results}
    shown = {"intervals": intervals, "polygons": report.polygons, "probabilities": report.histogram}
    objects, sizes = everything.objects, []
    if objects is not None and any(objects.true):
        labels = SIZE_LABELS if objects.true[-1] + objects.predicted[-1] else SIZE_LABELS[:-1]
        sizes = [*((label, objects.of_size(index)) for index, label in enumerate(labels)), ("all", objects)]
    headline = [("building IoU, pooled", scores["iou"], intervals.get("iou"))]
    headline += [(HEADLINE_LABELS[name], scores[name], intervals.get(name)) for name in HEADLINE if name in scores]
    return render(
        "report.html.j2",
        title=f"Building masks of {many} {'scene' if many == 1 else 'scenes'}, evaluated",
        report=report,
        headline=headline,
        intervals=intervals,
        few=many < FEW,
        by_city=_grid([*report.by_city.items(), ("overall", everything)]),
        by_scene=_grid([(result.name, result.counts) for result in report.results]),
        folded=many > FOLDED,
        views=[(name, by_name[name].confusion.iou, pictures) for name, pictures in (views or {}).items()],
        over_scenes=over_scenes,
        legend=LEGEND,
        objects=objects,
        sizes=sizes,
        polygons=report.polygons,
        curves=_curves(report.histogram),
        model=model or {},
        known={*scores, *(name for name, value in shown.items() if value)},
        command=command,
    )


def render(template: str, **values: Any) -> str:
    """Return a page of the templates beside this module; every value is escaped, a value that it lacks an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("aerialseg.evaluation"),
        autoescape=True,
        finalize=_as_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {
        "number": number, "commas": lambda count: f"{count:,}", "base64": lambda png: base64.b64encode(png).decode()
    }  # fmt: skip
    return pages.get_template(template).render(mark=Markup(PAGE_COMMENT), version=__version__, **values)


def _as_html(value: object) -> Markup:
    """Return a value as HTML on one line, whatever it holds; what is HTML already stays."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(one_line(f"{value:.4g}" if isinstance(value, float) else str(value))))


def number(value: float, digits: int = 4, sign: str = "") -> str:
    """Return a number as HTML, a dash where it is not defined; with the sign "+" also those above 0 have one."""
    return Markup("&ndash;") if value != value else f"{value:{sign}.{digits}f}"


def _grid(rows: Sequence[tuple[str, Counts]]) -> Grid:
    """Return the scores of each row, those of COLUMNS that the last one has."""
    scored = [(name, counts.scores()) for name, counts in rows]
    columns = [name for name in COLUMNS if name in scored[-1][1]]
    cells = [(name, [number(scores[column]) for column in columns]) for name, scores in scored]
    return [COLUMNS[column] for column in columns], cells


def _curves(histogram: ScoreHistogram | None) -> dict[str, Any] | None:
    """Return the points of both charts, and what stands below them; None when there are no probabilities."""
    if histogram is None or not histogram.counts.sum():
        return None
    best, best_iou = histogram.best_threshold()
    known = [(part.probability, part.building, part.pixels) for part in reliability(histogram) if part.pixels]
    scored = {
        name: [(at, score) for at, counts in threshold_curve(histogram) if (score := getattr(counts, name)) == score]
        for name in ("iou", "precision", "recall")
    }
    pixels, error = sum(part[2] for part in known), calibration_error(histogram)
    return {"reliable": known, "pixels": pixels, "error": error, "best": best, "best_iou": best_iou, **scored}


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
