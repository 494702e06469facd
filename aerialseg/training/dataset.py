"""What is read for training: random crops that cover the area evenly, and whole tiles for validation.

An epoch is a list of samples drawn from (seed, epoch) alone; what happens to sample k is drawn from (seed, epoch, k).
So the order of threads, a stop and a resume change nothing. No pixels are kept in memory between epochs.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.training.augment import Augmentation
from aerialseg.training.losses import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.config import DataSection
    from aerialseg.geo.tileset import TileRecord, TileSet
    from aerialseg.training.batches import Arrays


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
    """Draws the crops of each epoch; tiles are visited in proportion to their labelled core area."""

    tiles: tuple[TileRecord, ...]
    section: DataSection
    size: int
    """Side of the tile files in pixels."""
    seed: int
    steps_per_epoch: int

    def groups(self, epoch: int, step: int, epochs: int) -> Iterator[list[Crop]]:
        """Yield one step's crops after the other, from `step` of `epoch` to the end of the last epoch."""
        batch = self.section.batch
        for current in range(epoch, epochs):
            order = self._order(current)
            for start in range((step if current == epoch else 0) * batch, len(order), batch):
                yield [self._crop(order[k], current, k) for k in range(start, start + batch)]

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """Return the tile of each sample: every tile comes as often as its area says, rounded up or down, shuffled."""
        rng = np.random.default_rng((self.seed, epoch))
        areas = np.array([labelled_area(tile) for tile in self.tiles])
        tiles = rng.permutation(len(areas))
        samples = self.steps_per_epoch * self.section.batch
        borders = np.cumsum(areas[tiles])
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


class TileReader:
    """Reads pieces of a set's tiles; every thread opens its own files and keeps its own random state."""

    def __init__(self, tiles: TileSet, section: DataSection, size_multiple: int) -> None:
        self._tiles, self._section = tiles, section
        self._own = threading.local()
        self.validation_side = validation_side(tiles, size_multiple)

    def crop(self, crop: Crop) -> Arrays:
        """Return a training crop, augmented: pixels [crop, crop, bands], target and valid [crop, crop]."""
        if not hasattr(self._own, "augmentation"):
            self._own.augmentation = Augmentation(self._section, len(self._tiles.mean))
        pixels, target, valid = self._read(crop.tile, crop.row, crop.col, crop.side)
        changed: Arrays = self._own.augmentation(pixels, target, valid, crop.seed)
        return changed

    def whole(self, tile: TileRecord) -> Arrays:
        """Return a tile as it is, padded to the network's size multiple, with everything but its core ignored."""
        pixels, target, valid = self._read(tile, 0, 0, self.validation_side)
        row, col = (core - window for core, window in zip(tile.core[:2], tile.window[:2], strict=True))
        core = (slice(row, row + tile.core[2]), slice(col, col + tile.core[3]))
        scored = np.full_like(target, IGNORE)
        scored[core] = target[core]
        return pixels, scored, valid

    def _read(self, tile: TileRecord, row: int, col: int, side: int) -> Arrays:
        """Read a square of a tile and continue it by reflection where it is larger than the tile."""
        inside = min(side, self._tiles.size)
        window = Window(col, row, inside, inside)
        pixels, valid = _read_image(self._tiles.image_path(tile), window)
        target = _read_mask(self._tiles.mask_path(tile), window)
        target[~valid] = IGNORE
        if inside < side:
            edge = (0, side - inside)
            pixels = np.pad(pixels, (edge, edge, (0, 0)), mode="reflect")
            target = np.pad(target, (edge, edge), mode="reflect")
            valid = np.pad(valid, (edge, edge), mode="reflect")
        return pixels, target, valid


def training_tiles(tiles: TileSet, section: DataSection) -> tuple[TileRecord, ...]:
    """Return the labelled tiles to train on; raises BadDataError when there are none."""
    candidates = tiles.tiles if section.train_on == "all" else tiles.of_split("train")
    chosen = tuple(tile for tile in candidates if tile.valid > 0)
    if not chosen:
        raise BadDataError(f"{one_line(tiles.folder)}: no labelled training tile; look at the split in its index.gpkg")
    return chosen


def validation_tiles(tiles: TileSet, section: DataSection) -> tuple[TileRecord, ...]:
    """Return the tiles to validate on; none when all are trained on."""
    return () if section.train_on == "all" else tiles.of_split("val")


def validation_side(tiles: TileSet, size_multiple: int) -> int:
    """Return the side in pixels that whole tiles are padded to: the next multiple that the networks' strides divide."""
    return math.ceil(tiles.size / size_multiple) * size_multiple


def labelled_area(tile: TileRecord) -> float:
    """Return the tile's share of the training area in pixels: its core, as far as it is labelled."""
    return tile.core[2] * tile.core[3] * tile.valid


def steps_to_cover(tiles: Sequence[TileRecord], section: DataSection) -> int:
    """Return how many steps show the labelled area of `tiles` about once."""
    return max(1, math.ceil(sum(map(labelled_area, tiles)) / (section.crop**2 * section.batch)))


def _read_image(path: Path, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read pixels [rows, cols, bands] and where there is data, [rows, cols]."""
    with open_raster(path) as source, raster_errors(path):
        pixels = np.empty((window.height, window.width, source.count), np.uint8)
        source.read(out=pixels.transpose(2, 0, 1), window=window)  # as the file is laid out: no turning afterwards
        if source.mask_flag_enums[0] == [MaskFlags.all_valid]:
            return pixels, np.ones(pixels.shape[:2], np.bool_)
        return pixels, source.dataset_mask(window=window) != 0


def _read_mask(path: Path, window: Window) -> NDArray[np.uint8]:
    with open_raster(path) as source, raster_errors(path):
        mask: NDArray[np.uint8] = source.read(1, window=window)
        return mask
