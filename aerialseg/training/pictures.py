"""A few validation tiles as people judge them: scene, truth and probability side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aerialseg.training.losses import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from aerialseg.geo.tiles.tileset import TileRecord
    from aerialseg.training.job import Job

SAMPLES = 4
SIDE = 256
"""Pixels of a tile that are shown; a picture then takes about a quarter of a megabyte."""
GAP = 4
UNKNOWN = 128


def draw_samples(job: Job) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the name and the picture [rows, cols, 3] of the same few validation tiles each time; none without them.

    The network sees a square of the training crops' size from the middle of a tile. Truth is black, white, and grey
    where there is none.
    """
    network, side = job.judged.eval(), min(job.config.data.crop, job.reader.validation_side)
    for tile in choose(job.validation):
        pixels, target, valid = (_middle(array, side) for array in job.reader.whole(tile))
        with torch.inference_mode(), job.fabric.autocast():
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(job.fabric.device)
            logits = network(batch, torch.from_numpy(valid)[None].to(job.fabric.device))
        probability = (logits[0, 0].float().sigmoid() * 255).round().byte().cpu().numpy()
        yield tile.name, compose(*(_middle(array, SIDE) for array in (pixels, target, probability)))


def choose(tiles: tuple[TileRecord, ...]) -> tuple[TileRecord, ...]:
    """Return a few tiles from all over the set, with buildings if any tile has some."""
    built = tuple(tile for tile in tiles if tile.building > 0) or tiles
    count = min(SAMPLES, len(built))
    return tuple(built[index * len(built) // count] for index in range(count))


def compose(pixels: NDArray[np.uint8], target: NDArray[np.uint8], probability: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the three beside each other: `pixels` [rows, cols, bands], of which the first three, or one, are shown."""
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    truth = np.where(target == IGNORE, np.uint8(UNKNOWN), (target == 1) * np.uint8(255))
    grey = [np.repeat(array[..., None], 3, axis=2) for array in (truth, probability)]
    line = np.full((len(pixels), GAP, 3), 255, np.uint8)
    return np.concatenate([shown, line, grey[0], line, grey[1]], axis=1)


def _middle(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Return a square from the middle, as large as `array` [rows, cols, ...] allows."""
    row, col = ((length - min(side, length)) // 2 for length in array.shape[:2])
    return np.ascontiguousarray(array[row : row + side, col : col + side])
