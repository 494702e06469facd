"""What training minimises: a weighted sum of losses of building against ground, in float32, over labelled pixels only.

Every loss but Lovasz is a ratio of sums over the batch, and each such sum passes through `all_reduce` before the
division: training on several devices adds them up there, and the loss becomes that of the whole batch.

Distillation (Hinton et al., arXiv:1503.02531), for one class: at temperature T both logits are divided by T, and the
loss is multiplied by T^2, which keeps the size of its gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from torch import Tensor

    from aerialseg.config.sections import DistilSection, LossSection

    AllReduce: TypeAlias = Callable[[Tensor], Tensor]

IGNORE = 255
"""The target value of pixels that teach nothing: no label, or no data in the scene."""


def building_loss(
    logits: Tensor, target: Tensor, weights: LossSection, all_reduce: AllReduce = lambda sums: sums
) -> Tensor:
    """Return the weighted sum of the losses that `weights` asks for as a float32 scalar.

    `logits` is [N, 1, H, W] of any float type, `target` uint8 [N, H, W] with 0 background, 1 building and IGNORE.
    `all_reduce` takes float32 sums of this batch, a vector, and returns those of all batches that count as one, with
    gradients. A batch without a labelled pixel gives 0 with gradient 0. Sums are taken in float32: in float16 the sum
    over one 512 px crop already passes that type's largest number, 65,504.
    """
    labelled = target != IGNORE
    # Replaced before any arithmetic: an infinity times a weight of 0 would be nan in the gradient.
    scores = torch.where(labelled, logits[:, 0].float(), 0.0)
    truth = torch.where(labelled, target, 0).float()
    loss = scores.new_zeros(())
    if weights.bce > 0:
        loss = loss + weights.bce * _mean(_cross_entropy(scores, truth), labelled, all_reduce)
    if weights.dice > 0:
        loss = loss + weights.dice * _dice(scores, truth, labelled, all_reduce)
    if weights.tversky > 0:
        loss = loss + weights.tversky * _tversky(scores, truth, labelled, weights.tversky_misses, all_reduce)
    if weights.focal > 0:
        loss = loss + weights.focal * _mean(_focal(scores, truth, weights.focal_gamma), labelled, all_reduce)
    if weights.boundary > 0:
        near = near_edges(target, weights.boundary_px)
        loss = loss + weights.boundary * _mean(_cross_entropy(scores, truth), near, all_reduce)
    if weights.lovasz > 0:
        loss = loss + weights.lovasz * _lovasz(scores, truth, labelled)
    return loss


def near_edges(target: Tensor, reach: int) -> Tensor:
    """Return where, bool [N, H, W], a labelled pixel has one of the other class within `reach` rows and columns."""
    seen = []
    for label in (0, 1):
        found = (target == label).float()[:, None]
        for kernel, margin in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
            found = functional.max_pool2d(found, kernel, stride=1, padding=margin)
        seen.append(found[:, 0] > 0)
    return seen[0] & seen[1] & (target != IGNORE)


def _mean(each: Tensor, counted: Tensor, all_reduce: AllReduce) -> Tensor:
    """Average the counted pixels' values."""
    sums = all_reduce(torch.stack([torch.where(counted, each, 0.0).sum(), counted.sum().float()]))
    return sums[0] / sums[1].clamp(min=1)


def _cross_entropy(scores: Tensor, truth: Tensor) -> Tensor:
    each: Tensor = functional.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    return each


def _focal(scores: Tensor, truth: Tensor, gamma: float) -> Tensor:
    """Return cross-entropy times (1 - probability of the truth)^gamma: what is right already counts less.

    Lin et al., arXiv:1708.02002. The power is an exponential of a logarithm, whose gradient is finite everywhere.
    """
    signed = torch.where(truth == 1, scores, -scores)
    return torch.exp(-gamma * functional.softplus(signed)) * functional.softplus(-signed)


def _overlaps(scores: Tensor, truth: Tensor, labelled: Tensor, all_reduce: AllReduce) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of probability on buildings, of probability, and of buildings."""
    probability = torch.where(labelled, scores.sigmoid(), 0.0)
    overlap, predicted, building = all_reduce(
        torch.stack([(probability * truth).sum(), probability.sum(), truth.sum()])
    ).unbind()
    return overlap, predicted, building


def _dice(scores: Tensor, truth: Tensor, labelled: Tensor, all_reduce: AllReduce) -> Tensor:
    """Return 1 - Dice, summed over the batch so that crops without buildings do not each count as a perfect one.

    The 1 added above and below the line makes a batch without buildings cost 0 when nothing is found.
    """
    overlap, predicted, building = _overlaps(scores, truth, labelled, all_reduce)
    return 1.0 - (2.0 * overlap + 1.0) / (predicted + building + 1.0)


def _tversky(scores: Tensor, truth: Tensor, labelled: Tensor, misses: float, all_reduce: AllReduce) -> Tensor:
    """Return Dice loss in which missed buildings weigh `misses` and invented ones the rest; Dice itself at 0.5.

    Salehi et al., arXiv:1706.05721.
    """
    overlap, predicted, building = _overlaps(scores, truth, labelled, all_reduce)
    wrong = misses * (building - overlap) + (1.0 - misses) * (predicted - overlap)
    return 1.0 - (overlap + 0.5) / (overlap + wrong + 0.5)


def _lovasz(scores: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Return the Lovasz hinge: a convex bound that at hard predictions is the Jaccard loss, 1 - IoU, of the batch.

    Berman et al., arXiv:1705.08790. Pixels by falling hinge error, each error times what its pixel adds to the Jaccard
    loss once all before it are wrong. That is written out, 1 / union for a building and intersection / (union (union
    - 1)) for ground, for of millions of pixels the difference of two Jaccard losses is lost in float32.
    """
    errors = torch.where(labelled, 1.0 - scores * (2.0 * truth - 1.0), -torch.inf).flatten()
    errors, order = errors.sort(descending=True, stable=True)
    building = truth.flatten()[order] == 1
    missed = building.cumsum(0)
    union = missed[-1] + torch.arange(1, len(building) + 1, device=missed.device) - missed
    ground = torch.where(union > 1, (missed[-1] - missed) / (union.float() * (union - 1).clamp(min=1)), 1.0)
    return torch.dot(functional.relu(errors), torch.where(building, 1.0 / union, ground))


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor,
    section: DistilSection,
    all_reduce: AllReduce = lambda sums: sums,
) -> Tensor:
    """Return the cross-entropy of `logits` to the teacher's probabilities as a float32 scalar, weighted.

    `logits` and `teacher_logits`, these over the teacher's own temperature, are [N, 1, H, W]; the mean is over `valid`
    pixels, bool [N, H, W], labelled or not. `all_reduce` is as in `building_loss`.
    """
    softness = section.temperature
    scores = torch.where(valid, logits[:, 0].float(), 0.0) / softness
    targets = torch.where(valid, teacher_logits[:, 0].float() / softness, 0.0).sigmoid()
    each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    total, count = all_reduce(torch.stack([torch.where(valid, each, 0.0).sum(), valid.sum().float()]))
    loss: Tensor = section.weight * softness**2 * total / count.clamp(min=1)
    return loss
