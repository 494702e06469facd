"""Pictures of a run: for each scene a PNG with the mask's outline and the probability, and a sheet with all of them.

What there is to show comes from report.json in the folder that predict wrote; masks are found beside it, so the folder
may have been moved. A scene that is gone or cannot be read is drawn grey. Equal files give equal pictures.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, Stopped, UsageError, one_line
from aerialseg.files import locked, prepare_output_folder, refuse_foreign, sweep, write_bytes
from aerialseg.geo.opening import open_raster
from aerialseg.geo.shrinking import cell_means, small_shape
from aerialseg.geo.styles import MASK_CLASSES, PROBABILITY_RAMP, shown_bands
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from aerialseg.progress import Progress

    Picture = NDArray[np.uint8]

REPORT = "report.json"
SHEET = "contact-sheet.png"
SOFTWARE = "aerialseg preview"
"""Stands in every picture, by which one of ours is known."""
NODATA = 255
THUMBNAIL, SHEET_SIDE = 256, 4096
GAP, CAPTION = 6, 22
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
GREY = 150
OUTLINE = MASK_CLASSES[1].colour[:3]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A scene of a report whose mask is there."""

    name: str
    scene: Path
    mask: Path
    probability: Path | None


@dataclass(frozen=True, slots=True)
class _Looks:
    """A scene made small: its pixels (rows, cols, 3), and of each pixel the shares that are building and valid."""

    pixels: Picture
    building: NDArray[np.float64]
    valid: NDArray[np.float64]
    probability: NDArray[np.float64] | None
    """0..1; None when there is no such raster."""


def write_previews(
    out: Path, folder: Path, *, size: int, overwrite: bool, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Write FOLDER/NAME.png for each scene predicted into `out`, and the contact sheet; return them, the sheet last.

    `size` is the longer side of a scene in pixels. Raises NoInputError when `out` is no folder of predict's,
    OutputError for a stranger's picture in the way unless `overwrite`, BadDataError for a mask that cannot be read.
    """
    progress = progress or Silent()
    found = read_predicted(out)
    targets = {item.name: folder / f"{item.name}.png" for item in found}
    sheet = folder / SHEET
    if sheet in targets.values():
        raise UsageError(f"{one_line(sheet)}: a scene has the name of the contact sheet; rename the scene")
    for path in {folder, *(target.parent for target in targets.values())}:
        prepare_output_folder(path)
    with locked(folder):
        sweep(folder)
        for path in (*targets.values(), sheet):
            refuse_foreign(path, ours=_is_ours(path), overwrite=overwrite)
        progress.start("preview", sum(map(_mpx, found)), "Mpx")
        thumbnails = []
        for item in found:
            picture = _draw(item, size, progress)
            _save(targets[item.name], picture)
            thumbnails.append((item.name, _thumbnail(picture, len(found))))
        progress.finish()
        _save(sheet, _sheet(thumbnails))
    return *targets.values(), sheet


def read_predicted(out: Path) -> tuple[Predicted, ...]:
    """Return the scenes in report.json whose masks are there; raises NoInputError when there are none."""
    path = out / REPORT
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise NoInputError(f"{one_line(path)}: not found; give a folder that aerialseg predict wrote") from error
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{one_line(path)}: is not JSON; run aerialseg predict again") from error
    scenes = value.get("scenes") if isinstance(value, dict) and value.get("command") == "predict" else None
    if not isinstance(scenes, dict):
        raise BadDataError(f"{one_line(path)}: is not a report of aerialseg predict")
    found = [_predicted(out, name, entry) for name, entry in scenes.items()]
    there = tuple(item for item in found if item is not None)
    if not there:
        raise NoInputError(f"{one_line(out)}: no mask of the scenes in {REPORT} is there; run aerialseg predict")
    return there


def _predicted(out: Path, name: str, entry: Any) -> Predicted | None:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or not place.name or not isinstance(entry, dict):
        raise BadDataError(f"{one_line(out / REPORT)}: scene {one_line(name)} cannot be a scene's name")
    mask, probability = out / f"{name}.tif", out / "probability" / f"{name}.tif"
    if not mask.is_file():
        return None
    return Predicted(name, Path(str(entry.get("image", ""))), mask, probability if probability.is_file() else None)


def _mpx(item: Predicted) -> float:
    with open_raster(item.mask) as mask:
        pixels: float = mask.height * mask.width / 1e6
    return pixels * (3 if item.probability is not None else 2)


def _draw(item: Predicted, size: int, progress: Progress) -> Picture:
    """Return the picture of one scene: with the mask's outline, and beside it the probability when there is one."""
    looks = _look(item, size, progress)
    known = looks.valid >= 0.5
    building = known & (looks.building >= 0.5 * looks.valid)
    outlined = looks.pixels.copy()
    outlined[~known] = (outlined[~known].astype(np.uint16) + 2 * 255) // 3
    outlined[_edge(building)] = OUTLINE
    panels = [outlined]
    if looks.probability is not None:
        panels.append(_coloured(looks, known))
    share = looks.building.sum() / max(looks.valid.sum(), 1e-9)
    return _framed(panels, f"{one_line(item.name)}: {share:.1%} building")


def _look(item: Predicted, size: int, progress: Progress) -> _Looks:
    advance: Callable[[float], None] = progress.advance
    with open_raster(item.mask) as mask:
        full = mask.height, mask.width
    shape = small_shape(*full, size)
    building, valid = cell_means(item.mask, (1,), shape, _labels, advance)
    probability = None
    if item.probability is not None:
        total, where = cell_means(item.probability, (1,), shape, _quanta, advance)
        probability = total / np.maximum(where, 1e-9) / 254
    try:
        pixels = _pixels(item.scene, full, shape, advance)
    except Stopped:
        raise
    except AerialsegError as error:
        progress.say(f"warning: {error}; drawn grey")
        pixels = np.full((*shape, 3), GREY, np.uint8)
    return _Looks(pixels, building, valid, probability)


def _labels(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values == 1, values != NODATA]).view(np.uint8)


def _quanta(values: NDArray[Any]) -> NDArray[Any]:
    where = values != NODATA
    return np.concatenate([np.where(where, values, 0), where.astype(np.uint8)])


def _pixels(path: Path, full: tuple[int, int], shape: tuple[int, int], advance: Callable[[float], None]) -> Picture:
    """Return a scene's colours, small; other types than uint8 are stretched between their 2nd and 98th percentiles."""
    with open_raster(path) as dataset:
        bands, dtype, found = shown_bands(dataset), np.dtype(dataset.dtypes[0]), (dataset.height, dataset.width)
    if found != full:
        raise BadDataError(f"{one_line(path)}: is {found[0]}x{found[1]} now, its mask is {full[0]}x{full[1]}")
    means = cell_means(path, bands, shape, partial(np.nan_to_num, nan=0.0, posinf=0.0, neginf=0.0), advance)
    if dtype != np.uint8:
        low, high = np.percentile(means, (2, 98))
        means = (means - low) * (255 / max(high - low, 1e-9))
    colours = np.clip(np.rint(means), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(colours, (3, *shape)), 0, -1))


def _edge(building: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outermost pixels of buildings: those with a neighbour, of four, that is none."""
    padded = np.pad(building, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = building & ~inside
    return edge


def _coloured(looks: _Looks, known: NDArray[np.bool_]) -> Picture:
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


def _thumbnail(picture: Picture, count: int) -> Image:
    """Return a picture as the sheet shows it; smaller, the more there are."""
    from PIL import Image

    side = max(64, min(THUMBNAIL, SHEET_SIDE // _columns(count)))
    image = Image.fromarray(picture).crop((0, CAPTION, picture.shape[1], picture.shape[0]))
    image.thumbnail((side * 2, side), Image.Resampling.BOX)
    return image


def _columns(count: int) -> int:
    return max(1, math.isqrt(max(count - 1, 0)) + 1)


def _sheet(thumbnails: Sequence[tuple[str, Image]]) -> Picture:
    """Return all thumbnails in rows, each under its name."""
    from PIL import Image, ImageDraw

    columns = _columns(len(thumbnails))
    width = max(image.width for _, image in thumbnails) + GAP
    height = max(image.height for _, image in thumbnails) + CAPTION
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(thumbnails) // columns) * height + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), _font(11)
    for index, (name, image) in enumerate(thumbnails):
        left, top = GAP + index % columns * width, index // columns * height
        label = one_line(name)
        while len(label) > 1 and pen.textlength(label, font=font) > width - GAP:
            label = label[1:]  # the end of a long name tells scenes apart
        pen.text((left, top + 5), label, fill=INK, font=font)
        sheet.paste(image, (left, top + CAPTION))
    return np.asarray(sheet)


def _font(size: int) -> Any:
    """Return the typeface that matplotlib brings: the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)  # noqa: PTH118


def _save(path: Path, picture: Picture) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    remark = PngInfo()
    remark.add_text("Software", SOFTWARE)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", pnginfo=remark, compress_level=6)
    write_bytes(path, stream.getvalue())


def _is_ours(path: Path) -> bool:
    """Return whether a picture was written here: by the remark before its pixels."""
    try:
        with path.open("rb") as stream:
            return b"tEXtSoftware\0" + SOFTWARE.encode() in stream.read(256)
    except OSError:
        return False
