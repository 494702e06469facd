"""Reading the pixels under a canvas: a scene's own, its neighbours' around it, or all of it at another GSD."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.geo.neighbours import Placed
from aerialseg.geo.raster import open_raster, read_window
from aerialseg.geo.resampling import rescaled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.geo.resampling import Reader
    from aerialseg.prediction.canvas import Canvas

    Read = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@contextmanager
def open_ground(canvas: Canvas) -> Iterator[Reader]:
    """Yield a reader of windows of the grid that is run; use it in this thread, inside the block.

    Ground that belongs to none of the group's scenes is invalid.
    """
    with ExitStack() as files:
        scene = files.enter_context(open_raster(canvas.source.path))
        read: Reader = partial(read_window, scene, canvas.source)
        if canvas.neighbours:
            read = partial(_read_group, files, {canvas.source.path: scene}, canvas)
        if canvas.factor != 1:
            read = rescaled(read, (canvas.height, canvas.width), canvas.factor)
        yield read


def read_validity(dataset: DatasetReader, canvas: Canvas, start: int, stop: int) -> NDArray[np.bool_]:
    """Return which pixels of the scene's own rows [start, stop) are valid, bool [rows, width]."""
    box = canvas.source.box
    return read_window(dataset, canvas.source, Window(0, start, box.width, stop - start))[1]


def _read_group(files: ExitStack, handles: dict[Path, DatasetReader], canvas: Canvas, window: Window) -> Read:
    """Read a window of the group from the scenes it lies in; a neighbour is opened when it is first needed."""
    top, left, height, width = map(int, (window.row_off, window.col_off, window.height, window.width))
    pixels = np.zeros((len(canvas.source.bands), height, width), dtype=np.uint8)
    valid = np.zeros((height, width), dtype=np.bool_)
    for member in (Placed(canvas.source, canvas.row, canvas.col), *canvas.neighbours):
        shared = member.overlap_with(top, left, top + height, left + width)
        if shared is None:
            continue
        path = member.source.path
        if path not in handles:
            handles[path] = files.enter_context(open_raster(path))
        first, west, last, east = shared
        inner = Window(west - member.col, first - member.row, east - west, last - first)
        here = np.s_[first - top : last - top, west - left : east - left]
        pixels[(slice(None), *here)], valid[here] = read_window(handles[path], member.source, inner)
    return pixels, valid
