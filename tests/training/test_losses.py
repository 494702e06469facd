"""The losses against float64 references written with plain loops, and at the edges where public ones turn to nan."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from aerialseg.config.sections import LossSection
from aerialseg.training.losses import IGNORE, building_loss, near_edges

PARTS = ("bce", "dice", "lovasz", "focal", "tversky", "boundary")


def only(part: str, **values: float) -> LossSection:
    """Return a loss of one part alone."""
    return LossSection(**{**dict.fromkeys(PARTS, 0.0), part: 1.0, **values})


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


def pixels(logits: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the labelled pixels' logits and truths in float64."""
    scores, truth = logits[:, 0].double().numpy().ravel(), target.numpy().ravel()
    return scores[truth != IGNORE], truth[truth != IGNORE].astype(float)


def jaccard_loss(wrong: np.ndarray, truth: np.ndarray) -> float:
    """Return 1 - IoU of the building class when the pixels of `wrong` are predicted wrongly."""
    predicted = np.where(wrong, 1 - truth, truth)
    union = np.maximum(predicted, truth).sum()
    return 1 - np.minimum(predicted, truth).sum() / union if union else 0.0


def lovasz_reference(scores: np.ndarray, truth: np.ndarray) -> float:
    """Integrate the Jaccard loss of {error > level} over the level: the Lovasz extension by its definition."""
    errors = np.maximum(0, 1 - scores * (2 * truth - 1))
    levels = np.unique(np.append(errors, 0.0))
    return sum((b - a) * jaccard_loss(errors > a, truth) for a, b in pairwise(levels.tolist()))


def tversky_reference(scores: np.ndarray, truth: np.ndarray, misses: float) -> float:
    p = 1 / (1 + np.exp(-scores))
    right, missed, invented = (p * truth).sum(), ((1 - p) * truth).sum(), (p * (1 - truth)).sum()
    return 1 - (right + 0.5) / (right + misses * missed + (1 - misses) * invented + 0.5)


def focal_reference(scores: np.ndarray, truth: np.ndarray, gamma: float) -> float:
    p = np.where(truth == 1, 1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(scores)))
    return float(((1 - p) ** gamma * -np.log(p)).mean())


def edge_reference(target: np.ndarray, reach: int) -> np.ndarray:
    near = np.zeros(target.shape, bool)
    for image, row, col in np.ndindex(*target.shape):
        around = target[
            image, max(0, row - reach) : row + reach + 1, max(0, col - reach) : col + reach + 1
        ]  # fmt: skip
        near[image, row, col] = target[image, row, col] != IGNORE and {0, 1} <= set(around.ravel().tolist())
    return near


@pytest.mark.parametrize("seed", range(4))
def test_each_loss_equals_its_float64_reference(seed: int) -> None:
    logits, target = case(seed)
    scores, truth = pixels(logits, target)
    near = edge_reference(target.numpy(), 1)
    nearby = torch.where(torch.from_numpy(near), target, IGNORE)
    expected = {
        "lovasz": (only("lovasz"), lovasz_reference(scores, truth)),
        "focal": (only("focal", focal_gamma=1.5), focal_reference(scores, truth, 1.5)),
        "tversky": (only("tversky", tversky_misses=0.8), tversky_reference(scores, truth, 0.8)),
        "boundary": (only("boundary", boundary_px=1), focal_reference(*pixels(logits, nearby), 0.0)),
    }
    for name, (weights, value) in expected.items():
        assert building_loss(logits, target, weights).item() == pytest.approx(value, rel=1e-5), name
    total = LossSection(bce=0.5, dice=2.0, lovasz=0.25, focal=3.0, tversky=0.125, boundary=1.5)
    parts = [getattr(total, name) * building_loss(logits, target, only(name)).item() for name in PARTS]
    assert building_loss(logits, target, total).item() == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_known_special_cases(seed: int) -> None:
    logits, target = case(seed)
    value = {name: building_loss(logits, target, only(name)).item() for name in PARTS}
    assert building_loss(logits, target, only("focal", focal_gamma=0.0)).item() == pytest.approx(value["bce"], rel=1e-5)
    half = building_loss(logits, target, only("tversky", tversky_misses=0.5)).item()
    assert half == pytest.approx(value["dice"], rel=1e-5)
    everything = building_loss(logits, target, only("boundary", boundary_px=64)).item()
    assert everything == pytest.approx(value["bce"], rel=1e-5)


@pytest.mark.parametrize("buildings", [0.0, 0.3, 1.0])
def test_lovasz_at_hard_predictions_is_the_jaccard_loss(buildings: float) -> None:
    """A pixel on the wrong side by a whole margin has the error 2, and the extension is linear along that."""
    rng = np.random.default_rng(5)
    target = (rng.random((3, 9, 9)) < buildings).astype(np.uint8)
    wrong = rng.random(target.shape) < 0.2
    target[rng.random(target.shape) < 0.2] = IGNORE
    signs = np.where((target == 1) ^ wrong, 1.0, -1.0).astype(np.float32)
    loss = building_loss(torch.from_numpy(signs)[:, None], torch.from_numpy(target), only("lovasz")).item()
    labelled = target != IGNORE
    assert loss == pytest.approx(2 * jaccard_loss(wrong[labelled], target[labelled].astype(float)), rel=1e-6)


def test_lovasz_keeps_its_precision_over_millions_of_pixels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((1, 1200, 1200)) < 0.2
    logits = torch.from_numpy((rng.normal(0, 1, truth.shape) + truth * 1.0 - 0.5).astype(np.float32))[:, None]
    logits.requires_grad_()
    building_loss(logits, torch.from_numpy(truth.astype(np.uint8)), only("lovasz")).backward()
    errors = 1 - logits.detach().double().numpy().ravel() * (2.0 * truth.ravel() - 1)
    order = np.argsort(-errors, kind="stable")
    found = truth.ravel()[order].cumsum()
    jaccard = 1 - (found[-1] - found) / (found[-1] + np.arange(1, len(found) + 1) - found)
    expected = np.diff(jaccard, prepend=0.0) * (errors[order] > 0)
    got = np.abs(logits.grad.numpy().ravel()[order].astype(float))  # type: ignore[union-attr]
    assert np.allclose(got, expected, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_near_edges_are_found_by_the_labelled_neighbours_alone(reach: int) -> None:
    rng = np.random.default_rng(reach)
    target = (rng.random((2, 21, 17)) < 0.02).astype(np.uint8)
    target[0, 4:9, 3:12] = 1
    target[rng.random(target.shape) < 0.3] = IGNORE
    near = near_edges(torch.from_numpy(target), reach)
    assert near.any() and not near.all() and np.array_equal(near.numpy(), edge_reference(target, reach))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("truth", [0, 1])
def test_extreme_logits_keep_loss_and_gradient_finite(part: str, truth: int) -> None:
    target = torch.full((1, 2, 4), truth, dtype=torch.uint8)
    target[0, 0, 0] = 1 - truth
    for value in (-1e4, -90.0, 0.0, 90.0, 1e4):
        logits = torch.full((1, 1, 2, 4), value, requires_grad=True)
        loss = building_loss(logits, target, only(part, **({"focal_gamma": 0.5} if part == "focal" else {})))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all(), value  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [part for part in PARTS if part != "lovasz"])
def test_sums_that_are_pooled_give_the_loss_of_the_whole_batch(part: str) -> None:
    """As on several devices: each half adds the other's sums before it divides, and gradients are averaged."""
    whole, target = case(3)
    target[0, :4] = IGNORE  # halves with unequal numbers of labels
    whole.requires_grad_()
    expected = building_loss(whole, target, only(part))
    expected.backward()
    halves = [whole.detach()[half : half + 1].clone().requires_grad_() for half in (0, 1)]
    sums: list[list[torch.Tensor]] = [[], []]
    for number, half in enumerate(halves):
        building_loss(
            half, target[number : number + 1], only(part), lambda s, n=number: sums[n].append(s) or s
        )  # fmt: skip
    total = [a + b for a, b in zip(*sums, strict=True)]
    loss = building_loss(halves[0].detach(), target[:1], only(part), lambda s: total.pop(0))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for number, half in enumerate(halves):
        assert torch.allclose(half.grad[0], whole.grad[number], atol=1e-7)  # type: ignore[index]


@pytest.mark.parametrize("part", PARTS)
def test_a_batch_without_a_label_gives_zero_with_gradient_zero(part: str) -> None:
    logits, target = case(0, ignored=1.1)
    logits.requires_grad_()
    loss = building_loss(logits, target, only(part))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("part", PARTS)
def test_what_stands_on_ignored_pixels_changes_neither_loss_nor_gradient(value: float, part: str) -> None:
    logits, target = case(1)
    spoiled = torch.where((target == IGNORE)[:, None], value, logits).requires_grad_()
    logits.requires_grad_()
    losses = [building_loss(x, target, only(part)) for x in (logits, spoiled)]
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("part", PARTS)
def test_a_card_gives_the_same_loss_and_gradient(part: str) -> None:
    """Run with -m gpu where there is an NVIDIA card."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.choice([0, 0, 1, IGNORE], (4, 128, 128)).astype(np.uint8))
    found = []
    for device in ("cpu", "cuda"):
        logits = torch.from_numpy(rng.normal(0, 3, (4, 1, 128, 128)).astype(np.float32)) if not found else found[0][2]
        leaf = logits.to(device).requires_grad_()
        loss = building_loss(leaf, target.to(device), only(part))
        loss.backward()
        found.append((loss.item(), leaf.grad.cpu(), logits))  # type: ignore[union-attr]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-8)
