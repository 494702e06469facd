"""Writing the report's page: which scenes are shown, what is known of the model, and where the file may go."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, one_line
from aerialseg.evaluation.claims import compare_claim
from aerialseg.evaluation.page import OURS, PageContent, render_page
from aerialseg.evaluation.pictures import draw_views
from aerialseg.evaluation.scores import EvaluateOptions, decide_rules
from aerialseg.files import prepare_output_folder, refuse_foreign, refuse_input_as_output, sha256_of, write_text
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster
from aerialseg.geo.scenes import check_same_grid, find_scenes
from aerialseg.models.package import ModelCard, read_card

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aerialseg.evaluation.pairs import Pair
    from aerialseg.evaluation.results import EvaluationReport
    from aerialseg.progress import Progress

WORST, BEST = 3, 2
"""Scenes that are shown as pictures."""
SHA_SHOWN = 16


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
    """Raise before any counting when the page cannot be written, or would replace an input or a stranger's file."""
    refuse_input_as_output([file for pair in pairs for file in pair.files], [path])
    prepare_output_folder(path.parent)
    refuse_foreign(path, ours=is_our_page(path), overwrite=overwrite)


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


def is_our_page(path: Path) -> bool:
    """Return whether the file is a page that this program wrote."""
    try:
        with path.open("rb") as stream:
            return OURS.encode() in stream.read(200)
    except OSError:
        return False
