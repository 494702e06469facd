"""`aerialseg calibrate`: a threshold and a temperature that suit some scenes, in a new model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli import options

if TYPE_CHECKING:
    from aerialseg.workflows.calibrate import CalibrateReport


def calibrate(
    model: Annotated[Path, typer.Argument(help="A model file, or the folder of a training run.", show_default=False)],
    scenes: Annotated[
        list[str], typer.Option("--scenes", help="Scenes the model was not trained on.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new model file.", show_default=False)],
    masks: Annotated[
        list[str] | None,
        typer.Option("--masks", help="Their true masks, or vector files.", show_default="beside the scenes"),
    ] = None,
    mask_pattern: options.MaskPattern = None,
    building_values: options.BuildingValues = None,
    building_colour: options.BuildingColour = None,
    ignore_values: options.IgnoreValues = None,
    mask_threshold: options.MaskThreshold = None,
    where: options.Where = None,
    layer: options.Layer = None,
    labelled_area: options.LabelledArea = None,
    device: options.Device = "auto",
    allow_ungeoreferenced: options.AllowUngeoreferenced = False,
    max_pixels: options.MaxPixels = 1e10,
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace the new file if it exists.")] = False,
    as_json: options.ReportAsJson = False,
) -> None:
    """Fit a model's threshold and temperature to scenes.

    They are written into a new model file.

    The temperature makes probabilities mean what they say, the threshold makes the best masks by pooled IoU; predict
    uses both. Take scenes that had no part in training, and others again to score the result. One city's scenes make a
    model for that city.

    \b
    Examples:
      aerialseg calibrate runs/unet --scenes val/images --masks val/gt -o calibrated.safetensors
      aerialseg calibrate runs/unet --scenes 'val/images/austin*.tif' --masks val/gt -o austin.safetensors
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.evaluation.scores import EvaluateOptions
    from aerialseg.geo.inspection import Access
    from aerialseg.geo.labels import find_labels
    from aerialseg.geo.scenes import case_note, find_scenes
    from aerialseg.prediction.options import PredictOptions
    from aerialseg.workflows.calibrate import CalibrateOptions, calibrate_model

    rule = options.mask_rule(building_values, ignore_values, mask_threshold, building_colour)
    access = Access(allow_ungeoreferenced, max_pixels)
    truth = EvaluateOptions(rule, access, where=where, labelled_area=labelled_area)
    found, vectors = find_labels(find_scenes(scenes), masks or (), mask_pattern, layer=layer)
    chosen = CalibrateOptions(truth, vectors, overwrite, PredictOptions(device=device, access=access))
    with console_progress() as progress:
        if (note := case_note(found, mask_pattern)) is not None:
            progress.say(note)
        report = calibrate_model(found, model, out, chosen, progress)
    print_json(report.to_json()) if as_json else _print(report)


def _print(report: CalibrateReport) -> None:
    from aerialseg.cli.console import number, print_table
    from aerialseg.errors import one_line

    rows = []
    for name, judged in (("before", report.before), ("after", report.after)):
        values = (judged.threshold, judged.temperature, judged.iou, judged.log_loss, judged.calibration_error)
        rows.append([name, *map(number, values)])
    title = f"{one_line(report.out)}, from {report.scenes} {'scene' if report.scenes == 1 else 'scenes'}"
    print_table(title, ["", "threshold", "temperature", "iou", "log loss", "calibration error"], rows)
