"""What the network sees: crops of tiles, drawn and augmented at random, and whole tiles for validation.

An epoch is a list of samples, tiles in proportion to their weight, places at random. The list is drawn from (seed,
epoch) alone, and what happens to sample k from (seed, epoch, k), never from which thread came first: so the order of
threads, a stop and a resume change nothing. Zooming is decided by how large a window is read; augmentation resizes it,
turns it, and changes its colours. albumentations lives here and nowhere else. No pixels are kept between epochs.
"""

from __future__ import annotations

import math
import os
import random
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read on import; without it the library asks a server for its version

import albumentations
import cv2
import numpy as np
from rasterio.windows import Window

from aerialseg.errors import BadDataError, one_line
from aerialseg.training.cache import read_square
from aerialseg.training.losses import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from aerialseg.config.sections import DataSection
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet
    from aerialseg.training.batches import Arrays
    from aerialseg.training.cache import TileCache

WHOLE = slice(None)


class Augmentation:
    """One chain of changes; it keeps a random state, so each thread builds its own."""

    def __init__(self, section: DataSection, bands: int) -> None:
        cv2.setNumThreads(0)  # the readers are the parallelism; OpenCV's own pool would fight them and torch
        self._crop = section.crop
        self._chain = albumentations.Compose(_steps(section, bands))

    def __call__(
        self, pixels: NDArray[np.uint8], target: NDArray[np.uint8], valid: NDArray[np.bool_], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Return pixels [crop, crop, bands], target and valid [crop, crop], resized and changed by `seed` alone.

        `pixels` is [rows, cols, bands], `target` and `valid` are [rows, cols], of any one size.
        """
        size = (self._crop, self._crop)
        if target.shape != size:
            pixels = resize_pixels(pixels, self._crop)
            target = cv2.resize(target, size, interpolation=cv2.INTER_NEAREST_EXACT)
            valid = cv2.resize(valid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).view(np.bool_)
        if not self._chain.transforms:
            return pixels, target, valid
        # Not set_random_seed: that gives every step the same dice, and what is bright would also be red.
        self._chain.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed = self._chain(image=pixels, masks=[target, valid.view(np.uint8)])
        return changed["image"], changed["masks"][0], changed["masks"][1].view(np.bool_)


def resize_pixels(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize [rows, cols, bands] to [side, side, bands]: interpolated, or averaged when shrinking to half or less."""
    method = cv2.INTER_AREA if pixels.shape[0] >= 2 * side else cv2.INTER_LINEAR
    # OpenCV drops the last axis of a single band, and takes four bands at a time.
    planes = [pixels[..., first : first + 4] for first in range(0, pixels.shape[2], 4)]
    resized = [cv2.resize(np.ascontiguousarray(plane), (side, side), interpolation=method) for plane in planes]
    return np.concatenate([plane.reshape(side, side, -1) for plane in resized], axis=2).astype(np.uint8, copy=False)


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


def training_tiles(tiles: TileSet, section: DataSection, *, use_unlabelled: bool = False) -> tuple[TileRecord, ...]:
    """Return the tiles to train on; raises BadDataError when there are none.

    They are the labelled ones, or with `use_unlabelled`, as a teacher needs them, all: their ground counts alike.
    """
    candidates = tiles.tiles if section.train_on == "all" else tiles.of_split("train")
    if use_unlabelled:
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


def _steps(section: DataSection, bands: int) -> list[Any]:
    """Return the changes: hue and saturation exist for three bands only, everything else for any number.

    Brightness moves by up to half the strength times 255; more than that drowns dark and bright roofs alike. The noise
    is the same in all bands: drawn for each alone it takes 15 ms a crop of 512 px instead of 4.
    """
    colour, share = section.colour, section.degrade
    steps: list[Any] = [albumentations.D4(p=1.0)] if section.flips else []
    if colour > 0:
        steps.append(albumentations.RandomBrightnessContrast(colour / 2, colour, p=0.8))
    if colour > 0 and bands == 3:
        steps.append(albumentations.HueSaturationValue(round(30 * colour), round(120 * colour), 0, p=0.5))
    if share > 0:
        steps += [
            albumentations.Blur((3, 5), p=share),
            albumentations.RandomGamma((60, 160), p=share),
            albumentations.GaussNoise((0.01, 0.04), per_channel=False, p=share),
        ]
    return steps
