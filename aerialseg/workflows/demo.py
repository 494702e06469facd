"""The whole job on drawn scenes, small enough for two processor cores and five minutes.

Draws scenes, tiles most of them, trains a small network, and maps a scene that was neither trained nor validated on;
the same network untrained maps it too, to compare. Every step is the verb that users call, with the same files left
behind; run again, each step keeps what it finds done. A picture tells at a glance how good the mask is: scene, truth,
prediction, and where the two differ.
"""

from __future__ import annotations

import io
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rasterio.windows import Window

from aerialseg import __version__
from aerialseg.config import TrainConfig, differences, load_config
from aerialseg.counts import Confusion
from aerialseg.drawing import FLAT_FOUND, INVENTED, MISSED, as_rgb, encode_png, flat_errors, flat_mask
from aerialseg.errors import BadDataError, ConfigError, ModelError
from aerialseg.evaluation.scores import evaluate_scenes
from aerialseg.files import exists, is_regular, prepare_output_folder, require_space, write_bytes, write_json
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.masks import decide_rule, read_mask
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import check_overwrite
from aerialseg.geo.raster import read_window
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.build import tile_scenes
from aerialseg.geo.tiles.plan import TilingOptions
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Progress, Silent
from aerialseg.sample import write_sample
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.sample.districts import Style
    from aerialseg.training.report import TrainReport

    Flags = NDArray[np.bool_]

CONFIG = "demo"
CITY: Style = "vienna"
NUMBERS, HELD_OUT = (1, *range(6, 14)), 2
"""By Inria's rule scene 1 validates and the others train; scene 2 decides nothing."""
SIZE = TILE = 1000
DISK_BYTES = 400_000_000
"""Disk that all of it takes, most of it the checkpoints of the training."""
MINUTES = 3.5
LEAST_SHARE = 0.5
"""Of the configured steps; with fewer there would be nothing to look at."""
SIDE = 1000
"""Of a larger scene the middle is shown, this many pixels square."""
PANEL = 500
"""Pixels along each side of a panel."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo found and where it left everything."""

    out: Path
    scene: Scene
    held_out: Confusion
    untrained: Confusion
    training: TrainReport
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step, and `total`."""

    @property
    def picture(self) -> Path:
        """Scene, truth, prediction and errors side by side."""
        return self.out / "picture.png"

    @property
    def mask(self) -> Path:
        """The mask that was predicted for the held-out scene."""
        return self.out / "out" / f"{self.scene.name}.tif"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; a score that is not defined is null."""
        names = ("iou", "accuracy", "precision", "recall", "f1")
        scores = {
            key: {name: getattr(counts, name) for name in names}
            for key, counts in (("held_out", self.held_out), ("untrained", self.untrained))
        }
        run = self.training
        values = {
            "aerialseg": __version__,
            "command": "demo",
            "scene": self.scene.name,
            **scores,
            "validation": {"iou": run.best_iou, "threshold": run.threshold},
            "training": {"steps": run.steps, "epochs": run.epochs, "device": run.device, "precision": run.precision},
            "seconds": {step: round(seconds, 1) for step, seconds in self.seconds.items()},
        }
        plain: dict[str, Any] = to_values(values)
        return plain


def run_demo(
    out: Path,
    *,
    minutes: float = MINUTES,
    device: str = "auto",
    overrides: Sequence[str] = (),
    progress: Progress = Silent(),
) -> DemoReport:
    """Do the whole job below `out` and return the scores on the held-out scene.

    `minutes` is what training may take: on a slow machine it takes fewer steps, down to half, on any other as many as
    the shipped configuration `demo` says. Raises what the verbs raise.
    """
    # Threads that spin while they wait made a step six times slower beside one other busy program on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    began, seconds = time.monotonic(), dict[str, float]()
    config = load_config(CONFIG, list(overrides))
    prepare_output_folder(out)
    for name in ("report.json", "picture.png"):
        check_overwrite(out / name, "demo report", overwrite=False, marked=out / "report.json")
    if not exists(out / "report.json"):
        require_space(out, DISK_BYTES - sum(path.stat().st_size for path in out.rglob("*") if is_regular(path)))
    with _timed(seconds, "draw"):
        wanted = [(CITY, number) for number in (*NUMBERS, HELD_OUT)]
        paths = write_sample(out / "scenes", wanted, SIZE, progress=progress)
        masks = out / "scenes" / "train" / "gt"
        *others, held_out = (Scene(path.stem, path, masks / path.name) for path in paths)
    with _timed(seconds, "tile"):
        report = tile_scenes(others, out / "tiles", TilingOptions(size=TILE, split="inria"), progress)
        progress.say(report.summary())
    with _timed(seconds, "train"):
        training = _train(out, _within(minutes, config, out / "run", device, progress), device, progress)
    with _timed(seconds, "predict"):
        trained = _map(held_out, training.model, out / "out", device, progress)
    with _timed(seconds, "untrained"):
        model = _save_untrained(training.model, out / "untrained" / "model.safetensors", config.run.seed)
        untrained = _map(held_out, model, out / "untrained" / "out", device, progress)
    with _timed(seconds, "picture"):
        truth = out / "truth" / held_out.image.name
        write_bytes(truth, (masks / truth.name).read_bytes())
        demo = DemoReport(out, held_out, trained, untrained, training)
        draw_picture(demo.picture, held_out.name, *read_picture(held_out.image, truth, demo.mask))
    demo = replace(demo, seconds={**seconds, "total": time.monotonic() - began})
    write_json(out / "report.json", demo.to_json())
    return demo


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Keep the wall time inside as that of `step`."""
    began = time.monotonic()
    yield
    seconds[step] = time.monotonic() - began


def _within(minutes: float, config: TrainConfig, run: Path, device: str, progress: Progress) -> TrainConfig:
    """Return the configuration, with fewer steps if a trial shows that they would take longer than `minutes`.

    A training that was begun with fewer steps, and else the same, goes on with those.
    """
    from aerialseg.workflows.bench_train import seconds_per_step

    wanted, epochs = config.schedule.steps_per_epoch, config.schedule.epochs
    try:
        begun = load_config(run / "config.toml")
    except ConfigError:  # there is none that can be read
        begun = None
    if begun is not None and begun.schedule.steps_per_epoch <= wanted:
        shorter = _with_steps(config, begun.schedule.steps_per_epoch)
        if not differences(begun, shorter):
            return shorter
    fitting = int(minutes * 60 / seconds_per_step(config, device) / epochs)
    if fitting >= wanted:
        return config
    steps = max(fitting, math.ceil(LEAST_SHARE * wanted))
    progress.say(
        f"{wanted * epochs} training steps would take longer than {minutes:g} minutes here: taking {steps * epochs}, so"
        " expect a worse mask; --minutes gives more time"
    )
    return _with_steps(config, steps)


def _with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    return config.model_copy(update={"schedule": config.schedule.model_copy(update={"steps_per_epoch": steps})})


def _train(out: Path, config: TrainConfig, device: str, progress: Progress) -> TrainReport:
    """Train, or go on with a training that was stopped, or begin anew when it was another one."""
    from aerialseg.training.loop import train
    from aerialseg.training.run_folder import TrainOptions

    run, tiles = out / "run", out / "tiles"
    try:
        return train(tiles, config, run, options=TrainOptions(device=device, resume=True), progress=progress)
    except (BadDataError, ConfigError, ModelError) as error:
        progress.say(f"training anew: {error}")
    return train(tiles, config, run, options=TrainOptions(device=device, overwrite=True), progress=progress)


def _map(scene: Scene, model: Path, out: Path, device: str, progress: Progress) -> Confusion:
    """Predict one scene and return how its mask compares with the truth."""
    predict_scenes([scene], model, out, PredictOptions(device=device), progress).raise_failures()
    return evaluate_scenes([scene], out, progress=progress).overall


def _save_untrained(trained: Path, path: Path, seed: int) -> Path:
    """Save the trained model's network with the random weights its training began with."""
    import torch

    from aerialseg.models.build import Segmenter, build_network
    from aerialseg.models.package import read_card, save_model, spec_of

    card = replace(read_card(trained), threshold=0.5, training={}, scores={})
    torch.manual_seed(seed)
    save_model(path, Segmenter(build_network(spec_of(card)), card.mean, card.std), card)
    return path


def draw_picture(
    path: Path, name: str, pixels: NDArray[np.uint8], truth: Flags, prediction: Flags, valid: Flags
) -> None:
    """Write a PNG of scene | truth | prediction | errors, with a legend and the IoU of what is shown.

    `pixels` are uint8 (bands, rows, cols); the masks say where building is true, where it is predicted, and where both
    are known.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    confusion = Confusion.of(prediction, truth, valid)
    scene = as_rgb(np.moveaxis(pixels, 0, -1))
    errors = flat_errors(scene, truth, prediction, valid)
    panels = (scene, flat_mask(truth), flat_mask(prediction), errors)
    titles = (f"scene {name}", "true buildings", "predicted buildings", f"errors: IoU {confusion.iou:.2f}")
    figure = Figure(figsize=(4 * PANEL / 100 + 0.5, PANEL / 100 + 0.75), dpi=100, facecolor="white")
    for place, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        axes = figure.add_axes((0.005 + place * 0.2488, 0.062, 0.2438, 0.8696))
        small = Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.BOX)
        axes.imshow(small, interpolation="none")
        axes.set_axis_off()
        axes.set_title(title, fontsize=15, pad=7)
    entries = (("found", FLAT_FOUND), ("missed", MISSED), ("not a building", INVENTED))
    patches = [
        Patch(facecolor=tuple(part / 255 for part in colour), edgecolor="black", linewidth=0.6, label=label)
        for label, colour in entries
    ]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=12,
        handlelength=1.1, columnspacing=1.2, borderaxespad=0.25,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, encode_png(np.asarray(Image.open(buffer).convert("RGB")), 256))


def read_picture(scene: Path, truth: Path, prediction: Path) -> tuple[NDArray[np.uint8], Flags, Flags, Flags]:
    """Read the middle of a scene with its two masks, which lie on the scene's grid, as `draw_picture` takes them."""
    source = inspect_scene(scene)
    side = min(source.box.height, source.box.width, SIDE)
    window = Window((source.box.width - side) // 2, (source.box.height - side) // 2, side, side)
    with open_raster(scene) as dataset:
        pixels, _ = read_window(dataset, source, window)
    masks = []
    for path in (truth, prediction):
        with open_raster(path) as dataset:
            masks.append(read_mask(dataset, decide_rule([path]), window))
    (true, labelled), (predicted, known) = masks
    return pixels, true, predicted, labelled & known
