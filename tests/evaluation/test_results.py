"""Calibration against scikit-learn and scipy, and a temperature that was put in by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from aerialseg.counts import QUANTA, ScoreHistogram
from aerialseg.evaluation.results import (
    BINS,
    at_limit,
    calibration_error,
    calibration_json,
    fit_temperature,
    log_loss,
    reliability,
    threshold_curve,
)


def draw(seed: int, temperature: float = 1.0, pixels: int = 60_000) -> tuple[np.ndarray, np.ndarray]:
    """Stored probabilities of logits, and truths drawn from the logits divided by a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2.0, pixels)
    truth = rng.random(pixels) < 1 / (1 + np.exp(-logits / temperature))
    return np.round(QUANTA / (1 + np.exp(-logits))).astype(np.uint8), truth


def test_reliability_equals_scikit_learn() -> None:
    stored, truth = draw(0, 2.0)
    shares, means = calibration_curve(truth, stored / QUANTA, n_bins=BINS)
    bins = reliability(ScoreHistogram().add(stored, truth))
    assert [part.building for part in bins] == pytest.approx(shares, abs=0.003)
    assert [part.probability for part in bins] == pytest.approx(means, abs=0.003)
    assert sum(part.pixels for part in bins) == len(stored)


def test_the_calibration_error_by_a_loop() -> None:
    stored, truth = draw(1, 3.0, 5000)
    error = 0.0
    for index in range(BINS):
        inside = (stored.astype(int) * BINS // QUANTA == index) | ((stored == QUANTA) & (index == BINS - 1))
        if inside.any():
            error += inside.mean() * abs((stored[inside] / QUANTA).mean() - truth[inside].mean())
    assert calibration_error(ScoreHistogram().add(stored, truth)) == pytest.approx(error)
    assert calibration_error(ScoreHistogram().add(*draw(2))) < 0.01
    assert math.isnan(calibration_error(ScoreHistogram()))


def test_log_loss_equals_scikit_learn_off_the_ends() -> None:
    stored, truth = draw(3)
    inner = (stored > 0) & (stored < QUANTA)
    histogram = ScoreHistogram().add(stored[inner], truth[inner])
    assert log_loss(histogram) == pytest.approx(sklearn_log_loss(truth[inner], stored[inner] / QUANTA))
    ends = ScoreHistogram().add(np.array([0, 254], np.uint8), np.array([False, True]))
    assert log_loss(ends) == pytest.approx(-np.log(1 - 0.25 / QUANTA))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 4.0])
def test_a_temperature_is_found_again(temperature: float) -> None:
    histogram = ScoreHistogram().add(*draw(4, temperature))
    found = fit_temperature(histogram)
    assert found == pytest.approx(temperature, rel=0.05)
    best = minimize_scalar(lambda t: log_loss(histogram, t), bounds=(0.1, 10), method="bounded")
    assert log_loss(histogram, found) <= best.fun + 1e-9


def test_a_temperature_that_no_trial_bounds_is_known() -> None:
    stored, truth = draw(6)
    backwards, sure = ScoreHistogram().add(stored, ~truth), ScoreHistogram().add(stored, stored >= 127)
    assert at_limit(fit_temperature(backwards)) and fit_temperature(backwards) > 9.9
    assert at_limit(fit_temperature(sure)) and fit_temperature(sure) < 0.101
    assert not at_limit(fit_temperature(ScoreHistogram().add(stored, truth)))


def test_the_threshold_curve_and_the_json() -> None:
    histogram = ScoreHistogram().add(*draw(5))
    curve = threshold_curve(histogram)
    assert len(curve) == QUANTA - 1
    best = max(curve, key=lambda item: item[1].iou)
    found = calibration_json(histogram)
    assert found["iou_at_best_threshold"] == best[1].iou
    assert found["best_threshold"] == best[0]
    assert calibration_json(ScoreHistogram())["expected_calibration_error"] is None
