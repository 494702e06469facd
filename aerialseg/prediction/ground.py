"""Reading the pixels under a canvas: a scene's own, its neighbours' around it, or all of it at another GSD."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from aerialseg.errors import BadDataError
from aerialseg.geo.adjacency import Placed
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window, read_window_into
from aerialseg.geo.resampling import rescaled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rasterio.io import DatasetReader

    from aerialseg.geo.inspection import Source
    from aerialseg.prediction.canvas import Canvas

Ground = Callable[[Window, NDArray[np.uint8], NDArray[np.bool_]], None]
"""Fills pixels (bands, rows, cols) and valid (rows, cols) with a window of the grid that is run."""


@contextmanager
def open_ground(canvas: Canvas) -> Iterator[Ground]:
    """Yield a reader of windows of the grid that is run; use it in this thread, inside the block.

    Ground that belongs to none of the group's scenes is invalid.
    """
    with ExitStack() as files:
        scene = files.enter_context(open_raster(canvas.source.path))
        fill: Ground = partial(read_window_into, scene, canvas.source)
        if canvas.neighbours:
            fill = partial(_fill_from_group, files, {canvas.source.path: scene}, canvas)
        yield fill if canvas.factor == 1 else partial(_fill_rescaled, fill, canvas)


def read_validity(dataset: DatasetReader, canvas: Canvas, start: int, stop: int) -> NDArray[np.bool_]:
    """Return which pixels of the scene's own rows [start, stop) are valid, bool [rows, width]."""
    box = canvas.source.box
    return read_window(dataset, canvas.source, Window(0, start, box.width, stop - start))[1]


def _fill_from_group(
    files: ExitStack, handles: dict[Path, DatasetReader], canvas: Canvas,
    window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Read a window of the group from the scenes it lies in; a neighbour is opened when it is first needed.

    What cannot be read of a neighbour is missing ground: a damaged file fails as a scene, not those around it.
    """
    top, left = int(window.row_off), int(window.col_off)
    bottom, right = top + len(valid), left + valid.shape[1]
    pixels[:], valid[:] = 0, False
    for member in (Placed(canvas.source, canvas.row, canvas.col), *canvas.neighbours):
        shared = member.overlap_with(top, left, bottom, right)
        if shared is None:
            continue
        first, west, last, east = shared
        inner = Window(west - member.col, first - member.row, east - west, last - first)
        rows, cols = slice(first - top, last - top), slice(west - left, east - left)
        path, target = member.source.path, (pixels[:, rows, cols], valid[rows, cols])
        try:
            if path not in handles:
                handles[path] = files.enter_context(open_raster(path))
            read_window_into(handles[path], member.source, inner, *target)
        except BadDataError:
            if path == canvas.source.path:
                raise
            target[0][:], target[1][:] = 0, False
            if path in handles:
                _fill_readable_rows(handles[path], member.source, inner, *target)


def _fill_readable_rows(
    dataset: DatasetReader, source: Source, window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Read what can be read of a damaged neighbour, row by row: a run that goes on elsewhere finds the same rows."""
    for index in range(len(valid)):
        row = Window(window.col_off, window.row_off + index, window.width, 1)
        pixels_of, valid_of = pixels[:, index : index + 1], valid[index : index + 1]
        try:
            read_window_into(dataset, source, row, pixels_of, valid_of)
        except BadDataError:
            pixels_of[:], valid_of[:] = 0, False


def _fill_rescaled(
    fill: Ground, canvas: Canvas, window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    def read(under: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        shape = int(under.height), int(under.width)
        found = np.empty((len(pixels), *shape), dtype=np.uint8), np.empty(shape, dtype=np.bool_)
        fill(under, *found)
        return found

    pixels[:], valid[:] = rescaled(read, (canvas.height, canvas.width), canvas.factor)(window)
