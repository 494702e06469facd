"""What is read for training: crops of tiles, and whole tiles for validation. Which ones, sampling.py says.

No pixels are kept in memory between epochs.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from aerialseg.counts import BUILDING
from aerialseg.errors import BadDataError, one_line
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.training.augment import Augmentation
from aerialseg.training.losses import IGNORE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.config import DataSection
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet
    from aerialseg.training.batches import Arrays
    from aerialseg.training.cache import TileCache
    from aerialseg.training.sampling import Crop


class TileReader:
    """Reads pieces of a set's tiles, from the cache if there is one; every thread has its own random state."""

    def __init__(
        self, tiles: TileSet, section: DataSection, size_multiple: int, cache: TileCache | None = None
    ) -> None:
        self._tiles, self._section = tiles, section
        self.cache = cache
        self._own = threading.local()
        self.validation_side = validation_side(tiles, size_multiple)

    def crop(self, crop: Crop) -> Arrays:
        """Return a training crop, augmented: pixels [crop, crop, bands], target and valid [crop, crop]."""
        if not hasattr(self._own, "augmentation"):
            self._own.augmentation = Augmentation(self._section, len(self._tiles.mean))
        pixels, target, valid = self._square(crop.tile, crop.row, crop.col, crop.side)
        changed: Arrays = self._own.augmentation(pixels, target, valid, crop.seed)
        return changed

    def whole(self, tile: TileRecord) -> Arrays:
        """Return a tile as it is, padded to the network's size multiple, with everything but its core ignored."""
        pixels, target, valid = self._square(tile, 0, 0, self.validation_side)
        row, col = (core - window for core, window in zip(tile.core[:2], tile.window[:2], strict=True))
        core = (slice(row, row + tile.core[2]), slice(col, col + tile.core[3]))
        scored = np.full_like(target, IGNORE)
        scored[core] = target[core]
        return pixels.copy(), scored, valid

    def _square(self, tile: TileRecord, row: int, col: int, side: int) -> Arrays:
        """Read a square of a tile and continue it by reflection where it is larger than the tile."""
        inside = min(side, self._tiles.size)
        if self.cache is None:
            pixels, target, valid = read_square(self._tiles, tile, Window(col, row, inside, inside))
        else:
            pixels, target, valid = self.cache.square(tile.name, row, col, inside)
        if inside < side:
            edge = (0, side - inside)
            pixels = np.pad(pixels, (edge, edge, (0, 0)), mode="reflect")
            target = np.pad(target, (edge, edge), mode="reflect")
            valid = np.pad(valid, (edge, edge), mode="reflect")
        return pixels, target, valid


def read_square(tiles: TileSet, tile: TileRecord, window: Window) -> Arrays:
    """Read a window of a tile's files: pixels [rows, cols, bands], target and valid [rows, cols].

    Where there is no data, nothing is labelled. Raises BadDataError for a damaged file, or for a mask that holds
    anything but 0, 1 and 255.
    """
    pixels, valid = _read_image(tiles.image_path(tile), window)
    target = _read_mask(tiles.mask_path(tile), window)
    target[~valid] = IGNORE
    return pixels, target, valid


def training_tiles(tiles: TileSet, section: DataSection, *, taught: bool = False) -> tuple[TileRecord, ...]:
    """Return the tiles to train on; raises BadDataError when there are none.

    They are the labelled ones, or, `taught` by a teacher, all, whose ground counts alike whether labelled or not.
    """
    candidates = tiles.tiles if section.train_on == "all" else tiles.of_split("train")
    if taught:
        chosen = tuple(replace(tile, building=tile.building * tile.valid, valid=1.0) for tile in candidates)
    else:
        chosen = tuple(tile for tile in candidates if tile.valid > 0)
    if not chosen:
        advice = "; only with --teacher MODEL are unlabelled ones of use" if candidates else ""
        raise BadDataError(
            f"{one_line(tiles.folder)}: no labelled training tile{advice}; look at the split in its index.gpkg"
        )
    return chosen


def validation_tiles(tiles: TileSet, section: DataSection) -> tuple[TileRecord, ...]:
    """Return the tiles to validate on; none when all are trained on."""
    return () if section.train_on == "all" else tiles.of_split("val")


def validation_side(tiles: TileSet, size_multiple: int) -> int:
    """Return the side in pixels that whole tiles are padded to: the next multiple that the networks' strides divide."""
    return math.ceil(tiles.size / size_multiple) * size_multiple


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
    if not ((mask <= BUILDING) | (mask == IGNORE)).all():
        values = [int(value) for value in np.unique(mask) if value not in (0, BUILDING, IGNORE)]
        raise BadDataError(
            f"{one_line(path)}: holds {', '.join(map(str, values[:8]))}; masks of tiles hold 0, 1 (building) and 255"
            " (ignored) only; cut the tiles again, with --building-values"
        )
    return mask
