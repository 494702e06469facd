"""Which windows cover a raster, and which of them owns each pixel: integers only, no pixels and no files.

Windows stand `step` pixels apart. The last of each row and column moves back until it lies inside the raster; where
the raster is smaller than a window, the one window runs over its edge and the caller pads. Where windows overlap, the
border of their cores is half-way, so that every pixel of the raster has exactly one owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

from rasterio.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator


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
