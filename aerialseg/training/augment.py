"""What is changed at random in a training crop: orientation, colour, wear. albumentations lives here and nowhere else.

Zooming is decided by what window the dataset reads (dataset.py); here that window is only resized.
Every call is seeded, so the result depends on (run seed, epoch, sample), never on which thread came first.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read on import; without it the library asks a server for its version

import albumentations
import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.config import DataSection


class Augmentation:
    """One chain of changes; it keeps a random state, so each thread builds its own."""

    def __init__(self, section: DataSection, bands: int) -> None:
        cv2.setNumThreads(0)  # the readers are the parallelism; OpenCV's own pool would fight them and torch
        steps: list[Any] = [albumentations.D4(p=1.0)] if section.flips else []
        if section.colour > 0:
            steps += _colour_steps(section.colour, bands)
        if section.wear > 0:
            steps += _wear_steps(section.wear)
        self._crop = section.crop
        self._chain = albumentations.Compose(steps)

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


def _colour_steps(strength: float, bands: int) -> list[Any]:
    """Return the colour changes: hue and saturation exist for three bands only, gain and offset for any number.

    Brightness moves by up to half the strength times 255; more than that drowns dark and bright roofs alike.
    """
    steps: list[Any] = [albumentations.RandomBrightnessContrast(strength / 2, strength, p=0.8)]
    if bands == 3:
        hue, saturation, value = round(30 * strength), round(120 * strength), 0
        steps.append(albumentations.HueSaturationValue(hue, saturation, value, p=0.5))
    return steps


def _wear_steps(share: float) -> list[Any]:
    """Return blur, gamma and noise for any number of bands, each striking with probability `share`.

    The noise is the same in all bands: drawn for each alone it takes 15 ms a crop of 512 px instead of 4.
    """
    return [
        albumentations.Blur((3, 5), p=share),
        albumentations.RandomGamma((60, 160), p=share),
        albumentations.GaussNoise((0.01, 0.04), per_channel=False, p=share),
    ]
