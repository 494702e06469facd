"""A model's temperature and threshold, fitted on scenes with masks and written into a new model file.

The scenes are predicted as they are, the temperature is fitted to the stored probabilities, and if it matters they are
predicted again with it, for the network's logits are blended after the temperature: the second run shows what it is
worth and gives the threshold. Nothing else of the model changes, and the old file is never touched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, one_line
from aerialseg.evaluation.pairs import pair_scenes
from aerialseg.evaluation.results import at_limit, calibration_error, fit_temperature, log_loss
from aerialseg.evaluation.scores import EvaluateOptions, check_truth, count_probabilities
from aerialseg.files import prepare_output_folder, refuse_input_as_output, require_space, sha256_of, working_folder
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import check_overwrite
from aerialseg.geo.vector_files import split_layer
from aerialseg.models.package import find_model, load_model, read_card, save_model
from aerialseg.prediction.checks import disk_bytes
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.counts import ScoreHistogram
    from aerialseg.geo.scenes import Scene
    from aerialseg.progress import Progress

WORTH_IT = 0.02
"""A temperature that differs less from 1 is left at 1."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How the scenes are predicted and read."""

    truth: EvaluateOptions = field(default_factory=EvaluateOptions)
    """What the truth's files mean."""
    vectors: tuple[Path, ...] = ()
    """Vector files whose polygons are the truth; else the scenes have masks."""
    overwrite: bool = False
    predict: PredictOptions = field(default_factory=PredictOptions)


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """What a model's probabilities are worth on the scenes."""

    threshold: float
    temperature: float
    iou: float
    """At the threshold."""
    log_loss: float
    calibration_error: float

    @classmethod
    def of(cls, histogram: ScoreHistogram, threshold: float, temperature: float) -> CalibrationScores:
        """Judge a histogram of probabilities that were made with `temperature`."""
        iou = histogram.confusion(threshold).iou
        return cls(threshold, temperature, iou, log_loss(histogram), calibration_error(histogram))

    def to_json(self) -> dict[str, float | None]:
        """Return plain values."""
        values: dict[str, float | None] = to_values(self)
        values["expected_calibration_error"] = values.pop("calibration_error")
        return values


@dataclass(frozen=True, slots=True)
class CalibrateReport:
    """What changed."""

    model: Path
    out: Path
    scenes: int
    before: CalibrationScores
    after: CalibrationScores
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        paths = {"model": str(self.model), "out": str(self.out), "scenes": self.scenes}
        judged = {"before": self.before.to_json(), "after": self.after.to_json()}
        return {**paths, **judged, "warnings": list(self.warnings)}


def calibrate_model(
    scenes: Sequence[Scene], model: Path, out: Path, options: CalibrateOptions, progress: Progress = Silent()
) -> CalibrateReport:
    """Write the model at `model` to `out` with the temperature and threshold that suit `scenes`, given their truth.

    Raises UsageError when `out` is the model or an input, OutputError when it exists, BadDataError before anything is
    predicted when a mask lies on another grid than its scene, later when the truth holds only one class, and what
    predicting and counting raise.
    """
    model = find_model(model)
    rasters = (path for scene in scenes for path in (scene.image, scene.mask))
    vectors = [split_layer(path)[0] for path in (*options.vectors, options.truth.labelled_area) if path is not None]
    inputs = (model, *rasters, *vectors)
    refuse_input_as_output([path for path in inputs if path is not None], [out])
    prepare_output_folder(out.parent)
    check_overwrite(out, overwrite=options.overwrite)
    card = read_card(model)
    require_space(out.parent, _disk_bytes(scenes, model, options))
    check_truth(pair_scenes(scenes, vectors=options.vectors), options.truth, progress)
    warnings: tuple[str, ...] = ()
    with working_folder(out.parent) as work:
        first = _histogram(scenes, model, work / "first", options, progress)
        before = CalibrationScores.of(first, card.threshold, card.temperature)
        after = CalibrationScores.of(first, first.best_threshold()[0], card.temperature)
        factor = fit_temperature(first)
        if at_limit(factor):
            warnings = (
                f"{one_line(model)}: no temperature fits: the best of those tried is the last, {factor:g}, so the"
                " probabilities say little of these masks; were the right masks taken?",
            )
            progress.say(f"warning: {warnings[0]}")
        if abs(factor - 1) >= WORTH_IT:
            trial = work / "trial.safetensors"
            _save(model, trial, before, replace(before, temperature=card.temperature * factor), len(scenes))
            second = _histogram(scenes, trial, work / "second", options, progress)
            other = CalibrationScores.of(second, second.best_threshold()[0], card.temperature * factor)
            after = other if other.log_loss < after.log_loss else after
    _save(model, out, before, after, len(scenes))
    return CalibrateReport(model, out, len(scenes), before, after, warnings)


def _disk_bytes(scenes: Sequence[Scene], model: Path, options: CalibrateOptions) -> int:
    """Return about how much disk the scenes' probabilities take while they are judged, and two models."""
    pixels = []
    for scene in scenes:
        with open_raster(scene.image) as dataset:
            pixels.append(dataset.height * dataset.width)
    return disk_bytes(replace(options.predict, probability=True), pixels, "cpu") + 2 * model.stat().st_size


def _histogram(
    scenes: Sequence[Scene], model: Path, folder: Path, options: CalibrateOptions, progress: Progress
) -> ScoreHistogram:
    """Return probability by truth of the scenes' pixels under a model; raises BadDataError for masks of one class."""
    chosen = replace(options.predict, probability=True)
    predict_scenes(scenes, model, folder, chosen, progress).raise_failures()
    histogram = count_probabilities(pair_scenes(scenes, folder, options.vectors), options.truth, progress)
    shutil.rmtree(folder, ignore_errors=True)
    background, building = (int(count) for count in histogram.counts.sum(axis=1))
    if not background or not building:
        missing = "building" if not building else "background"
        raise BadDataError(f"{one_line(scenes[0].name)} and the other masks hold no {missing}; give scenes with both")
    return histogram


def _save(model: Path, out: Path, before: CalibrationScores, after: CalibrationScores, scenes: int) -> None:
    """Write the model with a judgement's temperature and threshold; how they came about goes into the card."""
    segmenter, card = load_model(model)
    told = {"from": sha256_of(model), "scenes": scenes, "before": before.to_json(), "after": after.to_json()}
    training = {**card.training, "calibration": told}
    save_model(
        out, segmenter, replace(card, threshold=after.threshold, temperature=after.temperature, training=training)
    )
