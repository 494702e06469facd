"""Pictures of where a prediction is wrong: a whole scene made small, and the worst piece of it pixel by pixel.

Found buildings are light, missed ones orange, invented ones blue: three colours that people with any kind of colour
vision tell apart, over the scene in grey or, without it, over plain dark ground.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rasterio.windows import Window

from aerialseg.errors import AerialsegError
from aerialseg.evaluation.counting import open_pair
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.evaluation.counting import PairStrip, Rules
    from aerialseg.evaluation.pairs import Pair
    from aerialseg.geo.inspection import Access
    from aerialseg.progress import Progress

    Sums = NDArray[np.float32]

OVERVIEW = 560
"""Pixels along the longer side of the whole scene's picture."""
CLOSE_UP = 400
"""Pixels along the sides of the piece that is shown as it is."""
FOUND, MISSED, INVENTED = (232, 232, 226), (230, 120, 0), (40, 150, 230)
GROUND, UNKNOWN = (52, 56, 62), (96, 84, 110)
GREY = 0.45
"""Brightness of the scene behind the colours."""
TEXTURE = 0.25
"""Share of the scene's contrast in what is coloured."""
COLOURS = 96
"""In a picture's palette: few, for the page holds all of them."""
BORDER = (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Two PNG files, and where the close-up lies."""

    overview: bytes
    close_up: bytes
    row: int
    col: int
    errors: int
    """Wrong pixels in the close-up."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Sums over square cells of a scene, or of a piece of it; (3, rows, cols) for found, missed and invented."""

    cell: int
    kinds: Sums
    known: Sums
    """Pixels that were counted."""
    pixels: Sums
    """Pixels in the cell."""


def draw_views(
    pair: Pair, rules: Rules, scene: Path | None, access: Access | None = None, progress: Progress = Silent()
) -> Views:
    """Draw a pair, over its scene where that is given and can be shown; memory does not grow with the scene's area.

    `progress` is only asked whether to stop.
    """
    with open_pair(pair, rules) as (box, strips):
        cell = max(1, -(-max(box.height, box.width) // OVERVIEW))
        small = _sum_cells(_watched(strips, progress), cell, (box.height, box.width))
    row, col = _worst(small, min(CLOSE_UP, box.height), min(CLOSE_UP, box.width), (box.height, box.width))
    window = Window(col, row, min(CLOSE_UP, box.width), min(CLOSE_UP, box.height))
    with open_pair(pair, rules) as (_, strips):
        large = _sum_cells(_cut(_watched(strips, progress), window), 1, (int(window.height), int(window.width)))
    whole = Window(0, 0, box.width, box.height)
    behind = [_grey(scene, piece, size, access) for piece, size in ((whole, cell), (window, 1))]
    overview = _colour(small, behind[0])
    _frame(overview, [int(value) // cell for value in (row, col, row + window.height, col + window.width)])
    errors = int(large.kinds[1:].sum())
    return Views(_png(overview), _png(_colour(large, behind[1])), int(row), int(col), errors)


def _watched(strips: Iterator[PairStrip], progress: Progress) -> Iterator[PairStrip]:
    for strip in strips:
        progress.advance(0)
        yield strip


def _sum_cells(strips: Iterator[PairStrip], cell: int, size: tuple[int, int]) -> Picture:
    """Sum found, missed, invented and known pixels over cells of `cell` x `cell`."""
    rows, cols = (-(-length // cell) for length in size)
    sums = np.zeros((4, rows, cols), dtype=np.float32)
    for strip in strips:
        truth, building = strip.truth, strip.building
        for plane, mask in zip(
            sums, (truth & building, truth & ~building, building & ~truth, strip.valid), strict=True
        ):
            _add_cells(plane, mask.astype(np.float32), strip.row, cell)
    pixels = np.outer(*(np.minimum(cell, length - cell * np.arange(-(-length // cell))) for length in size))
    return Picture(cell, sums[:3], sums[3], pixels.astype(np.float32))


def _add_cells(plane: Sums, values: Sums, row: int, cell: int) -> None:
    """Add rows of pixels that begin at `row` to the cells they lie in."""
    places = (row + np.arange(len(values))) // cell
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    columns = np.add.reduceat(values, np.arange(0, values.shape[1], cell), axis=1)
    plane[places[0] : places[-1] + 1] += np.add.reduceat(columns, firsts, axis=0)


def _cut(strips: Iterator[PairStrip], window: Window) -> Iterator[PairStrip]:
    """Yield the part of the strips that lies in the window, with rows counted from its top."""
    from dataclasses import replace

    (top, bottom), (left, right) = window.toranges()
    for strip in strips:
        rows = slice(max(0, top - strip.row), max(0, bottom - strip.row))
        if strip.row >= bottom:
            return
        part = [mask[rows, left:right] for mask in (strip.building, strip.truth, strip.valid)]
        if len(part[0]):
            row = max(strip.row, top) - top
            yield replace(strip, row=row, building=part[0], truth=part[1], valid=part[2])


def _worst(small: Picture, height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return where a window of height x width pixels holds the most wrong pixels, on a lattice of cells."""
    wrong = np.pad(small.kinds[1:].sum(axis=0).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    down, across = max(1, height // small.cell), max(1, width // small.cell)
    found = wrong[down:, across:] - wrong[:-down, across:] - wrong[down:, :-across] + wrong[:-down, :-across]
    row, col = np.unravel_index(int(found.argmax()), found.shape)
    return min(int(row) * small.cell, size[0] - height), min(int(col) * small.cell, size[1] - width)


def _grey(scene: Path | None, window: Window, cell: int, access: Access | None) -> Sums | None:
    """Return a scene's brightness, 0 to 255, as means over cells; None when it cannot be shown without more advice."""
    if scene is None:
        return None
    try:
        source = inspect_scene(scene, access=access) if access is not None else inspect_scene(scene)
        (top, bottom), (left, right) = window.toranges()
        height, width = bottom - top, right - left
        sums = np.zeros((-(-height // cell), -(-width // cell)), dtype=np.float32)
        with open_raster(scene) as dataset:
            rows = max(1, 2**20 // width)
            for row in range(0, height, rows):
                piece = Window(left, top + row, width, min(rows, height - row))
                pixels, _ = read_window(dataset, source, piece)
                _add_cells(sums, pixels[:3].mean(axis=0, dtype=np.float32), row, cell)
    except AerialsegError:
        return None
    counts = np.outer(*(np.minimum(cell, n - cell * np.arange(-(-n // cell))) for n in (height, width)))
    brightness: Sums = sums / counts.astype(np.float32)
    return brightness


def _colour(picture: Picture, grey: Sums | None) -> NDArray[np.uint8]:
    """Mix the colours by their shares; a wrong pixel weighs more than a right one, to be seen in a small picture."""
    ground = np.full((*picture.known.shape, 3), GROUND, dtype=np.float32)
    if grey is not None:
        ground[:] = (grey * GREY)[..., np.newaxis]
    unknown = (1 - picture.known / picture.pixels)[..., np.newaxis]
    ground += unknown * (np.array(UNKNOWN, dtype=np.float32) - ground)
    shares = picture.kinds / picture.pixels
    shares[1:] = np.sqrt(shares[1:]) if picture.cell > 1 else shares[1:]
    covered = shares.sum(axis=0)
    shares /= np.maximum(covered, 1)
    colours = np.array((FOUND, MISSED, INVENTED), dtype=np.float32)
    mixed = ground * (1 - np.minimum(covered, 1))[..., np.newaxis] + np.tensordot(shares, colours, axes=(0, 0))
    if grey is not None:  # what was found or invented still shows through
        mixed += (TEXTURE * (grey - 128) * np.minimum(covered, 1))[..., np.newaxis]
    coloured: NDArray[np.uint8] = mixed.round().clip(0, 255).astype(np.uint8)
    return coloured


def _frame(picture: NDArray[np.uint8], corners: list[int]) -> None:
    """Draw a frame around the piece that is shown close up, unless it is nearly the whole picture."""
    top, left, bottom, right = corners
    bottom, right = min(bottom, len(picture)) - 1, min(right, picture.shape[1]) - 1
    if (bottom - top) * (right - left) > 0.8 * picture.shape[0] * picture.shape[1]:
        return
    for row in (top, bottom):
        picture[row, left : right + 1] = BORDER
    for col in (left, right):
        picture[top : bottom + 1, col] = BORDER


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
