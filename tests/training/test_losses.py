"""The loss against a float64 reference written with plain loops, and at the edges where public ones turn to nan."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aerialseg.config import LossSection
from aerialseg.training.losses import IGNORE, building_loss


def case(seed: int, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 4, (2, 1, 7, 5)).astype(np.float32))
    target = rng.integers(0, 2, (2, 7, 5)).astype(np.uint8)
    target[rng.random(target.shape) < ignored] = IGNORE
    return logits, torch.from_numpy(target)


def reference(logits: torch.Tensor, target: torch.Tensor, weights: LossSection) -> float:
    pairs = [
        (float(z), int(t)) for z, t in zip(logits.flatten(), target.flatten(), strict=True) if int(t) != IGNORE
    ]  # fmt: skip
    probabilities = [1 / (1 + math.exp(-z)) for z, _ in pairs]
    entropy = -sum(
        math.log(p) if t else math.log1p(-p) for p, (_, t) in zip(probabilities, pairs, strict=True)
    ) / len(pairs)  # fmt: skip
    overlap = sum(p * t for p, (_, t) in zip(probabilities, pairs, strict=True))
    dice = 1 - (2 * overlap + 1) / (sum(probabilities) + sum(t for _, t in pairs) + 1)
    return weights.bce * entropy + weights.dice * dice


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("bce", "dice"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_loss_equals_a_float64_reference(seed: int, bce: float, dice: float) -> None:
    logits, target = case(seed)
    weights = LossSection(bce=bce, dice=dice)
    assert building_loss(logits, target, weights).item() == pytest.approx(reference(logits, target, weights), rel=1e-5)


def test_a_batch_without_a_label_gives_zero_with_gradient_zero() -> None:
    logits, target = case(0, ignored=1.1)
    logits.requires_grad_()
    loss = building_loss(logits, target, LossSection())
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_stands_on_ignored_pixels_changes_neither_loss_nor_gradient(value: float) -> None:
    logits, target = case(1)
    spoiled = torch.where((target == IGNORE)[:, None], value, logits).requires_grad_()
    logits.requires_grad_()
    losses = [building_loss(x, target, LossSection()) for x in (logits, spoiled)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    assert torch.equal(logits.grad, spoiled.grad)  # type: ignore[arg-type]


def test_half_precision_logits_of_whole_crops_do_not_overflow() -> None:
    logits = torch.full((4, 1, 512, 512), 3.0, dtype=torch.float16, requires_grad=True)
    loss = building_loss(logits, torch.ones(4, 512, 512, dtype=torch.uint8), LossSection())
    loss.backward()
    assert loss.dtype == torch.float32
    probability = 1 / (1 + math.exp(-3))
    assert loss.item() == pytest.approx(-math.log(probability) + 1 - 2 * probability / (probability + 1), rel=1e-3)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_perfect_and_empty_batches_cost_nothing() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, 2:5, 2:5] = 1
    for truth in (target, torch.zeros_like(target)):
        logits = torch.where(truth[:, None] == 1, 40.0, -40.0)
        assert building_loss(logits, truth, LossSection()).item() == pytest.approx(0.0, abs=1e-6)


def test_confident_wrong_logits_keep_a_gradient() -> None:
    logits = torch.full((1, 1, 4, 4), -60.0, requires_grad=True)
    building_loss(logits, torch.ones(1, 4, 4, dtype=torch.uint8), LossSection()).backward()
    assert (logits.grad < -0.01).all()  # type: ignore[operator]
