"""Augmentation: every orientation equally often, pixels and labels together, colours by strength, seeded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aerialseg.config.sections import DataSection
from aerialseg.training.data import Augmentation, resize_pixels


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


def test_changes_strike_independently_of_one_another() -> None:
    augment, (plain, target, valid) = Augmentation(DataSection(crop=32, flips=False, colour=0.5), 3), ramp()
    unchanged = [np.array_equal(augment(plain, target, valid, seed)[0], plain) for seed in range(600)]
    assert np.mean(unchanged) == pytest.approx(0.2 * 0.5, abs=0.05)  # with the same dice: 0.2, the rarer with the other


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_colour_changes_pixels_by_its_strength_and_labels_never(bands: int) -> None:
    changes = []
    for strength in (0.05, 0.4):
        augment = Augmentation(DataSection(crop=32, flips=False, colour=strength), bands)
        results = [augment(*ramp(bands=bands), seed) for seed in range(20)]
        changes.append(np.mean([np.abs(r[0].astype(int) - ramp(bands=bands)[0]).mean() for r in results]))
        assert all(np.array_equal(r[1], ramp()[1]) and np.array_equal(r[2], ramp()[2]) for r in results)
    assert 0 < changes[0] < changes[1]


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_wear_strikes_as_often_as_it_says_and_labels_never(bands: int) -> None:
    struck = []
    for share in (0.0, 0.2, 1.0):
        augment = Augmentation(DataSection(crop=32, flips=False, colour=0.0, degrade=share), bands)
        rough = np.random.default_rng(0).integers(20, 200, (32, 32, bands), np.uint8)
        results = [augment(rough, *ramp()[1:], 10 * seed) for seed in range(300)]
        struck.append(np.mean([not np.array_equal(r[0], rough) for r in results]))
        assert all(np.array_equal(r[1], ramp()[1]) and np.array_equal(r[2], ramp()[2]) for r in results)
        assert all(r[0].shape == (32, 32, bands) and r[0].dtype == np.uint8 for r in results)
    assert struck[0] == 0.0 and struck[2] == 1.0 and struck[1] == pytest.approx(1 - 0.8**3, abs=0.1)


def test_worn_crops_are_smoother_noisier_and_of_another_gamma() -> None:
    pixels, target, valid = ramp()
    augment = Augmentation(DataSection(crop=32, flips=False, colour=0.0, degrade=1.0), 3)
    flat = np.full_like(pixels, 128)
    worn = [augment(flat, target, valid, seed)[0].astype(float) for seed in range(60)]
    assert np.mean([crop.std() for crop in worn]) == pytest.approx(0.025 * 255, rel=0.3)
    means = [crop.mean() for crop in worn]
    assert min(means) < 105 and max(means) > 145
    edge = np.where(np.arange(32) < 16, 20, 220).astype(np.uint8)[None, :, None] * np.ones((32, 1, 3), np.uint8)
    steps = [np.abs(np.diff(augment(edge, target, valid, seed)[0].mean((0, 2)))).max() for seed in range(20)]
    assert max(steps) < 110, "a hard edge of 200 is spread over three pixels or more"


def test_each_level_changes_more_than_the_one_before_and_single_keys_count_above_it() -> None:
    levels = [DataSection(augment=level) for level in ("light", "medium", "strong")]
    assert levels[1] == DataSection() == DataSection(flips=True, scale=0.25, colour=0.2, degrade=0.0)
    for key in ("scale", "colour", "degrade"):
        values = [getattr(level, key) for level in levels]
        assert values == sorted(values) and values[0] < values[2]
    own = DataSection(augment="strong", colour=0.0)
    assert own.colour == 0.0 and own.scale == levels[2].scale
    changed = []
    for level in ("light", "medium", "strong"):
        augment = Augmentation(DataSection(crop=32, augment=level, flips=False), 3)
        changed.append(np.mean([np.abs(augment(*ramp(), seed)[0] - ramp()[0].astype(float)) for seed in range(100)]))
    assert changed == sorted(changed) and changed[2] > 1.5 * changed[0]


def test_the_seed_alone_decides() -> None:
    section = DataSection(crop=32, augment="strong")
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
