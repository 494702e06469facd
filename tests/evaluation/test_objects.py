"""Objects against scipy's labelling and an exhaustive assignment; strips of any height must give the same counts."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from aerialseg.evaluation.objects import ObjectCounter, ObjectCounts, Runs, components, overlaps, shared

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Masks of rectangles and noise, the prediction partly a copy of the truth, and a height of strips."""
    rng = np.random.default_rng(seed)
    rows, cols = rng.integers(1, 40, 2)
    truth, prediction = np.zeros((2, rows, cols), bool)
    for _ in range(rng.integers(0, 8)):
        row, col, height, width = (*rng.integers(0, (rows, cols)), *rng.integers(1, 12, 2))
        truth[row : row + height, col : col + width] = True
        if rng.random() < 0.8:
            row, col = np.maximum(0, np.array((row, col)) + rng.integers(-1, 2, 2))
            prediction[row : row + height, col : col + width] = True
    if rng.random() < 0.5:
        truth, prediction = (
            mask ^ (rng.random((rows, cols)) < rng.choice([0.02, 0.3])) for mask in (truth, prediction)
        )
    valid = np.ones((rows, cols), bool) if rng.random() < 0.5 else rng.random((rows, cols)) > rng.choice([0.01, 0.2])
    return prediction, truth, valid, int(rng.integers(1, rows + 1))


def tally(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, height: int, m2: float | None) -> ObjectCounts:
    objects = ObjectCounter(truth.shape[1], m2)
    for row in range(0, len(truth), height):
        objects.add(*(mask[row : row + height] for mask in (prediction, truth, valid)))
    return objects.finish()


def by_hand(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, m2: float) -> ObjectCounts:
    """Whole arrays, scipy's labels, every pair's IoU, and the best of all assignments."""
    cross = ndimage.generate_binary_structure(2, 1)
    beside = ndimage.binary_dilation(~valid, cross)
    parts = [[labels == n + 1 for n in range(count)] for labels, count in
             (ndimage.label(mask & valid, cross) for mask in (prediction, truth))]  # fmt: skip
    good = {
        (i, j) for i, p in enumerate(parts[0]) for j, t in enumerate(parts[1]) if (p & t).sum() * 2 >= (p | t).sum()
    }
    match = best_assignment(good)
    cut = [{i for i, part in enumerate(side) if (part & beside).any()} for side in parts]
    cut = [cut[0] | {i for i, j in match if j in cut[1]}, cut[1] | {j for i, j in match if i in cut[0]}]
    found = [0, 0, 0, 0], [0, 0, 0, 0]
    total = [0, 0, 0, 0], [0, 0, 0, 0]
    for side in (0, 1):
        for i, part in enumerate(parts[side]):
            area = part.sum() * m2
            size = 0 if area < 50 else 2 if area > 200 else 1
            if i not in cut[side]:
                total[side][size] += 1
                found[side][size] += any(pair[side] == i for pair in match)
    return ObjectCounts(tuple(total[1]), tuple(found[1]), tuple(total[0]), tuple(found[0]), len(cut[0]) + len(cut[1]))


def best_assignment(good: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Try every order of taking pairs; the first of the largest sets in index order."""
    sure = {p for p in good if sum(q[0] == p[0] or q[1] == p[1] for q in good) == 1}
    tied = sorted(good - sure)
    best: set[tuple[int, int]] = set()
    for order in permutations(tied) if len(tied) <= 6 else [tied]:
        taken: set[tuple[int, int]] = set()
        for pair in order:
            if all(pair[0] != q[0] and pair[1] != q[1] for q in taken):
                taken.add(pair)
        best = taken if len(taken) > len(best) else best
    return sure | best


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_counts_equal_labelling_and_an_exhaustive_assignment(seed: int) -> None:
    prediction, truth, valid, height = draw(seed)
    assert tally(prediction, truth, valid, height, 3.0) == by_hand(prediction, truth, valid, 3.0)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 40))
def test_the_height_of_strips_does_not_matter(seed: int, height: int) -> None:
    prediction, truth, valid, other = draw(seed)
    assert tally(prediction, truth, valid, height, 3.0) == tally(prediction, truth, valid, other, 3.0)


def test_an_iou_of_exactly_a_half_is_a_match_and_the_other_half_is_not() -> None:
    """Two parts of a house: one is half of it, the other, as they may not touch, is less."""
    truth, prediction = np.zeros((2, 4, 8), bool)
    truth[:] = True
    prediction[0:2] = prediction[3] = True
    for p, t, height in ((prediction, truth, 1), (truth, prediction, 3)):
        counts = tally(p, t, np.ones_like(truth), height, 1.0)
        assert (sum(counts.right), sum(counts.found)) == (1, 1)
    prediction[1, 7] = False
    assert sum(tally(prediction, truth, np.ones_like(truth), 2, 1.0).right) == 0


def test_corners_do_not_join_and_a_spiral_is_one_object() -> None:
    chess = np.indices((5, 5)).sum(0) % 2 == 0
    assert sum(tally(chess, chess, np.ones_like(chess), 2, 1.0).right) == 13
    spiral = np.zeros((9, 9), bool)
    spiral[0], spiral[:, 8], spiral[8], spiral[2:, 0] = True, True, True, True
    spiral[2, :7], spiral[2:7, 6], spiral[6, 2:7] = True, True, True
    counts = tally(spiral, spiral, np.ones_like(spiral), 1, 1.0)
    assert (sum(counts.true), sum(counts.right)) == (1, 1)


def test_nodata_cuts_an_object_and_its_match() -> None:
    truth = np.zeros((10, 10), bool)
    truth[2:5, 2:5] = truth[6:9, 6:9] = True
    prediction, valid = truth.copy(), np.ones_like(truth)
    valid[5, 3] = False  # touches the first object from below
    counts = tally(prediction, truth, valid, 5, 1.0)
    assert (sum(counts.true), sum(counts.predicted), counts.cut) == (1, 1, 2)
    prediction[4, 3] = False  # the prediction no longer touches it, but its match does
    assert tally(prediction, truth, valid, 5, 1.0).cut == 2
    valid[5, 3], valid[5, 5] = True, False  # only a corner touches
    assert tally(truth, truth, valid, 5, 1.0).cut == 0


def test_sizes_are_split_at_50_and_200_square_metres() -> None:
    truth = np.zeros((12, 600), bool)
    for index, pixels in enumerate((49, 50, 200, 201)):
        truth[3 * index, :pixels] = True
    assert tally(truth, truth, np.ones_like(truth), 4, 1.0).true == (1, 2, 1, 0)
    assert tally(truth, truth, np.ones_like(truth), 4, 0.25).true == (2, 2, 0, 0)
    assert tally(truth, truth, np.ones_like(truth), 4, None).true == (0, 0, 0, 4)


def test_scores_and_pooling() -> None:
    counts = ObjectCounts((4, 2, 1, 0), (1, 2, 1, 0), (2, 2, 1, 0), (1, 2, 1, 0), 3)
    assert (counts.recall, counts.precision, counts.f1) == (4 / 7, 4 / 5, 8 / 12)
    assert (counts.of_size(0).recall, counts.of_size(0).precision) == (1 / 4, 1 / 2)
    assert (counts.of_size(0).f1, counts.of_size(1).f1) == (2 / 6, 1.0)
    other_size = ObjectCounts(true=(1, 0, 0, 0), found=(1, 0, 0, 0), predicted=(0, 1, 0, 0), right=(0, 1, 0, 0))
    assert other_size.f1 == other_size.of_size(0).f1 == other_size.of_size(1).f1 == 1.0, "never above 1"
    assert (counts + counts).true == (8, 4, 2, 0)
    assert (counts + counts).cut == 6
    assert math.isnan(ObjectCounts().f1)
    assert math.isnan(ObjectCounts(predicted=(1, 0, 0, 0)).recall)


def test_memory_is_that_of_a_strip() -> None:
    """Settled objects are forgotten: noise over many strips leaves no more behind than over one."""
    rng = np.random.default_rng(0)
    objects = ObjectCounter(200, 1.0)
    sizes = []
    for _ in range(20):
        objects.add(*(rng.random((2, 40, 200)) < 0.2), np.ones((40, 200), bool))
        sizes.append(len(objects._sides[0].area) + len(objects._pairs.pixels))
    assert max(sizes) < 3 * sizes[0] + 50


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_runs_and_their_overlaps_equal_a_loop(seed: int) -> None:
    one, other, _, _ = draw(seed)
    a, b = Runs.of(one), Runs.of(other)
    assert (a.ends - a.starts).sum() == one.sum()
    pairs = overlaps(a, b)
    expected = [(i, j, min(a.ends[i], b.ends[j]) - max(a.starts[i], b.starts[j])) for i in range(len(a))
                for j in range(len(b)) if max(a.starts[i], b.starts[j]) < min(a.ends[i], b.ends[j])]  # fmt: skip
    assert list(zip(*pairs, shared(a, b, pairs), strict=True)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_components_equal_scipy(seed: int) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(1, 200))
    edges = rng.integers(0, nodes, (2, int(rng.integers(0, 300))))
    count, number = components(nodes, (edges[0], edges[1]))
    expected = connected_components(coo_array((np.ones(edges.shape[1]), edges), shape=(nodes, nodes)), directed=False)
    assert count == expected[0]
    assert len(set(zip(number, expected[1], strict=True))) == count
