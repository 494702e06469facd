"""What probabilities are worth: the score at every threshold, and whether 0.7 means building seven times in ten.

All of it comes from a histogram of stored probability by truth, so that no probability is kept or read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aerialseg.counts import QUANTA, Confusion, ScoreHistogram

BINS = 15
"""As in Guo et al., "On calibration of modern neural networks" (https://arxiv.org/abs/1706.04599)."""

TEMPERATURES = (0.1, 10.0)
"""The temperatures among which the best is sought."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pixels whose probability of building lies in one of BINS equal ranges."""

    pixels: int
    probability: float
    """Their mean probability; nan without pixels, and `building` likewise."""
    building: float
    """The share of them that is building in truth."""


def reliability(histogram: ScoreHistogram) -> tuple[Bin, ...]:
    """Return the bins in order of probability; a calibrated model has equal probability and share in each."""
    quanta = np.arange(QUANTA + 1)
    place = np.minimum(quanta * BINS // QUANTA, BINS - 1)
    building, either = histogram.counts[1], histogram.counts.sum(axis=0)
    bins = []
    for index in range(BINS):
        inside = place == index
        pixels = int(either[inside].sum())
        expected, found = float((either * quanta)[inside].sum()) / QUANTA, int(building[inside].sum())
        bins.append(Bin(pixels, expected / pixels, found / pixels) if pixels else Bin(0, np.nan, np.nan))
    return tuple(bins)


def calibration_error(histogram: ScoreHistogram) -> float:
    """Return the expected calibration error: mean |probability - share of building| over pixels; nan without any.

    Most pixels are sure background in any scene and hardly add to it, so it is small beside that of whole images.
    """
    bins = [part for part in reliability(histogram) if part.pixels]
    pixels = sum(part.pixels for part in bins)
    return sum(part.pixels * abs(part.probability - part.building) for part in bins) / pixels if pixels else np.nan


def threshold_curve(histogram: ScoreHistogram) -> list[tuple[float, Confusion]]:
    """Return the counts at each threshold that a mask can be made with, 1/254 to 253/254."""
    return [(quantum / QUANTA, histogram.confusion(quantum / QUANTA)) for quantum in range(1, QUANTA)]


def log_loss(histogram: ScoreHistogram, temperature: float = 1.0) -> float:
    """Return the mean negative log likelihood, in nats a pixel, with the logits divided by `temperature`.

    A stored probability stands for its logit. What is stored as 0 or 254 lies within 0.2 % of 0 or 1 and how near is
    lost: the middle of that range, 0.1 %, is taken for all of it.
    """
    stored = np.arange(QUANTA + 1, dtype=np.float64)
    stored[0], stored[QUANTA] = 0.25, QUANTA - 0.25
    logits = np.log(stored / (QUANTA - stored)) / temperature
    background, building = histogram.counts
    total = float(histogram.counts.sum())
    loss = building @ np.logaddexp(0, -logits) + background @ np.logaddexp(0, logits)
    return float(loss) / total if total else np.nan


def fit_temperature(histogram: ScoreHistogram) -> float:
    """Return what logits should be divided by for the likeliest probabilities (Guo et al. 2017), within TEMPERATURES.

    The log loss is convex in the inverse temperature, so a golden-section search finds its only minimum. Probabilities
    of one window lie in the histogram, blended ones do not come from one logit: how good the result is shows when the
    scenes are predicted with it.
    """
    low, high = np.log(TEMPERATURES)
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(60):
        if log_loss(histogram, float(np.exp(left))) < log_loss(histogram, float(np.exp(right))):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return float(np.exp((low + high) / 2))


def at_limit(temperature: float) -> bool:
    """Return whether a fitted temperature lies at an end of TEMPERATURES: the best one lies outside, or nowhere."""
    low, high = TEMPERATURES
    return not low * 1.001 < temperature < high / 1.001


def calibration_json(histogram: ScoreHistogram) -> dict[str, Any]:
    """Return plain values: error, log loss, reliability bins, the best threshold and the IoU there and at 0.5."""
    best, iou = histogram.best_threshold()
    error = calibration_error(histogram)
    bins = [
        {"pixels": part.pixels, "probability": part.probability, "building": part.building}
        for part in reliability(histogram)
        if part.pixels
    ]
    return {
        "expected_calibration_error": _known(error),
        "log_loss": _known(log_loss(histogram)),
        "reliability": bins,
        "best_threshold": best,
        "iou_at_best_threshold": _known(iou),
        "iou_at_half": _known(histogram.confusion(0.5).iou),
    }


def _known(value: float) -> float | None:
    return None if value != value else float(value)
