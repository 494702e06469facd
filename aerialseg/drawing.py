"""Scenes as pictures: a mask's outline, a probability, or the errors of a mask over the scene's pixels.

Files and arrays in, arrays of colours (rows, cols, 3) and PNG files out. A large scene is read once, from top to
bottom, and made small on the way; memory does not grow with its area. Which scenes are drawn, and where a picture goes,
is decided elsewhere. The typeface is the one that matplotlib brings, so that equal arrays give equal bytes.

Found buildings are light, missed ones orange, invented ones blue: three colours that people with any kind of colour
vision tell apart, over the scene in grey or, without it, over plain dark ground.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rasterio.windows import Window

from aerialseg.counts import NODATA
from aerialseg.errors import AerialsegError, BadDataError, Stopped, one_line
from aerialseg.files import write_bytes
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import PREVIEW_SOFTWARE
from aerialseg.geo.raster import read_window
from aerialseg.geo.resampling import add_cells, block_mean, cell_sizes, shrink, small_shape
from aerialseg.geo.styles import MASK_CLASSES, PROBABILITY_RAMP, shown_bands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.inspection import Access
    from aerialseg.progress import Progress

    Picture = NDArray[np.uint8]
    Flags = NDArray[np.bool_]
    Sums = NDArray[np.float32]

FOUND, MISSED, INVENTED = (232, 232, 226), (230, 120, 0), (40, 150, 230)
GROUND, UNKNOWN = (52, 56, 62), (96, 84, 110)
FLAT_FOUND, FLAT_BUILDING, FLAT_GROUND = (222, 222, 222), (245, 245, 240), (58, 62, 68)
"""Where nothing of the scene shows through what is coloured."""
OUTLINE = MASK_CLASSES[1].colour[:3]
BACKGROUND, INK, UNREADABLE = (255, 255, 255), (40, 40, 40), 150
GREY, FLAT_GREY = 0.45, 0.42
"""Brightness of the scene behind the colours."""
TEXTURE = 0.25
"""Share of the scene's contrast in what is coloured."""
THUMBNAIL, SMALLEST, SHEET_SIDE = 320, 64, 4096
GAP, CAPTION = 6, 22
PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class SmallScene:
    """A scene made small: its pixels (rows, cols, 3), and of each pixel the shares that are building and valid."""

    pixels: Picture
    building: NDArray[np.float64]
    valid: NDArray[np.float64]
    probability: NDArray[np.float64] | None
    """0..1; None when there is no such raster."""


@dataclass(frozen=True, slots=True, eq=False)
class ErrorCells:
    """Sums over square cells of a scene, or of a piece of it; (3, rows, cols) for found, missed and invented."""

    cell: int
    kinds: Sums
    known: Sums
    """Pixels that were counted."""
    pixels: Sums
    """Pixels in the cell."""


def read_small(scene: Path, mask: Path, probability: Path | None, size: int, progress: Progress) -> SmallScene:
    """Read what predict found in a scene, `size` pixels along the longer side; advances by million pixels.

    A scene that cannot be read, or has another size than its mask, is grey, and `progress` says why. Raises what
    reading the other two raises.
    """
    advance: Callable[[float], None] = progress.advance
    with open_raster(mask) as dataset:
        full = dataset.height, dataset.width
    shape = small_shape(*full, size)
    building, valid = block_mean(mask, (1,), shape, _labels, advance)
    likely = None
    if probability is not None:
        total, where = block_mean(probability, (1,), shape, _quanta, advance)
        likely = total / np.maximum(where, 1e-9) / 254
    try:
        pixels = _read_pixels(scene, full, shape, advance)
    except Stopped:
        raise
    except AerialsegError as error:
        progress.say(f"warning: {error}; drawn grey")
        pixels = np.full((*shape, 3), UNREADABLE, np.uint8)
    return SmallScene(pixels, building, valid, likely)


def _labels(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values == 1, values != NODATA]).view(np.uint8)


def _quanta(values: NDArray[Any]) -> NDArray[Any]:
    where = values != NODATA
    return np.concatenate([np.where(where, values, 0), where.astype(np.uint8)])


def _read_pixels(
    path: Path, full: tuple[int, int], shape: tuple[int, int], advance: Callable[[float], None]
) -> Picture:
    """Return a scene's colours, small; other types than uint8 are stretched between their 2nd and 98th percentiles."""
    with open_raster(path) as dataset:
        bands, dtype, found = shown_bands(dataset), np.dtype(dataset.dtypes[0]), (dataset.height, dataset.width)
    if found != full:
        raise BadDataError(f"{one_line(path)}: is {found[0]}x{found[1]} now, its mask is {full[0]}x{full[1]}")
    means = block_mean(path, bands, shape, partial(np.nan_to_num, nan=0.0, posinf=0.0, neginf=0.0), advance)
    if dtype != np.uint8:
        low, high = np.percentile(means, (2, 98))
        means = (means - low) * (255 / max(high - low, 1e-9))
    return as_rgb(np.moveaxis(np.clip(np.rint(means), 0, 255).astype(np.uint8), 0, -1))


def read_brightness(scene: Path, window: Window, cell: int, access: Access | None) -> Sums | None:
    """Return a scene's brightness, 0 to 255, as means over cells of `cell` x `cell` pixels from the window's corner.

    None when the scene cannot be shown without more advice.
    """
    (top, bottom), (left, right) = window.toranges()
    rows, cols = np.arange(bottom - top) // cell, np.arange(right - left) // cell
    sums = np.zeros((1, rows[-1] + 1, cols[-1] + 1), dtype=np.float32)
    try:
        source = inspect_scene(scene, access=access)
        with open_raster(scene) as dataset:
            at_once = max(1, PIXELS_AT_ONCE // len(cols))
            for row in range(0, len(rows), at_once):
                part = rows[row : row + at_once]
                pixels, _ = read_window(dataset, source, Window(left, top + row, len(cols), len(part)))
                add_cells(sums, pixels[:3].mean(axis=0, dtype=np.float32, keepdims=True), part, cols)
    except AerialsegError:
        return None
    brightness: Sums = sums[0] / cell_sizes(rows, cols).astype(np.float32)
    return brightness


def sum_errors(strips: Iterable[tuple[int, Flags]], cell: int, size: tuple[int, int]) -> ErrorCells:
    """Sum over cells of `cell` x `cell` pixels of a raster of `size` (rows, cols).

    A strip is its first row and where its pixels are found, missed, invented and known: (4, rows, cols), full width.
    """
    rows, cols = (np.arange(length) // cell for length in size)
    sums = np.zeros((4, rows[-1] + 1, cols[-1] + 1), dtype=np.float32)
    for row, fates in strips:
        add_cells(sums, fates, rows[row : row + fates.shape[1]], cols)
    return ErrorCells(cell, sums[:3], sums[3], cell_sizes(rows, cols).astype(np.float32))


def draw_errors(cells: ErrorCells, brightness: Sums | None) -> Picture:
    """Mix the colours by their shares; a wrong pixel weighs more than a right one, to be seen in a small picture.

    `brightness` is the scene's, of the same cells; without it the ground is plain.
    """
    ground = np.full((*cells.known.shape, 3), GROUND, dtype=np.float32)
    if brightness is not None:
        ground[:] = (brightness * GREY)[..., np.newaxis]
    unknown = (1 - cells.known / cells.pixels)[..., np.newaxis]
    ground += unknown * (np.array(UNKNOWN, dtype=np.float32) - ground)
    shares = cells.kinds / cells.pixels
    shares[1:] = np.sqrt(shares[1:]) if cells.cell > 1 else shares[1:]
    covered = shares.sum(axis=0)
    shares /= np.maximum(covered, 1)
    colours = np.array((FOUND, MISSED, INVENTED), dtype=np.float32)
    mixed = ground * (1 - np.minimum(covered, 1))[..., np.newaxis] + np.tensordot(shares, colours, axes=(0, 0))
    if brightness is not None:  # what was found or invented still shows through
        mixed += (TEXTURE * (brightness - 128) * np.minimum(covered, 1))[..., np.newaxis]
    coloured: Picture = mixed.round().clip(0, 255).astype(np.uint8)
    return coloured


def mark_rectangle(picture: Picture, top: int, left: int, bottom: int, right: int) -> None:
    """Draw the rectangle's border into the picture, unless it is nearly the whole picture."""
    bottom, right = min(bottom, len(picture)) - 1, min(right, picture.shape[1]) - 1
    if (bottom - top) * (right - left) > 0.8 * picture.shape[0] * picture.shape[1]:
        return
    picture[[top, bottom], left : right + 1] = BACKGROUND
    picture[top : bottom + 1, [left, right]] = BACKGROUND


def flat_errors(pixels: Picture, truth: Flags, prediction: Flags, valid: Flags) -> Picture:
    """Return each pixel's fate in one flat colour over the scene (rows, cols, 3) in grey."""
    errors: Picture = np.repeat(pixels.mean(axis=2, keepdims=True) * FLAT_GREY, 3, axis=2).astype(np.uint8)
    errors[truth & prediction] = FLAT_FOUND
    errors[truth & ~prediction & valid] = MISSED
    errors[~truth & prediction & valid] = INVENTED
    return errors


def flat_mask(building: Flags) -> Picture:
    """Return a mask alone, buildings light on dark ground."""
    flat: Picture = np.array((FLAT_GROUND, FLAT_BUILDING), np.uint8)[building.astype(np.intp)]
    return flat


def as_rgb(pixels: NDArray[np.uint8]) -> Picture:
    """Return three bands of (rows, cols, bands): the first three, or the first one thrice where there are fewer."""
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(shown)


def panels(scene: SmallScene) -> list[Picture]:
    """Return the scene with its mask's outline and, when there is one, its probability over the scene in pale grey."""
    known = scene.valid >= 0.5
    outlined = scene.pixels.copy()
    outlined[~known] = (outlined[~known].astype(np.uint16) + 2 * 255) // 3
    outlined[_edge(known & (scene.building >= 0.5 * scene.valid))] = OUTLINE
    if scene.probability is None:
        return [outlined]
    grey = 255 - (255 - scene.pixels.mean(axis=-1, keepdims=True)) * 0.5
    likely, stops = np.where(known, scene.probability, 0.0), [share for share, _ in PROBABILITY_RAMP]
    channels = [np.interp(likely, stops, [colour[index] for _, colour in PROBABILITY_RAMP]) for index in range(4)]
    colour, alpha = np.stack(channels[:3], axis=-1), channels[3][..., np.newaxis] / 255
    return [outlined, np.rint(colour * alpha + grey * (1 - alpha)).astype(np.uint8)]


def _edge(building: Flags) -> Flags:
    """Return two pixels around every building: those in it with a neighbour, of four, outside, and those neighbours."""
    near, inside = np.pad(building, 1), np.pad(building, 1, mode="edge")
    grown = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    shrunk = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge: Flags = (building | grown) & ~(building & shrunk)
    return edge


def beside(pictures: Sequence[Picture], gap: int) -> Picture:
    """Return pictures of one height beside each other, `gap` white columns between them."""
    space = np.full((len(pictures[0]), gap, 3), BACKGROUND, np.uint8)
    return np.concatenate([part for picture in pictures for part in (space, picture)][1:], axis=1)


def frame(scene: SmallScene, name: str) -> Picture:
    """Return a scene's panels side by side under a line of text, its name and the share that is building."""
    share = scene.building.sum() / max(scene.valid.sum(), 1e-9)
    inside = beside(panels(scene), GAP)
    framed = Image.fromarray(np.pad(inside, ((CAPTION, GAP), (GAP, GAP), (0, 0)), constant_values=BACKGROUND[0]))
    ImageDraw.Draw(framed).text((GAP, 3), f"{name}: {share:.1%} building", fill=INK, font=_font(13))
    return np.asarray(framed)


def thumbnail(scene: SmallScene, count: int) -> Picture:
    """Return what a sheet of `count` scenes shows of one; smaller, the more there are."""
    side = max(SMALLEST, min(THUMBNAIL, SHEET_SIDE // _columns(count)))
    rows, cols = scene.valid.shape
    shape = small_shape(rows, cols, side)
    colours = np.moveaxis(shrink(np.moveaxis(scene.pixels, -1, 0), shape), 0, -1)
    layers = [scene.building, scene.valid, *([] if scene.probability is None else [scene.probability])]
    building, valid, *probability = shrink(np.stack(layers), shape)
    pixels = np.rint(colours).astype(np.uint8)
    return beside(panels(SmallScene(pixels, building, valid, probability[0] if probability else None)), 0)


def sheet(thumbnails: Sequence[tuple[str, Picture]]) -> Picture:
    """Return all thumbnails in rows, each under its name."""
    columns = _columns(len(thumbnails))
    width = max(picture.shape[1] for _, picture in thumbnails) + GAP
    height = max(picture.shape[0] for _, picture in thumbnails) + CAPTION
    rows = -(-len(thumbnails) // columns)
    drawn = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(drawn), _font(11)
    for index, (name, picture) in enumerate(thumbnails):
        left, top, label = GAP + index % columns * width, index // columns * height, name
        while len(label) > 1 and pen.textlength(label, font=font) > width - GAP:
            label = label[1:]  # the end of a long name tells scenes apart
        pen.text((left, top + 5), label, fill=INK, font=font)
        drawn.paste(Image.fromarray(picture), (left, top + CAPTION))
    return np.asarray(drawn)


def _columns(count: int) -> int:
    return max(1, math.isqrt(max(count - 1, 0)) + 1)


def _font(size: int) -> Any:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def encode_png(picture: Picture, colours: int) -> bytes:
    """Return a picture as a PNG file with a palette of so many colours, at most 256."""
    stream = io.BytesIO()
    Image.fromarray(picture).quantize(colours, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def save_png(path: Path, picture: Picture) -> None:
    """Write a picture as it is, with a remark that it is ours."""
    remark, stream = PngInfo(), io.BytesIO()
    remark.add_text("Software", PREVIEW_SOFTWARE)
    Image.fromarray(picture).save(stream, format="PNG", pnginfo=remark, compress_level=6)
    write_bytes(path, stream.getvalue())
