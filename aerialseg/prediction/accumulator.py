"""Blending: weighted probabilities are summed under one row of windows, and finished rows leave at the top.

Everything here stays on the device; float32 sums are added up in the order of the lattice, row by row, so that a scene
and the raster it is a piece of add the same numbers in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aerialseg.geo.windows import blend_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from aerialseg.prediction.forward import EngineSettings
    from aerialseg.prediction.lattice import Lattice

MIDDLE = 0.5
"""What probabilities are counted from for their spread: near zero squares lose fewer digits."""


class Accumulator:
    """float32 [planes, size, padded width]: the probability, and where asked for its square. A class for its state."""

    def __init__(self, lattice: Lattice, settings: EngineSettings) -> None:
        device = settings.device
        self._lattice, self._row = lattice, lattice.down.start
        down = blend_weights(lattice.rows, settings.blend, lattice.down)
        across = blend_weights(lattice.cols, settings.blend, lattice.across)
        self._down, self._across = torch.from_numpy(down).to(device), torch.from_numpy(across).to(device)
        self._kinds = _kinds(down), _kinds(across)
        self._weighted = (-1, -1)
        planes = 2 if settings.agreement else 1
        self._sum = torch.zeros((planes, lattice.size, lattice.padded), device=device)
        self._weight = torch.empty((lattice.size, lattice.size), device=device)
        self._starts = lattice.starts()

    def add(self, row: int, col: int, probability: Tensor) -> None:
        """Add one window's probability [size, size]; windows come row by row."""
        start = self._starts[col]
        self._weigh(row - self._lattice.down.start, col)
        under = self._sum[..., start : start + self._lattice.size]
        under[0].addcmul_(probability, self._weight)
        if len(under) > 1:
            under[1].addcmul_((probability - MIDDLE).square_(), self._weight)

    def finish(self, row: int) -> Iterator[tuple[int, Tensor]]:
        """Yield, for each row of windows before `row`, its number and the scene's rows that are final after it.

        float32 [planes, rows, the scene's columns], to be used before the next is asked for: a view that moves on.
        """
        while self._row < row:
            yield self._row, self._finished()
            self._move_up()
            self._row += 1

    def _weigh(self, row: int, col: int) -> None:
        """Put the weights of a window in place; most windows have those of the one before."""
        kinds = self._kinds[0][row], self._kinds[1][col]
        if kinds != self._weighted:
            torch.outer(self._down[row], self._across[col], out=self._weight)
            self._weighted = kinds

    def _finished(self) -> Tensor:
        top = self._row * self._lattice.rows.step
        start, stop = self._lattice.finished(self._row)
        left = self._lattice.left - self._lattice.first_col
        width = self._lattice.right - self._lattice.left
        rows = self._sum[:, start - top : stop - top, left : left + width]
        if len(rows) > 1:
            _spread(rows)
        return rows

    def _move_up(self) -> None:
        size, step = self._lattice.size, self._lattice.rows.step
        for top in range(0, size - step, step):  # by steps, for copying onto itself has no order
            kept = self._sum[:, top + step : top + 2 * step]
            self._sum[:, top : top + kept.shape[1]] = kept
        self._sum[:, size - step :] = 0


def _kinds(weights: NDArray[np.float32]) -> list[int]:
    """Return a number for each row of weights [count, size]; equal rows have equal numbers."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(row.tobytes(), len(numbers)) for row in weights]


def _spread(planes: Tensor) -> None:
    """Turn the mean square in plane 1 into twice the standard deviation: 0 where windows agree, 1 where 0 meets 1."""
    mean, square = planes
    square -= (mean - MIDDLE).square_()
    square.clamp_(min=0).sqrt_().mul_(2)
