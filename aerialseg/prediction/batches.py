"""A scene as equal batches of windows: what two threads do between the disk and the network.

Rows are read once, the scene's width and its halo at a time, into a band as high as a window, by the one thread; the
other copies windows from it into batch buffers, while the next band is read into a second array. Both bands and buffers
are used in turn. Memory grows with the scene's width, never with its height or its group.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from rasterio.windows import Window

from aerialseg.geo.opening import open_raster
from aerialseg.prediction.ground import open_ground, read_validity
from aerialseg.prediction.lattice import mirrored
from aerialseg.prediction.pipeline import read_ahead

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from contextlib import AbstractContextManager
    from queue import SimpleQueue

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from torch import Tensor

    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.ground import Ground
    from aerialseg.prediction.lattice import Lattice, Schedule

    Validity = SimpleQueue[NDArray[np.bool_] | None]

BANDS = 2
"""One is being filled while windows are copied from the other."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows that go through the network together, in buffers that the reader fills again later."""

    pixels: Tensor
    """uint8 [N, bands, size, size]; beyond `places` zeros, so that every batch is of one size."""
    valid: Tensor
    """bool [N, size, size]; meaningless when not `masked`."""
    places: tuple[tuple[int, int], ...] = ()
    """Row in the group's lattice and column among the scene's windows, of each window, in the lattice's order."""
    masked: bool = False
    """Whether any of the windows has an invalid pixel."""

    @classmethod
    def empty(cls, count: int, bands: int, size: int, *, pinned: bool) -> Batch:
        """Return a buffer for `count` windows; pinned memory crosses to a CUDA device without a copy on the way."""
        return cls(
            torch.empty((count, bands, size, size), dtype=torch.uint8, pin_memory=pinned),
            torch.empty((count, size, size), dtype=torch.bool, pin_memory=pinned),
        )


@dataclass(frozen=True, slots=True)
class _Band:
    """What lies under one row of windows."""

    row: int
    """The row in the group's lattice."""
    top: int
    """Its first pixel row, counted in the group."""
    pixels: NDArray[np.uint8]
    """[bands, size, padded width]"""
    valid: NDArray[np.bool_]
    whole: bool
    """Whether every pixel is valid."""


def read_batches(canvas: Canvas, schedule: Schedule, buffers: Sequence[Batch], validity: Validity) -> Generator[Batch]:
    """Yield the scene's windows in batches, using `buffers` in turn; windows without a valid pixel are left out.

    For every strip of the schedule, in order, `validity` receives which of its pixels are valid, bool [rows, width], or
    None when all are, before any batch that holds a window of a later row.
    """
    lattice = schedule.lattice
    with read_ahead(_bands(canvas, lattice), BANDS, "bands") as bands, _own_validity(canvas) as scene:
        places: list[tuple[int, int]] = []
        masked: list[bool] = []
        turn = 0
        for band in bands:
            for strip in schedule.strips(band.row):
                validity.put(_strip(canvas, schedule, strip, band, scene))
            for col, left in enumerate(lattice.starts()):
                window = np.s_[..., left : left + lattice.size]
                if not band.whole and not band.valid[window].any():
                    continue
                batch = buffers[turn]
                batch.pixels.numpy()[len(places)] = band.pixels[window]
                if not band.whole:
                    batch.valid.numpy()[len(places)] = band.valid[window]
                places.append((band.row, col))
                masked.append(not band.whole)
                if len(places) == len(batch.pixels):
                    yield _filled(batch, places, masked)
                    places, masked, turn = [], [], (turn + 1) % len(buffers)
        if places:
            yield _filled(buffers[turn], places, masked)


def _filled(batch: Batch, places: Sequence[tuple[int, int]], masked: Sequence[bool]) -> Batch:
    """Return the batch with what was left open: validity of windows that are whole, and places without a window."""
    batch.pixels[len(places) :] = 0
    if any(masked):
        for index in range(len(batch.valid)):
            if index >= len(places) or not masked[index]:
                batch.valid[index] = True
    return Batch(batch.pixels, batch.valid, tuple(places), any(masked))


def is_read_twice(canvas: Canvas) -> bool:
    """Return whether a resampled scene has a valid mask, which is read on the scene's own grid, too."""
    return canvas.factor != 1 and (canvas.source.has_mask or canvas.source.dtype.startswith("float"))


def _own_validity(canvas: Canvas) -> AbstractContextManager[DatasetReader | None]:
    """Open a resampled scene once more for its own valid mask, where it has one; its pixels are read with another."""
    return open_raster(canvas.source.path) if is_read_twice(canvas) else nullcontext()


def _strip(
    canvas: Canvas, schedule: Schedule, strip: tuple[int, int], band: _Band, scene: DatasetReader | None
) -> NDArray[np.bool_] | None:
    """Return which pixels of a finished strip are valid, None for all of them."""
    if canvas.factor == 1:
        start, stop = (row + canvas.row - band.top for row in strip)
        left = canvas.col - schedule.lattice.first_col
        valid = band.valid[start:stop, left : left + canvas.source.box.width]
        return None if band.whole or valid.all() else valid.copy()
    if scene is None:
        return None
    own = read_validity(scene, canvas, *strip)
    return None if own.all() else own


def _bands(canvas: Canvas, lattice: Lattice) -> Generator[_Band]:
    """Yield the pixels and validity under each row of windows that the scene needs, in BANDS arrays used in turn.

    What two rows share is copied from the one before, the rest is read.
    """
    shape = lattice.size, lattice.padded
    pixels = np.empty((BANDS, len(canvas.source.bands), *shape), dtype=np.uint8)
    valid = np.empty((BANDS, *shape), dtype=np.bool_)
    kept = 0
    with open_ground(canvas) as fill:
        for row in lattice.down:
            top, this, last = row * lattice.rows.step, row % BANDS, (row - 1) % BANDS
            pixels[this, :, :kept] = pixels[last, :, lattice.size - kept :]
            valid[this, :kept] = valid[last, lattice.size - kept :]
            _fill_rows(fill, lattice, top + kept, pixels[this, :, kept:], valid[this, kept:])
            yield _Band(row, top, pixels[this], valid[this], bool(valid[this].all()))
            kept = lattice.size - lattice.rows.step


def _fill_rows(fill: Ground, lattice: Lattice, first: int, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
    """Fill the arrays with the rows from `first` on; what lies beyond the group's end is its reflection."""
    height = lattice.rows.length
    inside = min(len(valid), height - first)
    _fill_columns(fill, lattice, first, pixels[:, :inside], valid[:inside])
    rows = mirrored(height, first + len(valid))
    if len(rows):
        top, bottom = int(rows.min()), int(rows.max()) + 1  # may lie above the band, in rows that were given up
        mirror = np.empty((len(pixels), bottom - top, valid.shape[1]), dtype=np.uint8)
        mirror_valid = np.empty(mirror.shape[1:], dtype=np.bool_)
        _fill_columns(fill, lattice, top, mirror, mirror_valid)
        pixels[:, inside:], valid[inside:] = mirror[:, rows - top], mirror_valid[rows - top]


def _fill_columns(
    fill: Ground, lattice: Lattice, top: int, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Fill the arrays with the columns under the scene's windows, reflected beyond the group's last one."""
    left, height = lattice.first_col, len(valid)
    columns = mirrored(lattice.cols.length, left + valid.shape[1])
    inside = valid.shape[1] - len(columns)
    fill(Window(left, top, inside, height), pixels[..., :inside], valid[:, :inside])
    if len(columns) and columns.min() >= left:
        pixels[..., inside:], valid[:, inside:] = pixels[..., columns - left], valid[:, columns - left]
    elif len(columns):  # the mirror reaches back into columns that no window of this scene holds
        first, last = int(columns.min()), int(columns.max()) + 1
        mirror = np.empty((len(pixels), height, last - first), dtype=np.uint8)
        mirror_valid = np.empty(mirror.shape[1:], dtype=np.bool_)
        fill(Window(first, top, last - first, height), mirror, mirror_valid)
        pixels[..., inside:], valid[:, inside:] = mirror[..., columns - first], mirror_valid[:, columns - first]
