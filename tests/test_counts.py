"""Counts against scikit-learn, a brute-force threshold sweep, and the published row they must reproduce."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from aerialseg.counts import QUANTA, SCORES, Confusion, ScoreHistogram, pooled, quantum_of

counts = st.builds(Confusion, *[st.integers(0, 10**10)] * 4)
seeds = st.integers(0, 2**32 - 1)


def pixels(seed: int, size: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    share = draw.random(3)
    return draw.random(size) < share[0], draw.random(size) < share[1], draw.random(size) < share[2]


def histogram_of(seed: int) -> tuple[ScoreHistogram, np.ndarray, np.ndarray]:
    """A histogram with its pixels, drawn so that ties and empty classes come up."""
    draw = np.random.default_rng(seed)
    values = draw.choice(QUANTA + 1, size=draw.integers(1, 40))
    probability = draw.choice(values, size=200).astype(np.uint8)
    truth = draw.random(200) < draw.choice([0.0, 0.1, 0.5, 1.0])
    return ScoreHistogram().add(probability, truth), probability, truth


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_scores_equal_scikit_learn(seed: int) -> None:
    prediction, truth, _ = pixels(seed)
    found = Confusion.of(prediction, truth)
    tn, fp, fn, tp = metrics.confusion_matrix(truth, prediction, labels=[False, True]).ravel()
    assert found == Confusion(tp=tp, fp=fp, fn=fn, tn=tn)
    expected = {
        "iou": metrics.jaccard_score(truth, prediction, zero_division=0),
        "accuracy": metrics.accuracy_score(truth, prediction),
        "precision": metrics.precision_score(truth, prediction, zero_division=0),
        "recall": metrics.recall_score(truth, prediction, zero_division=0),
        "specificity": metrics.recall_score(~truth, ~prediction, zero_division=0),
        "f1": metrics.f1_score(truth, prediction, zero_division=0),
        "mcc": metrics.matthews_corrcoef(truth, prediction),
    }
    assert tuple(expected) == SCORES
    for name, value in expected.items():  # where scikit-learn says 0 for want of pixels, we say nan
        score = getattr(found, name)
        assert (0.0 if math.isnan(score) else score) == pytest.approx(value, abs=1e-12), name


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_counts_equal_a_loop_over_valid_pixels(seed: int) -> None:
    prediction, truth, valid = pixels(seed, 60)
    expected = [0, 0, 0, 0]
    for p, t, v in zip(prediction, truth, valid, strict=True):
        if v:
            expected[{(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[bool(p), bool(t)]] += 1
    assert Confusion.of(prediction, truth, valid) == Confusion(*expected)


@given(counts, counts, counts)
def test_addition_pools_in_any_order(a: Confusion, b: Confusion, c: Confusion) -> None:
    assert (a + b) + c == a + (b + c) == pooled([c, a, b])
    assert a + Confusion() == a
    assert (a + b).pixels == a.pixels + b.pixels


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 300))
def test_counting_in_parts_equals_counting_at_once(seed: int, cut: int) -> None:
    prediction, truth, valid = pixels(seed)
    parts = [Confusion.of(prediction[s], truth[s], valid[s]) for s in (slice(cut), slice(cut, None))]
    assert pooled(parts) == Confusion.of(prediction, truth, valid)


@given(counts)
def test_scores_stay_in_their_range(count: Confusion) -> None:
    for name in SCORES:
        score = getattr(count, name)
        assert math.isnan(score) or (-1 if name == "mcc" else 0) <= score <= 1 + 1e-12, name
    if count.tp + count.fp + count.fn:
        assert count.f1 == pytest.approx(2 * count.iou / (1 + count.iou))


def test_pooling_the_cities_gives_the_published_overall_row() -> None:
    """The organisers' own answer to a submission: IoU and accuracy of five cities, and of the whole test set.

    The row is printed in the README of github.com/margokhokhlova/aerial_segmentation. Every city has N = 36 scenes of
    5000 x 5000 px, so IoU and accuracy give back the counts: errors = fp + fn = (1 - accuracy) N, and
    tp = iou errors / (1 - iou). How fp and fn share the errors is not published and touches neither score. The
    overall row is the ratio of the summed counts; the mean of the cities would be nearly one point lower.
    """
    pixels_per_city = 36 * 5000 * 5000
    published = {
        "bellingham": (0.705244658628, 0.967294883333),
        "bloomington": (0.661219544124, 0.964045216667),
        "innsbruck": (0.705316948749, 0.960757862222),
        "sfo": (0.741421801289, 0.907259936667),
        "tyrol-e": (0.75462637417, 0.975925242222),
    }
    cities = []
    for iou, accuracy in published.values():
        errors = round((1 - accuracy) * pixels_per_city)
        tp = round(iou * errors / (1 - iou))
        cities.append(Confusion(tp=tp, fp=errors // 3, fn=errors - errors // 3, tn=pixels_per_city - tp - errors))
        assert (cities[-1].iou, cities[-1].accuracy) == pytest.approx((iou, accuracy), abs=1e-9)
    overall = pooled(cities)
    assert overall.iou == pytest.approx(0.721548268122, abs=1e-9)
    assert overall.accuracy == pytest.approx(0.955056628222, abs=1e-9)
    assert np.mean([city.iou for city in cities]) == pytest.approx(0.7136, abs=5e-5)


def test_scores_without_pixels_are_nan() -> None:
    assert all(math.isnan(getattr(Confusion(), name)) for name in (*SCORES, "building_fraction"))
    empty_scene = Confusion(tn=100)
    assert math.isnan(empty_scene.iou)
    assert empty_scene.accuracy == 1.0
    assert Confusion(tp=1, fn=1).mcc != Confusion(tp=1, fn=1).mcc  # nan: prediction and truth hold one class


def test_counting_refuses_other_shapes_and_types() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="one shape"):
        Confusion.of(mask, mask[:2])
    with pytest.raises(ValueError, match="one shape"):
        Confusion.of(mask.astype(np.uint8), mask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        ScoreHistogram().add(np.zeros(4, np.uint8), mask)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantum_of(1.5)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 1))
def test_histogram_threshold_equals_thresholding_the_pixels(seed: int, threshold: float) -> None:
    histogram, probability, truth = histogram_of(seed)
    assert histogram.confusion(threshold) == Confusion.of(probability >= round(254 * threshold), truth)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_best_threshold_equals_brute_force(seed: int) -> None:
    histogram, probability, truth = histogram_of(seed)
    scores = [Confusion.of(probability >= q, truth).iou for q in range(1, QUANTA)]
    threshold, iou = histogram.best_threshold()
    assert 0 < threshold < 1
    if np.nanmax([0, *scores]) == 0:
        assert threshold == 0.5
    else:
        assert iou == pytest.approx(np.nanmax(scores), abs=1e-15)
        best = [q for q, s in enumerate(scores, start=1) if s == iou]
        assert abs(quantum_of(threshold) - 127) == min(abs(q - 127) for q in best)
    assert iou == pytest.approx(histogram.confusion(threshold).iou, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_histogram_leaves_out_invalid_and_nodata_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    probability = draw.integers(0, 256, (20, 10), dtype=np.uint8)
    truth, valid = draw.random((20, 10)) < 0.4, draw.random((20, 10)) < 0.7
    counted = valid & (probability != 255)
    histogram = ScoreHistogram().add(probability, truth, valid)
    assert histogram.counts.sum() == counted.sum()
    assert histogram.confusion(0.5) == Confusion.of(probability >= 127, truth, counted)
    halves = ScoreHistogram().add(probability[:7], truth[:7], valid[:7])
    other = ScoreHistogram().add(probability[7:], truth[7:], valid[7:])
    assert ((halves + other).counts == histogram.counts).all()


def test_every_stored_probability_is_its_own_threshold() -> None:
    assert [quantum_of(q / QUANTA) for q in range(QUANTA + 1)] == list(range(QUANTA + 1))
