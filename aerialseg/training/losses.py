"""What training minimises: binary cross-entropy plus Dice, in float32, over labelled pixels only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from aerialseg.config import LossSection

IGNORE = 255
"""The target value of pixels that teach nothing: no label, or no data in the scene."""


def building_loss(logits: Tensor, target: Tensor, weights: LossSection) -> Tensor:
    """Return the weighted sum of cross-entropy and Dice loss as a float32 scalar.

    `logits` is [N, 1, H, W] of any float type, `target` uint8 [N, H, W] with 0 background, 1 building and IGNORE. A
    batch without a labelled pixel gives 0 with gradient 0. Sums are taken in float32: in float16 the sum over one
    512 px crop already passes that type's largest number, 65,504.
    """
    labelled = target != IGNORE
    # Replaced before any arithmetic: an infinity times a weight of 0 would be nan in the gradient.
    scores = torch.where(labelled, logits[:, 0].float(), 0.0)
    truth = torch.where(labelled, target, 0).float()
    loss = scores.new_zeros(())
    if weights.bce > 0:
        loss = loss + weights.bce * _cross_entropy(scores, truth, labelled)
    if weights.dice > 0:
        loss = loss + weights.dice * _dice(scores, truth, labelled)
    return loss


def _cross_entropy(scores: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Average the cross-entropy over labelled pixels."""
    each = functional.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    return torch.where(labelled, each, 0.0).sum() / labelled.sum().clamp(min=1)


def _dice(scores: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Return 1 - Dice, pooled over the batch so that crops without buildings do not each count as a perfect one.

    The 1 added above and below the line makes a batch without buildings cost 0 when nothing is found.
    """
    probability = torch.where(labelled, scores.sigmoid(), 0.0)
    overlap = (probability * truth).sum()
    return 1.0 - (2.0 * overlap + 1.0) / (probability.sum() + truth.sum() + 1.0)
