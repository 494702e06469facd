"""Which crops are drawn: an epoch is a list of samples, tiles in proportion to their weight, places at random.

The list is drawn from (seed, epoch) alone, and what happens to sample k from (seed, epoch, k). So the order of threads,
a stop and a resume change nothing. No pixels here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from aerialseg.config import DataSection
    from aerialseg.geo.tiles.tileset import TileRecord

WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class Crop:
    """One training sample: a square of a tile, in the tile's pixels, and the seed of what is changed in it."""

    tile: TileRecord
    row: int
    col: int
    side: int
    """Before the resize to the configured crop: a larger side is a zoom out. Beyond the tile it is padded."""
    seed: int

    @property
    def name(self) -> str:
        """The tile's name, for messages."""
        return self.tile.name


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the crops of each epoch."""

    tiles: tuple[TileRecord, ...]
    section: DataSection
    size: int
    """Side of the tile files in pixels."""
    seed: int
    steps_per_epoch: int

    def groups(self, epoch: int, step: int, epochs: int, share: slice = WHOLE) -> Iterator[list[Crop]]:
        """Yield a `share` of one batch's crops after the other, from `step` of `epoch` to the end of the last epoch."""
        batch = self.section.batch
        for current in range(epoch, epochs):
            order = self._order(current)
            for start in range((step if current == epoch else 0) * batch, len(order), batch):
                yield [self._crop(order[k], current, k) for k in range(start, start + batch)[share]]

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """Return the tile of each sample: every tile comes as often as its share says, rounded up or down, shuffled."""
        rng = np.random.default_rng((self.seed, epoch))
        shares = tile_shares(self.tiles, self.section.sampling)
        tiles = rng.permutation(len(shares))
        samples = self.steps_per_epoch * self.section.batch
        borders = np.cumsum(shares[tiles])
        points = (np.arange(samples) + rng.random()) / samples * borders[-1]
        chosen = tiles[np.searchsorted(borders, points, side="right").clip(max=len(tiles) - 1)]
        return rng.permutation(chosen)

    def _crop(self, tile: int, epoch: int, sample: int) -> Crop:
        """Place one crop: its centre is uniform in the tile's core, then moved until the crop lies inside the tile.

        Placing the corner uniformly instead would show the pixels along tile edges, 1 in 4 with two crops per side,
        hardly ever.
        """
        rng = np.random.default_rng((self.seed, epoch, sample))
        record = self.tiles[tile]
        side = round(self.section.crop / (1.0 + self.section.scale * rng.uniform(-1.0, 1.0)))
        starts = [
            int(np.clip(core - window + rng.random() * length - side / 2, 0, max(0, self.size - side)))
            for core, window, length in zip(record.core[:2], record.window[:2], record.core[2:], strict=True)
        ]
        return Crop(record, starts[0], starts[1], side, int(rng.integers(2**31)))


def tile_shares(tiles: Sequence[TileRecord], sampling: Literal["area", "balanced"]) -> NDArray[np.float64]:
    """Return each tile's share of the samples: that of the labelled area, or half by that and half by building area.

    A balanced epoch shows the ground without buildings half as often as its area says, never less.
    """
    area = np.array([labelled_area(tile) for tile in tiles])
    building = area * [tile.building for tile in tiles]
    shares: NDArray[np.float64] = area / area.sum()
    if sampling == "balanced" and building.any():
        shares = (shares + building / building.sum()) / 2
    return shares


def labelled_area(tile: TileRecord) -> float:
    """Return the tile's share of the training area in pixels: its core, as far as it is labelled."""
    return tile.core[2] * tile.core[3] * tile.valid


def steps_to_cover(tiles: Sequence[TileRecord], section: DataSection) -> int:
    """Return how many steps show the labelled area of `tiles` about once."""
    return max(1, math.ceil(sum(map(labelled_area, tiles)) / (section.crop**2 * section.batch)))
