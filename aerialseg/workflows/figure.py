"""The picture that tells at a glance how good a mask is: scene, truth, prediction, and where the two differ."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rasterio.windows import Window

from aerialseg.counts import Confusion
from aerialseg.files import write_bytes
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.labels import decide_rule, read_mask
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SIDE = 1000
"""Of a larger scene the middle is shown, this many pixels square."""
PANEL = 500
"""Pixels along each side of a panel."""
BUILDING, GROUND = (245, 245, 240), (58, 62, 68)
FOUND, MISSED, INVENTED = (222, 222, 222), (230, 120, 0), (40, 150, 230)
"""Orange and blue on grey: told apart by people who do not see red and green as two colours."""
GREY = 0.42
"""Brightness of the scene behind the errors."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One piece of ground: pixels uint8 (3, rows, cols), true and predicted building, and where both are known."""

    pixels: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def draw_comparison(path: Path, name: str, compared: Comparison) -> None:
    """Write a PNG of scene | truth | prediction | errors, with a legend and the IoU of what is shown."""
    from matplotlib.figure import Figure

    confusion = Confusion.of(compared.prediction, compared.truth, compared.valid)
    titles = (f"scene {name}", "true buildings", "predicted buildings", f"errors: IoU {confusion.iou:.2f}")
    figure = Figure(figsize=(4 * PANEL / 100 + 0.5, PANEL / 100 + 0.75), dpi=100, facecolor="white")
    for place, (title, panel) in enumerate(zip(titles, _panels(compared), strict=True)):
        axes = figure.add_axes((0.005 + place * 0.2488, 0.062, 0.2438, 0.8696))
        axes.imshow(panel, interpolation="none")
        axes.set_axis_off()
        axes.set_title(title, fontsize=15, pad=7)
    _add_legend(figure.axes[-1])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    write_bytes(path, buffer.getvalue())


def read_comparison(scene: Path, truth: Path, prediction: Path) -> Comparison:
    """Read the middle of a scene, three bands of it, with its two masks, which lie on the scene's grid."""
    source = inspect_scene(scene)
    side = min(source.box.height, source.box.width, SIDE)
    window = Window((source.box.width - side) // 2, (source.box.height - side) // 2, side, side)
    with open_raster(scene) as dataset:
        pixels, _ = read_window(dataset, source, window)
    pixels = pixels[:3] if pixels.shape[0] >= 3 else np.repeat(pixels[:1], 3, axis=0)
    masks = []
    for path in (truth, prediction):
        with open_raster(path) as dataset:
            masks.append(read_mask(dataset, decide_rule([path]), window))
    (true, labelled), (predicted, known) = masks
    return Comparison(pixels, true, predicted, labelled & known)


def _panels(compared: Comparison) -> list[Image.Image]:
    scene = compared.pixels.transpose(1, 2, 0)
    grey = np.repeat(scene.mean(axis=2, keepdims=True) * GREY, 3, axis=2)
    errors = grey.astype(np.uint8)
    errors[compared.truth & compared.prediction] = FOUND
    errors[compared.truth & ~compared.prediction & compared.valid] = MISSED
    errors[~compared.truth & compared.prediction & compared.valid] = INVENTED
    return [_small(panel) for panel in (scene, _flat(compared.truth), _flat(compared.prediction), errors)]


def _flat(building: NDArray[np.bool_]) -> NDArray[np.uint8]:
    colours = np.array((GROUND, BUILDING), np.uint8)
    flat: NDArray[np.uint8] = colours[building.astype(np.intp)]
    return flat


def _small(panel: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.BOX)


def _add_legend(axes: Axes) -> None:
    from matplotlib.patches import Patch

    entries = (("found", FOUND), ("missed", MISSED), ("not a building", INVENTED))
    patches = [
        Patch(facecolor=tuple(part / 255 for part in colour), edgecolor="black", linewidth=0.6, label=label)
        for label, colour in entries
    ]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=12,
        handlelength=1.1, columnspacing=1.2, borderaxespad=0.25,
    )  # fmt: skip
