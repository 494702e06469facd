"""How much memory a scene takes beside the network: a closed form over sizes, for `plan` and for those who rent it.

Every term is an array of the engine; what a network needs for its layers is not among them. Nothing is allocated here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.geo.resampling import CHUNK_ROWS as RESAMPLED_ROWS
from aerialseg.prediction.batches import BANDS, is_read_twice
from aerialseg.prediction.lattice import CHUNK_ROWS, Lattice
from aerialseg.prediction.pipeline import READ_DEPTH, WRITE_DEPTH

if TYPE_CHECKING:
    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.forward import EngineSettings

FLOAT = 4
OVERHEAD = 44 << 20
"""Threads, the allocator's reserves, code that is loaded on first use: measured."""


def batch_size(settings: EngineSettings, lattice: Lattice) -> int:
    """Return how many windows a batch holds: the same for all scenes of a group, for networks answer to a batch's size.

    A compiled network is given one size alone.
    """
    return settings.batch if settings.compile else min(settings.batch, lattice.group_count)


def peak_bytes(canvas: Canvas, settings: EngineSettings, bands: int) -> int:
    """Return about how much host memory predicting the scene takes at most, beyond the network itself."""
    lattice = Lattice.of(canvas, settings.size, settings.overlap)
    planes = 2 if settings.agreement else 1
    batch, area = batch_size(settings, lattice), settings.size * settings.size
    under, width = lattice.size * lattice.padded, canvas.source.box.width
    total = OVERHEAD + min(_cache_bytes(), _scene_bytes(canvas))
    total += BANDS * under * (bands + 1) + _reading(canvas, lattice, bands)
    total += READ_DEPTH * batch * area * (bands + 1)
    rows = lattice.size if canvas.factor == 1 else CHUNK_ROWS
    strips = planes * rows * width
    total += strips * (WRITE_DEPTH + 2) + 4 * rows * width  # quantised; valid, and what the sink makes of a strip
    if settings.device.type != "cuda":
        total += batch * area * FLOAT * (3 * bands + 3)  # standardised pixels, logits, probabilities
        if settings.tta != "none":
            total += batch * area * (2 * (bands + 1) + FLOAT * (bands + 2))  # the view, what it says, turned back
        total += planes * (under + area) * FLOAT
        if canvas.factor != 1:
            total += planes * FLOAT * (under + 4 * rows * width)
        elif planes > 1:
            total += under * FLOAT
    return total


def _reading(canvas: Canvas, lattice: Lattice, bands: int) -> int:
    """Return what reading the rows under a row of windows takes, in pixels of the scene's own grid."""
    rows = min(canvas.height, round(lattice.size * canvas.factor))
    cols = min(canvas.width, round(lattice.padded * canvas.factor))
    item = np.dtype(canvas.source.dtype).itemsize
    each = bands * item + 2
    if canvas.source.scale is not None:
        each += bands * (1 + FLOAT * (1 if item <= 2 else 2))
    total = CHUNK_ROWS * canvas.source.box.width * each if is_read_twice(canvas) else 0  # beside what follows
    if canvas.neighbours:
        each += bands + 1
    total += rows * cols * each
    if canvas.factor != 1:
        total += 5 * FLOAT * bands * RESAMPLED_ROWS * (cols + lattice.padded)
        total += lattice.size * lattice.padded * (bands + 1)
    return total


def _scene_bytes(canvas: Canvas) -> int:
    boxes = [canvas.source.box, *(neighbour.source.box for neighbour in canvas.neighbours)]
    pixels = sum(box.height * box.width for box in boxes)
    return pixels * len(canvas.source.bands) * np.dtype(canvas.source.dtype).itemsize


def _cache_bytes() -> int:
    """Return GDAL's block cache in bytes; its variable holds megabytes when it is a small number."""
    given = os.environ.get("GDAL_CACHEMAX", "")
    size = int(given) if given.isdigit() else 64
    return size << 20 if size < 100000 else size
