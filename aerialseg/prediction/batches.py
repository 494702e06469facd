"""A scene as equal batches of windows: what the reader thread does between the disk and the network.

Rows are read once, the scene's width at a time, into one band as high as a window; windows are copied from it into
batch buffers that are used in turn. Memory grows with the scene's width, never with its height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from rasterio.windows import Window

from aerialseg.geo.raster import open_raster, read_window
from aerialseg.geo.stitching import Axis, reflected

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from queue import SimpleQueue

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from torch import Tensor

    from aerialseg.geo.raster import Source


@dataclass(frozen=True, slots=True)
class Lattice:
    """The windows over a scene: every row window with every column window, numbered row by row."""

    rows: Axis
    cols: Axis

    @classmethod
    def covering(cls, height: int, width: int, size: int, overlap: float) -> Lattice:
        """Return the lattice of square windows of `size` over a raster, its origin at the top-left."""
        return cls(Axis.overlapping(height, size, overlap), Axis.overlapping(width, size, overlap))

    @property
    def size(self) -> int:
        """The height and width of a window."""
        return self.rows.size

    @property
    def count(self) -> int:
        """How many windows there are."""
        return self.rows.count * self.cols.count


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows that go through the network together, in buffers that the reader fills again later."""

    pixels: Tensor
    """uint8 [N, bands, size, size]; beyond `places` zeros, so that every batch is of one size."""
    valid: Tensor
    """bool [N, size, size]; meaningless when not `masked`."""
    places: tuple[tuple[int, int], ...] = ()
    """Row and column in the lattice of each window, in the lattice's order."""
    masked: bool = False
    """Whether any of the windows has an invalid pixel."""

    @classmethod
    def empty(cls, count: int, bands: int, size: int, *, pinned: bool) -> Batch:
        """Return a buffer for `count` windows; pinned memory crosses to a CUDA device without a copy on the way."""
        return cls(
            torch.empty((count, bands, size, size), dtype=torch.uint8, pin_memory=pinned),
            torch.empty((count, size, size), dtype=torch.bool, pin_memory=pinned),
        )


def read_batches(
    source: Source, lattice: Lattice, buffers: Sequence[Batch], validity: SimpleQueue[NDArray[np.bool_] | None]
) -> Generator[Batch]:
    """Yield the scene's windows in batches, using `buffers` in turn; windows without a valid pixel are left out.

    For every row of the lattice, in order, `validity` receives which pixels of its finished strip are valid, bool
    [rows, width], or None when all are, before any batch that holds a window of a later row.
    """
    with open_raster(source.path) as dataset:
        places: list[tuple[int, int]] = []
        masked = False
        turn = 0
        for row, (pixels, valid) in enumerate(_bands(dataset, source, lattice)):
            whole = bool(valid.all())
            validity.put(None if whole else _strip(valid, lattice, row))
            for col, start in enumerate(lattice.cols.starts):
                window = np.s_[..., start : start + lattice.size]
                if not whole and not valid[window].any():
                    continue
                batch = buffers[turn]
                batch.pixels.numpy()[len(places)] = pixels[window]
                batch.valid.numpy()[len(places)] = valid[window]
                masked |= not whole
                places.append((row, col))
                if len(places) == len(batch.pixels):
                    yield Batch(batch.pixels, batch.valid, tuple(places), masked)
                    places, masked, turn = [], False, (turn + 1) % len(buffers)
        if places:
            batch = buffers[turn]
            batch.pixels[len(places) :] = 0
            batch.valid[len(places) :] = True
            yield Batch(batch.pixels, batch.valid, tuple(places), masked)


def _strip(valid: NDArray[np.bool_], lattice: Lattice, row: int) -> NDArray[np.bool_]:
    start, stop = lattice.rows.finished(row)
    return valid[: stop - start, : lattice.cols.length].copy()


def _bands(
    dataset: DatasetReader, source: Source, lattice: Lattice
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yield for each row of the lattice the pixels [bands, size, padded width] and validity under its windows.

    The same two arrays every time: what two rows share is moved up, the rest is read.
    """
    pixels = np.empty((len(source.bands), lattice.size, lattice.cols.padded), dtype=np.uint8)
    valid = np.empty((lattice.size, lattice.cols.padded), dtype=np.bool_)
    kept = 0
    for start in lattice.rows.starts:
        pixels[:, :kept] = pixels[:, lattice.size - kept :]
        valid[:kept] = valid[lattice.size - kept :]
        _read_rows(dataset, source, start + kept, pixels[:, kept:], valid[kept:])
        yield pixels, valid
        kept = lattice.size - lattice.rows.step


def _read_rows(
    dataset: DatasetReader, source: Source, first: int, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Fill the arrays with the rows from `first` on; what lies beyond the scene's edges is its reflection."""
    height, width = source.box.height, source.box.width
    inside = min(len(valid), height - first)
    pixels[:, :inside, :width], valid[:inside, :width] = _read(dataset, source, first, first + inside)
    if inside < len(valid):
        rows = reflected(height, first + len(valid), height)
        top = int(rows.min())  # may lie above the band: the mirror reaches back into rows that were given up
        mirror, mirror_valid = _read(dataset, source, top, int(rows.max()) + 1)
        pixels[:, inside:, :width], valid[inside:, :width] = mirror[:, rows - top], mirror_valid[rows - top]
    columns = reflected(width, valid.shape[1], width)
    pixels[..., width:], valid[:, width:] = pixels[..., columns], valid[:, columns]


def _read(dataset: DatasetReader, source: Source, top: int, bottom: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return read_window(dataset, source, Window(0, top, source.box.width, bottom - top))
