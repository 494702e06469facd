"""The gradients of one step: forward, loss and backward of its batches, then clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aerialseg.errors import ConfigError
from aerialseg.training.distillation import lesson
from aerialseg.training.losses import IGNORE, building_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aerialseg.models.build import Segmenter
    from aerialseg.training.batches import Batch
    from aerialseg.training.job import Job

LEAST_SHARE = 1e-12
"""Of labelled pixels, below that of any batch that has one."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What is known of a step's gradients; they themselves lie in the network, clipped."""

    loss: float
    norm: float
    """Of all of them together, before clipping."""
    names: tuple[str, ...]
    """The tiles they come from."""


def keep_fewer_activations(model: Segmenter) -> None:
    """Have the encoder's activations computed again in the backward pass instead of kept; gradients stay the same.

    Chen et al., arXiv:1604.06174. Raises ConfigError for an encoder that cannot, and for one with BatchNorm, whose
    running statistics would count every batch twice.
    """
    encoder = model.network.get_submodule("encoder")
    inner = getattr(encoder, "model", None)  # a timm encoder's network
    able: list[Any] = [part for part in (encoder, inner) if hasattr(part, "set_grad_checkpointing")]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    if normed or not able:
        why = "has BatchNorm, whose statistics would count twice" if normed else "has no way to do that"
        raise ConfigError(
            f"run.checkpoint_activations: encoder {type(encoder).__name__} {why}; leave it off, and take a smaller"
            " data.batch with a larger optimizer.accumulate, or a transformer"
        )
    able[0].set_grad_checkpointing(True)


def gather_gradients(job: Job, batches: Iterator[Batch], *, frozen: bool = False) -> Gradients:
    """Take `optimizer.accumulate` batches and leave the gradients of one batch of all their crops in the network.

    Each batch counts by its labelled pixels, so that this is exact for the losses that are means over pixels. A
    `frozen` encoder gets no gradients, and its norms use and keep the statistics they have; what is computed for it
    is thrown away, since processes that train together expect a gradient of every weight. The forward pass alone runs
    under autocast; the loss is float32.
    """
    encoder, parts = job.model.network.get_submodule("encoder"), job.config.optimizer.accumulate
    if encoder.training == frozen:
        encoder.train(not frozen)
    names: list[str] = []
    total = labelled = torch.zeros((), device=job.fabric.device)
    for part in range(1, parts + 1):
        batch = next(batches)
        names += batch.names
        moved = batch.to(job.fabric.device)
        with job.fabric.no_backward_sync(job.forward, enabled=part < parts):
            logits = job.forward(moved.pixels, moved.valid)
            loss = building_loss(logits, moved.target, job.config.loss, job.ranks.pooled)
            share = job.ranks.mean((moved.target != IGNORE).float().mean()) if parts > 1 else loss.new_ones(())
            if job.teacher is not None:  # unlabelled ground teaches too, so batches count alike
                loss, share = loss + lesson(job, job.teacher, logits, moved), torch.ones_like(share)
            job.fabric.backward(loss * share)
        total, labelled = total + loss.detach() * share, labelled + share
        if part < parts:
            labelled.item()  # waits for the device: the next batch may be read into this one's memory
    if frozen:
        for parameter in encoder.parameters():
            parameter.grad = None
    labelled = labelled.clamp(min=LEAST_SHARE)
    if parts > 1:
        torch._foreach_div_([x.grad for x in job.model.parameters() if x.grad is not None], labelled)
    largest = job.config.optimizer.clip or math.inf
    norm = job.fabric.clip_gradients(job.forward, job.optimizer, max_norm=largest, error_if_nonfinite=False)
    measured = job.ranks.mean(torch.stack([total / labelled, norm]))
    value, length = measured.tolist()  # the one place where the host waits for a step
    return Gradients(value, length, tuple(names))
