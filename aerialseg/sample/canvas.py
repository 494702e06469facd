"""The growing picture and the geometry of drawing on it: windows, distances to an outline, paint with texture.

Arithmetic is limited to what IEEE 754 fixes to the bit (no sine, no exponential, no matrix product), so that a scene
is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.sample.values import Box, Dice, Paint

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Square arrays: sunlit colour (rows, cols, 3), height above ground in metres, truth, noise of three scales."""

    gsd: float
    colour: NDArray[np.float32]
    height: NDArray[np.float32]
    building: NDArray[np.bool_]
    fine: NDArray[np.float32]
    middle: NDArray[np.float32]
    coarse: NDArray[np.float32]

    @classmethod
    def blank(cls, size: int, gsd: float, ground: Paint, dice: Dice) -> Canvas:
        """Return a canvas of `size` pixels of `gsd` metres, covered by `ground`."""
        coarse = lattice_noise(size, round(36 / gsd), dice) * np.float32(1.2)
        coarse += lattice_noise(size, round(9 / gsd), dice) * np.float32(0.8)
        middle = lattice_noise(size, max(round(2.4 / gsd), 2), dice)
        middle += lattice_noise(size, max(round(0.9 / gsd), 2), dice)
        fine = dice.noise(size, size)
        fine[:, 1:] += fine[:, :-1] * np.float32(0.5)
        fine[1:] += fine[:-1] * np.float32(0.5)
        shape = size, size
        canvas = cls(
            gsd, np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.bool_),
            fine, middle, coarse,
        )  # fmt: skip
        canvas.blend((slice(0, size), slice(0, size)), np.ones(shape, np.float32), ground)
        return canvas

    def window(self, east: float, south: float, reach: float) -> Window | None:
        """Return rows and columns of the square of +-`reach` metres around a place, or None outside the picture."""
        size, pixels = self.height.shape[0], reach / self.gsd + 2
        row, col = size / 2 + south / self.gsd, size / 2 + east / self.gsd
        top, bottom = max(int(row - pixels), 0), min(int(row + pixels) + 1, size)
        left, right = max(int(col - pixels), 0), min(int(col + pixels) + 1, size)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def places(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return east (1, cols) and south (rows, 1) of the window's pixel centres, in metres from the middle."""
        rows, cols = window
        middle = self.height.shape[0] / 2
        east = (np.arange(cols.start, cols.stop) + 0.5 - middle) * self.gsd
        south = (np.arange(rows.start, rows.stop) + 0.5 - middle) * self.gsd
        return east[np.newaxis], south[:, np.newaxis]

    def cover(self, away: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the share of each pixel inside an outline that lies `away` metres from its centre (inside < 0)."""
        share: NDArray[np.float32] = np.clip(0.5 - away * (1 / self.gsd), 0, 1).astype(np.float32)
        return share

    def blend(
        self, window: Window, cover: NDArray[np.float32], paint: Paint, shade: NDArray[np.float32] | None = None
    ) -> None:
        """Lay textured paint over the window, as opaque as `cover` and as bright as `shade`."""
        target = self.colour[window]
        texture = self.fine[window] * np.float32(2 * paint.grain)
        texture += (self.coarse[window] + self.middle[window] * np.float32(0.5)) * np.float32(2 * paint.patches)
        for band, value in enumerate(paint.colour):
            wanted = texture + np.float32(value)
            if shade is not None:
                wanted *= shade
            wanted -= target[..., band]
            wanted *= cover
            target[..., band] += wanted


def axes(canvas: Canvas, window: Window, box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the window's pixel centres as metres along the box's own axes, from its middle."""
    east, south = canvas.places(window)
    east, south = east - box.spot.east, south - box.spot.south
    cos, sin = box.spot.cos, box.spot.sin
    return cos * east + sin * south, cos * south - sin * east


def distance(a: NDArray[np.float64], b: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Return metres to the box's outline, negative inside; `a` and `b` are places along its axes."""
    beyond_a, beyond_b = np.abs(a) - (box.a - box.round), np.abs(b) - (box.b - box.round)
    corner_a, corner_b = np.maximum(beyond_a, 0), np.maximum(beyond_b, 0)
    corner = np.sqrt(corner_a * corner_a + corner_b * corner_b)
    inside = np.minimum(np.maximum(beyond_a, beyond_b), 0)
    away: NDArray[np.float64] = corner + inside - box.round
    return away


def lattice_noise(size: int, step: int, dice: Dice) -> NDArray[np.float32]:
    """Return noise in [-0.5, 0.5) of (size, size) pixels that changes smoothly over `step` pixels."""
    lattice = dice.noise(size // step + 2, size // step + 2)
    place = np.arange(size, dtype=np.float32) / np.float32(step)
    index = place.astype(np.intp)
    part = place - index.astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = lattice[index] * (1 - part)[:, np.newaxis] + lattice[index + 1] * part[:, np.newaxis]
    noise: NDArray[np.float32] = rows[:, index] * (1 - part) + rows[:, index + 1] * part
    return noise
