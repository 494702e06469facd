"""Bands and outlines against distances between all pixels, and packed bits against plain arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounter, BoundaryCounts, count, grow, pack

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    rows, cols = int(rng.integers(1, 34)), int(rng.choice([1, 20, 63, 64, 65, 90]))
    truth, prediction = np.zeros((2, rows, cols), bool)
    for mask in (truth, prediction):
        for _ in range(rng.integers(0, 5)):
            row, col, height, width = (*rng.integers(0, (rows, cols)), *rng.integers(1, 30, 2))
            mask[row : row + height, col : col + width] ^= True
    valid = np.ones((rows, cols), bool) if rng.random() < 0.5 else rng.random((rows, cols)) > 0.05
    return prediction, truth, valid, int(rng.integers(1, rows + 1))


def near(where: np.ndarray, radius: float) -> np.ndarray:
    """Distances between all pixels of the grid and all that are True."""
    rows, cols = np.indices(where.shape)
    found = np.argwhere(where)
    if not len(found):
        return np.zeros_like(where)
    squares = (rows[..., None] - found[:, 0]) ** 2 + (cols[..., None] - found[:, 1]) ** 2
    return squares.min(axis=-1) <= radius**2


def by_hand(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, distance: int) -> BoundaryCounts:
    p, t = prediction & valid, truth & valid
    band_p, band_t = (mask & near(valid & ~mask, distance) for mask in (p, t))
    line_p, line_t = (mask & near(valid & ~mask, 1) for mask in (p, t))
    values = (band_p & band_t, band_p | band_t, line_p, line_p & near(line_t, distance))
    return BoundaryCounts(*(int(v.sum()) for v in (*values, line_t, line_t & near(line_p, distance))))


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_counts_equal_distances_between_all_pixels(seed: int) -> None:
    prediction, truth, valid, height = draw(seed)
    tally = BoundaryCounter()
    for row in range(0, len(truth), height):
        tally.add(*(mask[row : row + height] for mask in (prediction, truth, valid)))
    found = tally.finish()
    assert found == {distance: by_hand(prediction, truth, valid, distance) for distance in DISTANCES}


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 9))
def test_growing_bits_equals_distances(seed: int, radius: int) -> None:
    mask = draw(seed)[0]
    everywhere = pack(np.ones_like(mask))
    assert np.array_equal(grow(pack(mask), radius) & everywhere, pack(near(mask, radius)))
    assert count(pack(mask)) == mask.sum()


def test_a_band_is_the_frame_of_a_square() -> None:
    square = np.zeros((40, 40), bool)
    square[10:30, 10:30] = True
    tally = BoundaryCounter()
    tally.add(square, np.roll(square, 3, 1), np.ones_like(square))
    counts = tally.finish()
    assert counts[3].true == 4 * 19
    assert counts[3].either < 2 * (20**2 - 14**2)
    assert counts[5].f1 == 1.0
    assert counts[3].f1 == 1.0  # a shift of 3 px lies within 3 px
    assert counts[3].iou < counts[5].iou < 17 / 23


def test_no_outline_runs_along_nodata_or_the_scenes_edge() -> None:
    mask, valid = np.ones((30, 30), bool), np.ones((30, 30), bool)
    valid[:, 15:] = False
    tally = BoundaryCounter()
    tally.add(mask, mask, valid)
    counts = tally.finish()[3]
    assert counts == BoundaryCounts()
    assert math.isnan(counts.iou)
    assert math.isnan(counts.f1)


def test_scores_of_one_side_alone_and_pooling() -> None:
    assert BoundaryCounts(0, 9, 5, 0, 0, 0).f1 == 0.0
    one = BoundaryCounts(1, 4, 10, 8, 10, 6)
    assert (one.iou, one.f1) == (0.25, pytest.approx(2 * 0.8 * 0.6 / 1.4))
    assert one + one == BoundaryCounts(2, 8, 20, 16, 20, 12)
