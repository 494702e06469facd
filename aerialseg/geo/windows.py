"""Windows over a raster: where they stand, which of them owns each pixel, how much each counts, what is done when.

Integers and weights only; pixels, files and devices are other modules' business. A `TileGrid` cuts a raster apart: its
windows stand `step` pixels apart, the last of each row and column moves back until it lies inside the raster, and where
windows overlap, the border of their cores is half-way, so that every pixel has exactly one owner. An `Axis` puts
overlapping windows together again: they stand on a product grid, so the weight of a pixel is the product of a row
weight and a column weight. If each axis' weights sum to one, so do their products: no weight raster is kept and nothing
is divided at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Literal

import numpy as np
from rasterio.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Blend = Literal["hann", "linear", "crop"]
"""How a window's say fades towards its edge; `crop` gives each pixel to the window whose centre is nearest."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The windows along one axis of a raster: each `size` pixels long, `step` apart, the first one at pixel 0.

    The last window may run over the end; what lies there is padding, and the same windows stand on a longer raster.
    """

    length: int
    size: int
    step: int

    def __post_init__(self) -> None:
        if self.length < 1 or not 1 <= self.step <= self.size:
            raise ValueError(f"need length >= 1 and 1 <= step <= size, got {self}")

    @classmethod
    def overlapping(cls, length: int, size: int, overlap: float) -> Axis:
        """Return the axis whose neighbouring windows share the fraction `overlap`, 0 <= overlap < 1, of their size."""
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}")
        return cls(length, size, max(1, round(size * (1 - overlap))))

    @property
    def count(self) -> int:
        """How many windows cover the raster."""
        return 1 + max(0, math.ceil((self.length - self.size) / self.step))

    @property
    def starts(self) -> range:
        """Where each window begins."""
        return range(0, self.count * self.step, self.step)

    def finished(self, index: int) -> tuple[int, int]:
        """Return [start, stop) of the pixels no later window reaches once window `index` has been added.

        These strips follow each other without gap or overlap and end at `length`.
        """
        last = index == self.count - 1
        return index * self.step, self.length if last else (index + 1) * self.step

    def touching(self, start: int, stop: int) -> range:
        """Return the indices of the windows that hold one of the pixels [start, stop), which lie on the raster."""
        first = max(0, (start - self.size) // self.step + 1)
        return range(first, min(self.count, (stop - 1) // self.step + 1))


def blend_weights(axis: Axis, kind: Blend = "hann", windows: range | None = None) -> NDArray[np.float32]:
    """Return one row of weights per window, float32 [count, size], which sum to one over each pixel of the windows.

    The windows at both ends differ from those between, for they have a neighbour on one side only. `windows` asks for
    the rows of some neighbouring windows alone; they are the same numbers, and memory grows with these.
    """
    windows = range(axis.count) if windows is None else windows
    starts = [index * axis.step for index in windows]
    if kind == "crop":
        margin = (axis.size - axis.step) // 2
        within = np.arange(axis.size)
        owners = [np.clip((start + within - margin) // axis.step, 0, axis.count - 1) for start in starts]
        shares = [owner == index for index, owner in zip(windows, owners, strict=True)]
    else:
        # Unscaled; offset by half a pixel, so that it is symmetric and nowhere zero.
        centres = np.arange(axis.size) + 0.5
        hann = kind == "hann"
        shape = np.sin(np.pi * centres / axis.size) ** 2 if hann else np.minimum(centres, axis.size - centres)
        reach = (axis.size - 1) // axis.step
        around = range(max(0, windows.start - reach), min(axis.count, windows.stop + reach))
        origin = around.start * axis.step
        total = np.zeros(len(around) * axis.step + axis.size)
        for index in around:
            total[index * axis.step - origin :][: axis.size] += shape
        shares = [shape / total[start - origin :][: axis.size] for start in starts]
    return np.stack(shares).astype(np.float32)


def reflected(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Return, for pixels [start, stop) of an axis padded beyond `length`, the real pixel that each one repeats.

    The last pixel is the mirror and is not doubled (numpy's "reflect"); a raster shorter than its padding is mirrored
    again and again, and a single pixel repeats itself.
    """
    if length == 1:
        return np.zeros(stop - start, dtype=np.intp)
    phase = np.arange(start, stop) % (2 * length - 2)
    return np.minimum(phase, 2 * length - 2 - phase)


@dataclass(frozen=True, slots=True)
class Tile:
    """A model-sized piece of a raster."""

    window: Window
    """What is read and written: always `size` x `size`."""
    core: Window
    """The part that counts; the cores of a grid partition the raster."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of a raster of height x width pixels, row by row; iterate over it."""

    height: int
    width: int
    size: int
    overlap: float = 0.0
    """The share of a window that its neighbour sees too, from 0 up to, but not including, 1."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"a grid needs positive sizes, not {self.height}x{self.width} in tiles of {self.size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is a share from 0 up to 1, not {self.overlap}")

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return max(1, round(self.size * (1 - self.overlap)))

    @property
    def shape(self) -> tuple[int, int]:
        """How many tiles the grid has (down, across)."""
        return len(self._starts(self.height)), len(self._starts(self.width))

    def __len__(self) -> int:
        down, across = self.shape
        return down * across

    def __iter__(self) -> Iterator[Tile]:
        for (row, top, bottom), (col, left, right) in product(self._spans(self.height), self._spans(self.width)):
            window = Window(col, row, self.size, self.size)
            yield Tile(window, core=Window(left, top, right - left, bottom - top))

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.size)
        return [*range(0, last, self.step), last]

    def _spans(self, length: int) -> list[tuple[int, int, int]]:
        """Return (start of the window, start of its core, end of its core) along an axis of `length` pixels."""
        starts = self._starts(length)
        cuts = [0, *((left + self.size + right) // 2 for left, right in pairwise(starts)), length]
        return [(start, *core) for start, core in zip(starts, pairwise(cuts), strict=True)]
