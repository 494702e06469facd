"""Augmentation: every orientation equally often, pixels and labels together, colours by strength, seeded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aerialseg.config import DataSection
from aerialseg.training.augment import Augmentation, resize_pixels


def ramp(side: int = 32, bands: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, cols = np.mgrid[:side, :side]
    pixels = np.stack([rows * 2 + cols * 5 + band for band in range(bands)], axis=2).astype(np.uint8)
    return pixels, (rows > cols).astype(np.uint8), rows + cols > 9


def orientation(target: np.ndarray, pixels: np.ndarray) -> int:
    """Return which of the eight symmetries of the square turns the ramp into `pixels`."""
    plain = ramp()[0]
    for number in range(8):
        turned = np.rot90(plain, number % 4)
        if np.array_equal(turned if number < 4 else turned[:, ::-1], pixels):
            return number
    raise AssertionError("not a flip or turn")


def test_all_eight_orientations_come_about_equally_often() -> None:
    augment = Augmentation(DataSection(crop=32, colour=0.0), 3)
    counted = Counter()
    for seed in range(400):
        pixels, target, valid = augment(*ramp(), seed)
        number = orientation(target, pixels)
        for before, after in zip(ramp()[1:], (target, valid), strict=True):
            turned = np.rot90(before, number % 4)
            assert np.array_equal(turned if number < 4 else turned[:, ::-1], after)
        counted[number] += 1
    assert len(counted) == 8 and min(counted.values()) > 25


def test_without_flips_scale_and_colour_nothing_changes() -> None:
    augment = Augmentation(DataSection(crop=32, flips=False, scale=0.0, colour=0.0), 3)
    for before, after in zip(ramp(), augment(*ramp(), 5), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_colour_changes_pixels_by_its_strength_and_labels_never(bands: int) -> None:
    changes = []
    for strength in (0.05, 0.4):
        augment = Augmentation(DataSection(crop=32, flips=False, colour=strength), bands)
        results = [augment(*ramp(bands=bands), seed) for seed in range(20)]
        changes.append(np.mean([np.abs(r[0].astype(int) - ramp(bands=bands)[0]).mean() for r in results]))
        assert all(np.array_equal(r[1], ramp()[1]) and np.array_equal(r[2], ramp()[2]) for r in results)
    assert 0 < changes[0] < changes[1]


def test_the_seed_alone_decides() -> None:
    section = DataSection(crop=32)
    first, second = Augmentation(section, 3), Augmentation(section, 3)
    for seed in range(5):
        second(*ramp(), seed + 100)  # another history
        assert np.array_equal(first(*ramp(), seed)[0], second(*ramp(), seed)[0])


@pytest.mark.parametrize("bands", [1, 3, 4, 9])
@pytest.mark.parametrize("side", [16, 32, 50])
def test_resizing_keeps_bands_apart_and_flat_areas_flat(bands: int, side: int) -> None:
    pixels = np.broadcast_to(np.arange(bands, dtype=np.uint8) * 20 + 7, (32, 32, bands)).copy()
    resized = resize_pixels(pixels, side)
    assert resized.shape == (side, side, bands) and resized.dtype == np.uint8
    assert np.array_equal(resized, np.broadcast_to(pixels[0, 0], resized.shape))
