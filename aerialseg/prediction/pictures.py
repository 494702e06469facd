"""Drawing a scene that was made small: its mask's outline, its probability, and many of them on one sheet.

Arrays in, PNG files out. The typeface is the one that matplotlib brings, so that equal arrays give equal bytes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.files import write_bytes
from aerialseg.geo.ownership import PREVIEW_SOFTWARE
from aerialseg.geo.qgis.styles import MASK_CLASSES, PROBABILITY_RAMP
from aerialseg.geo.resampling import shrink, small_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

THUMBNAIL, SMALLEST, SHEET_SIDE = 320, 64, 4096
GAP, CAPTION = 6, 22
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
OUTLINE = MASK_CLASSES[1].colour[:3]


@dataclass(frozen=True, slots=True)
class Looks:
    """A scene made small: its pixels (rows, cols, 3), and of each pixel the shares that are building and valid."""

    pixels: Picture
    building: NDArray[np.float64]
    valid: NDArray[np.float64]
    probability: NDArray[np.float64] | None
    """0..1; None when there is no such raster."""


def draw(looks: Looks, name: str) -> Picture:
    """Return the scene with its mask's outline, the probability beside it when there is one, and a line of text."""
    share = looks.building.sum() / max(looks.valid.sum(), 1e-9)
    return _framed(_panels(looks), f"{name}: {share:.1%} building")


def draw_thumbnail(looks: Looks, count: int) -> Picture:
    """Return what a sheet of `count` scenes shows of one; smaller, the more there are."""
    side = max(SMALLEST, min(THUMBNAIL, SHEET_SIDE // _columns(count)))
    rows, cols = looks.valid.shape
    shape = small_shape(rows, cols, side)
    colours = np.moveaxis(shrink(np.moveaxis(looks.pixels, -1, 0), shape), 0, -1)
    layers = [looks.building, looks.valid, *([] if looks.probability is None else [looks.probability])]
    building, valid, *probability = shrink(np.stack(layers), shape)
    small = Looks(np.rint(colours).astype(np.uint8), building, valid, probability[0] if probability else None)
    return np.concatenate(_panels(small), axis=1)


def draw_sheet(thumbnails: Sequence[tuple[str, Picture]]) -> Picture:
    """Return all thumbnails in rows, each under its name."""
    from PIL import Image, ImageDraw

    columns = _columns(len(thumbnails))
    width = max(picture.shape[1] for _, picture in thumbnails) + GAP
    height = max(picture.shape[0] for _, picture in thumbnails) + CAPTION
    rows = -(-len(thumbnails) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), _font(11)
    for index, (name, picture) in enumerate(thumbnails):
        left, top, label = GAP + index % columns * width, index // columns * height, name
        while len(label) > 1 and pen.textlength(label, font=font) > width - GAP:
            label = label[1:]  # the end of a long name tells scenes apart
        pen.text((left, top + 5), label, fill=INK, font=font)
        sheet.paste(Image.fromarray(picture), (left, top + CAPTION))
    return np.asarray(sheet)


def save_png(path: Path, picture: Picture) -> None:
    """Write a picture with a remark that it is ours."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    remark = PngInfo()
    remark.add_text("Software", PREVIEW_SOFTWARE)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", pnginfo=remark, compress_level=6)
    write_bytes(path, stream.getvalue())


def _panels(looks: Looks) -> list[Picture]:
    known = looks.valid >= 0.5
    outlined = looks.pixels.copy()
    outlined[~known] = (outlined[~known].astype(np.uint16) + 2 * 255) // 3
    outlined[_edge(known & (looks.building >= 0.5 * looks.valid))] = OUTLINE
    return [outlined] if looks.probability is None else [outlined, _coloured(looks, known)]


def _edge(building: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return two pixels around every building: those in it with a neighbour, of four, outside, and those neighbours."""
    near, inside = np.pad(building, 1), np.pad(building, 1, mode="edge")
    grown = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    shrunk = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge: NDArray[np.bool_] = (building | grown) & ~(building & shrunk)
    return edge


def _coloured(looks: Looks, known: NDArray[np.bool_]) -> Picture:
    """Lay the probability's colours over a pale grey picture of the scene."""
    grey = 255 - (255 - looks.pixels.mean(axis=-1, keepdims=True)) * 0.5
    likely = np.zeros(known.shape) if looks.probability is None else np.where(known, looks.probability, 0.0)
    stops = [share for share, _ in PROBABILITY_RAMP]
    channels = [np.interp(likely, stops, [colour[index] for _, colour in PROBABILITY_RAMP]) for index in range(4)]
    colour, alpha = np.stack(channels[:3], axis=-1), channels[3][..., np.newaxis] / 255
    blended: Picture = np.rint(colour * alpha + grey * (1 - alpha)).astype(np.uint8)
    return blended


def _framed(panels: Sequence[Picture], caption: str) -> Picture:
    """Set panels side by side under a line of text."""
    from PIL import Image, ImageDraw

    height, width = panels[0].shape[:2]
    frame = Image.new("RGB", (len(panels) * (width + GAP) + GAP, height + CAPTION + GAP), BACKGROUND)
    ImageDraw.Draw(frame).text((GAP, 3), caption, fill=INK, font=_font(13))
    for place, panel in enumerate(panels):
        frame.paste(Image.fromarray(panel), (GAP + place * (width + GAP), CAPTION))
    return np.asarray(frame)


def _columns(count: int) -> int:
    return max(1, math.isqrt(max(count - 1, 0)) + 1)


def _font(size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
